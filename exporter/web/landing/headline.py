"""The figures that come first: what it costs now, a million tokens, what is spent, the budget in most trouble."""

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from exporter.core.budgets import BudgetView, PeriodView, State
from exporter.core.money import NANO, Kind
from exporter.core.snapshot import Snapshot
from exporter.web.landing.budgets import NAMES, state_badge
from exporter.web.landing.markup import Markup, element, joined
from exporter.web.landing.words import UNKNOWN, hourly, known, moment, percent, several, span, usd, usd_of

_WINDOW: Final = "5m"


class _Tile(NamedTuple):
    key: str
    name: str
    value: str
    more: str


def headline(snapshot: Snapshot, *, is_fresh: bool) -> Markup:
    """Return the figures; those of a beat that stands are called old."""
    tiles = [_cost(snapshot, is_fresh=is_fresh), _tokens(snapshot), _spent(snapshot), *_worst(snapshot)]
    shown = (
        element(
            "div",
            element("dt", tile.name),
            element("dd", tile.value),
            element("dd", tile.more, class_="note"),
            id=tile.key,
        )
        for tile in tiles
    )
    figures = element("dl", *shown, class_="tiles")
    title = element("h2", "Now", id="now-title", class_="unseen")
    return element("section", title, figures, aria_labelledby="now-title")


def cost_now(snapshot: Snapshot) -> float | None:
    """Return what all engines cost an hour; None without engines, or where one has no price."""
    rates = [engine.spend_usd_per_hour for engine in snapshot.engines]
    told = [rate for rate in rates if rate is not None]
    return sum(told) if told and len(told) == len(rates) else None


def _cost(snapshot: Snapshot, *, is_fresh: bool) -> _Tile:
    name = "Cost now" if is_fresh else "Cost at the last beat"
    return _Tile("cost", name, known(cost_now(snapshot), hourly), "; ".join(_about_cost(snapshot)))


def _about_cost(snapshot: Snapshot) -> Iterator[str]:
    engines = snapshot.engines
    if not engines:
        yield "no engine has been read yet"
        return
    unpriced = [engine.name for engine in engines if engine.spend_usd_per_hour is None]
    yield f"{several(len(engines), 'engine')}, {several(sum(engine.gpus for engine in engines), 'GPU')}"
    if unpriced:
        rest = sum(engine.spend_usd_per_hour or 0.0 for engine in engines)
        others = f", the others cost {hourly(rest)}" if len(unpriced) < len(engines) else ""
        yield f"no price for {', '.join(unpriced)}{others}"
    unused = [engine.underused_spend_usd_per_hour for engine in engines]
    told = [rate for rate in unused if rate is not None]
    if told and len(told) == len(unused):
        yield f"{hourly(sum(told))} of it for load that is missing"


def _tokens(snapshot: Snapshot) -> _Tile:
    """Ratios of several engines have no mean without their tokens, so that the lowest and the highest are shown."""
    costs = [engine.windows[_WINDOW].usd_per_million_output_tokens for engine in snapshot.engines]
    told = sorted(cost for cost in costs if cost is not None)
    texts = list(dict.fromkeys(usd(cost) for cost in (*told[:1], *told[-1:])))
    value = " – ".join(texts) if texts else UNKNOWN  # noqa: RUF001 - a dash
    of = "cheapest and dearest engine, " if len(texts) > 1 else ""
    more = f"{of}last 5 minutes" if texts else "too few tokens in the last 5 minutes"
    return _Tile("tokens", "USD per million output tokens", value, more)


def _spent(snapshot: Snapshot) -> _Tile:
    """Return what this day or month has cost, where a budget holds all spend; else what everything ever has."""
    since = snapshot.accounting_start
    total = sum(snapshot.totals.get(Kind.SPEND, {}).values())
    ever = UNKNOWN if since is None else usd_of(total)
    began = UNKNOWN if since is None else moment(since)
    whole = next((view for view in snapshot.budgets if _holds_all(view)), None)
    if whole is None or since is None:
        return _Tile("spent", "Spent", ever, joined("since ", began, *_unpriced(snapshot)))
    name, period = next(iter(whole.periods.items()))
    more = joined(ever, " since ", began, *_unpriced(snapshot))
    return _Tile("spent", f"Spent {NAMES[name].lower()}", known(period.spent, usd_of), more)


def _holds_all(view: BudgetView) -> bool:
    return not any(msgspec.structs.astuple(view.budget.match))


def _unpriced(snapshot: Snapshot) -> Iterator[str]:
    time = sum(snapshot.totals.get(Kind.UNPRICED_GPU, {}).values())
    if time:
        yield f"; {span(time / NANO)} of GPU time had no price and is not in it"
    tokens = sum(snapshot.totals.get(Kind.UNPRICED_TOKENS, {}).values())
    if tokens:
        yield f"; {several(tokens, 'token')} of usage events had no price and are not in it"


def _worst(snapshot: Snapshot) -> Iterator[_Tile]:
    found = [(view, name, period) for view in snapshot.budgets for name, period in view.periods.items()]
    if found:
        view, name, period = max(found, key=lambda one: _concern(one[2]))
        spent = joined(known(period.spent, usd_of), f" of {usd_of(period.limit)}")
        more = joined(f"{view.budget.name}, {NAMES[name].lower()}: ", spent, " ", state_badge(period.state))
        yield _Tile("worst", "Budget nearest to its limit", known(period.consumed_ratio, percent), more)


def _concern(period: PeriodView) -> tuple[int, float]:
    return list(State).index(period.state), period.consumed_ratio or 0.0
