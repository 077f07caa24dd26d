"""What `doctor` says of APIs: their prices, and whether self-hosting can pay beside them."""

import asyncio
from collections.abc import Iterator

from exporter.cli.findings import NOTE, OK, WARNING, Finding
from exporter.clock import Instant
from exporter.config.model import Config, Engine
from exporter.core import break_even
from exporter.core.api_prices import ApiPrice
from exporter.core.break_even import BreakEvenView
from exporter.core.money import NANO
from exporter.core.track import Values
from exporter.ledger import Saved
from exporter.sources.list_prices import api_prices

_MILLI = 1000
_DAY_SECONDS = 86_400


def findings(config: Config, saved: Saved | None, now: Instant) -> Iterator[Finding]:
    """Yield what is known of API prices and, where a ledger is at hand, of break-even."""
    prices, problems = asyncio.run(api_prices(config.prices.api))
    if not prices and not problems:
        yield NOTE, "none in the config, and nothing to compare with"
    for price in prices.values():
        yield OK, _price(price, now)
    for line in problems:
        yield WARNING, line
    reference = config.prices.api.compare_with
    compared = prices.get((reference.provider, reference.model)) if reference else None
    if compared is not None:
        yield from (_break_even(engine, compared, saved, now) for engine in config.engines)


def _price(price: ApiPrice, now: Instant) -> str:
    rule = price.rule(now.wall // NANO)
    cached = rule.cached_input or rule.input
    rates = " / ".join(f"{rate.base / NANO:g}" for rate in (rule.input, cached, rule.output))
    tiers = ", dearer for long prompts" if rule.input.tiers or rule.output.tiers else ""
    return f"{break_even.label(price)}: {rates} USD a million tokens in / cached / out ({price.source}){tiers}"


def _break_even(engine: Engine, price: ApiPrice, saved: Saved | None, now: Instant) -> Finding:
    name = f"{engine.name} beside {break_even.label(price)}"
    if saved is None:
        return NOTE, f"{name}: break-even is not looked at, since --storage.path is not given"
    view = _view(engine, price, saved, now)
    if view is None or view.requests_per_day is None:
        return NOTE, f"{name}: break-even is not known yet; it takes {break_even.LEAST_REQUESTS} requests"
    wanted = f"{name}: self-hosting pays from {view.requests_per_day:,.0f} requests a day on"
    if view.is_reachable is None:
        return NOTE, f"{wanted}; what the engine can serve is not known yet"
    most = f"the replicas of today can serve {view.most_requests_per_day:,.0f}"
    return (OK, f"{wanted}; {most}") if view.is_reachable else (WARNING, f"{wanted}: not reachable, since {most}")


def _view(engine: Engine, price: ApiPrice, saved: Saved, now: Instant) -> BreakEvenView | None:
    """Derive break-even as the exporter does, from what it recorded in the last day."""
    series, since = f"api:{engine.name}:{break_even.label(price)}", now.unix_seconds - _DAY_SECONDS
    rows = [(at, values) for name, at, values in saved.samples if name == series and at >= since]
    if len(rows) < 2:  # noqa: PLR2004 - one row tells no movement
        return None
    (began, first), (ended, last) = rows[0], rows[-1]
    spent, *day = (new - old for new, old in zip(last, first, strict=True))
    moved: Values = tuple(day)
    peaks = [values[0] / _MILLI for name, _, values in saved.samples if name == f"peak:{engine.name}"]
    configured = engine.max_output_tokens_per_second
    best = float(configured) if configured else max(peaks, default=None)
    usd_per_hour = spent / NANO * 3600 / (ended - began)
    return BreakEvenView(
        engine=engine.name,
        api_model=break_even.label(price),
        requests_per_day=break_even.requests_per_day(usd_per_hour, moved),
        most_requests_per_day=break_even.most_requests_per_day(best, moved),
    )
