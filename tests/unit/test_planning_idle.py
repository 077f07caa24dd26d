"""Scaling to zero: which cooldown costs least, who may go to zero at all, and what that leaves."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from exporter.config.model import Engine, Workload
from exporter.core.scale_to_zero import Advice, Idleness, advice, at_zero, best_cooldown

HOUR, MINUTE = Fraction(3600), Fraction(60)
COLD_START = 4 * MINUTE
DAY = Idleness(
    usd_per_hour=Fraction(4, 5),
    idle_seconds=10 * HOUR,
    days=Fraction(1),
    cold_start_seconds=COLD_START,
    gaps=(9 * HOUR, 30 * MINUTE),
)


def told(idleness: Idleness, own: Engine | None = None) -> dict[Workload, Advice]:
    return {row.workload: row for row in advice(idleness, own)}


def test_the_recommended_cooldown_is_about_one_cold_start():
    found = at_zero(DAY)
    assert found is not None
    assert (found.cooldown_seconds, found.cold_starts_per_day) == (COLD_START, Fraction(2))
    assert found.waiting_seconds_per_day == 2 * COLD_START
    short = 30 * MINUTE  # of the ten hours: in moments that are no gap
    assert found.idle_usd_per_month == (short + 2 * COLD_START) / HOUR * Fraction(4, 5) * 30
    assert found.cold_start_usd_per_month == 2 * COLD_START / HOUR * Fraction(4, 5) * 30
    kept = 10 * Fraction(4, 5) * 30
    assert found.saving_usd_per_month == kept - found.idle_usd_per_month - found.cold_start_usd_per_month


def test_gaps_that_end_just_after_a_cold_start_are_waited_out():
    gaps = [5 * MINUTE] * 20 + [8 * HOUR]
    assert best_cooldown(gaps, COLD_START) == 5 * MINUTE
    assert best_cooldown([], COLD_START) == COLD_START
    assert best_cooldown([5 * MINUTE], COLD_START) == 5 * MINUTE


GAPS = st.lists(st.integers(1, 20_000).map(Fraction), max_size=20)
STARTS = st.integers(1, 2000).map(Fraction)


def paid_seconds(gaps: list[Fraction], cooldown: Fraction, cold_start: Fraction) -> Fraction:
    """Seconds paid for without work: Σ min(gap, cooldown) + cold start × gaps longer than the cooldown."""
    starts = sum(gap > cooldown for gap in gaps)
    return sum((min(gap, cooldown) for gap in gaps), Fraction(0)) + starts * cold_start


@given(GAPS, STARTS, st.integers(0, 20_000).map(Fraction))
def test_no_other_cooldown_costs_less(gaps: list[Fraction], start: Fraction, other: Fraction):
    best = best_cooldown(gaps, start)
    assert best >= start
    assert paid_seconds(gaps, best, start) <= paid_seconds(gaps, start + other, start)


@given(GAPS, STARTS)
def test_a_cooldown_of_one_cold_start_never_costs_twice_the_best_that_could_be_known(
    gaps: list[Fraction], start: Fraction
):
    assert paid_seconds(gaps, start, start) <= 2 * sum((min(gap, start) for gap in gaps), Fraction(0))


def test_where_somebody_waits_it_never_goes_to_zero():
    rows = told(DAY)
    assert {name: row.min_replicas for name, row in rows.items()} == {
        "interactive": 1, "batch": 0, "nightly": 0, "webhook": 1, "scheduled": 0,
    }  # fmt: skip
    for name in (Workload.INTERACTIVE, Workload.WEBHOOK):
        row = rows[name]
        assert row.advice.startswith("never to zero: ")
        assert (row.cold_starts_per_day, row.waiting_seconds_per_day) == (Fraction(0), Fraction(0))
        assert row.cooldown_seconds is None
        assert row.advised_usd_per_month == row.idle_usd_per_month == 240
    batch = rows[Workload.BATCH]
    assert (batch.idle_usd_per_month, batch.cooldown_seconds) == (Fraction(240), COLD_START)
    assert batch.advised_usd_per_month is not None
    assert batch.advised_usd_per_month < 30


def test_without_gaps_only_the_idle_hours_are_known():
    sparse = replace(DAY, gaps=None)
    assert at_zero(sparse) is None
    batch = told(sparse)[Workload.BATCH]
    assert batch.idle_usd_per_month == 240
    assert (batch.advised_usd_per_month, batch.cold_starts_per_day) == (None, None)
    assert batch.cooldown_seconds == COLD_START
    assert told(replace(DAY, cold_start_seconds=None))[Workload.BATCH].cooldown_seconds is None


def test_gaps_that_are_too_short_save_nothing():
    found = told(replace(DAY, idle_seconds=5 * MINUTE, gaps=(5 * MINUTE,)))[Workload.NIGHTLY]
    assert found.advice == "may go to zero, but no gap is long enough for that to save anything"
    assert found.advised_usd_per_month == found.idle_usd_per_month


def test_the_config_of_the_engine_holds_for_its_own_type():
    batch = Engine(url="", workload=Workload.BATCH, min_replicas=2)
    row = told(DAY, batch)[Workload.BATCH]
    assert (row.min_replicas, row.advised_usd_per_month) == (2, Fraction(480))
    assert row.advice == "not to zero: the config keeps replicas"
    assert told(DAY, batch)[Workload.NIGHTLY].min_replicas == 0
    chat = Engine(url="", workload=Workload.INTERACTIVE, min_replicas=0, ttft_target=1.0)
    assert told(DAY, chat)[Workload.INTERACTIVE].advice.startswith("the config lets it go to zero, but: never to zero")


@given(GAPS, STARTS, st.decimals("0.01", 100, places=2))
def test_going_to_zero_at_the_best_cooldown_never_costs_more_than_staying(
    gaps: list[Fraction], start: Fraction, price: Decimal
):
    found = at_zero(
        Idleness(
            usd_per_hour=Fraction(price),
            idle_seconds=sum(gaps, Fraction(0)),
            days=Fraction(7),
            cold_start_seconds=start,
            gaps=gaps,
        )
    )
    assert found is not None
    assert found.saving_usd_per_month >= 0
