"""Prices: every form, dated timelines, calendar months, standing costs."""

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.model import Config, Engine, Role
from exporter.config.prices import DatedPrice, GpuPrice, InstancePrice, OtherPrice, OwnedPrice, Prices, StoragePrice
from exporter.core.money import NANO, Account, Category, Kind
from exporter.core.prices import HourlyPrice, Interval, gpu_timeline, in_force, pieces, storage_timeline
from exporter.core.standing import charges, nano_usd_per_hour, standing_costs


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * NANO


def usd(price: HourlyPrice) -> float | None:
    return None if price.nano_usd_per_hour is None else float(price.nano_usd_per_hour / NANO)


BY_NAME = GpuPrice(by_name={"A10G": Decimal("0.75"), "H100": Decimal(3)})


@pytest.mark.parametrize(
    ("price", "names", "expected", "source"),
    [
        (GpuPrice(usd_per_hour=Decimal("0.80")), {}, 0.8, "usd_per_hour"),
        (GpuPrice(instance=InstancePrice(usd_per_hour=Decimal(12), gpus=8)), {}, 1.5, "instance"),
        (GpuPrice(owned=OwnedPrice(purchase_usd=Decimal(8760), lifetime=365 * 86400.0)), {}, 1, "owned"),
        (BY_NAME, {"A10G": Fraction(1)}, 0.75, "by_name"),
        (BY_NAME, {"A10G": Fraction(3), "H100": Fraction(1)}, 1.3125, "by_name"),
        (BY_NAME, {"A10G": Fraction(1, 2), "H100": Fraction(3, 7), "T4": Fraction(0)}, None, "by_name"),
        (BY_NAME, {"A10G": Fraction(2), "T4": Fraction(1)}, None, "by_name"),
        (BY_NAME, {"A10G": Fraction(0)}, None, "by_name"),
        (BY_NAME, {}, None, "by_name"),
        (None, {"A10G": Fraction(1)}, None, "none"),
    ],
)
def test_each_form_of_price(price: GpuPrice | None, names: dict[str, Fraction], expected: float | None, source: str):
    found = in_force(gpu_timeline(price, names), at("2026-11-01"))
    assert (usd(found), found.source) == (expected, source)


TIMELINE = GpuPrice(
    timeline=(
        DatedPrice(from_=at("2026-01-01"), usd_per_hour=Decimal(1)),
        DatedPrice(from_=at("2026-06-01"), instance=InstancePrice(usd_per_hour=Decimal(16), gpus=8)),
    )
)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("2025-12-31T23:59:59", None),
        ("2026-01-01", 1),
        ("2026-05-31T23:59:59", 1),
        ("2026-06-01", 2),
        ("2030-01-01", 2),
    ],
)
def test_a_dated_price_holds_from_its_instant_on(when: str, expected: float | None):
    assert usd(in_force(gpu_timeline(TIMELINE, {}), at(when))) == expected


@given(st.lists(st.integers(1, 1000), unique=True, max_size=5), st.integers(0, 2000), st.integers(1, 2000))
def test_pieces_tile_their_interval(starts: list[int], start: int, length: int):
    timeline = tuple(HourlyPrice(second * NANO, Fraction(second), "timeline") for second in (0, *sorted(starts)))
    interval = Interval((start + length) * NANO, length * NANO)
    found = list(pieces(timeline, interval))
    assert sum(piece.duration_ns for piece in found) == interval.duration_ns
    within = {second for second in (*starts, 900, 1800, 2700, 3600) if start < second < start + length}
    assert [piece.start for piece in found] == [second * NANO for second in (start, *sorted(within))]
    assert all(piece.price.start <= piece.start for piece in found)


def test_an_interval_over_which_the_clock_stepped_is_charged_at_the_last_price_that_held_in_it():
    timeline = (HourlyPrice(0, Fraction(1), "a"), HourlyPrice(20, Fraction(2), "b"), HourlyPrice(30, Fraction(3), "c"))
    (piece,) = pieces(timeline, Interval(30, 25, stepped=True))
    assert (piece.duration_ns, piece.price.source) == (25, "b")


@pytest.mark.parametrize(
    ("month", "hours"), [("2026-02-01", 672), ("2024-02-01", 696), ("2026-11-01", 720), ("2026-12-01", 744)]
)
def test_a_month_of_storage_costs_the_monthly_price_whatever_its_length(month: str, hours: int):
    price = StoragePrice(weights_gb=Decimal(14), usd_per_gb_month=Decimal("0.023"))
    interval = Interval(at(month) + hours * 3600 * NANO, hours * 3600 * NANO)
    timeline = storage_timeline(price, interval)
    spent = sum(
        (piece.price.nano_usd_per_hour or 0) * piece.duration_ns / (3600 * NANO) for piece in pieces(timeline, interval)
    )
    assert spent == 14 * 23_000_000


def test_storage_across_two_months_is_split_at_midnight_utc():
    price = StoragePrice(weights_gb=Decimal(1), usd_per_gb_month=Decimal(1))
    interval = Interval(at("2026-12-01T01:00:00"), 2 * 3600 * NANO)
    found = [
        (piece.duration_ns, piece.price.nano_usd_per_hour)
        for piece in pieces(storage_timeline(price, interval), interval)
    ]
    quarter = 900 * NANO
    assert found == [(quarter, Fraction(NANO, 720))] * 4 + [(quarter, Fraction(NANO, 744))] * 4


ENGINES = (Engine(name="a", url="http://a"), Engine(name="b", url="http://b"), Engine(name="c", url="http://c"))
STORAGE = StoragePrice(weights_gb=Decimal(14), usd_per_gb_month=Decimal("0.023"))


def test_standing_costs_are_shared_by_all_engines_or_paid_by_one():
    other = (
        OtherPrice(name="licence", usd_per_hour=Decimal("0.10")),
        OtherPrice(name="proxy", usd_per_hour=Decimal(1), engine="b"),
    )
    costs = standing_costs(Config(engines=ENGINES, prices=Prices(other=other)))
    accounts = {
        (category, engine.name): Account(Kind.SPEND, (category, engine.name))
        for category in Category
        for engine in ENGINES
    }
    hour = Interval(at("2026-11-02"), 3600 * NANO)
    booked: dict[str, Fraction] = {}
    for entry in charges(costs, hour, accounts):
        name = entry.account.labels[1]
        booked[name] = booked.get(name, Fraction(0)) + entry.amount
    third = Fraction(NANO, 30)
    assert booked == {"a": third, "b": third + NANO, "c": third}
    assert {name: nano_usd_per_hour(costs, name, hour.end) for name in booked} == booked


def test_a_sidecar_stores_nothing():
    def categories(role: Role) -> list[Category]:
        config = Config(role=role, engines=ENGINES, prices=Prices(storage=STORAGE))
        return [cost.category for cost in standing_costs(config)]

    assert categories(Role.LONE) == [Category.STORAGE]
    assert categories(Role.SIDECAR) == []


@given(st.integers(-10, 40))
def test_an_interval_is_cut_in_two_parts_that_sum_to_it(cut: int):
    interval = Interval(30 * NANO, 20 * NANO)
    early, late = interval.split(cut * NANO)
    assert early.duration_ns + late.duration_ns == interval.duration_ns
    assert late.end == interval.end
    assert late.duration_ns == min(max(30 - cut, 0), 20) * NANO
    assert early.end == late.start
