"""Our side of NVML, poller by poller and call by call, in the process that has loaded the stub.

A library stays in its process for good, where other tests would find GPUs: tests/integration/test_nvml.py runs this
file in a process of its own. Time is moved by hand but for the last part, where threads wait.
"""

import asyncio
import inspect
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.clock import NANOSECONDS, SystemClock
from exporter.config.model import Config, Engine, Gpu
from exporter.core.gpu_readings import Driver, GpuReading, Measure, MigReading, Total
from exporter.sources import nvml, nvml_driver, nvml_fields, nvml_gpu
from exporter.sources.gpus import Choice, GpuSources
from exporter.sources.http import SourceError, new_session
from exporter.sources.nvml import CODES, Handle, NvmlError, call, close_library, open_library, text
from exporter.sources.nvml_driver import NvmlDriver
from exporter.sources.nvml_gpu import GpuPoller, identify
from exporter.sources.nvml_parts import gpm, xid_events
from tests.fakes import FakeClock
from tests.nvml.stub import NOTHING_HELD, Scenario

FIRST, SECOND = "GPU-3a1c8f52-7d0e-4b96-a2c4-5e9f01b7d348", "GPU-91e4d7b0-2c65-4f38-8b1d-c03a96f2e57a"
POWER, TEMPERATURE = (Measure.POWER, ""), (Measure.TEMPERATURE, "gpu")
BUSY, ENERGY = (Total.BUSY, ""), (Total.ENERGY, "")


@pytest.fixture
def scenario() -> Iterator[Scenario]:
    """Two healthy GPUs, and nothing left behind in the driver."""
    scenario = Scenario(Path(os.environ["NVML_STUB_SCENARIO"])).copy("two-healthy")
    open_library(None)
    yield scenario
    scenario.copy("two-healthy")
    close_library()
    assert scenario.held() == NOTHING_HELD


def held(scenario: Scenario) -> dict[str, int]:
    """What is held now: the stub tells when somebody comes or goes."""
    call("nvmlInit")
    call("nvmlShutdown")
    return scenario.held()


class Rig:
    """The poller of one GPU, and a clock in our hands."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.clock = scenario, FakeClock()
        self.handle: Handle = call("nvmlDeviceGetHandleByIndex", 0)
        self.poller = GpuPoller(identify(self.handle, "0"), self.clock)
        self.attach()

    def attach(self) -> None:
        self.poller.attach(self.handle, self.poller.identity)

    def reading(self) -> GpuReading:
        return self.poller.reading(self.clock.now().monotonic)

    def poll(self, seconds: float = 1.0) -> GpuReading:
        """Poll after a time, and return what is known then."""
        self.clock.advance(seconds)
        self.poller.poll()
        return self.reading()

    def fails(self, seconds: float = 1.0) -> str:
        """Poll in vain after a time, and return the error's name."""
        self.clock.advance(seconds)
        with pytest.raises(NvmlError) as raised:
            self.poller.poll()
        return raised.value.name


@pytest.fixture
def rig(scenario: Scenario) -> Iterator[Rig]:
    rig = Rig(scenario)
    yield rig
    scenario.copy("two-healthy")
    rig.poller.detach()


# What the GPU has ------------------------------------------------------------------------------------------------


def test_what_a_gpu_lacks_is_asked_for_again_after_ten_minutes(rig: Rig) -> None:
    rig.scenario.remove("gpu0.power")
    reading = rig.poll()
    assert POWER not in reading.gauges
    assert (reading.supported[Measure.POWER], reading.supported[Measure.UTILIZATION]) == (False, True)
    rig.scenario.update({"gpu0.power": 5000})
    assert POWER not in rig.poll(599).gauges
    reading = rig.poll(1)
    assert reading.gauges[POWER] == 5
    assert reading.supported[Measure.POWER] is True
    assert not rig.poller.errors  # to lack something is no failure


@pytest.mark.parametrize("code", [3, 13, 25, 26])
def test_all_ways_to_lack_something_are_one(rig: Rig, code: int) -> None:
    rig.scenario.update({"gpu0.power": f"!{code}"})
    assert rig.poll().supported[Measure.POWER] is False
    rig.scenario.update({"gpu0.power": 5000})
    assert POWER not in rig.poll(60).gauges


def test_what_we_may_not_ask_is_asked_again_after_a_minute(rig: Rig) -> None:
    rig.scenario.update({"gpu0.power": "!4"})
    reading = rig.poll()
    assert POWER not in reading.gauges
    assert Measure.POWER not in reading.supported  # nobody knows
    rig.scenario.update({"gpu0.power": 5000})
    assert POWER not in rig.poll(59).gauges
    assert rig.poll(1).gauges[POWER] == 5
    assert rig.poller.errors == {("nvmlDeviceGetPowerUsage", "no_permission"): 1}


def test_a_failed_question_takes_its_own_answer_away_and_is_asked_again_at_once(rig: Rig) -> None:
    before = rig.poll()
    rig.scenario.update({"gpu0.power": "!999"})
    reading = rig.poll()
    assert before.gauges.keys() - reading.gauges.keys() == {POWER}
    assert reading.up
    rig.poll()
    assert rig.poller.errors == {("nvmlDeviceGetPowerUsage", "unknown"): 2}
    rig.scenario.update({"gpu0.power": 5000})
    assert rig.poll().gauges[POWER] == 5


def test_a_gpu_is_lost_when_no_question_is_answered(rig: Rig) -> None:
    rig.poll()
    rig.scenario.update({f"gpu0.{key}": "!999" for key in ("utilization", "power", "energy", "clocks_event_reasons")})
    assert rig.poll().up  # events are still told
    rig.scenario.update({"gpu0.xids": "!999"})
    assert rig.fails() == "unknown"
    reading = rig.reading()
    assert (reading.up, reading.gauges) == (False, {})
    assert reading.totals[ENERGY] == 9_876_543_210_000_000


def test_a_gpu_that_lacks_everything_lives_while_it_tells_its_name(rig: Rig) -> None:
    rig.scenario.write(f"gpu0.uuid={FIRST}\n")
    reading = rig.poll()
    assert (reading.up, reading.gauges) == (True, {})
    assert not any(reading.supported.values())
    assert rig.poll(1).up
    rig.scenario.update({"gpu0.lost": 1})
    assert rig.fails() == "gpu_is_lost"
    assert not rig.reading().up


def test_each_question_comes_at_its_own_pace(rig: Rig) -> None:
    rig.poll()
    keys = {"gpu0.power": 1000, "gpu0.memory": "4 1 1 2", "gpu0.temperature": 1, "gpu0.power_limit": 1000}
    rig.scenario.update(keys)
    measures = (POWER, (Measure.MEMORY_USED, ""), TEMPERATURE, (Measure.POWER_LIMIT, ""))
    before = rig.reading().gauges
    seen: dict[tuple[Measure, str], int] = {}
    for second in range(1, 62):
        gauges = rig.poll().gauges
        seen |= {measure: second for measure in measures if measure not in seen and gauges[measure] != before[measure]}
    assert list(seen.values()) == [1, 5, 10, 60]


def test_values_that_stand_for_not_available_are_left_out(rig: Rig) -> None:
    none32, none64 = 2**32 - 1, 2**64 - 1
    rig.scenario.update({
        "gpu0.power": none32, "gpu0.energy": none64, "gpu0.utilization": f"{none32} 41", "gpu0.clock.sm": none32,
        "gpu0.ecc.corrected.volatile": none64, "gpu0.gpm.2": -1, "gpu0.field.74": none64, "gpu0.field.82": 0,
        "gpu0.gpm.20": -1,
    })  # fmt: skip
    rig.poll()
    reading = rig.poll(10)
    assert reading.gauges[Measure.MEMORY_ACTIVITY, ""] == 0.41
    assert {POWER, (Measure.UTILIZATION, ""), (Measure.CLOCK, "sm"), (Measure.TEMPERATURE, "memory"),
            (Measure.SM_ACTIVE, "")} & reading.gauges.keys() == set()  # fmt: skip
    assert (Measure.CLOCK, "memory") in reading.gauges
    assert {ENERGY, BUSY, (Total.ECC, "corrected,volatile"), (Total.THROTTLE, "sw_power_cap"),
            (Total.PCIE, "transmit")} & reading.totals.keys() == set()  # fmt: skip
    assert (Total.PCIE, "receive") in reading.totals


@pytest.mark.parametrize(("number", "action"), [(0, "none"), (5, "recover_imex_domain"), (7, "system_reboot"),
                                                (8, "other"), (99, "other")])  # fmt: skip
def test_one_recovery_action_is_asked_for(rig: Rig, number: int, action: str) -> None:
    rig.scenario.update({"gpu0.field.230": number})
    actions = {label: value for (measure, label), value in rig.poll().gauges.items() if "recovery" in measure}
    assert len(actions) == 9
    assert [label for label, value in actions.items() if value] == [action]


def test_an_unknown_reason_to_throttle_is_another_one(rig: Rig) -> None:
    rig.scenario.update({"gpu0.clocks_event_reasons": hex(0x8 | 0x40 | 0x200)})
    gauges = rig.poll().gauges
    held_down = [label for (measure, label), value in gauges.items() if measure is Measure.THROTTLE_ACTIVE and value]
    assert held_down == ["hw_slowdown", "hw_thermal", "other"]


def test_memory_by_the_older_call_knows_no_reserve(rig: Rig) -> None:
    rig.scenario.remove("gpu0.memory")
    gauges = rig.poll().gauges
    assert (Measure.MEMORY_RESERVED, "") not in gauges
    assert gauges[Measure.MEMORY_USED, ""] == 76_502_267_904


# How old an answer may grow --------------------------------------------------------------------------------------


def test_gauges_are_gone_fifteen_seconds_after_the_last_answer_and_totals_stay(rig: Rig) -> None:
    rig.poll()
    rig.clock.advance(15)
    assert rig.reading().up
    assert POWER in rig.reading().gauges
    rig.clock.advance(0.001)
    reading = rig.reading()
    assert (reading.up, reading.gauges, reading.instances) == (False, {}, ())
    assert reading.totals[ENERGY] == 9_876_543_210_000_000
    assert rig.poll(100).gauges[POWER] == 612.345


def test_a_poll_that_took_too_long_says_no_more_what_it_heard_at_its_beginning(rig: Rig) -> None:
    """Power holds for 15 s, temperature for three of its periods of ten seconds."""
    rig.scenario.update({"gpu0.fields.delay_ms": 300})
    thread = threading.Thread(target=rig.poller.poll)
    thread.start()
    time.sleep(0.15)
    rig.clock.advance(20)
    assert rig.reading().stuck_seconds == 20
    thread.join()
    reading = rig.reading()
    assert reading.up
    assert POWER not in reading.gauges
    assert TEMPERATURE in reading.gauges
    assert reading.stuck_seconds == 0
    rig.clock.advance(10.001)
    assert TEMPERATURE not in rig.reading().gauges


# What it has counted ---------------------------------------------------------------------------------------------


def test_busy_time_is_the_integral_of_utilisation(rig: Rig) -> None:
    assert rig.poll().totals[BUSY] == 0
    rig.scenario.update({"gpu0.utilization": "50 0"})
    assert rig.poll(1).totals[BUSY] == NANOSECONDS // 2
    rig.scenario.update({"gpu0.utilization": "100 0"})
    assert rig.poll(3).totals[BUSY] == NANOSECONDS * 7 // 2


def test_a_gap_in_the_polls_is_not_busy_time(rig: Rig) -> None:
    rig.poll()
    assert rig.poll(15.001).totals[BUSY] == 0
    rig.poller.lose()
    rig.attach()
    assert rig.poll(1).totals[BUSY] == 0
    assert rig.poll(1).totals[BUSY] == 970_000_000


class Step(NamedTuple):
    """What happens before a poll."""

    seconds: float
    utilization: str
    is_lost: bool


steps = st.lists(
    st.builds(
        Step,
        seconds=st.floats(0.001, 40),
        utilization=st.one_of(st.integers(0, 100).map(lambda percent: f"{percent} 0"), st.sampled_from(["!999", "!3"])),
        is_lost=st.booleans(),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(steps=steps)
def test_busy_time_only_grows_and_never_faster_than_time(steps: list[Step]) -> None:
    scenario = Scenario(Path(os.environ["NVML_STUB_SCENARIO"])).copy("two-healthy")
    open_library(None)
    rig = Rig(scenario)
    before, began = 0, rig.clock.now().monotonic
    for step in steps:
        scenario.update({"gpu0.utilization": step.utilization, "gpu0.lost": int(step.is_lost)})
        if step.is_lost:
            rig.fails(step.seconds)
            rig.poller.detach()
            rig.attach()
        else:
            rig.poll(step.seconds)
        now = rig.reading().totals.get(BUSY, before)
        assert before <= now <= rig.clock.now().monotonic - began
        before = now
    scenario.copy("two-healthy")
    rig.poller.detach()
    close_library()


def test_energy_is_told_as_it_is_counted(rig: Rig) -> None:
    assert rig.poll().totals[ENERGY] == 9_876_543_210_000_000
    rig.scenario.update({"gpu0.energy": 7})
    assert rig.poll(5).totals[ENERGY] == 7_000_000


# GPM -------------------------------------------------------------------------------------------------------------


def monitor(rig: Rig):
    found = gpm(rig.handle, lambda sample: call("nvmlGpmSampleGet", rig.handle, sample), rig.clock)
    assert found is not None
    return found


def test_activity_needs_two_samples_between_a_second_and_ten_minutes_apart(rig: Rig) -> None:
    activity = monitor(rig)
    assert activity.read() == []
    rig.clock.advance(0.999)
    assert activity.read() == []
    rig.clock.advance(1)
    assert (Measure.SM_ACTIVE, "", 0.875) in activity.read()
    rig.clock.advance(600.001)
    assert activity.read() == []
    rig.clock.advance(600)
    assert (Measure.SM_ACTIVE, "", 0.875) in activity.read()
    activity.free()


def test_activity_begins_anew_after_a_failed_sample(rig: Rig) -> None:
    activity = monitor(rig)
    activity.read()
    rig.clock.advance(10)
    rig.scenario.update({"gpu0.lost": 1})
    with pytest.raises(NvmlError):
        activity.read()
    rig.scenario.remove("gpu0.lost")
    rig.clock.advance(10)
    assert activity.read() == []
    rig.clock.advance(10)
    assert len(activity.read()) == 9
    activity.free()


def test_what_gpm_does_not_tell_is_left_out(rig: Rig) -> None:
    rig.scenario.update({"gpu0.gpm.2": "!4", "gpu0.gpm.3": 101, "gpu0.gpm.5": "nan", "gpu0.gpm.60": -1})
    rig.poll()
    gauges = rig.poll(10).gauges
    assert {measure for measure, _ in gauges} & {
        Measure.SM_ACTIVE,
        Measure.SM_OCCUPANCY,
        Measure.TENSOR_ACTIVE,
    } == set()
    assert gauges[Measure.DRAM_ACTIVE, ""] == 0.67
    assert (Measure.NVLINK_RATE, "receive") not in gauges
    assert gauges[Measure.PCIE_RATE, "transmit"] == 512 * 2**20


def test_pcie_byte_counters_that_wrap_several_times_between_two_looks_are_not_asked(rig: Rig) -> None:
    """They have 32 bits. What is added up are the monitor's means; of a gap nothing is known."""
    sent, received = (Total.PCIE, "transmit"), (Total.PCIE, "receive")
    assert sent not in rig.poll().totals
    found = rig.poll(10).totals
    assert (found[sent], found[received]) == (10 * 512 * 2**20, round(10 * 256.5 * 2**20))
    rig.scenario.update({"gpu0.gpm.20": 30 * 2**10})
    assert rig.poll(10).totals[sent] == 10 * 512 * 2**20 + 10 * 30 * 2**30
    before = rig.poll(1000).totals[sent]
    assert before == 10 * 512 * 2**20 + 10 * 30 * 2**30
    rig.poller.detach()  # the driver was loaded anew
    rig.attach()
    rig.poll()
    assert rig.poll(10).totals[sent] == before + 10 * 30 * 2**30


def test_a_real_h200_says_what_its_own_tool_said(rig: Rig) -> None:
    """Captured under load by `doctor --capture`; nvidia-smi showed the same."""
    rig.scenario.copy("h200")
    rig.poll()
    reading = rig.poll(10)
    assert reading.name == "NVIDIA H100 80GB HBM3", "which was asked at the start"
    gauges = reading.gauges
    assert (gauges[POWER], gauges[TEMPERATURE], gauges[Measure.UTILIZATION, ""]) == (691.907, 63, 1)
    assert gauges[Measure.MEMORY_USED, ""] + gauges[Measure.MEMORY_RESERVED, ""] == 1_704_853_504  # that of version 1
    assert gauges[Measure.TENSOR_ACTIVE, ""] == pytest.approx(0.9329, abs=1e-4)
    assert reading.totals[ENERGY] == 37_385_748_000_000
    assert reading.totals[Total.THROTTLE, "sw_power_cap"] == 42_862_857_216
    assert reading.totals[Total.ECC, "corrected,aggregate"] == 1
    assert all(reading.supported.values())
    assert not rig.poller.errors


def test_a_gpu_without_gpm_or_events_holds_nothing(rig: Rig) -> None:
    rig.scenario.update({"gpu0.gpm": 0}).remove("gpu0.xids")
    reading = rig.poll()
    assert reading.supported[Measure.SM_ACTIVE] is False
    assert reading.supported[Total.XID] is False
    assert held(rig.scenario) == {**NOTHING_HELD, "clients": 1}


# MIG -------------------------------------------------------------------------------------------------------------

THREE, ONE = "MIG-5c1f7a3e-0d24-5b68-9a7c-1e2f3a4b5c6d", "MIG-a90b4c8d-7e61-5f02-8b3a-6d5e4f3a2b1c"
OTHER, TWIN = "MIG-00000000-aaaa-5555-8888-000000000001", "MIG-00000000-aaaa-5555-8888-000000000002"


@pytest.fixture
def split(rig: Rig) -> Rig:
    """One GPU in MIG mode, slots 0 and 2 taken."""
    rig.scenario.copy("mig")
    return rig


def active(instance: MigReading) -> float | None:
    return instance.gauges.get((Measure.SM_ACTIVE, ""))


def test_instances_in_sparse_slots(split: Rig) -> None:
    reading = split.poll()
    assert (Measure.UTILIZATION, "") not in reading.gauges
    assert reading.supported[Measure.UTILIZATION] is False
    assert reading.mig_mode == "enabled"
    assert [(one.uuid, one.gpu_instance, one.compute_instance, one.profile) for one in reading.instances] == [
        (THREE, "2", "0", "3g.40gb"),
        (ONE, "9", "0", "1g.10gb"),
    ]
    assert [one.gauges[Measure.MEMORY_USED, ""] for one in reading.instances] == [20e9, 5e9]
    assert [active(one) for one in reading.instances] == [None, None]  # there is one sample yet
    assert [active(one) for one in split.poll(10).instances] == [0.615, 0.115]


def test_a_gpu_that_is_partitioned_anew(split: Rig) -> None:
    """The new instances take the old ones' slots and ids, but not their samples."""
    split.poll()
    split.poll(10)
    gauges = {"memory": "10468982784 64028672 5404954112 5000000000", "gpm.2": 20, "ci": 0}
    slots = {0: (OTHER, 9), 1: (TWIN, 2)}
    keys = split.scenario.keys()
    split.scenario.remove(*(key for key in keys if ".mig0." in key or ".mig2." in key))
    for slot, (uuid, gi) in slots.items():
        more = {"uuid": uuid, "gi": gi, "name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb", **gauges}
        split.scenario.update({f"gpu0.mig{slot}.{key}": value for key, value in more.items()})
    reading = split.poll(10)
    assert [(one.uuid, one.gpu_instance) for one in reading.instances] == [(OTHER, "9"), (TWIN, "2")]
    assert [active(one) for one in reading.instances] == [None, None]
    assert [active(one) for one in split.poll(10).instances] == [0.2, 0.2]
    split.scenario.remove("gpu0.mig0.uuid")
    assert [one.uuid for one in split.poll(10).instances] == [TWIN]
    assert held(split.scenario)["gpm_samples"] == 2 + 2  # the GPU's own, and those of the one that is left


def test_a_gpu_that_leaves_mig_mode(split: Rig) -> None:
    split.poll()
    split.scenario.update({"gpu0.mig_mode": "0 0"})
    reading = split.poll(10)
    assert (reading.instances, reading.mig_mode) == ((), "disabled")
    assert held(split.scenario)["gpm_samples"] == 2


def test_instances_that_cannot_be_asked_are_not_told_of(split: Rig) -> None:
    assert len(split.poll().instances) == 2
    split.scenario.update({"gpu0.mig_mode": "!999"})
    assert split.poll(10).instances == ()
    split.scenario.update({"gpu0.mig_mode": "1 1"})
    assert len(split.poll(10).instances) == 2


def test_an_instance_without_memory_or_activity_is_still_there(split: Rig) -> None:
    split.scenario.update({"gpu0.gpm": 0, "gpu0.mig0.memory": "!4"})
    reading = split.poll()
    assert [one.uuid for one in reading.instances] == [THREE, ONE]
    assert [set(one.gauges) for one in split.poll(10).instances] == [set(), {
        (Measure.MEMORY_TOTAL, ""), (Measure.MEMORY_USED, ""), (Measure.MEMORY_FREE, ""), (Measure.MEMORY_RESERVED, "")
    }]  # fmt: skip


# Events ----------------------------------------------------------------------------------------------------------


def xids(reading: GpuReading) -> dict[str, int]:
    return {label: value for (total, label), value in reading.totals.items() if total is Total.XID}


def test_grave_xids_stand_there_before_they_happen(rig: Rig) -> None:
    rig.scenario.update({"gpu0.xids": "79 13"})  # from before we looked
    reading = rig.poll()
    assert xids(reading) == dict.fromkeys(["48", "62", "64", "74", "79", "94", "95", "119", "120"], 0)
    assert not [measure for measure, _ in reading.gauges if measure is Measure.XID_LAST]
    rig.scenario.append("gpu0.xids", 79).append("gpu0.xids", 31)
    reading = rig.poll()
    assert (xids(reading)["79"], xids(reading)["31"]) == (1, 1)
    assert reading.gauges[Measure.XID_LAST, "79"] == rig.clock.now().unix_seconds


def test_the_last_words_of_a_gpu_are_counted(rig: Rig) -> None:
    rig.poll()
    rig.scenario.append("gpu0.xids", 79).update({"gpu0.power": "!15"})
    assert rig.fails() == "gpu_is_lost"
    assert xids(rig.reading())["79"] == 0  # the question that failed came first
    rig.poller.drain()
    rig.poller.lose()
    assert xids(rig.reading())["79"] == 1


@pytest.mark.usefixtures("hasty")
def test_the_error_that_tells_why_a_gpu_is_lost_is_not_lost_with_it() -> None:
    def told(driver: NvmlDriver) -> int:
        return sum(xids(gpu).get("79", 0) for gpu in driver.reading().gpus if gpu.uuid == FIRST)

    with driven() as (driver, scenario):
        until_ups(driver, first=True, second=True)
        scenario.update({"gpu0.xids": "79", "gpu0.lost": 1})
        until("the GPU is lost", lambda: not ups(driver)[FIRST])
        until("its last error is told", lambda: told(driver) == 1)


def test_a_flood_of_events_does_not_hold_a_poll_up(rig: Rig) -> None:
    rig.poll()
    rig.scenario.update({"gpu0.xids": " ".join(["13"] * 250)})
    assert [xids(rig.poll())["13"] for _ in range(4)] == [100, 200, 250, 250]


def test_each_thread_hears_of_its_own_gpu(rig: Rig) -> None:
    rig.poll()
    rig.scenario.append("gpu1.xids", 79)
    assert xids(rig.poll())["79"] == 0


def test_events_that_cannot_be_had_leave_no_set_behind(rig: Rig) -> None:
    rig.scenario.update({"gpu0.xids": "!999"})
    with pytest.raises(NvmlError):
        xid_events(rig.handle)
    rig.scenario.update({"gpu0.xids": "!4"})
    assert xid_events(rig.handle) is None
    assert held(rig.scenario)["event_sets"] == 0


def test_everything_is_given_back(rig: Rig) -> None:
    rig.poll()
    assert held(rig.scenario) == {**NOTHING_HELD, "clients": 1, "event_sets": 1, "gpm_samples": 2}
    rig.poller.detach()
    assert held(rig.scenario) == {**NOTHING_HELD, "clients": 1}
    rig.attach()
    assert rig.poll().up
    assert held(rig.scenario)["event_sets"] == 1


# Errors ----------------------------------------------------------------------------------------------------------


def failure(run: Callable[[], object]) -> NvmlError:
    with pytest.raises(NvmlError) as raised:
        run()
    return raised.value


@pytest.mark.parametrize("code", sorted({*CODES, 5, 22, 30, 998}))
def test_every_code_has_a_name_or_is_another_one(rig: Rig, code: int) -> None:
    rig.scenario.update({"gpu0.power": f"!{code}"})
    error = failure(lambda: call("nvmlDeviceGetPowerUsage", rig.handle))
    assert (error.call, error.name) == ("nvmlDeviceGetPowerUsage", CODES.get(code, "other"))
    assert str(error).startswith("nvmlDeviceGetPowerUsage: ")


def test_what_the_binding_or_the_driver_lacks_is_a_missing_function(rig: Rig) -> None:
    assert failure(lambda: call("nvmlDeviceGetNothing", rig.handle)).name == "function_not_found"
    # Not an NVMLError: an old call over a new one that this driver lacks.
    with pytest.raises(pynvml.NVMLLibraryMismatchError):
        pynvml.nvmlDeviceGetMPSComputeRunningProcesses(rig.handle)
    mismatch = failure(lambda: call("nvmlDeviceGetMPSComputeRunningProcesses", rig.handle))
    assert mismatch.name == "function_not_found"


@pytest.mark.parametrize("error", [OSError("no"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), ValueError("no")])
def test_anything_else_is_an_error_of_one_kind_too(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(pynvml, "nvmlBroken", broken, raising=False)
    found = failure(lambda: call("nvmlBroken"))
    assert (found.name, str(found)) == ("other", f"nvmlBroken: other ({type(error).__name__})")
    assert scenario.path.exists()


def test_a_garbled_name_is_read_as_far_as_it_can_be(rig: Rig) -> None:
    rig.scenario.copy("garbage-name")
    assert failure(lambda: call("nvmlDeviceGetName", rig.handle)).name == "other"
    assert text("nvmlDeviceGetName", rig.handle) == "NVIDIA \ufffd\ufffd\ufffd H100"
    assert identify(rig.handle, "0").name == "NVIDIA \ufffd\ufffd\ufffd H100"


def test_who_a_gpu_is_needs_only_its_uuid(rig: Rig) -> None:
    rig.scenario.write(f"gpu0.uuid={FIRST}\ngpu0.name=!999\ngpu0.pci_bus_id=!4\n")
    identity = identify(rig.handle, "0")
    assert (identity.uuid, identity.name, identity.pci_bus_id, identity.architecture) == (FIRST, "", "", "")
    rig.scenario.write("gpu0.uuid=!999\n")
    assert failure(lambda: identify(rig.handle, "0")).call == "nvmlDeviceGetUUID"


@pytest.mark.parametrize("code", [15, 16, 28, 9, 18])
def test_one_field_can_say_that_the_gpu_or_the_driver_is_gone(rig: Rig, code: int) -> None:
    rig.scenario.update({"gpu0.field.82": f"!{code}"})
    assert rig.fails() == CODES[code]


def test_a_field_that_fails_takes_no_other_away(rig: Rig) -> None:
    rig.scenario.update({"gpu0.field.82": "!4", "gpu0.field.74": "!999"})
    reading = rig.poll()
    assert (Measure.TEMPERATURE, "memory") not in reading.gauges
    assert (Total.THROTTLE, "sw_power_cap") not in reading.totals
    assert reading.totals[Total.THROTTLE, "sw_thermal"] == 0


def test_why_the_library_does_not_open(scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = failure(lambda: open_library(str(tmp_path / "libnvidia-ml.so.1")))
    assert missing.name == "library_not_found"
    assert "cannot open shared object file" in str(missing)
    scenario.set(init="!9")
    assert failure(lambda: open_library(None)).name == "driver_not_loaded"
    scenario.remove("init")
    monkeypatch.delattr(pynvml, "nvmlDeviceGetTemperatureV")  # as the retired package has it
    shadowed = failure(lambda: open_library(None))
    assert (shadowed.name, "uninstall it" in str(shadowed)) == ("shadowed", True)


def test_versions_that_are_not_told_are_empty(scenario: Scenario) -> None:
    assert nvml.driver() == Driver(driver_version="580.82.07", nvml_version="13.580.82.07", cuda_version="13.0")
    scenario.remove("driver_version", "nvml_version").set(cuda_version=12080)
    assert nvml.driver() == Driver(driver_version="", nvml_version="", cuda_version="12.8")
    scenario.set(cuda_version="!999")
    assert nvml.driver().cuda_version == ""


# What we name exists ---------------------------------------------------------------------------------------------

SOURCES = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(nvml.__file__).parent.glob("nvml*.py")))
FUNCTIONS = sorted(set(re.findall(r'"(nvml[A-Z]\w+)"', SOURCES)))


def symbols_of(function: str) -> set[str]:
    """The C functions behind one of pynvml, by its source."""
    source = inspect.getsource(inspect.unwrap(getattr(pynvml, function)))
    found = set(re.findall(r"_nvmlGetFunctionPointer\(['\"](\w+)['\"]", source))
    for name in set(re.findall(r"\b(nvml[A-Z]\w+)\(", source)) - {function}:
        found |= symbols_of(name)
    return found


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_binding_has_the_function_and_the_stub_its_symbols(scenario: Scenario, function: str) -> None:
    symbols = symbols_of(function)
    assert symbols
    assert [symbol for symbol in symbols if not hasattr(pynvml.nvmlLib, symbol)] == []
    assert scenario.path.exists()


def test_all_that_is_called_was_found() -> None:
    assert {"nvmlInit", "nvmlShutdown", "nvmlDeviceGetFieldValues", "nvmlGpmMigSampleGet", "nvmlEventSetFree",
            "nvmlDeviceGetMigDeviceHandleByIndex"} <= set(FUNCTIONS)  # fmt: skip
    assert len(FUNCTIONS) > 35


def test_the_bindings_numbers_are_ours() -> None:
    names = {
        "DRIVER_NOT_LOADED": "driver_not_loaded", "GPU_IS_LOST": "gpu_is_lost", "LIB_RM_VERSION_MISMATCH":
        "driver_mismatch", "NO_PERMISSION": "no_permission", "UNKNOWN": "unknown", "RESET_REQUIRED": "reset_required",
        "NOT_SUPPORTED": "not_supported", "FUNCTION_NOT_FOUND": "function_not_found", "TIMEOUT": "timeout",
        "ARGUMENT_VERSION_MISMATCH": "argument_version_mismatch", "GPU_NOT_FOUND": "gpu_not_found",
    }  # fmt: skip
    assert {CODES[getattr(pynvml, f"NVML_ERROR_{name}")]: name for name in names} == {v: k for k, v in names.items()}
    fields = ["PERF_POLICY_POWER", "PERF_POLICY_SYNC_BOOST", "MEMORY_TEMP", "GET_GPU_RECOVERY_ACTION"]
    thermal = ("SW_THERM_SLOWDOWN", "HW_THERM_SLOWDOWN", "HW_POWER_BRAKE_SLOWDOWN")
    of_the_binding = [getattr(pynvml, f"NVML_FI_DEV_CLOCKS_EVENT_REASON_{reason}") for reason in thermal]
    older = pynvml.NVML_FI_PWR_SMOOTHING_ENABLED != 251  # for a year, up to 580.65, NVIDIA had other numbers for these
    assert list(nvml_fields.thermal_fields("580.65.06" if older else "580.82.07")) == of_the_binding
    assert {getattr(pynvml, f"NVML_FI_DEV_{name}") for name in fields} <= set(nvml_fields.FIELD_IDS)
    assert len(nvml_fields.FIELD_IDS) == 10
    shares = ("GRAPHICS_UTIL", "SM_UTIL", "SM_OCCUPANCY", "ANY_TENSOR_UTIL", "DRAM_BW_UTIL")
    rates = ("PCIE_TX_PER_SEC", "PCIE_RX_PER_SEC", "NVLINK_TOTAL_RX_PER_SEC", "NVLINK_TOTAL_TX_PER_SEC")
    assert list(nvml_fields.GPM_SHARES) == [getattr(pynvml, f"NVML_GPM_METRIC_{name}") for name in shares]
    assert list(nvml_fields.GPM_RATES) == [getattr(pynvml, f"NVML_GPM_METRIC_{name}") for name in rates]
    assert pynvml.nvmlMemory_v2 == nvml_fields.MEMORY_V2


# The driver and its threads --------------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty times the pace."""
    monkeypatch.setattr(nvml_driver, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(nvml_driver, "_FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(nvml_driver, "_LONGEST_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(nvml_driver, "_LONGEST_GPU_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(nvml_driver, "_COUNT_AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(nvml_driver, "_ALL_GONE_SECONDS", 0.5)


def until(what: str, condition: Callable[[], bool], seconds: float = 10) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"{what}: not within {seconds} s"
        time.sleep(0.005)


@contextmanager
def driven(
    changes: Mapping[str, object] | None = None, wants: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[NvmlDriver, Scenario]]:
    """Two GPUs, changed in some way, and their driver under watch; nothing of it is left when it ends."""
    scenario = Scenario(Path(os.environ["NVML_STUB_SCENARIO"])).copy("two-healthy").update(changes or {})
    driver = NvmlDriver(None, wants, SystemClock())
    driver.start()
    try:
        yield driver, scenario
    finally:
        scenario.copy("two-healthy")
        driver.close()
        until("its threads end", lambda: not [one for one in threading.enumerate() if one.name[:3] in ("nvm", "gpu")])
        assert scenario.held() == NOTHING_HELD


def ups(driver: NvmlDriver) -> dict[str, bool]:
    return {gpu.uuid: gpu.up for gpu in driver.reading().gpus}


def stuck(driver: NvmlDriver) -> float:
    """How long the first GPU has been hanging."""
    return next(gpu.stuck_seconds or 0.0 for gpu in driver.reading().gpus if gpu.uuid == FIRST)


def until_ups(driver: NvmlDriver, **wanted: bool) -> None:
    names = {"first": FIRST, "second": SECOND}
    until(f"{wanted}", lambda: ups(driver) == {names[name]: up for name, up in wanted.items()})


@pytest.mark.usefixtures("hasty")
def test_a_driver_that_stays_away_is_lost_for_good_after_five_attempts() -> None:
    with driven() as (driver, scenario):
        until_ups(driver, first=True, second=True)
        scenario.set(driver_gone="!18", init="!18")
        until("the driver is missed", lambda: driver.status.reason == "driver_mismatch")
        assert (driver.status.is_up, driver.status.visible) == (False, 0)
        assert not driver.is_lost_for_good
        until("it is lost for good", lambda: driver.is_lost_for_good)
        scenario.remove("driver_gone", "init")
        until_ups(driver, first=True, second=True)
        until("all is forgotten", lambda: not driver.is_lost_for_good)
        assert driver.status.reason == "visible"


async def asked_in_the_end(dcgm_url: str | None) -> tuple[Choice, str]:
    """Return who is asked about GPUs once the driver has been tried, and why that gives nothing."""
    config = Config(engines=(Engine(url="http://127.0.0.1:9"),), gpu=Gpu(dcgm_url=dcgm_url))
    async with new_session() as session:
        asked = GpuSources(config, session, SystemClock(), {"POD_NAME": "chat-0"})
        try:
            until("the driver is tried", lambda: asked.driver is not None and asked.driver.is_settled)
            with pytest.raises(SourceError) as failed:
                await asked.read()
            return asked.choice, failed.value.reason
        finally:
            asked.close()
            until("its threads end", lambda: not [x for x in threading.enumerate() if x.name[:3] in ("nvm", "gpu")])


@pytest.mark.usefixtures("hasty")
def test_a_driver_whose_gpus_all_refuse_leaves_the_word_to_a_dcgm_exporter() -> None:
    refused = {"gpu0.handle": "!4", "gpu1.handle": "!4"}
    Scenario(Path(os.environ["NVML_STUB_SCENARIO"])).copy("two-healthy").update(refused)
    choice, why = asyncio.run(asked_in_the_end("http://127.0.0.1:9"))
    assert (choice.source, choice.reason, why) == ("dcgm", "no_permission", "refused")
    choice, why = asyncio.run(asked_in_the_end(None))
    assert (choice.source, choice.reason, why) == ("nvml", "no_permission", "no_permission")


@pytest.mark.usefixtures("hasty")
def test_a_driver_that_was_never_there_is_not_lost() -> None:
    with driven({"init": "!9"}) as (driver, _):
        until("many attempts", lambda: driver._failed_attempts > 5)
        assert not driver.is_lost_for_good
        assert driver.status.reason == "driver_not_loaded"
        assert driver.is_settled


@pytest.mark.usefixtures("hasty")
def test_the_driver_is_not_let_go_while_a_call_is_under_way() -> None:
    with driven() as (driver, scenario):
        until_ups(driver, first=True, second=True)
        scenario.update({"gpu0.power.delay_ms": 1000})
        until("the call hangs", lambda: stuck(driver) > 0.1)
        assert driver.release(60) is True
        until("it is released", lambda: driver.status.reason == "released")
        time.sleep(0.2)
        assert scenario.held()["clients"] == 1
        until("it is let go", lambda: scenario.held() == NOTHING_HELD)
        assert ups(driver) == {FIRST: False, SECOND: False}
        scenario.remove("gpu0.power.delay_ms")
        assert driver.release(60) is False
        until_ups(driver, first=True, second=True)


@pytest.mark.usefixtures("hasty")
def test_the_driver_is_taken_back_when_the_time_of_release_is_over() -> None:
    with driven() as (driver, scenario):
        until_ups(driver, first=True, second=True)
        driver.release(0.3)
        until("it is let go", lambda: scenario.held() == NOTHING_HELD)
        until_ups(driver, first=True, second=True)
        assert driver.release(60) is True


@pytest.mark.usefixtures("hasty")
def test_a_gpu_that_hangs_is_told_to_hang_however_long_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml_gpu, "FRESH_NS", NANOSECONDS // 5)
    with driven(wants=FIRST.__eq__) as (driver, scenario):
        until_ups(driver, first=True)
        scenario.update({"gpu0.power.delay_ms": 2000})
        until("the call hangs", lambda: stuck(driver) > 1.2)
        assert driver.status.is_up


@pytest.mark.usefixtures("hasty")
def test_the_driver_is_opened_anew_when_no_gpu_answers() -> None:
    with driven() as (driver, scenario):
        until_ups(driver, first=True, second=True)
        scenario.update({"gpu0.lost": 1, "gpu1.lost": 1})
        until("nobody answers", lambda: driver.status.reason == "no_gpu_answers")
        until("it is opened anew", lambda: scenario.journal().count("init") > 1)
        scenario.remove("gpu0.lost", "gpu1.lost")
        until_ups(driver, first=True, second=True)


@pytest.mark.usefixtures("hasty")
def test_gpus_that_come_later_are_found() -> None:
    with driven({"count": 0}) as (driver, scenario):
        until("there is none", lambda: driver.status.reason == "no_devices")
        assert driver.is_settled
        scenario.set(count=1)
        until_ups(driver, first=True)
        scenario.set(count=2)
        until_ups(driver, first=True, second=True)
        assert driver.status.visible == 2


@pytest.mark.usefixtures("hasty")
def test_a_gpu_that_is_not_wanted_is_left_alone() -> None:
    with driven(wants=SECOND.__eq__) as (driver, _):
        until_ups(driver, second=True)
        until("both were looked at", lambda: driver.is_settled)
        assert driver.status.visible == 2
        assert not driver.reading().errors


def moved(scenario: Scenario, places: Mapping[str, str]) -> dict[str, str]:
    """The scenario with its GPUs in other places."""
    keys = {key.partition(".")[::2]: value for key, value in scenario.keys().items() if key.startswith("gpu")}
    return {f"{places[gpu]}.{name}": value for (gpu, name), value in keys.items() if gpu in places}


@pytest.mark.usefixtures("hasty")
def test_gpus_that_change_places_are_followed_by_their_uuids() -> None:
    with driven() as (driver, scenario):
        until_ups(driver, first=True, second=True)
        swapped = moved(scenario, {"gpu0": "gpu1", "gpu1": "gpu0"})
        scenario.update({"gpu0.lost": 1, "gpu1.lost": 1})
        until_ups(driver, first=False, second=False)
        scenario.update({**swapped, "gpu0.lost": 0, "gpu1.lost": 0})
        until_ups(driver, first=True, second=True)
        assert {gpu.uuid: gpu.gauges[POWER] for gpu in driver.reading().gpus} == {FIRST: 612.345, SECOND: 698}


@pytest.mark.usefixtures("hasty")
def test_a_gpu_that_was_taken_out_and_put_in_again_is_found() -> None:
    with driven() as (driver, scenario):
        until_ups(driver, first=True, second=True)
        text = scenario.path.read_text(encoding="utf-8")
        alone = moved(scenario, {"gpu1": "gpu0"})
        scenario.update({"gpu0.lost": 1, "gpu1.lost": 1})
        until_ups(driver, first=False, second=False)
        scenario.write("".join(f"{key}={value}\n" for key, value in alone.items()))
        until_ups(driver, first=False, second=True)
        time.sleep(0.3)  # its thread finds the other GPU in its place
        scenario.update({"gpu0.lost": 1})
        until_ups(driver, first=False, second=False)
        scenario.write(text)
        until_ups(driver, first=True, second=True)


@pytest.mark.usefixtures("hasty")
def test_a_bug_in_one_thread_ends_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with driven() as (driver, _):
        until_ups(driver, first=True, second=True)
        real = GpuPoller.poll
        with monkeypatch.context() as patch:
            patch.setattr(GpuPoller, "poll", lambda poller: 1 / 0 if poller.identity.uuid == FIRST else real(poller))
            until_ups(driver, first=False, second=True)
        until_ups(driver, first=True, second=True)
        assert "a bug while reading gpu 0" in caplog.text


@pytest.mark.usefixtures("hasty")
def test_errors_of_a_gpu_that_never_answered_are_counted() -> None:
    with driven({"gpu1.handle": "!4"}) as (driver, scenario):
        until_ups(driver, first=True)
        until("errors", lambda: driver.reading().errors.get(("nvmlDeviceGetHandleByIndex", "no_permission"), 0) > 1)
        assert driver.status.visible == 2
        scenario.remove("gpu1.handle")
        until_ups(driver, first=True, second=True)
