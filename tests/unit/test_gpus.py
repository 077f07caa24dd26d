"""GPUs from beat to beat: what they counted through losses and restarts, who has them, and how busy they were."""

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.model import Engine, GpuShare
from exporter.core.gpu_readings import GpuReading, GpusReading, Measure, MigReading, Total
from exporter.core.gpus import GpuMeter, GpusState, expected
from exporter.core.money import NANO

A, B, C = "GPU-a", "GPU-b", "GPU-c"
ENERGY, BUSY, PCIE = (Total.ENERGY, ""), (Total.BUSY, ""), (Total.PCIE, "transmit")
Totals = Mapping[tuple[Total, str], int]


def gpu(
    uuid: str = A,
    at: float = 0.0,
    *,
    totals: Totals | None = None,
    utilization: float | None = None,
    up: bool = True,
    index: str = "0",
    name: str = "NVIDIA L4",
    instances: tuple[str, ...] = (),
) -> GpuReading:
    return GpuReading(
        uuid=uuid,
        index=index,
        name=name,
        up=up,
        sampled=round(at * NANO),
        gauges={} if utilization is None else {(Measure.UTILIZATION, ""): utilization},
        totals=totals or {},
        instances=tuple(
            MigReading(uuid=instance, gpu_instance="1", compute_instance="0", profile="3g") for instance in instances
        ),
    )


def metered(*beats: tuple[GpuReading, ...] | None) -> GpuMeter:
    """Return a meter after some beats; None is a beat in which nobody answered."""
    meter = GpuMeter()
    for beat in beats:
        meter.advance(None if beat is None else GpusReading(gpus=beat))
    return meter


def shown(meter: GpuMeter, family: Total | Measure, uuid: str = A) -> dict[str, float]:
    (view,) = [view for view in meter.views(0) if view.reading.uuid == uuid]
    return dict(view.families.get(family, ()))


def whole(*uuids: str) -> dict[str, Fraction]:
    return dict.fromkeys(uuids, Fraction(1))


def engine(gpus: Fraction | tuple[str | GpuShare, ...] | str, name: str = "chat") -> Engine:
    return Engine(name=name, url="http://x", gpus=Fraction(gpus) if isinstance(gpus, str) else gpus)


# What was counted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ([7_000_000], 0),
        ([7_000_000, 7_000_010], 10),
        ([100, 150, 30, 40], 50 + 30 + 10),
        ([100, None, 130], 30),
        ([None, 100, 130], 30),
        ([100, None, None, 20], 20),
        ([100, 0, 0, 5], 5),
    ],
    ids=["baseline", "moves", "driver reload", "away once", "late", "reload while away", "begins at 0"],
)
@pytest.mark.parametrize("family", [Total.ENERGY, Total.BUSY, Total.THROTTLE, Total.POLLS])
def test_totals_begin_at_zero_and_go_on_through_falls(family: Total, values: list[int | None], total: int):
    meter = metered(*((gpu(totals={} if value is None else {(family, ""): value}),) for value in values))
    assert shown(meter, family) == {"": total}


def test_bytes_over_pcie_are_added_up_from_the_first_on_and_go_on_when_somebody_adds_up_anew():
    readings = [(gpu(totals={PCIE: value}),) for value in (2**40, 2**40 + 500, 90, 100)]
    assert [shown(metered(*readings[:beat]), Total.PCIE)["transmit"] - 2**40 for beat in (1, 2, 3, 4)] == [
        0, 500, 590, 600
    ]  # fmt: skip


def test_memory_errors_stand_as_the_device_counts_them():
    label = "corrected,aggregate"
    readings = [(gpu(totals={(Total.ECC, label): value}),) for value in (3, 5, 0)]
    assert [shown(metered(*readings[:beat]), Total.ECC) for beat in (1, 2, 3)] == [{label: 3}, {label: 5}, {label: 0}]


def test_xids_are_counted_from_the_first_on_and_go_on_when_somebody_listens_anew():
    readings = [(gpu(totals={(Total.XID, "79"): value}),) for value in (1, 2, 0, 1)]
    assert [shown(metered(*readings[:beat]), Total.XID) for beat in (1, 2, 3, 4)] == [
        {"79": 1}, {"79": 2}, {"79": 2}, {"79": 3}
    ]  # fmt: skip


def test_energy_that_no_gpu_can_have_drawn_is_not_charged():
    """Another source knows an older figure, or a page is wrong once: neither is a life's energy."""
    life = 9 * 10**15
    for values in ((life, life - 10**12, life), (life, 0, life, life)):
        beats = [(gpu(at=5 * number, totals={ENERGY: value}),) for number, value in enumerate(values)]
        assert shown(metered(*beats), Total.ENERGY) == {"": 0 if 0 in values else 10**12}


def test_what_a_gpu_drew_while_its_counter_was_silent_counts_when_it_tells_again():
    hours = 4 * 3600 * 300 * NANO  # four hours of 300 W
    beats = [(gpu(at=0, totals={ENERGY: 5}),), (gpu(at=14_395),), (gpu(at=14_400, totals={ENERGY: 5 + hours}),)]
    assert shown(metered(*beats), Total.ENERGY) == {"": hours}


def test_a_gpu_that_was_never_told_apart_leaves_a_number_without_its_gpus():
    """One engine for one GPU, two there, one of which has never answered: nobody knows which it has."""
    meter = GpuMeter()
    meter.advance(GpusReading(gpus=(gpu(B),), shown=2))
    assert meter.shares([engine("1")]) == {}
    assert meter.shares([engine("2")]) == {}


def test_a_card_that_was_replaced_is_not_waited_for():
    meter = GpuMeter()
    meter.advance(GpusReading(gpus=(gpu(A), gpu(B)), shown=2))
    meter.advance(GpusReading(gpus=(gpu(A), gpu(C)), shown=2))
    assert meter.shares([engine("2")]) == {"chat": {A: 1, C: 1}}


def test_gpus_that_nobody_wants_to_see_are_forgotten():
    meter = metered((gpu(A), gpu(B)))
    meter.forget({A}.__contains__)
    assert [view.reading.uuid for view in meter.views(0)] == [A]
    assert meter.shares([engine("1")]) == {"chat": {A: 1}}


def test_each_label_is_a_counter_of_its_own():
    hot, brake = (Total.THROTTLE, "hw_thermal"), (Total.THROTTLE, "hw_power_brake")
    meter = metered((gpu(totals={hot: 50, brake: 9}),), (gpu(totals={hot: 60, brake: 4}),))
    assert shown(meter, Total.THROTTLE) == {"hw_thermal": 10, "hw_power_brake": 4}


@pytest.mark.parametrize("beat", [None, (), (gpu(B),)], ids=["nobody answers", "none is shown", "another is shown"])
def test_a_gpu_that_vanished_keeps_its_counters_and_its_name_and_loses_all_else(beat: tuple[GpuReading, ...] | None):
    working = [(gpu(at=at, totals={ENERGY: 10 * at}, utilization=0.5, instances=("MIG-1",)),) for at in (1, 2)]
    meter = metered(*working, beat)
    view = meter.views(9 * NANO)[0]
    assert (view.reading.uuid, view.reading.name, view.reading.up) == (A, "NVIDIA L4", False)
    assert (view.families, view.reading.instances) == ({Total.ENERGY: [("", 10)]}, ())
    assert view.gauge(Measure.UTILIZATION) is None
    assert view.age_seconds == 7.0
    assert not meter.all_up(whole(A))
    meter.advance(GpusReading(gpus=working[1]))
    assert meter.all_up(whole(A))
    assert meter.views(0)[0].gauge(Measure.UTILIZATION) == 0.5


def test_gpus_stand_in_the_order_of_their_numbers():
    numbers = [10, 2, 0, 1, 9, 11]
    meter = metered(tuple(gpu(f"GPU-{number}", index=str(number)) for number in numbers))
    assert [view.reading.index for view in meter.views(0)] == ["0", "1", "2", "9", "10", "11"]


def test_the_age_of_a_reading_is_not_known_before_the_first_and_never_below_zero():
    never = GpuReading(uuid=A, index="0", name="", up=False, sampled=None)
    assert metered((never,)).views(5 * NANO)[0].age_seconds is None
    assert metered((gpu(at=9),)).views(5 * NANO)[0].age_seconds == 0.0


# Whose they are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "gpus", "shares"),
    [
        ([A], ["1"], [{A: 1}]),
        ([A, B], ["2"], [{A: 1, B: 1}]),
        ([A, B], ["3/2"], [{A: Fraction(3, 4), B: Fraction(3, 4)}]),
        ([A], ["1/2", "1/2"], [{A: Fraction(1, 2)}, {A: Fraction(1, 2)}]),
        ([A], ["3/7", "2/7"], [{A: Fraction(3, 7)}, {A: Fraction(2, 7)}]),
        ([A], ["1", "0"], [{A: 1}, None]),
        ([A, B], [(A,), "1"], [{A: 1}, {B: 1}]),
        ([A], [(A,), (B,)], [{A: 1}, {B: 1}]),
        ([], [(A,), "1"], [{A: 1}, None]),
        ([A, B], [(A, B)], [{A: 1, B: 1}]),
        (
            [A, B],
            [(A, GpuShare(uuid=B, share=Decimal("0.5"))), (GpuShare(uuid=B, share=Decimal("0.5")),)],
            [{A: 1, B: Fraction(1, 2)}, {B: Fraction(1, 2)}],
        ),
        ([A], [(GpuShare(uuid=A, slices=3), GpuShare(uuid=A, slices=2))], [{A: Fraction(5, 7)}]),
    ],
)
def test_a_list_tells_whose_a_gpu_is_and_so_does_a_number_that_leaves_no_choice(
    seen: list[str], gpus: list[str | tuple[str | GpuShare, ...]], shares: list[Mapping[str, Fraction] | None]
):
    meter = metered(tuple(gpu(uuid) for uuid in seen))
    engines = [engine(wanted, f"e{number}") for number, wanted in enumerate(gpus)]
    assert meter.shares(engines) == {f"e{number}": has for number, has in enumerate(shares) if has is not None}


@pytest.mark.parametrize(
    ("seen", "gpus"),
    [
        ([], ["1"]),
        ([A, B], ["1"]),
        ([A], ["2"]),
        ([A, B], ["1", "1"]),
        ([A, B], ["3/2", "1/2"]),
        ([A, B, C], ["1/2", "1/2"]),
        ([A], ["0"]),
    ],
    ids=["none seen", "more than charged", "fewer than charged", "one each", "overlap", "a half of three", "none paid"],
)
def test_where_nobody_can_tell_whose_a_gpu_is_no_engine_has_it(seen: list[str], gpus: list[str]):
    meter = metered(tuple(gpu(uuid) for uuid in seen))
    assert meter.shares([engine(wanted, f"e{number}") for number, wanted in enumerate(gpus)]) == {}


def test_a_slice_is_a_part_of_the_gpu_that_it_is_on_also_while_that_gpu_is_away():
    slices = engine((GpuShare(uuid="MIG-1", slices=3), GpuShare(uuid="MIG-2", slices=1)))
    rest = engine("1", "rest")
    meter = metered((gpu(A, instances=("MIG-1", "MIG-2", "MIG-3")), gpu(B)))
    found = {"chat": {A: Fraction(4, 7)}, "rest": {B: 1}}
    assert meter.shares([slices, rest]) == found
    for beat in (None, GpusReading(gpus=(gpu(A, up=False), gpu(B)))):
        meter.advance(beat)
        assert meter.shares([slices, rest]) == found
    assert metered((gpu(A),)).shares([slices]) == {"chat": {A: Fraction(4, 7)}}  # it can be on no other
    apart = {"chat": {"MIG-1": Fraction(3, 7), "MIG-2": Fraction(1, 7)}}
    assert metered((gpu(A), gpu(B))).shares([slices]) == apart


def test_a_gpu_that_vanished_is_still_its_engines():
    meter = metered((gpu(A), gpu(B)), (gpu(A),), None)
    assert meter.shares([engine("2")]) == {"chat": whole(A, B)}
    assert meter.identities(whole(A, B)) == [("0", A), ("0", B)]
    assert meter.identities(whole(C)) == []


@pytest.mark.parametrize(
    ("shares", "names"),
    [
        (whole(A), {"NVIDIA L4": 1}),
        (whole(A, B), {"NVIDIA L4": 2}),
        ({A: Fraction(1, 2), B: Fraction(1), C: Fraction(3, 7)}, {"NVIDIA L4": Fraction(3, 2), "H100": Fraction(3, 7)}),
        (whole(A, "GPU-unseen"), {}),
        (whole(A, "GPU-nameless"), {}),
        ({}, {}),
    ],
)
@pytest.mark.parametrize("is_away", [False, True])
def test_an_engine_has_so_much_of_each_kind_of_gpu_and_nothing_is_said_where_one_is_not_known(
    shares: Mapping[str, Fraction], names: Mapping[str, Fraction], is_away: bool
):
    seen = (gpu(A), gpu(B), gpu(C, name="H100"), gpu("GPU-nameless", name=""))
    assert metered(seen, *([None] if is_away else [])).names(shares) == names


@pytest.mark.parametrize(
    ("gpus", "number"),
    [
        (["1"], 1),
        (["0"], 0),
        (["1/2", "1/2"], 1),
        (["3/2", "1/3"], 2),
        ([(A, B)], 2),
        ([(GpuShare(uuid=A, share=Decimal("0.5")),), (GpuShare(uuid=A, share=Decimal("0.5")), B)], 2),
        ([(GpuShare(uuid="MIG-1", slices=3),), (GpuShare(uuid="MIG-2", slices=4),), (A,), "2"], 4),
    ],
)
def test_the_config_speaks_of_so_many_gpus_each_of_them_once(gpus: list[str | tuple[str | GpuShare, ...]], number: int):
    assert expected([engine(wanted, f"e{index}") for index, wanted in enumerate(gpus)]) == number


# What they drew --------------------------------------------------------------------------------------------------


def drawn(*energies: int | None) -> list[Fraction | None]:
    """Return what the meter says beat by beat; None is a beat in which the GPU does not answer."""
    meter, found = GpuMeter(), []
    for energy in energies:
        meter.advance(None if energy is None else GpusReading(gpus=(gpu(totals={ENERGY: energy}),)))
        found.append(meter.drawn(whole(A)))
    return found


def test_nothing_is_known_to_be_drawn_before_the_second_reading():
    assert drawn(None, 900, 900, 950) == [None, None, 0, 50]


def test_what_was_drawn_while_nobody_answered_comes_with_the_next_reading():
    assert drawn(900, 950, None, None, 1000, 1010) == [None, 50, 0, 0, 50, 10]


def test_a_loss_right_after_the_first_reading_draws_nothing_yet_and_all_of_it_later():
    """Else the time of the loss would be charged twice: by assumption, and by the measurement that makes up for it."""
    assert drawn(900, None, 950) == [None, 0, 50]


def test_a_driver_that_begins_anew_has_drawn_what_it_says():
    assert drawn(900, 950, 30, 40) == [None, 50, 30, 10]
    assert drawn(900, 950, None, 30) == [None, 50, 0, 30]


def test_a_gpu_that_never_said_what_it_draws_leaves_its_engine_unknown():
    meter = metered(*((gpu(A, totals={ENERGY: energy}), gpu(B)) for energy in (1, 2)))
    assert meter.drawn(whole(A)) == 1
    for shares in (whole(A, B), whole(B), whole(A, C), {}):
        assert meter.drawn(shares) is None


def test_an_average_gpu_drew_what_all_drew_by_how_much_of_each_there_is():
    meter = metered(*((gpu(A, totals={ENERGY: 10 * n}), gpu(B, totals={ENERGY: 30 * n})) for n in (0, 1)))
    assert meter.drawn(whole(A, B)) == 20
    assert meter.drawn({A: Fraction(1), B: Fraction(1, 2)}) == Fraction(25, 1) / Fraction(3, 2)
    assert meter.drawn({B: Fraction(3, 7)}) == 30


def test_what_is_drawn_until_the_next_reading_can_be_left_out_of_the_money_alone():
    meter = metered((gpu(at=0, totals={ENERGY: 0}),), (gpu(at=5, totals={ENERGY: 50}),))
    meter.rebaseline()
    found = []
    for reading in (None, gpu(at=9), gpu(at=10, totals={ENERGY: 950}), gpu(at=15, totals={ENERGY: 960})):
        meter.advance(None if reading is None else GpusReading(gpus=(reading,)))
        found.append(meter.drawn(whole(A)))
    assert found == [0, 0, 0, 10]
    assert shown(meter, Total.ENERGY) == {"": 960}


# What outlives a restart -----------------------------------------------------------------------------------------

AHEAD, AHEAD_LATER = 10**18, 10**18 + 3600 * NANO  # of the monotonic clock; the machine was started anew in between


def reborn(meter: GpuMeter, *charged: str, is_same: bool = True) -> GpuMeter:
    """Return the meter of another process, which has what this one left on its disk."""
    state = msgspec.json.decode(msgspec.json.encode(meter.state(charged, AHEAD)), type=GpusState)
    later = GpuMeter()
    later.restore(state, AHEAD_LATER, is_same=is_same)
    return later


def test_nothing_is_left_where_no_gpu_was_seen():
    assert metered((), None).state([A], AHEAD) is None


@pytest.mark.parametrize("is_same", [True, False])
def test_names_and_counters_of_energy_outlive_a_restart_and_all_else_begins_anew(is_same: bool):
    months = 10**21  # nanojoules, beyond 64 bits
    busy = gpu(at=7200, totals={ENERGY: months, BUSY: 7}, utilization=0.5)
    meter = reborn(metered((busy,)), is_same=is_same)
    assert meter.views(0) == ()
    assert meter.identities(whole(A)) == []
    assert not meter.all_up(whole(A))
    assert meter.names(whole(A)) == {"NVIDIA L4": 1}
    assert meter.drawn(whole(A)) == 0
    meter.advance(None)
    assert meter.drawn(whole(A)) == 0
    meter.advance(GpusReading(gpus=(gpu(at=3700, name="", up=False),)))
    assert meter.names(whole(A)) == {"NVIDIA L4": 1}  # it has not said otherwise yet
    assert meter.drawn(whole(A)) == 0
    meter.advance(GpusReading(gpus=(gpu(at=3700, totals={ENERGY: months + 90, BUSY: 7}, utilization=0.5),)))
    assert meter.drawn(whole(A)) == 90
    assert (shown(meter, Total.ENERGY), shown(meter, Total.BUSY)) == ({"": 0}, {"": 0})
    assert meter.busy_ratio(whole(A)) is None


@pytest.mark.parametrize(("joules", "can_be"), [(3 * 190, True), (3 * 191, False)])
def test_what_a_gpu_can_have_drawn_goes_by_the_wall_clock(joules: int, can_be: bool):
    """From its reading at 7200 to the one at 3700 of a clock that began an hour later are 100 s; the source adds 90."""
    meter = reborn(metered((gpu(at=7200, totals={ENERGY: 0}),)))
    meter.advance(GpusReading(gpus=(gpu(at=3700, totals={ENERGY: 1000 * joules * NANO}),)))
    assert meter.drawn(whole(A)) == (1000 * joules * NANO if can_be else 0)


def test_what_is_left_out_stays_left_out():
    meter = metered((gpu(totals={ENERGY: 5}),))
    meter.rebaseline()
    meter = reborn(meter)
    meter.advance(GpusReading(gpus=(gpu(totals={ENERGY: 70}),)))
    assert meter.drawn(whole(A)) == 0


def test_only_gpus_that_are_there_or_charged_are_remembered():
    meter = metered((gpu(A), gpu(B), gpu(C)), (gpu(A),))
    state = meter.state([B, "GPU-unseen"], AHEAD)
    assert state is not None
    assert list(state.gpus) == [A, B]


def test_gpus_of_a_number_are_those_that_were_seen_before_the_restart_while_nobody_says_otherwise():
    meter = reborn(metered((gpu(A), gpu(B))))
    for reading in (None, (), (gpu(A),), (gpu(B),), (gpu(B), gpu(A))):
        meter.advance(None if reading is None else GpusReading(gpus=reading))
        assert meter.shares([engine("2")]) == {"chat": whole(A, B)}
        assert meter.shares([engine("1"), engine("1", "other")]) == meter.shares([engine("3")]) == {}


def test_gpus_that_came_instead_of_those_that_were_seen_before_the_restart_are_the_ones():
    meter = reborn(metered((gpu(A), gpu(B))))
    meter.advance(GpusReading(gpus=(gpu(C), gpu("GPU-d"))))
    assert meter.shares([engine("2")]) == {"chat": whole(C, "GPU-d")}
    meter.advance(GpusReading(gpus=(gpu(C),)))
    assert meter.shares([engine("2")]) == {"chat": whole(C, "GPU-d")}  # and not one that is somewhere else


def test_a_gpu_that_was_never_told_apart_is_not_forgotten_by_a_restart():
    meter = GpuMeter()
    meter.advance(GpusReading(gpus=(gpu(B),), shown=2))
    assert reborn(meter).shares([engine("1")]) == {}


def test_gpus_that_are_not_looked_for_any_more_are_nobodys():
    meter = reborn(metered((gpu(A, totals={ENERGY: 5}),)), is_same=False)
    meter.advance(None)
    assert meter.shares([engine("1")]) == {}
    meter.advance(GpusReading(gpus=(gpu(A, totals={ENERGY: 50}),)))
    assert meter.drawn(meter.shares([engine("1")])["chat"]) == 45


def test_a_slice_is_a_part_of_the_same_gpu_after_a_restart():
    slices = engine((GpuShare(uuid="MIG-1", slices=3), GpuShare(uuid="MIG-2", slices=1)))
    there = (gpu(A, instances=("MIG-1", "MIG-2"), totals={ENERGY: 5}), gpu(B, instances=("MIG-3",)))
    for is_same in (True, False):
        meter = reborn(metered(there), is_same=is_same)
        meter.advance(None)
        assert meter.shares([slices]) == {"chat": {A: Fraction(4, 7)}}
        assert meter.names({A: Fraction(4, 7)}) == {"NVIDIA L4": Fraction(4, 7)}


def test_gpus_that_nobody_wants_to_see_are_forgotten_though_they_came_through_a_restart():
    meter = reborn(metered((gpu(A, totals={ENERGY: 5}), gpu(B))))
    meter.forget({B}.__contains__)
    assert meter.shares([engine("1")]) == {"chat": whole(B)}
    assert meter.drawn(whole(A)) is None
    assert meter.names(whole(A)) == {}


# How busy they were ----------------------------------------------------------------------------------------------


def worked(*beats: tuple[float, float] | None, uuid: str = A, utilization: float | None = 0.5) -> GpuMeter:
    """Return a meter that saw the GPU at some seconds with so many seconds of work; None is a beat without."""
    return metered(
        *(
            None
            if beat is None
            else (gpu(uuid, beat[0], totals={BUSY: round(beat[1] * NANO)}, utilization=utilization),)
            for beat in beats
        )
    )


def test_one_reading_says_nothing_of_the_time_before_it():
    assert worked((0, 5)).busy_ratio(whole(A)) is None
    assert worked((0, 5), (0, 5)).busy_ratio(whole(A)) is None  # the same answer again


def test_the_ratio_is_the_work_of_the_last_minute_divided_by_its_length():
    busy_for_a_minute = [(at, at) for at in range(0, 65, 5)]
    idle_since = [(at, 60) for at in range(65, 95, 5)]
    assert worked(*busy_for_a_minute[:4]).busy_ratio(whole(A)) == 1.0
    assert worked(*busy_for_a_minute).busy_ratio(whole(A)) == 1.0
    assert worked(*busy_for_a_minute, *idle_since).busy_ratio(whole(A)) == 0.5
    assert worked(*busy_for_a_minute, *idle_since).busy_ratio(whole(A), 10 * NANO) == 0.0


def test_a_gap_leaves_no_idle_time_behind():
    """A minute of work, an hour without a word, five busy seconds: the GPU was busy all the time that is known."""
    assert worked((0, 0), (60, 60), None, (3600, 60)).busy_ratio(whole(A)) is None
    assert worked((0, 0), (60, 60), None, (3600, 60), (3605, 65)).busy_ratio(whole(A)) == 1.0


def test_a_source_that_begins_anew_leaves_no_idle_time_behind():
    assert worked((0, 0), (60, 60), (65, 0)).busy_ratio(whole(A)) is None
    assert worked((0, 0), (60, 60), (65, 0), (70, 5)).busy_ratio(whole(A)) == 1.0


def test_a_minute_in_which_the_utilisation_was_not_known_is_no_idle_minute():
    meter = worked((0, 0), (5, 5))
    meter.advance(GpusReading(gpus=(gpu(A, 10, totals={BUSY: 5 * NANO}),)))
    assert meter.busy_ratio(whole(A)) is None
    meter.advance(GpusReading(gpus=(gpu(A, 15, totals={BUSY: 5 * NANO}, utilization=1.0),)))
    assert meter.busy_ratio(whole(A)) is None
    meter.advance(GpusReading(gpus=(gpu(A, 20, totals={BUSY: 10 * NANO}, utilization=1.0),)))
    assert meter.busy_ratio(whole(A)) == 1.0


def test_a_gpu_that_does_not_tell_its_utilisation_has_no_ratio():
    assert worked((0, 0), (5, 5), utilization=None).busy_ratio(whole(A)) is None


def test_more_work_than_time_is_no_more_than_all_of_the_time():
    assert worked((0, 0), (5, 5.2)).busy_ratio(whole(A)) == 1.0


def test_an_engine_is_as_busy_as_the_mean_of_its_gpus_and_unknown_as_long_as_one_of_them_is():
    def seen(at: int) -> tuple[GpuReading, ...]:
        return (
            gpu(A, at, totals={BUSY: at * NANO}, utilization=1.0),
            gpu(B, at, totals={BUSY: at * NANO // 2}, utilization=0.5),
            gpu(C, at),
        )

    meter = metered(seen(0), seen(10))
    assert meter.busy_ratio(whole(A, B)) == 0.75
    assert meter.busy_ratio({A: Fraction(1, 2), B: Fraction(1, 2)}) == 0.75
    for shares in (whole(A, C), whole(A, "GPU-unseen"), {}):
        assert meter.busy_ratio(shares) is None
    meter.advance(GpusReading(gpus=seen(15)[:1]))
    assert meter.busy_ratio(whole(A)) == 1.0
    assert meter.busy_ratio(whole(A, B)) is None


# Whatever comes --------------------------------------------------------------------------------------------------

COUNTED = (ENERGY, BUSY, (Total.THROTTLE, "sw_thermal"), PCIE)
EVENTS = st.one_of(
    st.just(None),  # not in the reading at all
    st.tuples(
        st.sampled_from(["counts", "begins anew", "is silent", "is down"]),
        st.lists(st.integers(0, 10**13), min_size=len(COUNTED), max_size=len(COUNTED)),
        st.none() | st.floats(0, 1),
    ),
)
BEATS = st.lists(
    st.none() | st.tuples(st.integers(0, 10**12), st.fixed_dictionaries(dict.fromkeys((A, B, C), EVENTS))), max_size=14
)


SLACK = 90 * NANO  # within which a GPU may have drawn or throttled what it says


class Device:
    """What a GPU and its driver count, and what somebody who looks at times can know to have moved."""

    def __init__(self) -> None:
        self.counters: Totals = dict.fromkeys(COUNTED, 10**15)
        self.seen: Totals | None = None
        self.seen_at: int | None = None
        self.moved = dict.fromkeys(COUNTED, 0)

    def reading(self, uuid: str, at: int, event: tuple[str, list[int], float | None]) -> GpuReading:
        kind, amounts, utilization = event
        if kind in ("counts", "begins anew"):
            began = dict.fromkeys(COUNTED, 0) if kind == "begins anew" else self.counters
            self.counters = {key: began[key] + amount for key, amount in zip(COUNTED, amounts, strict=True)}
        is_silent = kind == "is silent"
        if not is_silent:
            for key, value in self.counters.items():
                first = 0 if key is PCIE else value
                before = first if self.seen is None else self.seen[key]
                moved = value - before if value >= before else value
                most = {Total.ENERGY: 3000, Total.THROTTLE: 1, Total.BUSY: 1}.get(key[0])
                can_be = most is None or moved <= most * (at - (at if self.seen_at is None else self.seen_at) + SLACK)
                self.moved[key] += moved if can_be else 0
            self.seen, self.seen_at = self.counters, at
        return GpuReading(
            uuid=uuid,
            index=uuid[-1],
            name="NVIDIA L4",
            up=kind != "is down",
            sampled=at,
            gauges={} if kind == "is down" or utilization is None else {(Measure.UTILIZATION, ""): utilization},
            totals={} if is_silent else self.counters,
        )


@given(BEATS)
def test_no_counter_falls_no_energy_is_lost_or_invented_and_no_gpu_is_busier_than_always(
    beats: list[tuple[int, dict[str, tuple[str, list[int], float | None] | None]] | None],
):
    meter, devices, now = GpuMeter(), {uuid: Device() for uuid in (A, B, C)}, 0
    before: dict[tuple[str, str, str], float] = {}
    energy = dict.fromkeys((A, B, C), Fraction(0))
    for beat in beats:
        duration, events = beat or (0, {})
        now += duration
        seen = [devices[uuid].reading(uuid, now, event) for uuid, event in events.items() if event is not None]
        meter.advance(None if beat is None else GpusReading(gpus=tuple(seen)))
        totals = {
            (view.reading.uuid, family, label): value
            for view in meter.views(now)
            for family, samples in view.families.items()
            for label, value in samples
            if family in set(Total)
        }
        assert before.keys() <= totals.keys()
        assert all(totals[key] >= value for key, value in before.items())
        before = totals
        for uuid in devices:
            energy[uuid] += meter.drawn(whole(uuid)) or 0
        for shares in (whole(A), whole(A, B), whole(A, B, C), {}):
            ratio = meter.busy_ratio(shares)
            assert ratio is None or 0 <= ratio <= 1
    for uuid, device in devices.items():
        assert energy[uuid] == device.moved[ENERGY]
        if device.seen is not None:
            assert {key: before[uuid, *key] for key in COUNTED} == device.moved
