"""Budgets: sums that no split, restart or clock changes, each formula by hand, and the traps under their names."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from random import Random
from types import MappingProxyType
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.clock import Instant
from exporter.config.model import Budget, Cap, CapMode, Match
from exporter.config.prices import StoragePrice
from exporter.core.budgets import (
    BudgetFacts,
    BudgetMeter,
    BudgetView,
    EngineCost,
    PeriodView,
    State,
    burn_rate,
    forecast,
    limits,
    max_affordable_replicas,
    overshoot_bound,
    runway_seconds,
)
from exporter.core.money import NANO, Account, Category, Kind, nano_usd
from exporter.core.periods import QUARTER, Period, Quarters, day, month
from exporter.core.prices import HourlyPrice
from exporter.core.standing import StandingCost, by_category

HOUR = 3600 * NANO
DAYS = 24 * HOUR
SPEND = Account(Kind.SPEND, ("compute_busy", "chat", "m", "fast"))


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * NANO


def usd(text: str) -> int:
    return int(nano_usd(Decimal(text)))


def budget(
    daily: str | None = "25",
    monthly: str | None = "600",
    timezone: str = "UTC",
    warn: tuple[str, ...] = ("0.8",),
    mode: CapMode = CapMode.ENFORCE,
    match: Mapping[str, str] = MappingProxyType({}),
) -> Budget:
    return Budget(
        name="inference",
        daily_usd=Decimal(daily) if daily else None,
        monthly_usd=Decimal(monthly) if monthly else None,
        timezone=timezone,
        warn_ratio=tuple(map(Decimal, warn)),
        cap=Cap(mode=mode),
        match=Match(**match),
    )


def engine(name: str = "chat", compute: str | None = "1", min_replicas: int = 1, **standing: str) -> EngineCost:
    return EngineCost(
        name=name,
        model="m",
        tier="fast",
        compute=None if compute is None else nano_usd(Decimal(compute)),
        standing={Category(category): nano_usd(Decimal(rate)) for category, rate in standing.items()},
        min_replicas=min_replicas,
    )


UNPRICED = Account(Kind.UNPRICED_GPU, ("chat", "m", "fast", "any"))


def since(at: str, *engines: EngineCost, unobserved: Quarters | None = None) -> BudgetFacts:
    return BudgetFacts(accounting_start=utc(at), engines=engines, unobserved=unobserved or Quarters())


ALWAYS = since("2020-01-01")


class Ride:
    """A meter and both clocks, moved by hand."""

    def __init__(self, at: str, of: Budget, facts: BudgetFacts = ALWAYS) -> None:
        self.meter, self.facts = BudgetMeter(of), facts
        self.now = Instant(utc(at), 77 * NANO)
        self.meter.record(self.now)

    def spend(self, rate: str, hours: float, step: float = 1 / 60) -> "Ride":
        """Spend at a rate (US dollars an hour) for some hours, in beats of `step` hours."""
        for _ in range(round(hours / step)):
            began, length = self.now, round(step * HOUR)
            self.now = Instant(began.wall + length, began.monotonic + length)
            self.meter.book(SPEND, int(nano_usd(Decimal(rate)) * length / HOUR), began.wall)
            self.meter.record(self.now)
        return self

    def step_wall(self, hours: float) -> None:
        self.now = Instant(self.now.wall + round(hours * HOUR), self.now.monotonic)

    def view(self) -> BudgetView:
        return self.meter.view(self.now, self.facts)

    def day(self) -> PeriodView:
        return self.view().periods["day"]

    def month(self) -> PeriodView:
        return self.view().periods["month"]


def spent(
    of: Budget, at: str, *bookings: tuple[str, str], facts: BudgetFacts = ALWAYS, unpriced: str | None = None
) -> BudgetView:
    """The view at an instant after dollars were booked at instants, and GPU time without a price at one."""
    meter = BudgetMeter(of)
    if unpriced is not None:
        meter.book(UNPRICED, 5 * NANO, utc(unpriced))
    for amount, when in bookings:
        meter.book(SPEND, usd(amount), utc(when))
    return meter.view(Instant(utc(at), 0), facts)


# The seed's floor: a warning at 80 %, a hard cap at 100 %, daily and monthly, both reported at once.


def test_warning_at_80_percent_and_hard_cap_at_100_percent_daily_and_monthly_both_at_once():
    view = spent(budget("25", "600"), "2026-11-23T12:00", ("580", "2026-11-22T12:00"), ("20", "2026-11-23T10:00"))
    assert (view.periods["day"].warned, view.periods["month"].warned) == ((0.8,), (0.8,))
    assert (view.periods["day"].state, view.periods["month"].state, view.state) == (State.WARN, State.OVER, State.OVER)
    assert (view.periods["day"].capped, view.periods["month"].capped) == (False, True)


@pytest.mark.parametrize(
    ("daily", "state", "capped"),
    [
        ("0", "ok", False),
        ("19.999999999", "ok", False),
        ("20", "warn", False),
        ("24.999999999", "warn", False),
        ("25", "over", True),
        ("25.000000001", "over", True),
    ],
)
def test_states_change_at_the_nano_dollar(daily: str, state: str, capped: bool):
    view = spent(budget(), "2026-11-23T12:00", (daily, "2026-11-23T10:00"))
    assert (view.periods["day"].state, view.periods["day"].capped) == (state, capped)
    assert view.periods["month"].state == "ok"


def test_boundary_is_spent_at_or_above_the_limit_even_where_the_limit_is_no_whole_nano_dollar():
    of = budget("0.0000000015", None)
    assert limits(of) == {"day": 2}
    for nano, over in ((1, False), (2, True)):
        meter = BudgetMeter(of)
        meter.book(SPEND, nano, utc("2026-11-23"))
        state = meter.view(Instant(utc("2026-11-23T12:00"), 0), ALWAYS).periods["day"].state
        assert (state is State.OVER) is over


def test_alert_dedupe_has_a_mark_for_each_budget_period_and_ratio():
    view = spent(budget("10", None, warn=("0.95", "0.5", "0.8", "0.8")), "2026-11-23T12:00", ("9", "2026-11-23"))
    assert view.state is State.WARN
    assert view.warn_ratios == (0.5, 0.8, 0.95)
    assert view.periods["day"].warned == (0.5, 0.8)


def test_another_config_of_the_same_match_goes_on_where_it_was():
    ride = Ride("2026-11-23T00:00", budget("24", None)).spend("1", 6)
    ride.meter.adopt(budget("12", None, "Europe/Berlin"))
    assert ride.day().burn_rate["1h"] == pytest.approx(2.0)
    assert ride.day().period.start == utc("2026-11-22T23:00")
    assert ride.day().spent == pytest.approx(usd("6"), abs=360)


def test_one_warn_ratio_may_stand_alone():
    of = Budget(name="b", daily_usd=Decimal(10), warn_ratio=Decimal("0.5"))
    day = spent(of, "2026-11-23T12:00", ("5", "2026-11-23")).periods["day"]
    assert (day.state, day.warned) == (State.WARN, (0.5,))


@pytest.mark.parametrize(("mode", "capped"), [(CapMode.OFF, False), (CapMode.SHADOW, False), (CapMode.ENFORCE, True)])
def test_only_an_enforced_budget_is_capped(mode: CapMode, capped: bool):
    view = spent(budget(mode=mode), "2026-11-23T12:00", ("25", "2026-11-23"))
    assert (view.periods["day"].state, view.periods["day"].capped, view.mode) == (State.OVER, capped, mode)


def test_hard_cap_is_enforce():
    of = Budget(name="b", daily_usd=Decimal(25), hard_cap=True)
    view = spent(of, "2026-11-23T12:00", ("25", "2026-11-23"))
    assert (view.mode, view.periods["day"].capped) == (CapMode.ENFORCE, True)


def test_no_budget_no_series():
    assert set(spent(budget(monthly=None), "2026-11-23").periods) == {"day"}
    assert set(spent(budget(daily=None), "2026-11-23").periods) == {"month"}


# Periods.


def test_month_boundary_in_a_time_zone_is_its_own_midnight():
    """At half past eleven at night in UTC it is the first of the month in Berlin."""
    of = budget(timezone="Europe/Berlin")
    bookings = [("1", "2026-11-30T22:59:59.999999"), ("2", "2026-11-30T23:00"), ("4", "2026-11-30T23:30")]
    view = spent(of, "2026-11-30T23:40", *bookings)
    assert {name: one.spent for name, one in view.periods.items()} == {"day": usd("6"), "month": usd("6")}
    before = spent(of, "2026-11-30T22:59:59", *bookings)
    assert {name: one.spent for name, one in before.periods.items()} == {"day": usd("1"), "month": usd("1")}


def test_a_leap_day_is_a_day_of_february():
    view = spent(budget(), "2028-02-29T12:00", ("1", "2028-02-28T23:59"), ("2", "2028-02-29"), ("4", "2028-03-01"))
    assert (view.periods["day"].spent, view.periods["month"].spent) == (usd("2"), usd("3"))
    assert view.periods["month"].elapsed_ratio == pytest.approx(28.5 / 29)


@pytest.mark.parametrize(
    ("at", "elapsed", "length"),
    [("2026-03-29T10:00", 11, 23), ("2026-10-25T11:00", 13, 25), ("2026-05-05T10:00", 12, 24)],
)
def test_days_of_23_and_25_hours_have_their_own_pace(at: str, elapsed: int, length: int):
    """At noon in Berlin. A dollar an hour and as many dollars as hours: the pace is 1."""
    ride = Ride(at, budget(str(length), None, "Europe/Berlin")).spend("1", 1)
    view = ride.day()
    assert view.elapsed_ratio == pytest.approx((elapsed + 1) / length)
    assert view.burn_rate["1h"] == pytest.approx(1.0)
    assert view.period.length == length * HOUR


def test_concurrent_or_repeated_reset_cannot_happen():
    """Nothing is reset: looking again, or looking back, changes nothing."""
    meter = BudgetMeter(budget())
    meter.book(SPEND, usd("3"), utc("2026-11-30T12:00"))
    views = [
        meter.view(Instant(utc(at), 0), ALWAYS).periods["month"].spent
        for at in ("2026-11-30T13:00", "2026-12-01T00:00", "2026-12-01T00:00", "2026-11-30T13:00")
    ]
    assert views == [usd("3"), 0, 0, usd("3")]


def test_a_clock_set_back_or_ahead_moves_no_money():
    ride = Ride("2026-12-01T00:30", budget()).spend("1", 1)
    rates = ride.day().burn_rate
    ride.step_wall(-24)
    assert (ride.day().spent, ride.month().spent) == (0, 0)
    assert ride.day().burn_rate == rates
    ride.spend("1", 1)
    assert ride.month().spent == pytest.approx(usd("1"), abs=60)
    ride.step_wall(24 * 365)
    assert ride.month().spent == 0
    ride.spend("1", 1)
    ride.step_wall(-24 * 364)
    assert ride.day().spent == pytest.approx(usd("1"), abs=60)
    assert ride.day().burn_rate["1h"] == pytest.approx(24 / 25)


def test_pod_churn_and_month_to_date():
    """A month in which a pod lives a day: each goes on from the ledger."""
    ledger: dict[int, int] = {}
    for of_month in range(1, 31):
        meter = BudgetMeter(budget(), spent=Quarters(ledger))
        at = utc(f"2026-11-{of_month:02}T06:07")
        meter.book(SPEND, usd("2"), at)
        ledger[at // NANO // QUARTER * QUARTER] = usd("2")
        view = meter.view(Instant(at, 0), ALWAYS)
        assert (view.periods["day"].spent, view.periods["month"].spent) == (usd("2"), usd("2") * of_month)


def test_float_drift_does_not_reach_a_sum():
    meter = BudgetMeter(budget("1000000", "1000000"))
    meter.book(SPEND, usd("999999.999999999"), utc("2026-11-23"))
    assert meter.view(Instant(utc("2026-11-23T12:00"), 0), ALWAYS).state is State.WARN
    meter.book(SPEND, 1, utc("2026-11-23T00:01"))
    assert meter.view(Instant(utc("2026-11-23T12:00"), 0), ALWAYS).state is State.OVER


# What a budget holds.


@pytest.mark.parametrize(
    ("match", "holds"),
    [
        ({}, True),
        ({"category": "compute_busy"}, True),
        ({"category": "compute"}, True),
        ({"category": "compute_"}, False),
        ({"category": "comp"}, False),
        ({"category": "compute_idle"}, False),
        ({"engine": "chat"}, True),
        ({"engine": "chat-2"}, False),
        ({"model": "m", "tier": "fast"}, True),
        ({"model": "m", "tier": "slow"}, False),
        ({"feature": "summary"}, False),
        ({"team": "docs"}, False),
    ],
)
def test_a_budget_holds_what_each_of_its_keys_equals(match: Mapping[str, str], holds: bool):
    meter = BudgetMeter(budget(match=match))
    assert meter.matches(SPEND) is holds
    meter.book(SPEND, 5, utc("2026-11-23"))
    assert meter.total == (5 if holds else 0)


def test_only_money_is_money():
    meter = BudgetMeter(budget())
    for account in (Account(Kind.UNOBSERVED, ()), Account(Kind.OUTPUT_TOKENS, ("chat", "m", "fast"))):
        assert not meter.matches(account)
        meter.book(account, 10**15, utc("2026-11-23"))
    assert meter.total == 0


# Unknown is not zero.


@pytest.mark.parametrize(
    ("match", "usd_spent"),
    [
        ({"feature": "summary"}, "11"),
        ({"team": "docs"}, "111"),
        ({"feature": "summary", "team": "web"}, "0"),
        ({"feature": "summary", "engine": "chat"}, "10"),
        ({"feature": "summary", "category": "api"}, "1"),
        ({"feature": "summary", "category": "compute"}, "10"),
        ({"team": "docs", "model": "gpt"}, "1"),
        ({"team": "docs", "tier": "fast"}, "110"),
    ],
)
def test_a_budget_of_a_feature_or_a_team_holds_a_part_of_showback(match: Mapping[str, str], usd_spent: str):
    meter = BudgetMeter(budget("1000", "1000", match=match))
    at = utc("2026-11-23T10:00")
    meter.book(SPEND, usd("500"), at)
    meter.book(Account(Kind.ATTRIBUTED, ("summary", "docs", "chat", "m", "fast")), usd("10"), at)
    meter.book(Account(Kind.ATTRIBUTED, ("summary", "docs", "", "gpt", "")), usd("1"), at)
    meter.book(Account(Kind.ATTRIBUTED, ("search", "docs", "chat", "m", "fast")), usd("100"), at)
    one = meter.view(Instant(utc("2026-11-23T12:00"), 0), since("2026-11-20", engine())).periods["day"]
    assert one.spent == usd(usd_spent)
    assert one.max_affordable_replicas == {}, "a feature has no replicas of its own"


def test_unknown_price_is_never_zero():
    view = spent(budget(), "2026-11-23T12:00", unpriced="2026-11-23T10:00")
    assert (view.state, view.periods["day"].spent, view.periods["month"].spent) == (State.UNKNOWN, None, None)


@pytest.mark.parametrize(
    ("match", "account", "is_unknown"),
    [
        ({}, Account(Kind.UNPRICED_TOKENS, ("other",)), True),
        ({"category": "api"}, Account(Kind.UNPRICED_TOKENS, ("other",)), True),
        ({"category": "storage"}, Account(Kind.UNPRICED_TOKENS, ("other",)), False),
        ({"engine": "chat"}, Account(Kind.UNPRICED_TOKENS, ("other",)), False),
        ({"feature": "f"}, Account(Kind.FEATURE_OUTPUT_TOKENS, ("f", "t", "other", "")), True),
        ({"feature": "f"}, Account(Kind.FEATURE_OUTPUT_TOKENS, ("f", "t", "priced", "")), False),
        ({"feature": "f"}, Account(Kind.FEATURE_OUTPUT_TOKENS, ("g", "t", "other", "")), False),
        ({"team": "t"}, Account(Kind.FEATURE_PROMPT_TOKENS, ("g", "t", "other", "")), True),
        ({"feature": "f", "engine": "chat"}, Account(Kind.FEATURE_OUTPUT_TOKENS, ("f", "t", "other", "")), False),
    ],
)
def test_unknown_price_of_tokens_is_never_zero(match: Mapping[str, str], account: Account, is_unknown: bool):
    meter = BudgetMeter(budget(match=match))
    meter.book(account, 7, utc("2026-11-23T10:00"))
    view = meter.view(Instant(utc("2026-11-23T12:00"), 0), since("2026-11-20", engine()))
    assert (view.state is State.UNKNOWN) == is_unknown


def test_unknown_price_of_yesterday_is_not_today():
    view = spent(budget(), "2026-11-23T12:00", ("1", "2026-11-23"), unpriced="2026-11-22")
    assert (view.periods["day"].state, view.periods["month"].state, view.state) == ("ok", "unknown", "unknown")
    assert (view.periods["day"].unpriced, view.periods["month"].unpriced) == (False, True)
    assert (view.periods["day"].capped, view.periods["month"].capped) == (False, None)
    assert view.periods["month"].spent == usd("1")


def test_unknown_price_does_not_hide_that_the_rest_is_over():
    view = spent(budget(), "2026-11-23T12:00", ("25", "2026-11-23"), unpriced="2026-11-23")
    assert (view.periods["day"].state, view.periods["day"].capped) == (State.OVER, True)


@pytest.mark.parametrize("match", [{"engine": "other"}, {"category": "storage"}, {"tier": "slow"}])
def test_unknown_price_of_what_a_budget_does_not_pay_for_is_no_matter(match: Mapping[str, str]):
    view = spent(budget(match=match), "2026-11-23T12:00", unpriced="2026-11-23")
    assert (view.state, view.periods["day"].spent) == (State.OK, 0)


def test_history_completeness_is_known_time_by_elapsed_time():
    """Accounting began at six, and an hour from nine on was seen by nobody: five of twelve hours."""
    gap = Quarters()
    for quarter in range(4):
        gap.add(QUARTER * NANO, utc("2026-11-23T09:00") + quarter * QUARTER * NANO)
    facts = since("2026-11-23T06:00", unobserved=gap)
    view = spent(budget(), "2026-11-23T12:00", facts=facts)
    assert view.periods["day"].history_complete_ratio == pytest.approx(5 / 12)
    assert view.periods["month"].history_complete_ratio == pytest.approx(5 / (22 * 24 + 12))
    after = spent(budget(), "2026-11-24T12:00", facts=facts)
    assert after.periods["day"].history_complete_ratio == 1.0
    before = spent(budget(), "2026-11-22T12:00", facts=facts)  # the clock was set back to before it all
    assert before.periods["day"].history_complete_ratio == 0.0


def test_the_first_instant_of_a_period_has_no_completeness():
    view = spent(budget(), "2026-11-23T00:00")
    assert view.periods["day"].history_complete_ratio is None
    assert view.periods["day"].elapsed_ratio == 0.0


# Windows: burn and runway.


def test_burn_is_pace_by_the_pace_that_uses_the_limit():
    november = month(ZoneInfo("UTC"), utc("2026-11-23"))
    assert burn_rate(nano_usd(Decimal(2)), usd("24"), day(ZoneInfo("UTC"), utc("2026-11-23"))) == 2.0
    assert burn_rate(nano_usd(Decimal(1)), usd("600"), november) == 1.2


def test_burn_by_hand():
    """Twenty-four hours at $1, then five minutes at $13, against $24 a day."""
    view = Ride("2026-11-22T12:00", budget("24", "720")).spend("1", 24).spend("13", 1 / 12).day()
    assert view.burn_rate == pytest.approx(
        {"5m": 13.0, "30m": (25 + 65) / 30, "1h": 2.0, "6h": (5 + 11 / 12 + 13 / 12) / 6, "24h": 25 / 24}, rel=1e-6
    )


def test_a_young_history_is_divided_by_its_own_length():
    view = Ride("2026-11-23T10:00", budget("24", None)).spend("1", 3).day()
    assert view.burn_rate == pytest.approx(dict.fromkeys(("5m", "30m", "1h", "6h", "24h"), 1.0))


def test_no_history_no_burn():
    ride = Ride("2026-11-23T10:00", budget())
    assert (ride.day().burn_rate, ride.day().runway_seconds, ride.day().forecast) == ({}, None, None)
    bare = BudgetMeter(budget()).view(ride.now, ALWAYS).periods["day"]
    assert (bare.burn_rate, bare.runway_seconds, bare.forecast) == ({}, None, None)


def test_runway_is_what_is_left_by_the_rate_of_the_last_hour():
    """$25 a day, $15 spent, $2 in the last hour: five hours."""
    ride = Ride("2026-11-23T00:00", budget("25", None)).spend("1", 13).spend("2", 1)
    assert ride.day().runway_seconds == pytest.approx(5 * 3600, rel=1e-6)
    assert runway_seconds(usd("10"), nano_usd(Decimal(2))) == 5 * 3600
    assert runway_seconds(-1, nano_usd(Decimal(2))) == 0.0


def test_zero_burn_has_no_runway_and_a_burn_of_zero():
    ride = Ride("2026-11-23T00:00", budget()).spend("1", 2).spend("0", 1.5)
    assert ride.day().runway_seconds is None
    assert ride.day().burn_rate["1h"] == 0.0
    assert ride.day().burn_rate["6h"] > 0
    assert runway_seconds(usd("10"), None) is None


def test_scrape_gaps_that_nothing_was_booked_for_begin_the_windows_anew():
    ride = Ride("2026-11-23T00:00", budget("24", None)).spend("1", 2)
    ride.now = Instant(ride.now.wall + 7 * HOUR, ride.now.monotonic + 7 * HOUR)
    ride.meter.forget_windows()
    ride.meter.record(ride.now)
    assert ride.day().burn_rate == {}
    assert ride.spend("1", 0.5).day().burn_rate["6h"] == pytest.approx(1.0)


def test_scrape_gaps_that_were_booked_are_divided_by_their_length():
    """An hour was booked at once at its end: five minutes are then that hour."""
    ride = Ride("2026-11-23T00:00", budget("24", None)).spend("1", 1).spend("1", 1, step=1)
    assert ride.day().burn_rate["5m"] == pytest.approx(1.0)


def test_a_restart_goes_on_with_the_windows_of_before():
    """The samples of the ledger are a minute apart; three of them cannot be."""
    ride = Ride("2026-11-23T00:00", budget("24", "720")).spend("1", 20).spend("2", 1)
    samples = [(utc("2026-11-23T00:00") // NANO + 60 * minute, usd("1") * minute // 60) for minute in range(20 * 60)]
    samples += [
        (utc("2026-11-23T20:00") // NANO + 60 * minute, usd("20") + usd("2") * minute // 60) for minute in range(61)
    ]
    impossible = [(utc("2026-11-23T20:30") // NANO, usd("900")), (utc("2026-11-25") // NANO, usd("1"))]
    restarted = BudgetMeter(budget("24", "720"), spent=Quarters({utc("2026-11-23") // NANO: ride.meter.total - 5}, 5))
    now = Instant(ride.now.wall, 3 * NANO)
    restarted.restore(samples[::-1] + impossible, now)
    found = restarted.view(now, ALWAYS).periods["month"].burn_rate
    assert found == pytest.approx(ride.month().burn_rate, rel=1e-4)
    assert found["1h"] == pytest.approx(2.0, rel=1e-4)


# Forecasts.


def test_forecast_is_spent_and_what_the_rate_adds():
    assert forecast(usd("10"), nano_usd(Decimal(2)), 3 * HOUR) == usd("16")
    assert forecast(usd("10"), None, 3 * HOUR) is None
    assert forecast(usd("10"), Fraction(0), 3 * HOUR) == usd("10")


def test_forecast_of_a_month_by_whole_days():
    """$10 on Saturday, $50 on Sunday, $9 until noon on Monday the 23rd: 69 + 30 × 7.5 days."""
    bookings = [("10", "2026-11-21T12:00"), ("50", "2026-11-22T20:00"), ("9", "2026-11-23T11:00")]
    view = spent(budget(), "2026-11-23T12:00", *bookings, facts=since("2026-11-21"))
    assert view.periods["month"].forecast == usd("294")
    assert view.periods["day"].forecast is None


def test_forecast_of_a_month_takes_the_last_seven_whole_days_across_its_start():
    bookings = [("100", "2026-11-23T12:00")] + [("7", f"2026-11-{of_month}T12:00") for of_month in range(24, 31)]
    view = spent(budget(), "2026-12-01T00:00:30", *bookings)
    exact = usd("7") * (31 - Fraction(30, 86400))
    assert view.periods["month"].forecast == round(exact)


def test_forecast_counts_a_day_of_23_hours_by_its_hours():
    """On the day after clocks were put ahead in Berlin: $23 in 23 hours are a dollar an hour."""
    of = budget(timezone="Europe/Berlin")
    view = spent(of, "2026-03-29T22:00", ("23", "2026-03-29T10:00"), facts=since("2026-03-28T23:00"))
    assert view.periods["month"].forecast == usd("23") + usd("1") * 48


def test_forecast_leaves_out_days_that_are_not_known_from_end_to_end():
    """The first day began before the ledger, and of the third a second is missing."""
    gap = Quarters()
    gap.add(NANO, utc("2026-11-22T03:00"))
    bookings = [("1", "2026-11-20T12:00"), ("10", "2026-11-21T12:00"), ("3", "2026-11-22T12:00")]
    facts = since("2026-11-20T00:00:01", unobserved=gap)
    view = spent(budget(), "2026-11-23T00:00", *bookings, facts=facts)
    assert view.periods["month"].forecast == usd("14") + usd("10") * 8


def test_projection_at_month_start_needs_an_hour_of_history():
    ride = Ride("2026-12-01T00:00", budget(), since("2026-12-01")).spend("1", 59 / 60)
    assert (ride.month().forecast, ride.day().forecast) == (None, None)
    ride.spend("1", 1 / 60)
    assert ride.month().forecast == pytest.approx(usd("744"), rel=1e-6)
    assert ride.day().forecast == pytest.approx(usd("24"), rel=1e-6)


def test_projection_in_the_first_minute_of_a_period_is_that_of_the_day_before():
    """A day and a night of $1, and the rest of the next day and month to come."""
    ride = Ride("2026-11-30T00:00", budget(), since("2026-11-30")).spend("1", 24 + 1 / 60)
    assert ride.day().elapsed_ratio == pytest.approx(1 / 1440)
    assert ride.day().forecast == pytest.approx(usd("24"), rel=1e-6)
    assert ride.month().forecast == pytest.approx(usd("744"), rel=1e-6)


def test_forecast_of_a_day_goes_by_a_day_and_a_night():
    """$3 an hour by day, nothing by night, and at noon it will be as yesterday: $18 + 12 h × $1.50."""
    ride = Ride("2026-11-22T06:00", budget()).spend("3", 12).spend("0", 12).spend("3", 6)
    assert ride.now.wall == utc("2026-11-23T12:00")
    assert ride.day().forecast == pytest.approx(usd("36"), rel=1e-6)


# What denying requests cannot stop, and what can be afforded.


def test_overshoot_bound_is_the_rate_until_the_end():
    facts = since("2026-11-20", engine(storage="0.5"), engine("other", compute="2"))
    view = spent(budget(), "2026-11-23T14:00", facts=facts)
    assert view.periods["day"].overshoot_bound == usd("3.5") * 10
    assert view.periods["month"].overshoot_bound == usd("3.5") * (7 * 24 + 10)


@pytest.mark.parametrize(
    ("match", "bound"),
    [
        ({"engine": "chat"}, "15"),
        ({"category": "storage"}, "5"),
        ({"category": "compute"}, "30"),
        ({"category": "compute_busy", "engine": "other"}, "20"),
        ({"model": "n"}, "0"),
        ({"tier": "fast"}, "35"),
    ],
)
def test_overshoot_bound_has_only_what_the_budget_pays_for(match: Mapping[str, str], bound: str):
    facts = since("2026-11-20", engine(storage="0.5"), engine("other", compute="2"))
    view = spent(budget(match=match), "2026-11-23T14:00", facts=facts)
    assert view.periods["day"].overshoot_bound == usd(bound)


def test_overshoot_bound_is_unknown_without_a_price_and_rounded_up():
    assert overshoot_bound(HOUR, [engine(), engine("other", compute=None)]) is None
    assert overshoot_bound(1, [engine(compute="0.000000001")]) == 1
    assert overshoot_bound(HOUR, []) == 0


def test_affordable_replicas_by_hand():
    """$25, of which $4 are spent at 14:00: $21 − 10 h × ($0.10 storage + $1 of the other) = $10, at $2 × 10 h each."""
    facts = since("2026-11-20", engine(compute="0.2", storage="0.1"), engine("other", compute="1"))
    view = spent(budget(), "2026-11-23T14:00", ("4", "2026-11-23"), facts=facts)
    assert view.periods["day"].max_affordable_replicas == {"chat": 5, "other": 1}


def test_affordable_replicas_are_never_below_the_minimum():
    facts = since("2026-11-20", engine(min_replicas=2), engine("batch", min_replicas=0))
    view = spent(budget(), "2026-11-23T14:00", ("24", "2026-11-23"), facts=facts)
    assert view.periods["day"].max_affordable_replicas == {"chat": 2, "batch": 0}
    over = spent(budget(), "2026-11-23T14:00", ("99", "2026-11-23"), facts=facts)
    assert over.periods["day"].max_affordable_replicas == {"chat": 2, "batch": 0}


def test_affordable_replicas_leave_the_minimum_of_the_others():
    """$100 for 10 hours: three of `b` at $1 must stay, so 7 of `a` at $1; one of `a` is there, so 9 of `b`."""
    engines = [engine("a", min_replicas=0), engine("b", min_replicas=3)]
    assert max_affordable_replicas(usd("100"), 10 * HOUR, engines) == {"a": 7, "b": 9}


def test_affordable_replicas_are_a_whole_number_at_the_nano_dollar():
    assert max_affordable_replicas(usd("20"), 10 * HOUR, [engine()]) == {"chat": 2}
    assert max_affordable_replicas(usd("20") - 1, 10 * HOUR, [engine()]) == {"chat": 1}


def test_affordable_replicas_without_a_rate_are_no_number():
    assert max_affordable_replicas(usd("20"), HOUR, [engine(compute="0"), engine("other")]) == {"other": 20}
    assert max_affordable_replicas(usd("20"), HOUR, [engine(compute=None), engine("other")]) == {}
    facts = since("2026-11-20", engine(storage="1"))
    assert (
        spent(budget(match={"category": "storage"}), "2026-11-23", facts=facts).periods["day"].max_affordable_replicas
        == {}
    )


def test_standing_costs_by_category():
    storage = StandingCost(
        Category.STORAGE, StoragePrice(weights_gb=Decimal(72), usd_per_gb_month=Decimal(10)), ("chat", "b")
    )
    other = [
        StandingCost(Category.OTHER, HourlyPrice(0, nano_usd(Decimal(rate)), "other"), payers)
        for rate, payers in (("1", ("chat", "b")), ("2", ("chat",)))
    ]
    rates = by_category((storage, *other), "chat", utc("2026-11-23"))  # November has 720 hours
    assert rates == {Category.STORAGE: usd("0.5"), Category.OTHER: usd("2.5")}


# Any history comes to the same.

BEGAN = utc("2026-10-24T20:00")
AHEAD = st.sampled_from([0, 24 * 7 - 6])  # hours: Berlin's day of 25 hours, or the end of its October, is near
Late = st.tuples(st.integers(0, 10**12), st.integers(0, 40_000))  # nano-dollars, and seconds before the beat
Beats = st.lists(st.lists(Late, max_size=4), min_size=1, max_size=40)


KEPT_FROM = (BEGAN - 12 * HOUR) // NANO // QUARTER * QUARTER


class Ledger:
    """What the real one keeps of one budget: buckets, and a sample at each beat."""

    def __init__(self, *entries: tuple[int, int]) -> None:
        self.entries = list(entries)
        self.samples: list[tuple[int, int]] = []

    def meter(self, of: Budget, now: Instant) -> BudgetMeter:
        buckets: dict[int, int] = {}
        for amount, at in self.entries:
            start = at // NANO // QUARTER * QUARTER
            buckets[start] = buckets.get(start, 0) + amount
        before = sum(amount for start, amount in buckets.items() if start < KEPT_FROM)
        kept = {start: amount for start, amount in buckets.items() if start >= KEPT_FROM}
        meter = BudgetMeter(of, spent=Quarters(kept, before))
        meter.restore(self.samples, now)
        return meter


def parts(amount: int, random: Random) -> list[int]:
    cut = random.randint(0, amount)
    return [cut, amount - cut]


@given(Beats, AHEAD, st.sets(st.integers(0, 39)), st.randoms(use_true_random=False))
def test_any_split_order_and_restart_gives_the_same_views(
    beats: Sequence[list[tuple[int, int]]], ahead: int, restarts: set[int], random: Random
):
    """Up to eight days in beats of five hours; the first entry is older than what is kept in buckets."""
    of, facts = budget(timezone="Europe/Berlin"), since("2026-09-01", engine())
    ledger = Ledger((7, BEGAN - 60 * DAYS))
    now, origin = Instant(BEGAN + ahead * HOUR, 0), 0
    plain, split = ledger.meter(of, now), ledger.meter(of, now)
    for number, beat in enumerate(beats):
        now, origin = Instant(now.wall + 5 * HOUR, now.monotonic + 5 * HOUR), origin + 5 * HOUR
        if number in restarts:  # the monotonic clock begins anew
            origin = random.randint(0, 10**6) * 60 * NANO
            split = ledger.meter(of, Instant(now.wall, origin))
        entries = [(amount, now.wall - age * NANO) for amount, age in beat]
        for amount, at in entries:
            plain.book(SPEND, amount, at)
        cuts = [(part, at) for amount, at in entries for part in parts(amount, random)]
        random.shuffle(cuts)
        for amount, at in cuts:
            split.book(SPEND, amount, at)
        for meter, moment in ((plain, now), (split, Instant(now.wall, origin))):
            meter.record(moment)
        ledger.entries += entries
        ledger.samples.append((now.wall // NANO, split.total))
        view = plain.view(now, facts)
        assert split.view(Instant(now.wall, origin), facts) == view
        assert split.total == plain.total
        check(view, ledger.entries, now)


def check(view: BudgetView, entries: list[tuple[int, int]], now: Instant) -> None:
    """Every figure against its definition, from a plain list of everything."""
    for one in view.periods.values():
        assert now.wall in one.period
        assert one.spent == sum(amount for amount, at in entries if at in one.period)
        assert one.consumed_ratio == one.spent / one.limit
        assert (one.state is State.OVER) == (one.spent >= one.limit) == one.capped
        assert one.forecast is None or one.forecast >= one.spent
        assert one.overshoot_bound == usd("1") * (one.period.end - now.wall) // HOUR
        assert one.history_complete_ratio == (1.0 if now.wall > one.period.start else None)
    today, this_month = view.periods["day"], view.periods["month"]
    assert this_month.period.start <= today.period.start < today.period.end <= this_month.period.end
    assert today.spent is not None
    assert this_month.spent is not None
    assert today.spent <= this_month.spent


@given(Beats, Late)
def test_money_more_is_never_a_milder_state(beats: Sequence[list[tuple[int, int]]], one_more: tuple[int, int]):
    of, now = budget("0.001", "0.002"), Instant(BEGAN + 12 * HOUR, 0)
    less, more = BudgetMeter(of), BudgetMeter(of)
    for meter in (less, more):
        for amount, age in (booking for beat in beats for booking in beat):
            meter.book(SPEND, amount, now.wall - age * NANO)
    more.book(SPEND, one_more[0], now.wall - one_more[1] * NANO)
    severity = list(State).index
    for name, before in less.view(now, ALWAYS).periods.items():
        after = more.view(now, ALWAYS).periods[name]
        assert after.spent is not None
        assert before.spent is not None
        assert after.spent >= before.spent
        assert severity(after.state) >= severity(before.state)
        assert after.max_affordable_replicas.get("chat", 0) <= before.max_affordable_replicas.get("chat", 0)


@given(st.integers(0, 31 * 24 * 4 - 1), st.integers(1, 10**13))
def test_an_entry_is_in_one_day_of_its_month(quarter: int, amount: int):
    """Summed over all its days, a month is what it is."""
    zone = ZoneInfo("Europe/Berlin")
    whole = month(zone, utc("2026-10-15"))
    meter = BudgetMeter(budget(timezone="Europe/Berlin"))
    meter.book(SPEND, amount, whole.start + quarter * QUARTER * NANO)
    at, days = whole.start, 0
    while at in whole:
        view = meter.view(Instant(at, 0), ALWAYS).periods["day"]
        assert isinstance(view.period, Period)
        days += view.spent or 0
        at = view.period.end
    assert days == meter.view(Instant(whole.start, 0), ALWAYS).periods["month"].spent == amount
