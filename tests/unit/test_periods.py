"""Periods: local days and months tile time in every zone there is; quarters sum to what was booked."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.core.money import NANO
from exporter.core.periods import KEPT_QUARTERS, QUARTER, Period, Quarters, cuts, day, merged, month, whole_days

HOUR = 3600 * NANO
BERLIN = ZoneInfo("Europe/Berlin")


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * NANO


def hours(period: Period) -> float:
    return period.length / HOUR


def shown(zone: ZoneInfo, at: int) -> datetime:
    return datetime.fromtimestamp(at // NANO, zone)


def chain(of: Callable[[ZoneInfo, int], Period], zone: ZoneInfo, start: int, end: int) -> list[Period]:
    """All periods from the one that holds `start` to the one that holds `end`, each asked for at the end of another."""
    periods = [of(zone, start)]
    while periods[-1].end <= end:
        periods.append(of(zone, periods[-1].end))
    return periods


def test_days_and_months_tile_time_in_every_zone():
    """From 2024 to 2030, in all zones: no gap, no overlap, each date once and in its turn, to the last nanosecond.

    No zone has an edge that is not a multiple of 15 minutes, so the ledger's quarters never straddle one.
    """
    ragged = set()
    for name in available_timezones():
        zone = ZoneInfo(name)
        days, months = (chain(of, zone, utc("2024-01-01"), utc("2031-01-01")) for of in (day, month))
        today = shown(zone, days[0].start).date()
        for before, after in pairwise(days):
            assert before.start < before.end == after.start, name
            assert shown(zone, before.end - 1).date() == today, name
            today += timedelta(days=1)
            assert shown(zone, before.end).date() == today, name
            if before.length != 24 * HOUR:
                assert 22 * HOUR <= before.length <= 26 * HOUR, name  # Antarctica/Troll moves by two hours
                assert {day(zone, at) for at in range(before.start, before.end, HOUR // 4)} == {before}, name
            if after.start % (QUARTER * NANO):
                ragged.add(name)
        starts = {one.start for one in days}
        for earlier, later in pairwise(months):
            assert earlier.start < earlier.end == later.start, name
            assert shown(zone, later.start).day == 1, name
            assert shown(zone, earlier.end - 1).month == shown(zone, earlier.start).month, name
            assert month(zone, earlier.end - 1) == earlier, name
            assert later.start in starts, name
        assert len(months) >= 7 * 12
    assert ragged == set()


@pytest.mark.parametrize(
    ("zone", "at", "start", "length"),
    [
        ("UTC", "2026-11-23T10:00", "2026-11-23T00:00", 24),
        ("Europe/Berlin", "2026-03-29T12:00", "2026-03-28T23:00", 23),
        ("Europe/Berlin", "2026-10-25T12:00", "2026-10-24T22:00", 25),
        ("Australia/Lord_Howe", "2026-10-03T20:00", "2026-10-03T13:30", 23.5),  # clocks move by half an hour
        ("Asia/Kathmandu", "2026-05-01T12:00", "2026-04-30T18:15", 24),
        ("Africa/Cairo", "2026-04-24T12:00", "2026-04-23T22:00", 23),  # there is no midnight: 00:00 is 01:00
        ("Africa/Cairo", "2026-10-29T12:00", "2026-10-28T21:00", 25),  # the last hour comes twice
        ("America/Havana", "2026-11-01T12:00", "2026-11-01T04:00", 25),  # midnight comes twice
        ("America/Havana", "2026-03-08T12:00", "2026-03-08T05:00", 23),
        ("America/St_Johns", "2010-11-07T02:45", "2010-11-07T02:30", 25),  # one minute of the new date, 00:01 is 23:01
        ("America/St_Johns", "2010-11-07T02:31", "2010-11-07T02:30", 25),  # where the clock shows the old date again
        ("America/St_Johns", "2010-11-07T02:29", "2010-11-06T02:30", 24),
        ("Pacific/Apia", "2011-12-30T09:59", "2011-12-29T10:00", 24),  # the next date was left out
        ("Pacific/Apia", "2011-12-30T10:00", "2011-12-30T10:00", 24),
    ],
)
def test_days_of_23_and_25_hours_and_odd_midnights(zone: str, at: str, start: str, length: float):
    found = day(ZoneInfo(zone), utc(at))
    assert (found.start, hours(found)) == (utc(start), length)
    assert utc(at) in found


@pytest.mark.parametrize(
    ("zone", "at", "days_and_hours"),
    [
        ("UTC", "2028-02-29T23:59", (29, 0)),  # a leap year
        ("UTC", "2026-02-01T00:00", (28, 0)),
        ("UTC", "2026-12-31T23:59", (31, 0)),
        ("Europe/Berlin", "2026-03-31T21:59", (31, -1)),
        ("Europe/Berlin", "2026-10-01T00:00", (31, 1)),
        ("America/St_Johns", "2010-10-31T12:00", (31, 0)),
    ],
)
def test_months_are_as_long_as_they_are(zone: str, at: str, days_and_hours: tuple[int, int]):
    days, more = days_and_hours
    assert hours(month(ZoneInfo(zone), utc(at))) == 24 * days + more


def test_a_period_holds_its_start_and_not_its_end():
    today = day(BERLIN, utc("2026-05-05T12:00"))
    assert today.start in today
    assert today.end - 1 in today
    assert today.end not in today
    assert day(BERLIN, today.end).start == today.end


def test_a_new_year_begins_where_the_zone_says():
    assert month(ZoneInfo("Pacific/Kiritimati"), utc("2026-12-31T10:00")).start == utc("2026-12-31T10:00")
    assert month(ZoneInfo("Pacific/Pago_Pago"), utc("2027-01-01T10:59")).end == utc("2027-01-01T11:00")


def test_whole_days_are_those_that_are_over():
    noon = utc("2026-03-30T10:00")
    days = whole_days(BERLIN, noon, 3)
    assert [hours(one) for one in days] == [24, 24, 23]
    assert days[-1].end == day(BERLIN, noon).start
    assert whole_days(BERLIN, days[-1].end, 3) == days
    assert whole_days(BERLIN, noon, 0) == []


def test_whole_days_leave_out_a_date_that_never_was():
    days = whole_days(ZoneInfo("Pacific/Apia"), utc("2012-01-01T12:00"), 3)
    assert [hours(one) for one in days] == [24, 24, 24]
    assert days[1].start == days[0].end == utc("2011-12-30T10:00")


@given(st.sampled_from(sorted(available_timezones())), st.integers(0, utc("2100-01-01")))
def test_every_instant_lies_in_its_day_and_its_day_in_its_month(name: str, at: int):
    zone = ZoneInfo(name)
    today, whole = day(zone, at), month(zone, at)
    assert at in today
    assert at in whole
    assert whole.start <= today.start < today.end <= whole.end


def test_quarters_begin_between():
    at = utc("2026-05-05T12:00")
    assert list(cuts(at - 1, at + 1)) == [at]
    assert list(cuts(at, at + 900 * NANO)) == []
    assert list(cuts(at - 5 * NANO, at + 1801 * NANO)) == [at, at + 900 * NANO, at + 1800 * NANO]


Bookings = st.lists(st.tuples(st.integers(0, 10**18), st.integers(0, 40 * 86400 * NANO - 1)))
EPOCH = utc("2026-05-01")


@given(Bookings, st.randoms(use_true_random=False), st.integers(0, 40 * 96), st.integers(0, 40 * 96))
def test_quarters_sum_to_what_was_booked(bookings: list[tuple[int, int]], random, one: int, other: int):
    """Against a plain sum over a list of everything, in any order."""
    random.shuffle(bookings)
    quarters = Quarters(before=7)
    for amount, since in bookings:
        quarters.add(amount, EPOCH + since)
    step = QUARTER * NANO
    period = Period(EPOCH + min(one, other) * step, EPOCH + max(one, other) * step)
    assert quarters.within(period) == sum(amount for amount, since in bookings if EPOCH + since in period)
    assert quarters.total == 7 + sum(amount for amount, _ in bookings)


@given(Bookings, Bookings)
def test_quarters_go_on_from_what_was_kept(first: list[tuple[int, int]], second: list[tuple[int, int]]):
    kept: dict[int, int] = {}
    for amount, since in first:
        start = (EPOCH + since) // NANO // QUARTER * QUARTER
        kept[start] = kept.get(start, 0) + amount
    lasting, restarted = Quarters(), Quarters(kept)
    for amount, since in first:
        lasting.add(amount, EPOCH + since)
    for amount, since in second:
        lasting.add(amount, EPOCH + since)
        restarted.add(amount, EPOCH + since)
    for first_day in range(40):
        period = Period(EPOCH + first_day * 24 * HOUR, EPOCH + 40 * 24 * HOUR)
        assert restarted.within(period) == lasting.within(period)
    assert restarted.total == lasting.total


@given(Bookings, Bookings)
def test_several_quarters_merge_into_their_sum(first: list[tuple[int, int]], second: list[tuple[int, int]]):
    one, other, both = Quarters(before=3), Quarters(before=4), Quarters(before=7)
    for quarters, bookings in ((one, first), (other, second), (both, first + second)):
        for amount, since in bookings:
            quarters.add(amount, EPOCH + since)
    assert merged([one, other]).told_apart() == both.told_apart()
    assert Quarters(*both.told_apart()).told_apart() == both.told_apart()
    assert merged([]).total == 0


def test_old_quarters_are_forgotten_and_their_money_is_not():
    quarters = Quarters()
    for number in range(KEPT_QUARTERS + 10):
        quarters.add(1, EPOCH + number * QUARTER * NANO)
    quarters.add(5, EPOCH)
    assert quarters.total == KEPT_QUARTERS + 15
    assert quarters.within(Period(0, EPOCH + 10 * QUARTER * NANO)) == 0
    assert quarters.within(Period(0, 2 * EPOCH)) == KEPT_QUARTERS


def test_a_clock_set_ahead_by_a_year_and_back_forgets_nothing():
    quarters = Quarters({EPOCH // NANO: 3})
    quarters.add(1, EPOCH + 365 * 24 * HOUR)
    quarters.add(4, EPOCH + HOUR)
    assert quarters.within(day(ZoneInfo("UTC"), EPOCH)) == 7
