"""Owned hardware: purchase, upkeep and measured energy come to the nano-dollar, whatever fails in between."""

import re
from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.books import Books
from exporter.config.load import parse
from exporter.config.prices import DatedPrice, GpuPrice, OwnedPrice
from exporter.core.energy import Draw, measured
from exporter.core.meter import PENDING_BEATS, EngineMeter
from exporter.core.money import NANO, Kind, nano_usd
from exporter.core.prices import HourlyPrice, Interval, gpu_timeline, in_force, pieces
from exporter.core.readings import EngineReading, Failure
from tests.bench import BEGAN, LOADING, REFUSED, page, terms

YEAR = 365 * 86400.0
JOULE = NANO
ACCOUNTING = Path(__file__).parents[2] / "docs" / "accounting.md"


def owned(usd_per_kwh: str | None = "0.36", watts: str | None = None, *, purchase: str = "8760") -> OwnedPrice:
    """Return hardware that costs a dollar an hour by default, and its energy 100 nano-dollars a joule."""
    return OwnedPrice(
        purchase_usd=Decimal(purchase),
        lifetime=YEAR,
        usd_per_kwh=None if usd_per_kwh is None else Decimal(usd_per_kwh),
        watts=None if watts is None else Decimal(watts),
    )


def timeline(price: OwnedPrice, *later: DatedPrice) -> tuple[HourlyPrice, ...]:
    return gpu_timeline(GpuPrice(owned=price, timeline=later), {})


def in_usd(price: HourlyPrice) -> Fraction | None:
    return None if price.nano_usd_per_hour is None else price.nano_usd_per_hour / NANO


class Rack:
    """An engine's meter and books, with the energy that its GPUs draw beat by beat; nanoseconds and nanojoules."""

    def __init__(self, prices: tuple[HourlyPrice, ...], gpus: str = "1") -> None:
        self.prices, self.gpus = prices, gpus
        self.now = BEGAN * NANO
        self.draws: deque[Draw] = deque(maxlen=PENDING_BEATS + 1)
        self.meter, self.books = EngineMeter(self.terms, BEGAN), Books()

    @property
    def terms(self):
        return terms(gpus=self.gpus, prices=measured(self.prices, self.draws))

    async def beat(
        self, outcome: EngineReading | Failure, duration: int, energy: int | None = None, *, step: int | None = None
    ) -> None:
        """Make a beat; at its end the wall clock may have been set by `step` nanoseconds."""
        self.now += duration + (step or 0)
        interval = Interval(self.now, duration, stepped=step is not None) if duration else None
        if interval is not None and energy is not None:
            self.draws.append(Draw(interval.start, duration, Fraction(energy)))
        await self.books.post(self.meter.beat(self.terms, interval, outcome, self.now / NANO))

    async def settled(self) -> Fraction:
        """Book what waits, and return all that was booked, with what is smaller than a nano-dollar."""
        await self.books.post(self.meter.settle(self.terms))
        rests = sum((rest for account, rest in self.books._rests.items() if account.kind is Kind.SPEND), Fraction(0))
        return sum(self.books.totals()[Kind.SPEND].values()) + rests


# The price


@pytest.mark.parametrize(
    ("price", "per_hour", "per_kwh"),
    [
        (owned(), "1", "0.36"),
        (owned(None), "1", "0"),
        (owned("0"), "1", "0"),
        (OwnedPrice(purchase_usd=Decimal(35040), gpus=8, lifetime=4 * YEAR), "0.125", "0"),
        (OwnedPrice(purchase_usd=Decimal(0), lifetime=YEAR, maintenance_usd_per_year=Decimal(4380)), "0.5", "0"),
        (
            OwnedPrice(purchase_usd=Decimal(0), lifetime=YEAR, usd_per_kwh=Decimal("0.2"), pue=Decimal("1.5")),
            "0",
            "0.3",
        ),
    ],
)
def test_what_was_bought_costs_by_the_hour_and_its_energy_by_the_joule(price: OwnedPrice, per_hour: str, per_kwh: str):
    (found,) = timeline(price)
    assert (in_usd(found), found.source) == (Fraction(per_hour), "owned")
    assert found.nano_usd_per_joule * 3_600_000 == nano_usd(Decimal(per_kwh))


# The price with energy


def test_a_price_without_energy_stays_as_it_is():
    for price in (GpuPrice(usd_per_hour=Decimal(1)), GpuPrice(owned=owned(None)), GpuPrice(owned=owned("0"))):
        prices = gpu_timeline(price, {})
        assert measured(prices, [Draw(0, 5, Fraction(7))]) is prices


def test_energy_that_was_never_measured_is_assumed_or_not_known():
    assert [in_usd(price) for price in measured(timeline(owned(watts="500")), [])] == [Fraction("1.18")]
    assert [in_usd(price) for price in measured(timeline(owned(watts="0")), [])] == [1]
    assert [in_usd(price) for price in measured(timeline(owned()), [])] == [None]


def test_a_measured_draw_holds_in_its_time_and_nothing_is_drawn_outside():
    prices = measured(timeline(owned(watts="500")), [Draw(100, 10, Fraction(1000)), Draw(110, 20, Fraction(0))])
    assert [(price.start, in_usd(price)) for price in prices] == [(0, 1), (100, Fraction("1.036")), (110, 1), (130, 1)]
    assert {price.source for price in prices} == {"owned"}
    assert not any(price.nano_usd_per_joule for price in prices)


def test_only_the_time_of_a_price_with_energy_is_charged_for_energy():
    rented = DatedPrice(from_=105, usd_per_hour=Decimal(3))
    bought = DatedPrice(from_=108, owned=owned("0.72"))
    prices = measured(timeline(owned(), rented, bought), [Draw(100, 10, Fraction(1000))])
    assert [(price.start, in_usd(price)) for price in prices] == [
        (0, 1), (100, Fraction("1.036")), (105, 3), (108, Fraction("1.072")), (110, 1)
    ]  # fmt: skip


def test_an_unknown_price_is_not_known_by_its_energy():
    unlisted = DatedPrice(from_=100, by_name={"NVIDIA A10G": Decimal(1)})
    draws = [Draw(90, 20, Fraction(1000))]
    assert in_usd(in_force(measured(timeline(owned(), unlisted), draws), 105)) is None
    assert in_usd(in_force(measured((HourlyPrice(0, None, "owned", Fraction(1)),), draws), 105)) is None


def test_where_draws_overlap_the_later_one_holds():
    prices = measured(timeline(owned()), [Draw(100, 10, Fraction(1000)), Draw(95, 10, Fraction(2000))])
    assert [in_usd(in_force(prices, at)) for at in (94, 95, 104, 105, 109, 110)] == [
        1, Fraction("1.072"), Fraction("1.072"), Fraction("1.036"), Fraction("1.036"), 1
    ]  # fmt: skip


def test_a_draw_that_took_no_time_is_no_error():
    assert [in_usd(price) for price in measured(timeline(owned()), [Draw(5, 0, Fraction(9))])] == [1, 1]


# What is booked


async def test_the_example_of_the_documents_is_true():
    example = re.search(
        r"## Owned hardware.*?```yaml\n(.*?)```.*?booked.*?\| ([\d.]+) \|", ACCOUNTING.read_text(), re.DOTALL
    )
    assert example
    config = parse(f'engines: [{{url: "http://a:1"}}]\n{example[1]}'.encode(), "accounting.md")
    prices = gpu_timeline(config.prices.gpu, {})
    rack = Rack(prices)
    await rack.beat(page(0), 0)
    for _ in range(720):
        await rack.beat(page(0), 5 * NANO, 1750 * JOULE)
    assert int(await rack.settled()) == nano_usd(Decimal(example[2])) == 208_143_835


async def test_energy_of_a_failed_beat_is_booked_by_the_beats_own_draw():
    rack = Rack(timeline(owned()), gpus="2")
    await rack.beat(page(0), 0)
    for outcome, joules in ((page(9), 100), (REFUSED, 20), (REFUSED, 3000), (REFUSED, 7), (page(9), 4)):
        await rack.beat(outcome, 5 * NANO, joules * JOULE)
    spend = {labels[0]: total for labels, total in rack.books.totals()[Kind.SPEND].items()}
    fixed = 2 * 5 * Fraction(NANO, 3600)
    assert spend == {"compute_busy": int(fixed + 2 * 10_000), "compute_idle": int(4 * fixed + 2 * 303_100)}


async def test_an_hour_before_the_first_measurement_is_unpriced_where_no_power_is_assumed():
    rack = Rack(timeline(owned()))
    await rack.beat(page(0), 0)
    await rack.beat(page(0), 3600 * NANO)
    assert await rack.settled() == 0
    assert rack.books.totals()[Kind.UNPRICED_GPU] == {("chat", "m", "fast", "any"): 3600 * NANO}


async def test_an_hour_before_the_first_measurement_is_charged_by_the_power_that_is_assumed():
    rack = Rack(timeline(owned(watts="500")))
    await rack.beat(page(0), 0)
    await rack.beat(page(0), 3600 * NANO)
    assert await rack.settled() == nano_usd(Decimal("1.18"))


DURATIONS = st.integers(1, 10 * NANO)
ENERGIES = st.integers(0, 8 * 700 * 10 * JOULE)
OUTCOMES = st.sampled_from(["idle", "busy", "refused", "refused", "refused", "loading"])
BEATS = st.lists(st.tuples(OUTCOMES, DURATIONS, st.none() | ENERGIES), min_size=1, max_size=14)
FIRST = st.tuples(OUTCOMES, DURATIONS, ENERGIES)
Beats = list[tuple[str, int, int | None]]


def outcome_of(kind: str, tokens: int) -> EngineReading | Failure:
    failures = {"refused": REFUSED, "loading": LOADING}
    return failures.get(kind) or page(tokens, running=int(kind == "busy"))


def fixed_part(prices: Sequence[HourlyPrice], start: int, end: int) -> Fraction:
    cuts = pieces(tuple(prices), Interval(end, end - start))
    return sum(
        (Fraction(piece.duration_ns, 3600 * NANO) * (piece.price.nano_usd_per_hour or 0) for piece in cuts), Fraction(0)
    )


def energy_part(prices: Sequence[HourlyPrice], draws: Sequence[Draw]) -> Fraction:
    """Return what draws cost where each nanosecond of a draw has an equal part of its energy."""
    total = Fraction(0)
    for draw in draws:
        for piece in pieces(tuple(prices), Interval(draw.start + draw.duration_ns, draw.duration_ns)):
            joules = draw.nanojoules * piece.duration_ns / draw.duration_ns / NANO
            total += joules * piece.price.nano_usd_per_joule
    return total


@given(
    FIRST, BEATS, st.integers(0, 100 * NANO), st.sampled_from(["1", "2", "1/3"]), st.sampled_from(["owned", "rented"])
)
async def test_time_and_energy_are_booked_exactly_whatever_fails_and_whenever_the_price_changes(
    first: tuple[str, int, int], beats: Beats, change: int, gpus: str, form: str
):
    from_ = BEGAN * NANO + change
    later = {
        "owned": DatedPrice(from_=from_, owned=owned("0.17", purchase="123.45")),
        "rented": DatedPrice(from_=from_, usd_per_hour=Decimal("0.7")),
    }
    prices = timeline(owned(), later[form])
    rack, draws = Rack(prices, gpus), []
    await rack.beat(page(0), 0)
    for number, (kind, duration, energy) in enumerate([first, *beats]):
        await rack.beat(outcome_of(kind, number), duration, energy)
        if energy is not None:
            draws.append(Draw(rack.now - duration, duration, Fraction(energy)))
    expected = fixed_part(prices, BEGAN * NANO, rack.now) + energy_part(prices, draws)
    assert await rack.settled() == Fraction(gpus) * expected


STEPPED = st.tuples(DURATIONS, ENERGIES, st.none() | st.integers(-1000 * NANO, 1000 * NANO))


@given(st.lists(STEPPED, min_size=1, max_size=12))
async def test_a_step_of_the_wall_clock_changes_nothing_while_every_beat_is_read(
    beats: list[tuple[int, int, int | None]],
):
    rack = Rack(timeline(owned()))
    await rack.beat(page(0), 0)
    for duration, energy, step in beats:
        await rack.beat(page(0), duration, energy, step=step)
    time, energy = sum(duration for duration, _, _ in beats), sum(energy for _, energy, _ in beats)
    assert await rack.settled() == Fraction(time, 3600) + Fraction(energy * 100, NANO)


@given(st.lists(st.tuples(OUTCOMES, DURATIONS, st.none() | ENERGIES, STEPPED.map(lambda beat: beat[2])), max_size=14))
async def test_a_step_while_reads_fail_never_books_less_than_the_time_nor_more_than_the_strongest_draw(
    beats: list[tuple[str, int, int | None, int | None]],
):
    rack, draws = Rack(timeline(owned())), [Draw(0, 1, Fraction(0))]
    rack.draws.append(draws[0])
    await rack.beat(page(0), 0)
    for number, (kind, duration, energy, step) in enumerate(beats):
        await rack.beat(outcome_of(kind, number), duration, energy, step=step)
        draws += list(rack.draws)[-1:]
    time = sum(beat[1] for beat in beats)
    most = Fraction(1, 3600) + max(draw.watts for draw in draws) * 100 / NANO
    assert Fraction(time, 3600) <= await rack.settled() <= time * most


@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 30), st.integers(0, 10**6)), max_size=6),
    st.integers(-60, 60),
)
def test_any_draws_make_a_timeline_in_rising_order_with_the_sources_of_the_prices(
    draws: list[tuple[int, int, int]], change: int
):
    prices = timeline(owned(watts="300"), DatedPrice(from_=change, usd_per_hour=Decimal(2)))
    found = measured(prices, [Draw(start, duration, Fraction(energy)) for start, duration, energy in draws])
    starts = [price.start for price in found]
    assert starts == sorted(set(starts))
    assert {price.source for price in found} <= {"owned", "usd_per_hour"}
    assert all(price.nano_usd_per_hour is not None and price.nano_usd_per_hour >= NANO for price in found)
