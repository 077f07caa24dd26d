"""What `plan` goes by: hosting, demand and API prices, each from flags, the config or the ledger."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

from exporter.cli.options import UnusableError
from exporter.cli.plan_inputs import CONFIG, FLAG, LEDGER, Inputs, Number, Sources
from exporter.clock import SystemClock
from exporter.config.model import Config, Engine
from exporter.config.prices import ApiPrices, NetworkPrice, StoragePrice
from exporter.core.api_prices import ApiPrice, configured
from exporter.core.break_even import label
from exporter.core.money import NANO, Category, Kind, nano_usd
from exporter.core.planning import HOURS, Api, Demand, Figure, Hosting, api_of, product, ratio
from exporter.core.planning_measured import Measured
from exporter.core.prices import gpu_timeline, in_force
from exporter.core.standing import standing_costs
from exporter.sources.list_prices import ListPriceError, look_up

_GB: Final = 10**9
_JOULES_A_WATT_HOUR: Final = 3600

Flags = Mapping[str, Any]


def gpu(found: Sources, flags: Flags) -> tuple[Fraction, Fraction]:
    """Return what one GPU costs an hour in US dollars, and how many a replica has."""
    inputs, engine, measured = found.inputs, found.engine, found.measured
    count = (FLAG, flags["gpu_count"]), (CONFIG, engine.gpus_charged if engine else None)
    given = flags["gpu_usd_per_hour"]
    of_config = _configured_gpu(found) if given is None else None
    gpus = inputs.first("gpu.count", *count, default=1) or Fraction(0)
    expect_some("--gpu.count", gpus)
    mean = ratio(measured.compute_usd_per_hour, gpus) if measured else None
    return inputs.needed("gpu.usd-per-hour", (FLAG, given), (CONFIG, of_config), (LEDGER, mean)), gpus


def expect_some(flag: str, gpus: Number | None) -> None:
    """Raise UnusableError where a number of GPUs is given, and is 0."""
    if gpus == 0:
        raise UnusableError(f"{flag}: expected more than 0, since GPUs are what a month costs, found 0")


def _configured_gpu(found: Sources) -> Fraction | None:
    """Return the config's price of one GPU that is in force now, with the energy that it assumes."""
    if found.config is None:
        return None
    config = found.config
    names = {config.gpu.name: Fraction(1)} if config.gpu.name else {}
    price = in_force(gpu_timeline(config.prices.gpu, names), SystemClock().now().wall)
    if price.nano_usd_per_hour is None:
        if price.source == "by_name":
            found.inputs.note("the config prices GPUs by name, and names no gpu.name that it lists")
        return None
    if price.nano_usd_per_joule and price.assumed_watts is None:
        found.inputs.note("the energy of the GPUs is not in it, since the config assumes no watts")
    energy = price.nano_usd_per_joule * _JOULES_A_WATT_HOUR * (price.assumed_watts or 0)
    return (price.nano_usd_per_hour + energy) / NANO


def hosting(found: Sources, flags: Flags) -> Hosting:
    """Return what is paid for whether or not anybody asks."""
    inputs, measured, engine = found.inputs, found.measured, found.engine
    usd, gpus = gpu(found, flags)
    best = inputs.first(
        "max-output-tokens-per-second",
        (FLAG, flags["max_rate"]),
        (CONFIG, engine.max_output_tokens_per_second if engine else None),
        (LEDGER, measured.most_output_tokens_per_second if measured else None),
    )
    return Hosting(
        gpu_usd_per_hour=usd,
        gpus=gpus,
        replicas=int(inputs.first("replicas", (FLAG, flags["replicas"]), default=1) or 1),
        storage_usd_per_month=_storage(found, flags),
        other_usd_per_hour=_other(found, flags),
        most_output_tokens_per_second=best,
    )


def _storage(found: Sources, flags: Flags) -> Fraction:
    """Return what stored weights cost a month: an engine's equal part, where the config shares them."""
    inputs, price = found.inputs, _configured_storage(found)
    given = flags["weights_gb"], flags["storage_usd"]
    if price is None and any(value is None for value in given) and any(value is not None for value in given):
        raise UnusableError("expected --weights-gb and --storage.usd-per-gb-month together, found one of them")
    if price is None and given == (None, None) and found.measured is not None:
        hourly = found.measured.usd_per_hour(Category.STORAGE)
        if hourly is not None:
            return inputs.needed("storage.usd-per-month", (LEDGER, hourly * HOURS))
    sharers = len(found.config.engines) if found.config else 1
    weights = (CONFIG, Fraction(price.weights_gb) / sharers if price else None)
    usd = (CONFIG, price.usd_per_gb_month if price else None)
    size = inputs.first("weights-gb", (FLAG, flags["weights_gb"]), weights, default=0) or Fraction(0)
    return size * (inputs.first("storage.usd-per-gb-month", (FLAG, flags["storage_usd"]), usd, default=0) or 0)


def _configured_storage(found: Sources) -> StoragePrice | None:
    costs = standing_costs(found.config) if found.config else ()
    return next((item.price for item in costs if isinstance(item.price, StoragePrice)), None)


def _other(found: Sources, flags: Flags) -> Fraction:
    """Return what else is paid an hour."""
    of_config, measured = _configured_other(found.config, found.engine), found.measured
    hourly = measured.usd_per_hour(Category.OTHER) if measured and of_config is None else None
    told = (FLAG, flags["other_usd"]), (CONFIG, of_config), (LEDGER, hourly)
    return found.inputs.first("other.usd-per-hour", *told, default=0) or Fraction(0)


def _configured_other(config: Config | None, engine: Engine | None) -> Fraction | None:
    if config is None or engine is None:
        return None
    mine = [item for item in config.prices.other if item.engine in (None, engine.name)]
    parts = (nano_usd(item.usd_per_hour) / (1 if item.engine else len(config.engines)) for item in mine)
    return sum(parts, Fraction(0)) / NANO if mine else None


def demand(found: Sources, flags: Flags) -> Demand:
    """Return what users ask for."""
    inputs, measured = found.inputs, found.measured
    requests = inputs.first(
        "requests-per-day", (FLAG, flags["requests_per_day"]), (LEDGER, measured.requests_per_day if measured else None)
    )
    told = {kind: _tokens(found, kind) for kind in (Kind.PROMPT_TOKENS, Kind.OUTPUT_TOKENS, Kind.CACHED_PROMPT_TOKENS)}
    cached = told[Kind.CACHED_PROMPT_TOKENS] if flags["input_tokens"] is None else None
    prompt = (FLAG, flags["input_tokens"]), (LEDGER, told[Kind.PROMPT_TOKENS])
    of_prompt = inputs.first("input-tokens", *prompt, default=0) or Fraction(0)
    of_cache = inputs.first("cached-input-tokens", (FLAG, flags["cached_tokens"]), (LEDGER, cached), default=0)
    if of_cache and of_cache > of_prompt:
        most = f"at most the {float(of_prompt):g} input tokens that they are part of"
        raise UnusableError(f"--cached-input-tokens: expected {most}, found {float(of_cache):g}")
    return Demand(
        requests_per_day=requests,
        input_tokens=of_prompt,
        cached_input_tokens=of_cache or Fraction(0),
        output_tokens=inputs.first("output-tokens", (FLAG, flags["output_tokens"]), (LEDGER, told[Kind.OUTPUT_TOKENS])),
        network_usd_per_request=_network(found, flags),
    )


def _tokens(found: Sources, kind: Kind) -> Fraction | None:
    return found.measured.per_request(kind) if found.measured else None


def _network(found: Sources, flags: Flags) -> Fraction | None:
    """Return what the bytes of a request cost; None where there is a price, and nobody says how many they are."""
    inputs, configured_price = found.inputs, found.config.prices.network if found.config else None
    sent, given = flags["network_bytes"], flags["network_usd"]
    if given is None and sent is None and found.measured:
        measured = found.measured.network_usd_per_request
        if measured is not None:
            return inputs.needed("network.usd-per-request", (LEDGER, measured))
    if (sent is None) != (given is None) and configured_price is None:
        raise UnusableError("expected --network.usd-per-gb and --network.bytes-per-request together, found one of them")
    per_gb = inputs.first("network.usd-per-gb", (FLAG, given), (CONFIG, _billable(configured_price)), default=0)
    if per_gb and sent is None:
        inputs.note("network is not in the total: give --network.bytes-per-request")
        return None
    return product(per_gb, inputs.first("network.bytes-per-request", (FLAG, sent), default=0), Fraction(1, _GB))


def _billable(price: NetworkPrice | None) -> Fraction | None:
    return None if price is None else Fraction(price.usd_per_gb) * Fraction(price.billable_ratio)


def api(found: Sources, flags: Flags, input_tokens: Fraction) -> Api | None:
    """Return the prices of the API to compare with: numbers, or a model by its name; None where none is named."""
    inputs = found.inputs
    numbers = flags["api_input"], flags["api_cached"], flags["api_output"]
    if flags["api_model"] is not None and any(value is not None for value in numbers):
        raise UnusableError("expected --api.model or prices of an API by number, found both")
    if flags["api_output"] is None and any(value is not None for value in numbers):
        raise UnusableError("expected --api.usd-per-million-output beside the other prices of the API, found none")
    if flags["api_output"] is not None:
        return _by_number(inputs, flags, input_tokens)
    price = _named(found, flags["api_model"])
    if price is None:
        return None
    rule = api_of(price.rule(int(SystemClock().now().unix_seconds)), input_tokens)
    inputs.needed("api.usd-per-million-input", (price.source, rule.input))
    if rule.cached_input is not None:
        inputs.needed("api.usd-per-million-cached-input", (price.source, rule.cached_input))
    inputs.needed("api.usd-per-million-output", (price.source, rule.output))
    return rule


def _by_number(inputs: Inputs, flags: Flags, input_tokens: Fraction) -> Api:
    if input_tokens and flags["api_input"] is None:
        inputs.note("the API's input tokens are taken to be free: give --api.usd-per-million-input")
    cached = flags["api_cached"]
    if cached is not None:
        cached = inputs.needed("api.usd-per-million-cached-input", (FLAG, cached))
    return Api(
        output=inputs.needed("api.usd-per-million-output", (FLAG, flags["api_output"])),
        input=inputs.first("api.usd-per-million-input", (FLAG, flags["api_input"]), default=0) or Fraction(0),
        cached_input=cached,
    )


def _named(found: Sources, name: str | None) -> ApiPrice | None:
    """Return the price of the model that the flag or else the config names."""
    own = found.config.prices.api if found.config else ApiPrices()
    if name is not None:
        provider, slash, model = name.partition("/")
        if not (provider and slash and model):
            raise UnusableError(f"--api.model: expected PROVIDER/MODEL like openai/gpt-4o-mini, found {name!r}")
    elif own.compare_with is not None:
        provider, model = own.compare_with.provider, own.compare_with.model
    else:
        return None
    price = _price(own, provider, model)
    if isinstance(price, ApiPrice):
        found.inputs.say("api.model", label(price), CONFIG if name is None else FLAG)
        return price
    if name is not None:
        raise UnusableError(f"--api.model: {provider} {model} {price}")
    found.inputs.note(f"nothing is compared: {provider} {model} {price}")
    return None


def _price(own: ApiPrices, provider: str, model: str) -> ApiPrice | str:
    """Return a price of the config, or else of the price list, or in words why there is none."""
    known = configured(own)
    price = known.get((provider, model)) or known.get((None, model))
    if price is not None:
        return price
    try:
        return look_up([(provider, model)])[provider, model]
    except ListPriceError as error:
        return f"has no price, since the price list cannot be read: {error}"


def measured_figures(measured: Measured) -> dict[str, Figure]:
    """Return what was spent by category, as a planned month of the same would cost, and how much of it was idle."""
    hourly = {f"{category}_usd": measured.usd_per_hour(category) for category in Category}
    spent = {name: usd * HOURS for name, usd in hourly.items() if usd is not None}
    return {"measured_days": measured.days, **spent, "idle_ratio": measured.idle_ratio}
