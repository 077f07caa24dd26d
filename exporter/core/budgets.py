"""Budgets: what is spent of a day's or a month's limit, how fast, where the period will end, and what still fits.

Money is in nano-dollars and a rate in nano-dollars an hour, both exact; ratios and seconds are floats for the page.
What is not known is None, or has no entry, and is never 0.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from math import ceil
from typing import Final
from zoneinfo import ZoneInfo

from exporter.clock import Instant
from exporter.config.model import Budget, CapMode, Match
from exporter.core.attribution import OTHER
from exporter.core.matching import holds, is_part
from exporter.core.money import NANO, Account, Category, Kind, cost, nano_usd
from exporter.core.periods import Period, Quarters, day, month, whole_days
from exporter.core.windows import HOUR, MINUTE, History

DAY: Final = "day"
MONTH: Final = "month"
BURN_WINDOWS: Final = {"5m": 5 * MINUTE, "30m": 30 * MINUTE, "1h": HOUR, "6h": 6 * HOUR, "24h": 24 * HOUR}
_RUNWAY_WINDOW: Final = HOUR
_FORECAST_DAYS: Final = 7
_FORECAST_WINDOW: Final = 24 * HOUR
_LEAST_FOR_A_FORECAST: Final = HOUR
_TOKENS: Final = (Kind.FEATURE_PROMPT_TOKENS, Kind.FEATURE_OUTPUT_TOKENS)
_COMPUTE: Final = tuple(category for category in Category if category.startswith("compute_"))


class State(StrEnum):
    """How a budget stands, in rising order of concern.

    A period whose limit is spent is over even where GPU time had no price: what has no price only adds.
    """

    OK = "ok"
    WARN = "warn"
    UNKNOWN = "unknown"
    OVER = "over"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCost:
    """What one engine costs an hour now.

    `compute` is for the GPUs of one replica, None without a price. `standing` is the engine's part of what is paid by
    the hour however many replicas there are.
    """

    name: str
    model: str
    tier: str
    compute: Fraction | None
    standing: Mapping[Category, Fraction] = field(default_factory=dict)
    min_replicas: int = 1

    @property
    def committed(self) -> Fraction | None:
        """What the GPUs cost that stay whatever happens: the replica that is there, or as many as there must be."""
        return None if self.compute is None else self.compute * max(self.min_replicas, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFacts:
    """What a beat knows beside the money: the same for all budgets.

    The ledger begins at `accounting_start` (Unix nanoseconds), and is not known yet where `awaits_ledger`;
    `unobserved` has the nanoseconds that nobody saw and nothing was booked for; `engines` are all engines.
    """

    accounting_start: int
    awaits_ledger: bool = False
    unobserved: Quarters = field(default_factory=Quarters)
    engines: Sequence[EngineCost] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodView:
    """A budget's current day or month.

    `unpriced` says that GPU time in it had no price: the state is unknown, and `spent` the least that it can be.
    `warned` has the warning ratios that it has come to; `capped` says that the limit is spent and enforced.
    `overshoot_bound` is what denying requests cannot stop.
    """

    period: Period
    limit: int
    elapsed_ratio: float
    history_complete_ratio: float | None
    unpriced: bool
    state: State = State.UNKNOWN
    spent: int | None = None
    consumed_ratio: float | None = None
    burn_rate: Mapping[str, float] = field(default_factory=dict)
    forecast: int | None = None
    runway_seconds: float | None = None
    warned: tuple[float, ...] = ()
    capped: bool | None = None
    overshoot_bound: int | None = None
    max_affordable_replicas: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """A budget now: its config, and its periods with a limit, the day first."""

    budget: Budget
    mode: CapMode
    warn_ratios: tuple[float, ...]
    periods: Mapping[str, PeriodView]

    @property
    def state(self) -> State:
        """The more serious state of its periods."""
        return max((view.state for view in self.periods.values()), key=list(State).index)


class BudgetMeter:
    """Follows one budget; the books feed it every entry that they apply."""

    def __init__(self, budget: Budget, *, spent: Quarters | None = None, unpriced: Quarters | None = None) -> None:
        """Go on from what the ledger has.

        Args:
            budget: the config.
            spent: nano-dollars of the accounts that match, which is the meter's own from now on.
            unpriced: likewise, nanoseconds of GPUs without a price.
        """
        self.adopt(budget)
        self._spent = spent or Quarters()
        self._unpriced = unpriced or Quarters()
        self._history = _no_history()
        self.is_known = True  # False where the ledger has a past that could not be read

    def adopt(self, budget: Budget) -> None:
        """Go on under another config that matches the same accounts; the windows stay."""
        self.budget = budget
        self._zone = ZoneInfo(budget.timezone)

    @property
    def is_attributed(self) -> bool:
        """Whether it holds a part of showback."""
        return _is_attributed(self.budget)

    @property
    def total(self) -> int:
        """All that has ever been spent; what `restore` wants back, with its time."""
        return self._spent.total

    def matches(self, account: Account) -> bool:
        """Say whether an account's money counts: of the bill or, where a feature or team is named, of showback."""
        if self.is_attributed:
            return account.kind is Kind.ATTRIBUTED and is_part(self.budget.match, account)
        return account.kind is Kind.SPEND and holds(self.budget.match, account)

    def lacks(self, account: Account) -> bool:
        """Say whether an account counts GPU time or tokens whose money would count, had it a price."""
        match = self.budget.match
        if account.kind is Kind.UNPRICED_GPU:
            return any(holds(match, Account(Kind.SPEND, (category, *account.labels[:3]))) for category in _COMPUTE)
        if account.kind is Kind.UNPRICED_TOKENS:
            as_spend = Account(Kind.SPEND, (Category.API, "", *account.labels, ""))
            return not self.is_attributed and holds(match, as_spend)
        if self.is_attributed and account.kind in _TOKENS and account.labels[2] == OTHER:
            feature, team, *of = account.labels
            return is_part(match, Account(Kind.ATTRIBUTED, (feature, team, "", *of)))
        return False

    def book(self, account: Account, amount: int, at: int) -> None:
        """Book an amount at an instant (Unix nanoseconds), if it concerns this budget."""
        if self.matches(account):
            self._spent.add(amount, at)
        elif self.lacks(account):
            self._unpriced.add(amount, at)

    def record(self, now: Instant) -> None:
        """Remember the total for the windows to come; once a beat, when everything is booked."""
        self._history.append(now.monotonic, self.total)

    def restore(self, samples: Iterable[tuple[int, int]], now: Instant) -> None:
        """Bring back totals by Unix seconds, from before a restart; a total or a time that cannot be is left out."""
        self._history = _no_history()
        for second, total in sorted(samples):
            age = now.wall - second * NANO
            if age >= 0 and total <= self.total:
                self._history.append(now.monotonic - age, total)

    def forget_windows(self) -> None:
        """Begin the windows anew, after a gap that nothing was booked for."""
        self._history = _no_history()

    def view(self, now: Instant, facts: BudgetFacts) -> BudgetView:
        """Derive everything that is shown and decided."""
        periods = {DAY: day(self._zone, now.wall), MONTH: month(self._zone, now.wall)}
        return BudgetView(
            budget=self.budget,
            mode=cap_mode(self.budget),
            warn_ratios=tuple(float(ratio) for ratio in _warn_ratios(self.budget)),
            periods={
                name: self._view(name, periods[name], limit, now, facts) for name, limit in limits(self.budget).items()
            },
        )

    def _view(self, name: str, period: Period, limit: int, now: Instant, facts: BudgetFacts) -> PeriodView:
        engines = [own_part(self.budget.match, engine) for engine in facts.engines]
        left = period.end - now.wall
        unpriced = self._unpriced.within(period) > 0
        spent = self._spent.within(period)
        blank = PeriodView(
            period=period,
            limit=limit,
            elapsed_ratio=(now.wall - period.start) / period.length,
            history_complete_ratio=_history_complete_ratio(period, now.wall, facts),
            unpriced=unpriced,
        )
        if facts.awaits_ledger or not self.is_known or (unpriced and not spent):
            return blank
        state = state_of(self.budget, spent, limit, unpriced=unpriced)
        return replace(
            blank,
            state=state,
            spent=spent,
            consumed_ratio=spent / limit,
            burn_rate={window: burn_rate(rate, limit, period) for window, rate in self._rates(now)},
            forecast=forecast(spent, self._forecast_rate(name, now, facts), left),
            runway_seconds=runway_seconds(limit - spent, self._rate(now, _RUNWAY_WINDOW)),
            warned=tuple(float(ratio) for ratio in _warn_ratios(self.budget) if spent >= Fraction(ratio) * limit),
            capped=None if state is State.UNKNOWN else state is State.OVER and cap_mode(self.budget) is CapMode.ENFORCE,
            overshoot_bound=overshoot_bound(left, engines),
            max_affordable_replicas={} if self.is_attributed else max_affordable_replicas(limit - spent, left, engines),
        )

    def _rate(self, now: Instant, window: int, least: int = 1) -> Fraction | None:
        """Return the rate over a window, or over what is known of it; None below `least` nanoseconds."""
        if not len(self._history):
            return None
        since, then = self._history.before(now.monotonic - window)
        known = now.monotonic - since
        return Fraction((self.total - then) * HOUR, known) if known >= least else None

    def _rates(self, now: Instant) -> Iterator[tuple[str, Fraction]]:
        for name, window in BURN_WINDOWS.items():
            rate = self._rate(now, window)
            if rate is not None:
                yield name, rate

    def _forecast_rate(self, name: str, now: Instant, facts: BudgetFacts) -> Fraction | None:
        """Return the rate that a forecast goes on with.

        Days differ from nights, so that only whole days tell a month: the mean of those of the last seven local days
        that are known from end to end. Without one, and for a day: the rate of the last 24 hours or, in a younger
        history, of what is known, from an hour on.
        """
        if name == MONTH:
            days = [one for one in whole_days(self._zone, now.wall, _FORECAST_DAYS) if _is_known(one, facts)]
            if days:
                return Fraction(sum(map(self._spent.within, days)) * HOUR, sum(one.length for one in days))
        return self._rate(now, _FORECAST_WINDOW, _LEAST_FOR_A_FORECAST)


def burn_rate(rate: Fraction, limit: int, period: Period) -> float:
    """Return the pace of spending ÷ the pace that uses exactly the limit: rate ÷ (limit ÷ length of the period)."""
    return float(cost(period.length, rate) / limit)


def forecast(spent: int, rate: Fraction | None, left: int) -> int | None:
    """Return what will be spent at the period's end, `left` nanoseconds from now: spent + rate × left."""
    return None if rate is None else round(spent + cost(left, rate))


def runway_seconds(money: int, rate: Fraction | None) -> float | None:
    """Return how long the money lasts: (limit − spent) ÷ rate, at least 0; None at no rate."""
    return float(max(money, 0) * 3600 / rate) if rate else None


def overshoot_bound(left: int, engines: Sequence[EngineCost]) -> int | None:
    """Return what the engines cost until the period's end if nobody takes a replica away: their rates × left."""
    rates = [engine.compute for engine in engines]
    if None in rates:
        return None
    return ceil(cost(left, _sum(rates) + _standing(engines)))


def max_affordable_replicas(money: int, left: int, engines: Sequence[EngineCost]) -> dict[str, int]:
    """Return how many replicas of each engine the rest of the money can keep until the period's end.

    ⌊(limit − spent − what is committed × left) ÷ (rate of one replica × left)⌋, never below the engine's minimum.
    Committed are all standing costs, and of each other engine the replica that is there, or its minimum if that is
    more. An engine without a rate has no such number, and none has where any rate is unknown.
    """
    rates = [engine.committed for engine in engines]
    if None in rates:
        return {}
    committed = _sum(rates) + _standing(engines)
    found = {}
    for engine in engines:
        if engine.compute and engine.committed:
            others = cost(left, committed - engine.committed)
            found[engine.name] = max((money - others) // cost(left, engine.compute), engine.min_replicas)
    return found


def cap_mode(budget: Budget) -> CapMode:
    """Return what happens at the limit; `hard_cap` means enforce."""
    return CapMode.ENFORCE if budget.hard_cap else budget.cap.mode


def limits(budget: Budget) -> dict[str, int]:
    """Return the limit of each period that has one, in nano-dollars.

    Rounded up: whole nano-dollars come to the one limit when they come to the other.
    """
    usd = {DAY: budget.daily_usd, MONTH: budget.monthly_usd}
    return {name: ceil(nano_usd(limit)) for name, limit in usd.items() if limit is not None}


def state_of(budget: Budget, spent: int | None, limit: int, *, unpriced: bool) -> State:
    """Return how spending stands to a limit, which may be another than the budget's own."""
    if spent is not None and spent >= limit:
        return State.OVER
    if spent is None or unpriced:
        return State.UNKNOWN
    return State.WARN if any(spent >= Fraction(ratio) * limit for ratio in _warn_ratios(budget)) else State.OK


def own_part(match: Match, engine: EngineCost) -> EngineCost:
    """Return the part of an engine's cost that a budget pays for."""

    def pays(category: Category) -> bool:
        return holds(match, Account(Kind.SPEND, (category, engine.name, engine.model, engine.tier)))

    standing = {category: rate for category, rate in engine.standing.items() if pays(category)}
    if any(map(pays, _COMPUTE)):
        return replace(engine, standing=standing)
    return replace(engine, standing=standing, compute=Fraction(0))


def _sum(rates: Iterable[Fraction | None]) -> Fraction:
    return sum((rate for rate in rates if rate is not None), Fraction(0))


def _standing(engines: Iterable[EngineCost]) -> Fraction:
    return _sum(rate for engine in engines for rate in engine.standing.values())


def _no_history() -> History[int]:
    return History(fine=6 * MINUTE, keep=25 * HOUR)


def _warn_ratios(budget: Budget) -> list[Decimal]:
    ratios = budget.warn_ratio
    return sorted(set(ratios)) if isinstance(ratios, tuple) else [ratios]


def _is_attributed(budget: Budget) -> bool:
    return budget.match.feature is not None or budget.match.team is not None


def _is_known(period: Period, facts: BudgetFacts) -> bool:
    return facts.accounting_start <= period.start and not facts.unobserved.within(period)


def _history_complete_ratio(period: Period, now: int, facts: BudgetFacts) -> float | None:
    """Return known time ÷ elapsed time of a period; None in its first nanosecond."""
    elapsed = now - period.start
    known = now - max(period.start, facts.accounting_start) - facts.unobserved.within(period)
    return max(known, 0) / elapsed if elapsed else None
