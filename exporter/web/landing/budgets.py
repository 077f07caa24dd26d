"""Budgets: what is spent of each limit, how fast, until when it lasts, and what happens then."""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from exporter.config.model import CapMode
from exporter.core.budgets import DAY, MONTH, BudgetView, PeriodView, State
from exporter.core.cap import Override
from exporter.core.money import NANO
from exporter.core.snapshot import Snapshot
from exporter.web.budgets_json import usd as dollars
from exporter.web.budgets_json import utc
from exporter.web.landing.blocks import Tone, badge, bar, card, cards, facts, note, section
from exporter.web.landing.markup import Markup, element
from exporter.web.landing.words import known, moment, percent, span, times, usd_of

_STATES: Final = {
    State.OK: ("ok", Tone.GOOD),
    State.WARN: ("warning", Tone.WARN),
    State.UNKNOWN: ("not known", Tone.WARN),
    State.OVER: ("over the limit", Tone.BAD),
}
NAMES: Final = {DAY: "Today", MONTH: "This month"}
_CAPS: Final = {
    CapMode.OFF: "no cap",
    CapMode.SHADOW: "cap in shadow mode: denials are only counted",
    CapMode.ENFORCE: "cap enforced: requests over the limit are denied",
}


def budgets(snapshot: Snapshot, overrides: Mapping[str, Override]) -> Markup:
    """Return all budgets with the overrides in force; nothing where there are none."""
    if not snapshot.budgets:
        return Markup()
    shown = (_budget(view, overrides.get(view.budget.name), snapshot.at) for view in snapshot.budgets)
    return section("budgets", "Budgets", note("Marks in a bar are where warnings begin."), cards(shown))


def state_badge(state: State) -> Markup:
    """Return how a budget stands, in a word."""
    return badge(*_STATES[state])


def _budget(view: BudgetView, override: Override | None, now: float) -> Markup:
    match = msgspec.structs.asdict(view.budget.match)
    holds = ", ".join(f"{key} {value}" for key, value in match.items() if value is not None) or "all spend"
    more = [] if override is None else [note(element("strong", "Override: "), _override(override))]
    periods = (_period(name, period, view.warn_ratios, now) for name, period in view.periods.items())
    return card(view.budget.name, note(f"{holds}; {_CAPS[view.mode]}"), *more, *periods)


def _override(override: Override) -> str:
    reason = f": {override.reason}" if override.reason else ""
    return f"{dollars(override.amount_nano_usd):f} USD more until {utc(override.until_ns)}{reason}"


def _period(name: str, period: PeriodView, warn_ratios: tuple[float, ...], now: float) -> Markup:
    spent, ratio = known(period.spent, usd_of), known(period.consumed_ratio, percent)
    amount = element("strong", spent, f" of {usd_of(period.limit)}")
    title = element("h4", NAMES[name], " ", state_badge(period.state))
    return element(
        "div",
        title,
        element("p", amount, element("span", ratio), class_="spent"),
        *_bar(name, period, warn_ratios),
        facts(_facts(period, now)),
        class_="period",
    )


def _bar(name: str, period: PeriodView, warn_ratios: tuple[float, ...]) -> Iterator[Markup]:
    """Yield how full the period is, marked where warnings begin; nothing while the spend is not known."""
    if period.consumed_ratio is not None:
        text = f"{percent(period.consumed_ratio)} of the limit, {percent(period.elapsed_ratio)} of the time"
        tone = _STATES[period.state][1]
        yield bar(f"Spent {NAMES[name].lower()}", period.consumed_ratio, text, tone, warn_ratios)


def _facts(period: PeriodView, now: float) -> Iterator[tuple[str, str]]:
    yield "Time over", percent(period.elapsed_ratio)
    yield "Pace", known(_pace(period), times)
    yield "Burn rate, 1 h", known(period.burn_rate.get("1h"), times)
    yield "Forecast", known(period.forecast, usd_of)
    yield "Money lasts", known(period.runway_seconds, span)
    end = period.period.end / NANO
    yield "Ends in", moment(end, span(max(end - now, 0.0)))
    if period.overshoot_bound is not None and period.capped:
        yield "Still to come at most", usd_of(period.overshoot_bound)
    if period.history_complete_ratio is not None and period.history_complete_ratio < 1:
        yield "History known", percent(period.history_complete_ratio)
    if period.unpriced:
        yield "Not in it", "GPU time or tokens without a price"


def _pace(period: PeriodView) -> float | None:
    """Return spent ÷ time over: above 1 it is spent faster than the limit allows."""
    if period.consumed_ratio is None or not period.elapsed_ratio:
        return None
    return period.consumed_ratio / period.elapsed_ratio
