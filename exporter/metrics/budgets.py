"""The rows of budgets and of the ledger that holds them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from exporter.core.budgets import PeriodView
from exporter.core.money import LABELS, NANO, Kind
from exporter.core.snapshot import LedgerView, Snapshot
from exporter.metrics.row import Fleet, Row, Sample, Type

_PERIOD: Final = ("budget", "period")


def _period(name: str, text: str, value: Callable[[PeriodView], float | None], fleet: Fleet = Fleet.NONE) -> Row:
    def read(snapshot: Snapshot) -> Iterator[Sample]:
        for budget in snapshot.budgets:
            for period, view in budget.periods.items():
                if (number := value(view)) is not None:
                    yield (budget.budget.name, period), number

    return Row(name, Type.GAUGE, text, _PERIOD, fleet, read)


def _usd(value: Callable[[PeriodView], int | None]) -> Callable[[PeriodView], float | None]:
    def read(view: PeriodView) -> float | None:
        nano = value(view)
        return None if nano is None else nano / NANO

    return read


def _capped(view: PeriodView) -> float | None:
    return None if view.capped is None else float(view.capped)


def _denied(snapshot: Snapshot) -> Iterable[Sample]:
    return snapshot.totals.get(Kind.BUDGET_DENIED, {}).items()


def _warn_ratios(snapshot: Snapshot) -> Iterator[Sample]:
    for budget in snapshot.budgets:
        for level, ratio in enumerate(budget.warn_ratios, start=1):
            yield (budget.budget.name, str(level)), ratio


def _burn_rates(snapshot: Snapshot) -> Iterator[Sample]:
    for budget in snapshot.budgets:
        for period, view in budget.periods.items():
            for window, rate in view.burn_rate.items():
                yield (budget.budget.name, period, window), rate


def _replicas(snapshot: Snapshot) -> Iterator[Sample]:
    for budget in snapshot.budgets:
        for period, view in budget.periods.items():
            for engine, replicas in view.max_affordable_replicas.items():
                yield (budget.budget.name, period, engine), replicas


def _ledger(value: Callable[[LedgerView], float | None]) -> Callable[[Snapshot], Iterable[Sample]]:
    def read(snapshot: Snapshot) -> Iterator[Sample]:
        if snapshot.ledger is not None and (number := value(snapshot.ledger)) is not None:
            yield (), number

    return read


# fmt: off
BUDGETS: Final[tuple[Row, ...]] = (
    _period("budget_limit_usd", "What the period may cost.", _usd(lambda view: view.limit), Fleet.MAX),
    _period("budget_spent_usd",
        "What the period has cost so far, what waits for a commit included.", _usd(lambda view: view.spent)),
    _period("budget_consumed_ratio", "Spent ÷ limit; not held down to 1.", lambda view: view.consumed_ratio),
    _period("budget_elapsed_ratio", "How much of the period is over, 0-1.", lambda view: view.elapsed_ratio),
    _period("budget_forecast_usd",
        "What the whole period will cost if it goes on as it did; from an hour of history on.",
        _usd(lambda view: view.forecast)),
    _period("budget_runway_seconds",
        "How long the rest of the money lasts at the pace of the last hour; absent while nothing is spent.",
        lambda view: view.runway_seconds),
    _period("budget_capped",
        "1 where the limit is spent and the mode is enforce, else 0; absent while the spend is not known.", _capped),
    _period("budget_history_complete_ratio",
        "How much of the period's time so far the exporter knows.", lambda view: view.history_complete_ratio),
    _period("budget_period_start_timestamp_seconds",
        "When the period began, in the budget's time zone.", lambda view: view.period.start / NANO, Fleet.MAX),
    _period("budget_period_end_timestamp_seconds",
        "When the period ends, in the budget's time zone.", lambda view: view.period.end / NANO, Fleet.MAX),
    Row("budget_warn_ratio", Type.GAUGE,
        "Where warnings start, as a part of the limit, the lowest first.",
        ("budget", "level"), Fleet.NONE, _warn_ratios),
    Row("budget_burn_rate", Type.GAUGE,
        "Pace of spending over a window ÷ the pace that uses exactly the limit; a young history has its own length.",
        (*_PERIOD, "window"), Fleet.NONE, _burn_rates),
    _period("budget_overshoot_bound_usd",
        "The most that can still be spent when the cap denies everything: GPUs run on until replicas go.",
        _usd(lambda view: view.overshoot_bound)),
    Row("budget_denied_total", Type.COUNTER,
        "Checks that were denied (mode enforce), or would have been (shadow).",
        LABELS[Kind.BUDGET_DENIED], Fleet.SUM, _denied, stays=True),
    Row("max_affordable_replicas", Type.GAUGE,
        "Replicas that the rest of the money keeps until the period ends; never below the minimum.",
        (*_PERIOD, "engine"), Fleet.NONE, _replicas),
    Row("ledger_uncommitted_usd", Type.GAUGE,
        "Spend that is booked and not on the disk yet; the counters on this page leave it out, budgets count it.",
        (), Fleet.SUM, _ledger(lambda ledger: ledger.uncommitted / NANO), stays=True),
    Row("ledger_write_errors_total", Type.COUNTER,
        "Writes to the ledger that failed; what they held waits for the next.",
        (), Fleet.SUM, _ledger(lambda ledger: ledger.errors), stays=True),
    Row("ledger_last_commit_timestamp_seconds", Type.GAUGE,
        "When the ledger was last written.",
        (), Fleet.NONE, _ledger(lambda ledger: ledger.last_commit), stays=True),
)
# fmt: on
