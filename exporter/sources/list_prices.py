"""List prices of API models, out of the package genai-prices. This is the only module that imports it.

The package brings pydantic and an HTTP client: memory that would be of use for less than a second. So a child process
imports it, answers and ends, and `serve` never does. Nothing is fetched: the list is the one inside of the package.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from exporter.config.prices import ApiPrices
from exporter.core.api_prices import ApiPrice, Rate, Rule, Tier, Wanted, configured, nano_usd_per_million

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ConditionalPrice, ModelInfo, Provider, TieredPrices

_DEADLINE_SECONDS: Final = 20.0
# -P: what lies in the working directory is no module of ours.
_COMMAND: Final = ("-P", "-m", "exporter.sources.list_prices")
_KEPT: Final = (  # of the environment: what a Python needs to find its modules and their bytecode
    "HOME",
    "LD_LIBRARY_PATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHOME",
    "PYTHONNOUSERSITE",
    "PYTHONPYCACHEPREFIX",
    "PYTHONUSERBASE",
)
_NOT_UNDERSTOOD: Final = (AttributeError, TypeError, ValueError)  # of a newer list


class ListPriceError(Exception):
    """The price list cannot be read, and why."""


class _Answer(msgspec.Struct, frozen=True):
    """What the child says: of each wanted model its price, or why it has none; or why the list cannot be read."""

    models: tuple[ApiPrice | str, ...] = ()
    error: str = ""


async def api_prices(
    config: ApiPrices, deadline_seconds: float = _DEADLINE_SECONDS
) -> tuple[Mapping[Wanted, ApiPrice], list[str]]:
    """Return the prices of all models that the config names, by provider and model, and a problem for each without.

    A price in the config comes before the list's. One that names no provider holds for `compare_with`, too.
    """
    prices = dict(configured(config))
    if (reference := config.compare_with) and (None, reference.model) in prices:
        prices.setdefault((reference.provider, reference.model), prices[None, reference.model])
    wanted = {path: key for path, key in _named(config) if key not in prices}
    try:
        found = await look_up_async(tuple(dict.fromkeys(wanted.values())), deadline_seconds) if wanted else {}
    except ListPriceError as error:
        found = dict.fromkeys(wanted.values(), f"has no price, since the price list cannot be read: {error}")
    prices |= {key: price for key, price in found.items() if isinstance(price, ApiPrice)}
    return prices, [_problem(path, key, why) for path, key in wanted.items() if isinstance(why := found[key], str)]


def _named(config: ApiPrices) -> Iterator[tuple[str, Wanted]]:
    for index, model in enumerate(config.models):
        yield f"prices.api.models[{index}]", (model.provider, model.model)
    if config.compare_with:
        yield "prices.api.compare_with", (config.compare_with.provider, config.compare_with.model)


def _problem(path: str, wanted: Wanted, why: str) -> str:
    is_compared = path.endswith("compare_with")
    effect = "nothing is compared with it" if is_compared else "its tokens are counted as unpriced"
    return f"{path}: {' '.join(filter(None, wanted))} {why}: {effect}"


def look_up(wanted: Sequence[Wanted], deadline_seconds: float = _DEADLINE_SECONDS) -> Mapping[Wanted, ApiPrice | str]:
    """Do what `look_up_async` does, where no event loop runs."""
    return asyncio.run(look_up_async(wanted, deadline_seconds))


async def look_up_async(
    wanted: Sequence[Wanted], deadline_seconds: float = _DEADLINE_SECONDS
) -> Mapping[Wanted, ApiPrice | str]:
    """Ask the list for models, by a child process: of each its price, or in words why it has none.

    Raises:
        ListPriceError: the list cannot be read.
    """
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *_COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(),
        )
    except OSError as error:
        raise ListPriceError(f"no process can be started for it: {error.strerror}") from error
    try:
        async with asyncio.timeout(deadline_seconds):
            said, complaint = await child.communicate(msgspec.json.encode(wanted))
    except TimeoutError:
        raise ListPriceError(f"no answer within {deadline_seconds:g} s") from None
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):  # it has just ended
                child.kill()
            await child.wait()
    answer = _understood(child.returncode or 0, said, complaint)
    return dict(zip(wanted, answer.models, strict=True))


def _environment() -> dict[str, str]:
    """Return a child's environment: no proxies, no secrets, and the modules that we ourselves have."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = [*filter(None, [os.environ.get("PYTHONPATH")]), str(Path(__file__).parents[2])]
    return {**kept, "PYTHONPATH": os.pathsep.join(path), "PYDANTIC_DISABLE_PLUGINS": "__all__"}


def _understood(exit_code: int, said: bytes, complaint: bytes) -> _Answer:
    if exit_code:
        how = f"was ended by {_signal(-exit_code)}" if exit_code < 0 else f"ended with {exit_code}"
        lines = complaint.decode(errors="replace").split("\n")
        last = next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
        raise ListPriceError(f"its process {how}{last}")
    try:
        answer = msgspec.json.decode(said, type=_Answer)
    except msgspec.MsgspecError as error:
        raise ListPriceError(f"its process gave an answer that is not understood: {error}") from error
    if answer.error:
        raise ListPriceError(answer.error)
    return answer


def _signal(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


# From here on: in the child.


def main() -> None:
    """Answer on stdout what stdin asks: a JSON list of [provider or null, model]."""
    wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Wanted])
    sys.stdout.buffer.write(msgspec.json.encode(_answer(wanted)))


def _answer(wanted: list[Wanted]) -> _Answer:
    try:
        from genai_prices import __version__  # noqa: PLC0415 - never in `serve`
        from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415
    except ImportError as error:
        if error.name == "genai_prices":
            return _Answer(error="the package genai-prices is not installed")
        return _Answer(error=f"the package genai-prices cannot be used: {error}")
    catalogue, snapshot = f"genai-prices {__version__}", get_snapshot()
    return _Answer(models=tuple(_listed(snapshot, catalogue, *key) for key in wanted))


def _listed(snapshot: "DataSnapshot", catalogue: str, provider: str | None, model: str) -> ApiPrice | str:
    """Return what the list says of a model. The list has no date of its own: the package's version stands for it."""
    try:
        seller, info = snapshot.find_provider_model(model, None, provider, None)
    except LookupError:
        return f"is not in the price list of {catalogue}{_near(snapshot, provider, model)}"
    try:
        rules = _rules(info)
    except _NOT_UNDERSTOOD as error:
        return f"has a price in {catalogue} that is not understood: {error}"
    if not rules:
        return f"has no price for both input and output tokens in {catalogue}"
    source = catalogue + _as(snapshot, seller, info, (provider, model))
    return ApiPrice(provider=provider, model=model, source=source, rules=rules)


def _as(snapshot: "DataSnapshot", seller: "Provider", info: "ModelInfo", wanted: Wanted) -> str:
    """Say whose price it is, where the list matched another name than was asked for, or another provider's model."""
    owner = next((one for one in snapshot.providers if any(info is model for model in one.models)), seller)
    is_same = (owner.id, info.id.lower()) == ((wanted[0] or "").lower(), wanted[1].lower())
    return "" if is_same else f" ({owner.id} {info.id})"


def _near(snapshot: "DataSnapshot", provider: str | None, model: str) -> str:
    """Name what may have been meant."""
    if provider is None:
        known = [info.id for one in snapshot.providers for info in one.models]
        return _similar(model, known)
    try:
        seller = snapshot.find_provider(None, provider, None)
    except LookupError:
        return f", which has no provider {provider}{_similar(provider, [one.id for one in snapshot.providers])}"
    return _similar(model, [info.id for info in seller.models])


def _similar(name: str, known: list[str]) -> str:
    near = get_close_matches(name.lower(), known)
    return f" (similar: {', '.join(dict.fromkeys(near))})" if near else ""


def _rules(info: "ModelInfo") -> tuple[Rule, ...]:
    """Return the rules of a model; none at all, if one of them lacks a price for input or for output.

    Raises:
        TypeError, ValueError, …: there is something that is not known here.
    """
    from genai_prices.types import ConditionalPrice, ModelPrice  # noqa: PLC0415

    prices = info.prices
    conditionals = [ConditionalPrice(prices=prices)] if isinstance(prices, ModelPrice) else prices
    rules = tuple(rule for conditional in conditionals if (rule := _rule(conditional)))
    return rules if len(rules) == len(conditionals) else ()


def _rule(conditional: "ConditionalPrice") -> Rule | None:
    prices = conditional.prices
    of_input, of_output = _rate(prices.input_mtok), _rate(prices.output_mtok)
    if of_input is None or of_output is None:
        return None
    start, daily = _when(conditional.constraint)
    cached = _rate(prices.cache_read_mtok)
    return Rule(input=of_input, output=of_output, cached_input=cached, start=start, daily=daily)


def _when(constraint: object) -> tuple[int | None, tuple[int, int] | None]:
    from genai_prices.types import StartDateConstraint, TimeOfDateConstraint  # noqa: PLC0415

    if constraint is None:
        return None, None
    if isinstance(constraint, StartDateConstraint):
        return int(datetime.combine(constraint.start_date, time(tzinfo=UTC)).timestamp()), None
    if isinstance(constraint, TimeOfDateConstraint):
        return None, (_second_of_day(constraint.start_time), _second_of_day(constraint.end_time))
    raise TypeError(f"it depends on a {type(constraint).__name__}")


def _second_of_day(moment: time) -> int:
    """Return the first whole second of the UTC day that is not before a time of day; without a zone it is UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    utc = datetime.combine(date(2000, 1, 2), aware).astimezone(UTC).time()
    return utc.hour * 3600 + utc.minute * 60 + utc.second + (utc.microsecond > 0)


def _rate(price: "Decimal | TieredPrices | None") -> Rate | None:
    """Return a price (dollars for a million tokens) as a rate."""
    if price is None:
        return None
    if isinstance(price, Decimal):
        return Rate(_nano(price))
    return Rate(_nano(price.base), tuple(Tier(tier.start, _nano(tier.price)) for tier in price.tiers))


def _nano(price: Decimal) -> int:
    if not price.is_finite() or price < 0:
        raise ValueError(f"expected an amount in US dollars, 0 or more, found {price}")
    return nano_usd_per_million(price)


if __name__ == "__main__":
    main()
