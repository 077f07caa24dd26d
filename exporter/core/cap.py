"""The cap: may this request still spend? And which caps and burn alerts of a config can never say no.

A decision reads only what the last beat left. Denying requests stops API spend, but no GPU's: only fewer replicas do,
so every answer also says how many can be afforded.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from typing import Final, NamedTuple

from exporter.config.model import Budget, CapMode, Config, Engine, Match, OnUnknown
from exporter.config.prices import DatedPrice, GpuPrice
from exporter.core.budgets import (
    DAY,
    MONTH,
    BudgetView,
    EngineCost,
    State,
    burn_rate,
    cap_mode,
    limits,
    own_part,
    state_of,
)
from exporter.core.money import NANO, Account, Category, Kind
from exporter.core.periods import Period
from exporter.core.prices import gpu_timeline
from exporter.core.scaling import min_replicas
from exporter.core.standing import by_category, standing_costs
from exporter.core.windows import HOUR

ALLOWED_STATUS: Final = 200
_NOT_ASKED: Final = ("category", "engine", "tier")  # of the keys of a match: no request can tell them
_KEYS: Final = {DAY: "daily_usd", MONTH: "monthly_usd"}
_LONGEST: Final = {DAY: 25 * HOUR, MONTH: (31 * 24 + 1) * HOUR}  # with an hour more, where clocks are put back


class Asked(NamedTuple):
    """What a gateway says of a request; None where it says nothing.

    `booked` has the names under which the model's spend is booked, where it goes by several.
    """

    feature: str | None = None
    team: str | None = None
    model: str | None = None
    booked: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """Break-glass: more money for the cap of one budget until an instant; times are Unix nanoseconds.

    The budget's own limit and what is shown of it stay. A later one replaces it: one of 0 ends it.
    """

    budget: str
    amount_nano_usd: int
    until_ns: int
    at_ns: int
    reason: str

    def in_force(self, now: int) -> bool:
        """Say whether it still counts."""
        return now < self.until_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer to a gateway, and the figure behind it: the period that denies, or the one nearest to its limit.

    Money is in nano-dollars, `limit` with the override in force. `denied` names each budget that denies or, in shadow
    mode, would.
    """

    allowed: bool
    status: int
    reason: str
    age_seconds: float
    budget: str | None = None
    period: str | None = None
    state: State | None = None
    spent: int | None = None
    limit: int | None = None
    remaining: int | None = None
    retry_after_seconds: int | None = None
    overshoot_bound: int | None = None
    max_affordable_replicas: Mapping[str, int] = field(default_factory=dict)
    denied: tuple[tuple[str, CapMode], ...] = ()


class _Figure(NamedTuple):
    """One period of one budget as a decision sees it."""

    view: BudgetView
    period: str
    limit: int
    state: State
    denies: bool
    retry_after: int  # seconds
    age_seconds: float

    @property
    def budget(self) -> Budget:
        return self.view.budget

    @property
    def mode(self) -> CapMode:
        return self.view.mode

    @property
    def concern(self) -> tuple[int, float]:
        """How near it is to its limit."""
        return list(State).index(self.state), (self.view.periods[self.period].spent or 0) / self.limit

    @property
    def reason(self) -> str:
        of = f"the {self.period} of budget {self.budget.name}"
        if self.state is State.OVER:
            text = f"the limit of {of} is spent"
        elif self.age_seconds > self.budget.cap.max_age:
            text = f"the spend of {of} was last seen {self.age_seconds:.0f} s ago"
        elif self.state is State.UNKNOWN:
            text = f"the spend of {of} is not known"
        else:
            text = f"{of} has money left"
        return f"shadow mode: {text}" if self.denies and self.mode is CapMode.SHADOW else text


def decide(
    budgets: Sequence[BudgetView],
    asked: Asked,
    now: int,
    age_seconds: float,
    overrides: Mapping[str, Override] | None = None,
) -> Decision:
    """Say whether a request may still spend.

    Any budget that applies and is capped denies; of several, the one that denies for longest is told.

    Args:
        budgets: as the last beat left them.
        asked: the request.
        now: Unix nanoseconds.
        age_seconds: how old the budgets' figures are.
        overrides: the latest override of each budget, by its name.
    """
    views = [view for view in budgets if applies(view.budget.match, asked)]
    figures = [figure for view in views for figure in _figures(view, asked, now, age_seconds, overrides or {})]
    if not figures:
        reason = "a new period has begun" if views else "no budget applies"
        return Decision(allowed=True, status=ALLOWED_STATUS, reason=reason, age_seconds=age_seconds)
    denials = [figure for figure in figures if figure.denies]
    enforced = [figure for figure in denials if figure.mode is CapMode.ENFORCE]
    denied = tuple(dict.fromkeys((figure.budget.name, figure.mode) for figure in denials))
    if enforced:
        told = max(enforced, key=lambda figure: figure.retry_after)
        answer = replace(_answer(told, denied), allowed=False, status=told.budget.cap.deny_status)
        return replace(answer, retry_after_seconds=told.retry_after)
    return _answer(max(denials or figures, key=lambda figure: figure.concern), denied)


def denial_accounts(budgets: Iterable[Budget]) -> list[Account]:
    """Return the accounts in which denials of these budgets are counted; a cap that is off has none."""
    modes = [(budget.name, cap_mode(budget)) for budget in budgets]
    return [Account(Kind.BUDGET_DENIED, (name, mode)) for name, mode in modes if mode is not CapMode.OFF]


def applies(match: Match, asked: Asked) -> bool:
    """Say whether each key of a match equals the request's value; a key that the request lacks does not apply.

    No request can tell a category, an engine or a tier: a budget with such a key applies to none. A model's budget
    applies by any name that means the model.
    """
    if any(getattr(match, key) is not None for key in _NOT_ASKED):
        return False
    names = asked.booked | {None, asked.model}
    return match.feature in (None, asked.feature) and match.team in (None, asked.team) and match.model in names


def booked_names(engines: Iterable[Engine], told: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Return under which names the spend of a model is booked, by each name that the config has for it.

    That is the name that the engine's page tells, before there is a page the first one of the config; both count. By a
    name that two engines have, either of them may be asked.

    Args:
        engines: the config's.
        told: the model under which an engine's spend is booked now, by the engine's name.
    """
    found: dict[str, frozenset[str]] = {}
    for engine in engines:
        booked = frozenset(engine.models[:1])
        if engine.name in told:
            booked |= {told[engine.name]}
        for name in engine.models:
            found[name] = found.get(name, frozenset()) | booked
    return found


def _figures(
    view: BudgetView, asked: Asked, now: int, age_seconds: float, overrides: Mapping[str, Override]
) -> Iterator[_Figure]:
    """Yield the periods of a budget that are not over yet: a new one has begun since, with next to nothing spent.

    Where an override gives more money, what is not known does not deny: somebody has decided.
    """
    budget, cap = view.budget, view.budget.cap
    override = overrides.get(budget.name)
    more = override.amount_nano_usd if override and override.in_force(now) else 0
    can_deny = view.mode is not CapMode.OFF and (asked.feature is None or asked.feature not in cap.exempt_features)
    denies_unknown = cap.on_unknown is OnUnknown.DENY and not more
    for name, period in view.periods.items():
        limit, left = period.limit + more, period.period.end - now
        state = state_of(budget, period.spent, limit, unpriced=period.unpriced) if more else period.state
        if age_seconds > cap.max_age:
            state, left = State.UNKNOWN, ceil(cap.max_age * NANO)
        if left > 0:
            closed = state is State.OVER or (state is State.UNKNOWN and denies_unknown)
            yield _Figure(view, name, limit, state, can_deny and closed, ceil(Fraction(left, NANO)), age_seconds)


def _answer(told: _Figure, denied: tuple[tuple[str, CapMode], ...]) -> Decision:
    """Return what is told of a figure; it allows."""
    period = told.view.periods[told.period]
    return Decision(
        allowed=True,
        status=ALLOWED_STATUS,
        reason=told.reason,
        age_seconds=told.age_seconds,
        budget=told.budget.name,
        period=told.period,
        state=told.state,
        spent=period.spent,
        limit=told.limit,
        remaining=None if period.spent is None else max(told.limit - period.spent, 0),
        overshoot_bound=period.overshoot_bound,
        max_affordable_replicas=period.max_affordable_replicas,
        denied=denied,
    )


def warnings(config: Config, now: int) -> list[str]:
    """Say what of the budgets has no effect at an instant's prices, so that nobody relies on it."""
    return [*unasked_caps(config), *unreachable_alerts(config, now)]


def unasked_caps(config: Config) -> list[str]:
    """Say which caps no request can meet, so that nobody relies on them."""
    found = []
    for index, budget in enumerate(config.budgets):
        keys = [key for key in _NOT_ASKED if getattr(budget.match, key) is not None]
        if keys and cap_mode(budget) is not CapMode.OFF:
            found.append(f"budgets[{index}].cap: never denies, since no request says its {' or '.join(keys)}")
    return found


def unreachable_alerts(config: Config, now: int) -> list[str]:
    """Say which burn alerts can never fire at an instant's prices, since the fleet cannot spend that fast.

    The fleet's top speed is the price of its GPUs × their number in the least replicas, plus all standing costs; it
    burns the limit of the longest day or month there is.
    """
    found = []
    for index, budget in enumerate(config.budgets):
        speed = _top_speed(config, budget.match, now)
        if speed is None:
            continue
        for name, limit in limits(budget).items():
            pace = burn_rate(speed, limit, Period(0, _LONGEST[name]))
            alerts = [f"{alert} (above {least:g})" for alert, least in _burn_alerts(config, name) if pace <= least]
            if alerts:
                found.append(
                    f"budgets[{index}].{_KEYS[name]}: {' and '.join(alerts)} can never fire, since at full speed the "
                    f"engines spend {pace:.3g} times the pace that uses the limit"
                )
    return found


def _burn_alerts(config: Config, period: str) -> Iterator[tuple[str, float]]:
    """Yield the burn alerts that a period has, and from what pace on each fires."""
    rates = config.alerts.burn_rate
    fast = rates.fast_day if period == DAY else rates.fast_month
    slow = rates.slow_month if period == MONTH else None
    found = (("BudgetBurnFast", fast), ("BudgetBurnSlow", slow))
    yield from ((alert, float(least)) for alert, least in found if least is not None)


def _top_speed(config: Config, match: Match, now: int) -> Fraction | None:
    """Return the most that the engines of a budget cost an hour; None without a bound: API spend, network, energy."""
    prices = config.prices
    calls_apis = bool(prices.api.models) and match.category in (None, "api") and match.engine is None
    if calls_apis or (prices.network is not None and match.category in (None, Category.NETWORK)):
        return None
    costs, dearest = standing_costs(config), _dearest(prices.gpu)
    speed = Fraction(0)
    for engine in config.engines:
        part = own_part(match, _cost(engine, match, dearest, by_category(costs, engine.name, now)))
        if part.committed is None:
            return None
        speed += part.committed + sum(part.standing.values())
    return speed


def _cost(engine: Engine, match: Match, dearest: Fraction | None, standing: Mapping[Category, Fraction]) -> EngineCost:
    """Return what an engine costs, under the name of the budget's model if it may serve that."""
    may_serve = match.model is not None and (not engine.models or match.model in engine.models)
    compute = Fraction(0) if not engine.gpus_charged else dearest and dearest * engine.gpus_charged
    return EngineCost(
        name=engine.name,
        model=match.model if match.model and may_serve else "",
        tier=engine.tier or "",
        compute=compute,
        standing=standing,
        min_replicas=min_replicas(engine),
    )


def _dearest(price: GpuPrice | None) -> Fraction | None:
    """Return the highest price of one GPU an hour (nano-dollars); None where energy is priced, or nothing is."""
    if price is None:
        return None
    forms: tuple[GpuPrice | DatedPrice, ...] = (price, *price.timeline)
    names = {name for form in forms for name in form.by_name or {}} or {""}
    found = [hourly for name in names for hourly in gpu_timeline(price, {name: Fraction(1)})]
    if any(hourly.nano_usd_per_joule for hourly in found):
        return None
    return max((hourly.nano_usd_per_hour for hourly in found if hourly.nano_usd_per_hour is not None), default=None)
