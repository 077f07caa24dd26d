"""A file into a Config: syntax, types, then what the parts say together. Problems come all at once, one a line."""

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from exporter.config import showback
from exporter.config.model import Budget, CapMode, Config, Engine, Gpu, GpuShare, GpuSource, Match, Role, Usage
from exporter.config.nodes import parse_as, read_file
from exporter.config.prices import ApiModel, DatedPrice, GpuPrice, NetworkPrice, Prices

_SHORTEST_INTERVAL_SECONDS: Final = 0.1
_SHORTEST_LIFETIME_SECONDS: Final = 86400.0
_FEWEST_BEATS_OF_A_GAP: Final = 4  # a beat is always a moment longer than the interval
_FEWEST_BEATS_OF_AN_AGE: Final = 3  # a cap must not lose its figure between two beats, nor by a slow or a lost one
_CATEGORIES: Final = (
    "api",
    "compute",  # all that begin with it
    "compute_busy",
    "compute_down",
    "compute_idle",
    "compute_loading",
    "compute_unobserved",
    "network",
    "other",
    "storage",
)


def load(path: Path) -> Config:
    """Read a config file.

    Raises:
        ConfigError: with every problem that the file has.
    """
    return parse(read_file(path), str(path))


def parse(content: bytes, name: str) -> Config:
    """Parse a config file's bytes; `name` stands before each problem.

    Raises:
        ConfigError: with every problem that the file has.
    """
    return parse_as(Config, content, name, disagreements)


def disagreements(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (path, problem) for what no single value shows."""
    if config.interval < _SHORTEST_INTERVAL_SECONDS:
        yield "interval", f"expected {_SHORTEST_INTERVAL_SECONDS} s or more, found {config.interval:g} s"
    if config.max_gap < _FEWEST_BEATS_OF_A_GAP * config.interval:
        least = _FEWEST_BEATS_OF_A_GAP * config.interval
        yield "max_gap", f"expected at least four beats, {least:g} s, found {config.max_gap:g} s"
    yield from _engines(config)
    yield from _shares(config.engines)
    yield from _gpu(config.gpu)
    yield from _prices(config)
    yield from _budgets(config)
    yield from showback.disagreements(config)
    for name in ("queue_depth", "gpu_utilization", "ttft"):
        edges = getattr(config.scaling, name)
        if edges.down >= edges.up:
            yield f"scaling.{name}", f"expected down below up, found down {edges.down} and up {edges.up}"
    if config.role is Role.SIDECAR and config.budgets:
        yield "budgets", "expected none in a sidecar (the hub holds the budgets), found some"


def _without_engines(config: Config) -> Iterator[tuple[str, str]]:
    if config.role is Role.SIDECAR or not config.usage.tokens:
        text = "expected at least one engine, or role lone with usage.tokens for the spend of APIs alone, found neither"
        yield "engines", text
    for name in ("storage", "network", "other"):
        if getattr(config.prices, name):
            yield f"prices.{name}", "expected none without engines, which pay for it, found some"


def _addresses(config: Config) -> Iterator[tuple[str, str]]:
    for index, engine in enumerate(config.engines):
        for number, text in enumerate(engine.addresses):
            host, _, port = text.rpartition(":")
            if not host or "/" in host or not port.isdecimal():
                yield f"engines[{index}].addresses[{number}]", f"expected HOST:PORT, found {text!r}"


def _engines(config: Config) -> Iterator[tuple[str, str]]:
    if not config.engines:
        yield from _without_engines(config)
    yield from _addresses(config)
    yield from _unique("engines", "name", [engine.name for engine in config.engines])
    if len(config.engines) > 1:
        for index, engine in enumerate(config.engines):
            if engine.name == "default":
                yield (
                    f"engines[{index}].name",
                    "expected a name, since there are several engines, found only the default",
                )
    yield from _unique(
        "engines",
        "url",
        [engine.url.lower().rstrip("/").removesuffix("/metrics") for engine in config.engines],
        show=False,
    )
    for index, engine in enumerate(config.engines):
        if engine.timeout is not None and engine.timeout > config.interval:
            text = f"expected at most the interval, {config.interval:g} s, found {engine.timeout:g} s"
            yield f"engines[{index}].timeout", text


def _unique(path: str, key: str, values: list[str], *, show: bool = True) -> Iterator[tuple[str, str]]:
    counts = Counter(values)
    for index, value in enumerate(values):
        if counts[value] > 1 and values.index(value) != index:
            found = repr(value) if show else "the same"
            yield f"{path}[{index}].{key}", f"expected one that no other has, found {found} again"


def _shares(engines: tuple[Engine, ...]) -> Iterator[tuple[str, str]]:
    """No GPU is charged more than once: a share per UUID, summed over all engines, is at most 1."""
    charged: dict[str, Fraction] = {}
    for index, engine in enumerate(engines):
        if isinstance(engine.gpus, Fraction):
            continue
        if not engine.gpus:
            yield f"engines[{index}].gpus", "expected at least one device or a number, found an empty list"
        for position, gpu in enumerate(engine.gpus):
            path = f"engines[{index}].gpus[{position}]"
            share = gpu if isinstance(gpu, GpuShare) else GpuShare(uuid=gpu)
            if share.uuid.startswith("MIG-") and share.slices is None:
                text = "expected {uuid: MIG-…, slices: 1 to 7} for a MIG instance, found no slices"
                yield path, text
            elif share.share is not None and share.slices is not None:
                yield path, "expected share or slices, found both"
            whole = Fraction(1) if share.uuid.startswith("MIG-") else share.fraction
            charged[share.uuid] = charged.get(share.uuid, Fraction(0)) + whole
            if charged[share.uuid] > 1:
                yield path, f"expected shares of one GPU that sum to at most 1, found {float(charged[share.uuid]):g}"


def _gpu(gpu: Gpu) -> Iterator[tuple[str, str]]:
    if gpu.source is GpuSource.DCGM and gpu.dcgm_url is None:
        yield "gpu.dcgm_url", "expected the address of a dcgm-exporter, since gpu.source is dcgm, found nothing"
    if not gpu.select:
        yield "gpu.select", "expected own, all or at least one UUID, found an empty list"


def _prices(config: Config) -> Iterator[tuple[str, str]]:
    forms = "usd_per_hour, by_name, instance, owned or timeline"
    gpu = config.prices.gpu
    if gpu is None:
        if any(engine.gpus_charged for engine in config.engines):
            yield "prices.gpu", f"expected {forms}, since engines are charged for GPUs, found nothing"
    else:
        count = _forms(gpu)
        if count > 1 or (count == 0 and not gpu.timeline):
            yield "prices.gpu", f"expected exactly one of {forms}, found {count or 'none'}"
        yield from _owned("prices.gpu", gpu)
        yield from _timeline(gpu.timeline)
    yield from _network(config.prices.network)
    names = {engine.name for engine in config.engines}
    yield from _unique("prices.other", "name", [other.name for other in config.prices.other])
    for index, other in enumerate(config.prices.other):
        if other.engine is not None and other.engine not in names:
            yield f"prices.other[{index}].engine", f"expected one of {', '.join(sorted(names))}, found {other.engine!r}"
    yield from _api(config)


def _forms(price: GpuPrice | DatedPrice) -> int:
    return sum(form is not None for form in (price.usd_per_hour, price.by_name, price.instance, price.owned))


def _owned(path: str, price: GpuPrice | DatedPrice) -> Iterator[tuple[str, str]]:
    if (owned := price.owned) is None:
        return
    if owned.lifetime < _SHORTEST_LIFETIME_SECONDS:
        yield f"{path}.owned.lifetime", f"expected a day or more, found {owned.lifetime:g} s"
    for key, is_given in (("pue", owned.pue != 1), ("watts", owned.watts is not None)):
        if is_given and owned.usd_per_kwh is None:
            yield f"{path}.owned", f"expected usd_per_kwh beside {key}, found none"


def _network(price: NetworkPrice | None) -> Iterator[tuple[str, str]]:
    for index, name in enumerate(price.interfaces if price else ()):
        if name == "lo":
            yield f"prices.network.interfaces[{index}]", "expected an interface to elsewhere, found the loopback"


def _api(config: Config) -> Iterator[tuple[str, str]]:
    """An event that names a model without a provider claims the work of the engine that lists it, if one does."""
    served = {name for engine in config.engines for name in engine.models}
    models = config.prices.api.models
    names = [(model.provider, model.model) for model in models]
    for index, model in enumerate(models):
        path = f"prices.api.models[{index}]"
        if names[index] in names[:index]:
            yield f"{path}.model", f"expected one that no other of its provider has, found {model.model!r} again"
        if model.provider is None and model.model in served:
            yield f"{path}.provider", f"expected one, since an engine lists {model.model!r} in models, found nothing"
        yield from _api_prices(path, model)


def _api_prices(path: str, model: ApiModel) -> Iterator[tuple[str, str]]:
    keys = ("input_usd_per_million", "output_usd_per_million")
    given = [key for key in keys if getattr(model, key) is not None]
    if len(given) == 1:
        yield path, f"expected both {keys[0]} and {keys[1]}, or neither for the list price, found only {given[0]}"
    elif not given and model.cached_input_usd_per_million is not None:
        yield path, f"expected {keys[0]} and {keys[1]} beside cached_input_usd_per_million, found neither"


def _timeline(timeline: tuple[DatedPrice, ...]) -> Iterator[tuple[str, str]]:
    for index, dated in enumerate(timeline):
        path = f"prices.gpu.timeline[{index}]"
        if (count := _forms(dated)) != 1:
            yield path, f"expected exactly one of usd_per_hour, by_name, instance or owned, found {count or 'none'}"
        yield from _owned(path, dated)
        if index and dated.from_ <= timeline[index - 1].from_:
            yield f"{path}.from", "expected instants in rising order, found one that is not later than the one before"


def _budgets(config: Config) -> Iterator[tuple[str, str]]:
    yield from _unique("budgets", "name", [budget.name for budget in config.budgets])
    for index, budget in enumerate(config.budgets):
        path = f"budgets[{index}]"
        yield from _address(f"{path}.name", budget.name)
        if budget.daily_usd is None and budget.monthly_usd is None:
            yield path, "expected daily_usd or monthly_usd, found neither"
        if not _is_zone(budget.timezone):
            yield f"{path}.timezone", f"expected an IANA time zone like Europe/Berlin, found {budget.timezone!r}"
        yield from _cap(path, budget, config.interval)
        yield from _match(f"{path}.match", budget.match, config)


def _address(path: str, name: str) -> Iterator[tuple[str, str]]:
    """A budget is overridden at an address with its name in it."""
    if name == "check" or name.startswith("check*"):  # Envoy appends the path of `OPTIONS *`
        yield path, f"expected another name, since /v1/budgets/check is the check, found {name!r}"
    elif name in (".", ".."):
        yield path, f"expected another name, since no address can hold it, found {name!r}"


def _is_zone(name: str) -> bool:
    if name.startswith(("posix/", "right/")):  # a system's own; by the latter a day ends some leap seconds late
        return False
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _cap(path: str, budget: Budget, interval: float) -> Iterator[tuple[str, str]]:
    cap, least = budget.cap, _FEWEST_BEATS_OF_AN_AGE * interval
    if cap.mode is not CapMode.OFF:
        if round(cap.max_age - least, 6) < 0:  # 3 x 0.1 s is more than 0.3 s
            yield f"{path}.cap.max_age", f"expected at least three beats, {least:g} s, found {cap.max_age:g} s"
    elif budget.hard_cap:
        yield f"{path}.hard_cap", "expected false while cap.mode is off, found true"


def _match(path: str, match: Match, config: Config) -> Iterator[tuple[str, str]]:
    """A name that nothing has is a slip of the pen, and makes a budget that never fills."""
    engines = {engine.name for engine in config.engines}
    tiers = {engine.tier for engine in config.engines if engine.tier is not None}
    known = {"category": _CATEGORIES, "engine": engines, "tier": tiers}
    for key, names in known.items():
        name = getattr(match, key)
        if name is None or name in names or (key == "tier" and _may_be_told(config)):
            continue
        wanted = f"one of {', '.join(sorted(names))}" if names else f"none, since no engine has a {key}"
        yield f"{path}.{key}", f"expected {wanted}, found {name!r}"


def _may_be_told(config: Config) -> bool:
    """Say whether a tier may come from usage events, which name tiers that no engine has."""
    return bool(config.prices.api.models or config.cascades)


def warnings(config: Config) -> list[str]:
    """Say what is accepted but has no effect, so that nobody relies on it."""
    findings = {
        "usage": (
            config.role is Role.SIDECAR and config.usage != Usage(),
            "usage events belong to the hub: a sidecar takes none",
        ),
        "gpu.dcgm_url": (
            config.gpu.dcgm_url is not None and config.gpu.source in (GpuSource.NVML, GpuSource.NONE),
            f"nobody asks it, since gpu.source is {config.gpu.source}",
        ),
        "prices.storage": (
            config.role is Role.SIDECAR and config.prices.storage is not None,
            "a sidecar charges no storage: it would be counted once a replica",
        ),
    }
    found = [f"{key}: {text}" for key, (applies, text) in findings.items() if applies]
    return [*found, *showback.warnings(config), *_tiers(config), *_by_name(config.prices, config.gpu)]


def _tiers(config: Config) -> list[str]:
    tiers = {engine.tier for engine in config.engines} | {None}
    return [
        f"budgets[{index}].match.tier: no engine has {budget.match.tier!r}: only usage events can name it"
        for index, budget in enumerate(config.budgets)
        if budget.match.tier not in tiers
    ]


def _by_name(prices: Prices, gpu: Gpu) -> list[str]:
    forms: tuple[GpuPrice | DatedPrice, ...] = (prices.gpu, *prices.gpu.timeline) if prices.gpu else ()
    if all(form.by_name is None or gpu.name in form.by_name for form in forms):
        return []
    if gpu.name is None and gpu.source is not GpuSource.NONE:
        return []  # the GPUs will say what they are
    found = f"gpu.name is {gpu.name!r}" if gpu.name else "gpu.name is not set and no GPU is asked"
    return [f"prices.gpu.by_name: no price applies, since {found}; GPU time is counted as unpriced"]
