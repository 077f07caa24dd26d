"""GPUs by NVML's real interface where there is no GPU: a real exporter, the real binding, a library made of C.

Exporters that have to be watched for ten seconds and longer start together, before the first test: a fleet.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGHUP, SIGTERM, SIGUSR1
from typing import NamedTuple

import pytest

from exporter.core.gpu_readings import Measure
from tests.nvml.stub import NOTHING_HELD, Scenario, build_or_skip, environment
from tests.processes import Exporter, replayed, running, samples, wait_until_ready

FIRST, SECOND = "GPU-3a1c8f52-7d0e-4b96-a2c4-5e9f01b7d348", "GPU-91e4d7b0-2c65-4f38-8b1d-c03a96f2e57a"
UUIDS = (FIRST, SECOND)
GONE = {"driver_gone": "!18", "init": "!18"}
CONFIG = """\
interval: {interval}
engines:
  - {{name: chat, url: "{url}", gpus: {gpus}}}
prices:
  gpu: {{usd_per_hour: 3.6}}
gpu: {{{gpu}}}
"""

Page = Mapping[str, float]


class Member(NamedTuple):
    """One exporter: the scenario that its library plays, and its config."""

    scenario: str = "two-healthy"
    changes: Mapping[str, object] = {}
    gpus: str = "2"  # of its engine
    gpu: str = "source: auto"  # LIBRARY stands for the library's path
    lacks: tuple[str, ...] = ()  # functions that an older driver does not have
    is_linked: bool = True  # whether the dynamic linker finds the library
    interval: str = "1s"


QUICK = Member(interval="200ms")
FLEET = {
    "healthy": Member(),
    "consumer": Member("consumer", gpus="1"),
    "mig": Member("mig", gpus="1"),
    "unified memory": Member("unified-memory", gpus="1"),
    "sixteen": Member("sixteen", gpus="16"),
    "garbled": Member("garbage-name", gpus="1"),
    "older driver": Member(lacks=(
        "nvmlDeviceGetTemperatureV", "nvmlDeviceGetMarginTemperature", "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetCurrentClocksEventReasons", "nvmlGpmQueryDeviceSupport",
    )),
    "no library": Member(is_linked=False),
    "no GPU": Member(changes={"count": 0}),
    "no GPU, but nvml": Member(changes={"count": 0}, gpu="source: nvml"),
    "no driver, but nvml": Member(changes={"init": "!9"}, gpu="source: nvml"),
    "selected": Member(gpu=f'select: [{SECOND}], nvml_library: "LIBRARY"', is_linked=False),
    "own": Member(gpus=f"[{SECOND}]"),
    "another's": Member(gpu="select: [GPU-ffffffff-0000-4000-8000-000000000000]"),
    "hangs": QUICK,
    "steps": QUICK,
    "loses one": QUICK,
    "loses its driver": QUICK,
    "loses its driver for good": Member(gpu="on_fatal: exit"),
    "is told to let go": QUICK,
    "is reloaded": QUICK,
    "is shaken": QUICK,
}  # fmt: skip


class Rig:
    """An exporter, and the GPUs that its library makes up."""

    def __init__(self, exporter: Exporter, scenario: Scenario, config: Path) -> None:
        self.exporter, self.scenario, self.config = exporter, scenario, config

    def until(self, what: str, condition: Callable[[Page], bool], seconds: float = 15) -> Page:
        return self.exporter.until(what, condition, seconds)

    def until_up(self, *ups: bool, seconds: float = 15) -> Page:
        """Wait until the GPUs are up or not, in order."""
        wanted = {of(gpu, "gpu_up"): float(up) for gpu, up in enumerate(ups)}
        return self.until(f"up: {ups}", lambda page: {name: page.get(name) for name in wanted} == wanted, seconds)

    def page(self) -> Page:
        return self.exporter.metrics()

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.exporter.process.pid}/task"))  # noqa: PTH208 - names are enough


def of(gpu: int, family: str, uuid: str | None = None, **labels: str) -> str:
    """The name on a page of one series of a GPU."""
    every = {"gpu": str(gpu), "uuid": uuid or UUIDS[gpu], **labels}
    return f"llmcost_{family}{{{','.join(f'{key}={value}' for key, value in sorted(every.items()))}}}"


def families(page: Page, beginning: str = "") -> set[str]:
    return {name.partition("{")[0].removeprefix("llmcost_") for name in page if beginning in name}


def gauges(page: Page, uuid: str) -> set[str]:
    """The gauges of a GPU that stand on a page."""
    return families(page, f"uuid={uuid}") & set(Measure)


def counters(page: Page, part: str = "") -> dict[str, float]:
    return {name: value for name, value in page.items() if name.partition("{")[0].endswith("_total") and part in name}


def supported(page: Page, family: str, uuid: str) -> float | None:
    return page.get(of(0, "gpu_field_supported", uuid, field=family))


def source(reason: str, name: str = "nvml") -> str:
    return f"llmcost_gpu_source_info{{reason={reason},source={name}}}"


@contextmanager
def started(folder: Path, url: str, library: Path, member: Member) -> Iterator[Rig]:
    """Start an exporter, and do not wait for it."""
    folder.mkdir()
    if member.lacks:
        library = build_or_skip(folder, without=member.lacks)
    scenario = Scenario(folder / "scenario.txt").copy(member.scenario).update(member.changes)
    config, gpu = folder / "config.yml", member.gpu.replace("LIBRARY", str(library))
    config.write_text(CONFIG.format(url=url, interval=member.interval, gpus=member.gpus, gpu=gpu))
    variables = environment(library, scenario.path)
    if not member.is_linked:
        del variables["LD_LIBRARY_PATH"]
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            serve = running(folder, "serve", f"--config.file={config}", wait=False)
            exporter = stack.enter_context(serve)
        yield Rig(exporter, scenario, config)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A busy engine; all exporters of this file are beside it."""
    with replayed(tmp_path_factory.mktemp("engine"), "--skip=165s") as url:
        yield url


@pytest.fixture(scope="module")
def fleet(engine: str, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Rig]]:
    folder = tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack:
        rigs = {
            name: stack.enter_context(started(folder / name.replace(" ", "-"), engine, nvml_library, member))
            for name, member in FLEET.items()
        }
        for rig in rigs.values():
            wait_until_ready(rig.exporter)
            rig.until("its engine", lambda page: page.get("llmcost_source_up{source=engine,target=chat}") == 1)
        rigs["loses its driver for good"].until_up(True, True)
        rigs["loses its driver for good"].scenario.update(GONE)
        yield rigs


# A call that hangs -----------------------------------------------------------------------------------------------


def test_a_call_that_hangs_for_ten_seconds_holds_nothing_up_but_its_own_gpu(fleet: dict[str, Rig]):
    rig = fleet["hangs"]
    rig.until_up(True, True)
    stuck, read = of(0, "nvml_call_stuck_seconds"), "llmcost_source_last_success_timestamp_seconds"
    rig.scenario.update({"gpu0.power.delay_ms": 10_000})
    before = page = rig.until("a call that hangs", lambda page: page[stuck] > 0.2)
    rig.scenario.remove("gpu0.power.delay_ms")
    began, tokens, took = time.monotonic(), counters(page, "output_tokens"), []
    while page[stuck]:
        assert before[stuck] <= page[stuck] == pytest.approx(time.monotonic() - began + 0.3, abs=1.5)
        assert page[of(1, "gpu_sample_age_seconds")] < 2.5
        assert page[of(0, "gpu_sample_age_seconds")] < 13
        assert page[of(0, "gpu_power_watts")] == 612.345  # it is not older than 15 s
        assert time.time() - page[f"{read}{{source=engine,target=chat}}"] < 5
        time.sleep(0.1)
        asked = time.monotonic()
        before, page = page, rig.page()
        took.append(time.monotonic() - asked)
    assert before[stuck] > 9
    assert sorted(took)[-3] < 0.25  # another process may hold the machine up for once
    assert max(took) < 1
    assert all(page[name] > value for name, value in tokens.items())
    page = rig.until("an answer", lambda page: page[of(0, "gpu_sample_age_seconds")] < 1, seconds=3)
    assert page[of(0, "gpu_up")] == page[of(1, "gpu_up")] == 1


def test_sigterm_ends_the_exporter_while_a_call_hangs(fleet: dict[str, Rig]):
    rig = fleet["hangs"]
    rig.scenario.update({"gpu0.delay_ms": 30_000, "gpu1.delay_ms": 30_000})
    rig.until("two calls that hang", lambda page: all(page[of(gpu, "nvml_call_stuck_seconds")] for gpu in (0, 1)))
    assert rig.exporter.end() == 0
    log = rig.exporter.log.read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1].endswith("msg=ending")


# What a GPU says -------------------------------------------------------------------------------------------------

SAID: dict[str, tuple[float, float]] = {
    "gpu_up": (1, 1),
    "gpu_utilization_ratio": (0.97, 0.88),
    "gpu_memory_activity_ratio": (0.41, 0.36),
    "gpu_memory_total_bytes": (85520809984, 85520809984),
    "gpu_memory_used_bytes": (76000000000, 75500000000),
    "gpu_memory_free_bytes": (9018542080, 9518542080),
    "gpu_memory_reserved_bytes": (502267904, 502267904),
    "gpu_power_watts": (612.345, 698),
    "gpu_power_limit_watts": (700, 700),
    "gpu_energy_joules_total": (0, 0),
    "gpu_temperature_celsius sensor=gpu": (63, 71),
    "gpu_temperature_celsius sensor=memory": (72, 80),
    "gpu_temperature_margin_celsius": (24, 16),
    "gpu_clock_hertz domain=sm": (1755e6, 1755e6),
    "gpu_clock_hertz domain=memory": (2619e6, 2619e6),
    "gpu_clock_max_hertz domain=sm": (1980e6, 1980e6),
    "gpu_clock_max_hertz domain=memory": (2619e6, 2619e6),
    "gpu_throttle_active reason=idle": (0, 0),
    "gpu_throttle_active reason=app_clocks": (0, 0),
    "gpu_throttle_active reason=sw_power_cap": (0, 1),
    "gpu_throttle_active reason=hw_slowdown": (0, 0),
    "gpu_throttle_active reason=sync_boost": (0, 0),
    "gpu_throttle_active reason=sw_thermal": (0, 0),
    "gpu_throttle_active reason=hw_thermal": (0, 0),
    "gpu_throttle_active reason=hw_power_brake": (0, 0),
    "gpu_throttle_active reason=display_clock": (0, 0),
    "gpu_throttle_active reason=other": (0, 0),
    "gpu_throttle_seconds_total reason=sw_power_cap": (0, 0),
    "gpu_throttle_seconds_total reason=sync_boost": (0, 0),
    "gpu_throttle_seconds_total reason=sw_thermal": (0, 0),
    "gpu_throttle_seconds_total reason=hw_thermal": (0, 0),
    "gpu_throttle_seconds_total reason=hw_power_brake": (0, 0),
    "gpu_graphics_active_ratio": (0.97, 0.88),
    "gpu_sm_active_ratio": (0.875, 0.785),
    "gpu_sm_occupancy_ratio": (0.2425, 0.22),
    "gpu_tensor_active_ratio": (0.485, 0.44),
    "gpu_dram_active_ratio": (0.67, 0.58),
    "gpu_nvlink_bytes_per_second direction=receive": (20480 * 2**20, 20480 * 2**20),
    "gpu_nvlink_bytes_per_second direction=transmit": (20480.5 * 2**20, 20480.5 * 2**20),
    "gpu_pcie_bytes_per_second direction=receive": (256.5 * 2**20, 256.5 * 2**20),
    "gpu_pcie_bytes_per_second direction=transmit": (512 * 2**20, 512 * 2**20),
    "gpu_ecc_errors_total severity=corrected lifetime=volatile": (0, 2),
    "gpu_ecc_errors_total severity=corrected lifetime=aggregate": (3, 5),
    "gpu_ecc_errors_total severity=uncorrected lifetime=volatile": (0, 0),
    "gpu_ecc_errors_total severity=uncorrected lifetime=aggregate": (0, 1),
    "gpu_remapped_rows cause=corrected": (0, 1),
    "gpu_remapped_rows cause=uncorrected": (0, 0),
    "gpu_row_remap_pending": (0, 0),
    "gpu_row_remap_failed": (0, 0),
    "gpu_recovery_action action=none": (1, 1),
    "gpu_recovery_action action=gpu_reset": (0, 0),
    "gpu_recovery_action action=node_reboot": (0, 0),
    "gpu_recovery_action action=drain_p2p": (0, 0),
    "gpu_recovery_action action=drain_and_reset": (0, 0),
    "gpu_recovery_action action=recover_imex_domain": (0, 0),
    "gpu_recovery_action action=bus_reset": (0, 0),
    "gpu_recovery_action action=system_reboot": (0, 0),
    "gpu_recovery_action action=other": (0, 0),
    **{f"gpu_xid_errors_total xid={xid}": (0, 0) for xid in (48, 62, 64, 74, 79, 94, 95, 119, 120)},
    "nvml_call_stuck_seconds": (0, 0),
}
WITH_TIME = ("gpu_busy_seconds_total", "gpu_sample_age_seconds", "nvml_polls_total", "nvml_poll_seconds_total")


def test_every_value_of_two_healthy_gpus(fleet: dict[str, Rig]):
    page = fleet["healthy"].until("a second GPM sample", lambda page: of(1, "gpu_sm_active_ratio") in page)
    wanted: dict[str, float] = {}
    for series, values in SAID.items():
        family, *words = series.split()
        labels = dict(word.split("=") for word in words)
        wanted |= {of(gpu, family, **labels): value for gpu, value in enumerate(values)}
    found = {name: value for name, value in page.items() if "uuid=" in name}
    lived = time.time() - page["process_start_time_seconds{}"]
    for gpu in (0, 1):
        with_time = {family: found.pop(of(gpu, family)) for family in WITH_TIME}
        assert 1 < with_time["gpu_busy_seconds_total"] <= SAID["gpu_utilization_ratio"][gpu] * lived
        assert 0 <= with_time["gpu_sample_age_seconds"] < 2.5
        assert with_time["nvml_polls_total"] >= 10
        assert 0 < with_time["nvml_poll_seconds_total"] < 5
        sent, received = (
            found.pop(of(gpu, "gpu_pcie_bytes_total", direction=way))
            / page[of(gpu, "gpu_pcie_bytes_per_second", direction=way)]
            for way in ("transmit", "receive")
        )
        assert sent == pytest.approx(received)
        assert 9 < sent < lived, "seconds of which there is a mean"
        identity = {"name": "NVIDIA H100 80GB HBM3", "architecture": "Hopper", "mig_mode": "disabled",
                    "pci_bus_id": ("00000000:3B:00.0", "00000000:86:00.0")[gpu]}  # fmt: skip
        wanted[of(gpu, "gpu_info", **identity)] = 1
        wanted[of(gpu, "engine_gpu_info", engine="chat")] = 1
        seen = {"gpu_pcie_bytes_total", *(series.split()[0] for series in SAID)} - {"gpu_up", "nvml_call_stuck_seconds"}
        wanted |= {of(gpu, "gpu_field_supported", field=family): 1 for family in seen}
    assert found == wanted
    assert page["llmcost_nvml_info{cuda_version=13.0,driver_version=580.82.07,nvml_version=13.580.82.07}"] == 1
    assert page[source("visible")] == 1
    assert page["llmcost_gpus_visible{}"] == page["llmcost_gpus_expected{}"] == 2
    assert page["llmcost_source_up{source=gpu,target=auto}"] == 1
    assert page["llmcost_scaling_signal{engine=chat,signal=gpu_utilization}"] == pytest.approx(0.925, abs=0.005)
    assert not families(page) & {"nvml_errors_total"}


def test_a_consumer_card_has_less_and_says_so(fleet: dict[str, Rig]):
    page, uuid = fleet["consumer"].page(), "GPU-40904090-5a5a-4c3b-9d8e-0123456789ab"
    lacks = {"gpu_temperature_margin_celsius", "gpu_ecc_errors_total", "gpu_remapped_rows", "gpu_row_remap_pending",
             "gpu_row_remap_failed", "gpu_recovery_action", "gpu_sm_active_ratio", "gpu_graphics_active_ratio",
             "gpu_nvlink_bytes_per_second", "gpu_pcie_bytes_per_second", "gpu_pcie_bytes_total"}  # fmt: skip
    assert families(page) & lacks == set()
    assert {family: supported(page, family, uuid) for family in lacks} == dict.fromkeys(lacks, 0)
    assert page[of(0, "gpu_utilization_ratio", uuid)] == 0.73
    assert page[of(0, "gpu_clock_hertz", uuid, domain="memory")] == 10501e6
    assert of(0, "gpu_temperature_celsius", uuid, sensor="memory") not in page
    assert len(counters(page, "throttle_seconds")) == 2
    for family in ("gpu_throttle_seconds_total", "gpu_memory_reserved_bytes"):
        assert supported(page, family, uuid) == 1
    assert page["llmcost_scaling_signal{engine=chat,signal=gpu_utilization}"] == pytest.approx(0.73, abs=0.01)
    no_nan(page)


def no_nan(page: Page) -> None:
    assert not [name for name, value in page.items() if value != value]  # noqa: PLR0124 - what NaN is


def test_a_gpu_in_mig_mode_tells_of_its_instances(fleet: dict[str, Rig]):
    uuid, first = "GPU-c7a0e1d2-1111-4222-8333-944455566677", "MIG-5c1f7a3e-0d24-5b68-9a7c-1e2f3a4b5c6d"
    second = "MIG-a90b4c8d-7e61-5f02-8b3a-6d5e4f3a2b1c"
    activity = of(0, "gpu_mig_sm_active_ratio", uuid, mig_uuid=second)
    waits = "llmcost_scaling_signal{engine=chat,signal=queue_depth}"  # missing for a beat that the engine missed
    page = fleet["mig"].until("a second GPM sample", lambda page: activity in page and waits in page)
    wanted = {
        "gpu_mig_memory_used_bytes": (20e9, 5e9),
        "gpu_mig_memory_total_bytes": (42681499648, 10468982784),
        "gpu_mig_graphics_active_ratio": (0.66, 0.12),
        "gpu_mig_sm_active_ratio": (0.615, 0.115),
        "gpu_mig_tensor_active_ratio": (0.315, 0.06),
        "gpu_mig_dram_active_ratio": (0.44, 0.08),
    }
    for family, values in wanted.items():
        assert [page[of(0, family, uuid, mig_uuid=one)] for one in (first, second)] == list(values)
    assert page[of(0, "gpu_mig_info", uuid, mig_uuid=first, gi="2", ci="0", profile="3g.40gb")] == 1
    assert page[of(0, "gpu_mig_info", uuid, mig_uuid=second, gi="9", ci="0", profile="1g.10gb")] == 1
    assert families(page, "mig_uuid=") == {*wanted, "gpu_mig_info"}
    assert families(page) & {"gpu_utilization_ratio", "gpu_memory_activity_ratio", "gpu_busy_seconds_total"} == set()
    assert supported(page, "gpu_utilization_ratio", uuid) == 0
    assert page[of(0, "gpu_memory_used_bytes", uuid)] == 30e9
    assert "llmcost_scaling_signal{engine=chat,signal=gpu_utilization}" not in page
    assert page[waits] >= 0
    no_nan(page)


def test_a_gpu_that_shares_the_hosts_memory_has_none_of_its_own(fleet: dict[str, Rig]):
    page, uuid = fleet["unified memory"].page(), "GPU-6b10cafe-2468-4ace-8bdf-13579bdf0246"
    lacks = {*(f"gpu_memory_{part}_bytes" for part in ("used", "total", "free", "reserved")), "gpu_power_limit_watts",
             "gpu_energy_joules_total"}  # fmt: skip
    assert families(page) & lacks == set()
    assert {family: supported(page, family, uuid) for family in lacks} == dict.fromkeys(lacks, 0)
    assert page[of(0, "gpu_utilization_ratio", uuid)] == 0.91
    assert page[of(0, "gpu_memory_activity_ratio", uuid)] == 0
    assert page[of(0, "gpu_clock_hertz", uuid, domain="sm")] == 2405e6
    assert of(0, "gpu_clock_hertz", uuid, domain="memory") not in page
    no_nan(page)


def test_sixteen_gpus_on_a_page_that_prometheus_likes(fleet: dict[str, Rig]):
    rig = fleet["sixteen"]
    uuids = [f"GPU-16161616-0000-4000-8000-00000000000{number:x}" for number in range(16)]
    text = rig.exporter.ask("/metrics").text
    page = samples(text)
    assert [page[of(gpu, "gpu_up", uuid)] for gpu, uuid in enumerate(uuids)] == [1] * 16
    assert [page[of(gpu, "gpu_utilization_ratio", uuid)] for gpu, uuid in enumerate(uuids)] == [
        (99 - gpu) / 100 for gpu in range(16)
    ]
    order = [line.split('"')[1] for line in text.splitlines() if line.startswith("llmcost_gpu_up{")]
    assert order == [str(gpu) for gpu in range(16)]
    assert page["llmcost_gpus_visible{}"] == page["llmcost_gpus_expected{}"] == 16
    assert page["llmcost_scaling_signal{engine=chat,signal=gpu_utilization}"] == pytest.approx(0.915, abs=0.01)
    promtool = shutil.which("promtool")
    if promtool is not None:
        done = subprocess.run([promtool, "check", "metrics"], input=text.encode(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
    else:
        assert not os.environ.get("CI"), "promtool is missing, and CI must have it"


def test_a_name_that_is_not_utf8_is_shown_as_far_as_it_can_be(fleet: dict[str, Rig]):
    text = fleet["garbled"].exporter.ask("/metrics").body.decode("utf-8")
    assert 'name="NVIDIA \ufffd\ufffd\ufffd H100"' in text
    assert samples(text)[of(0, "gpu_up", "GPU-0badbeef-0000-4000-8000-000000000000")] == 1


def test_an_older_driver_is_asked_by_its_own_functions(fleet: dict[str, Rig]):
    page = fleet["older driver"].page()
    assert page[of(0, "gpu_temperature_celsius", sensor="gpu")] == 63
    assert page[of(1, "gpu_throttle_active", reason="sw_power_cap")] == 1
    assert page[of(0, "gpu_memory_used_bytes")] == 76502267904  # what the driver keeps for itself is part of it
    lacks = ("gpu_memory_reserved_bytes", "gpu_temperature_margin_celsius", "gpu_sm_active_ratio")
    assert [supported(page, family, FIRST) for family in lacks] == [0, 0, 0]
    assert families(page) & {*lacks} == set()
    assert "nvml_errors_total" not in families(page)


# Which GPUs, and why none ----------------------------------------------------------------------------------------


def meters(rig: Rig) -> None:
    """The engine's metering does not care; on a busy machine a replay may miss a beat."""
    page = rig.until("the engine answers", lambda page: page["llmcost_source_up{source=engine,target=chat}"] == 1)
    assert "llmcost_output_tokens_total{engine=chat,model=tiny-llama,tier=}" in page
    assert page["llmcost_spend_usd_per_hour{engine=chat}"] > 0


@pytest.mark.parametrize(("name", "reason"), [
    pytest.param("no library", "library_not_found", marks=pytest.mark.skipif(
        Path("/proc/driver/nvidia").exists(), reason="this machine has a driver of its own")),
    ("no GPU", "no_devices"),
])  # fmt: skip
def test_nobody_is_asked_where_there_is_no_gpu(fleet: dict[str, Rig], name: str, reason: str):
    rig = fleet[name]
    page = rig.page()
    assert page[source(reason, "none")] == 1
    assert not [series for series in page if "source=gpu" in series]
    assert page["llmcost_gpus_expected{}"] == 2
    assert families(page, "uuid=") == set()
    meters(rig)
    assert rig.exporter.ask("/-/ready").status == 200
    assert rig.exporter.end() == 0


@pytest.mark.parametrize(("name", "reason"), [("no GPU, but nvml", "no_devices"),
                                              ("no driver, but nvml", "driver_not_loaded")])  # fmt: skip
def test_a_driver_that_must_be_there_is_missed(fleet: dict[str, Rig], name: str, reason: str):
    page = fleet[name].page()
    assert page[source(reason)] == 1
    assert page["llmcost_source_up{source=gpu,target=nvml}"] == 0
    assert page[f"llmcost_source_errors_total{{reason={reason},source=gpu,target=nvml}}"] > 0
    assert page["llmcost_gpus_visible{}"] == 0
    meters(fleet[name])


@pytest.mark.parametrize("name", ["selected", "own"])
def test_only_the_gpus_that_are_named_are_shown(fleet: dict[str, Rig], name: str):
    page = fleet[name].page()
    assert page[of(1, "gpu_up")] == 1
    assert not [series for series in page if FIRST in series]
    assert page["llmcost_gpus_visible{}"] == 2


def test_gpus_that_are_all_somebody_elses(fleet: dict[str, Rig]):
    page = fleet["another's"].page()
    assert families(page, "uuid=") == set()
    assert page["llmcost_source_up{source=gpu,target=auto}"] == 0
    assert page["llmcost_source_errors_total{reason=not_ours,source=gpu,target=auto}"] > 0
    meters(fleet["another's"])


# What changes ----------------------------------------------------------------------------------------------------


def test_busy_time_and_the_signal_follow_the_utilisation(fleet: dict[str, Rig]):
    rig = fleet["steps"]
    polls = [of(gpu, "nvml_polls_total") for gpu in (0, 1)]
    rig.scenario.update({"gpu0.utilization": "10 0", "gpu1.utilization": "30 0"})
    before = rig.until("the step", lambda page: page[of(1, "gpu_utilization_ratio")] == 0.3)
    before = rig.until("the other's", lambda page: page[of(0, "gpu_utilization_ratio")] == 0.1)
    signal = "llmcost_scaling_signal{engine=chat,signal=gpu_utilization}"
    page = rig.until("three more", lambda page: all(page[name] >= before[name] + 3 for name in polls))
    for gpu, ratio in enumerate((0.1, 0.3)):
        busy, asked = of(gpu, "gpu_busy_seconds_total"), of(gpu, "nvml_polls_total")
        rate = (page[busy] - before[busy]) / (page[asked] - before[asked])
        assert rate == pytest.approx(ratio, rel=0.1)
    assert 0.2 < page[signal] < before[signal] < 0.925
    assert page["llmcost_scaling_signal_ratio{engine=chat,signal=gpu_utilization}"] == page[signal] / 0.8


def test_energy_is_counted_from_the_start_on_and_goes_on_when_the_gpus_counter_begins_anew(fleet: dict[str, Rig]):
    rig, energy = fleet["steps"], of(0, "gpu_energy_joules_total")
    before = rig.page()[energy]
    rig.scenario.update({"gpu0.energy": 9_876_543_210 + 5_250})
    rig.until("5.25 J more", lambda page: page[energy] == pytest.approx(before + 5.25))
    rig.scenario.update({"gpu0.energy": 1_000})
    rig.until("one more from 0 on", lambda page: page[energy] == pytest.approx(before + 6.25))
    assert rig.page()[of(1, "gpu_energy_joules_total")] == 0


def test_an_xid_is_counted_and_dated(fleet: dict[str, Rig]):
    rig = fleet["steps"]
    fell, other = of(0, "gpu_xid_errors_total", xid="79"), of(0, "gpu_xid_errors_total", xid="31")
    before = rig.page()
    assert before[fell] == 0
    assert "gpu_xid_last_timestamp_seconds" not in families(before)
    rig.scenario.append("gpu0.xids", 79).append("gpu0.xids", 31)
    page = rig.until("both", lambda page: page[fell] == page.get(other) == 1)
    assert time.time() - page[of(0, "gpu_xid_last_timestamp_seconds", xid="79")] < 5
    assert page[of(1, "gpu_xid_errors_total", xid="79")] == 0


# What is lost ----------------------------------------------------------------------------------------------------


def test_one_gpu_is_lost_and_back(fleet: dict[str, Rig]):
    rig = fleet["loses one"]
    rig.until_up(True, True)
    rig.scenario.update({"gpu0.lost": 1})
    lost = rig.until_up(False, True, seconds=3)
    assert gauges(lost, FIRST) == set()
    assert gauges(lost, SECOND) > {"gpu_utilization_ratio", "gpu_power_watts"}
    assert sum(lost[name] for name in counters(lost, "error=gpu_is_lost")) >= 1
    assert lost["llmcost_source_up{source=gpu,target=auto}"] == 1
    assert lost["llmcost_gpus_visible{}"] == 2
    age = of(0, "gpu_sample_age_seconds")
    page = rig.until("an older sample", lambda page: page[age] > lost[age] + 0.5)
    assert counters(page, FIRST) == counters(lost, FIRST)
    assert page[of(1, "gpu_sample_age_seconds")] < 2.5
    rig.scenario.remove("gpu0.lost")
    back = rig.until_up(True, True, seconds=3)
    busy = of(0, "gpu_busy_seconds_total")
    assert back[busy] - lost[busy] < 1  # it was away for two seconds
    assert back[of(0, "gpu_power_watts")] == 612.345
    assert back[age] < 2.5


def test_a_gpu_that_is_lost_from_the_start_on(engine: str, nvml_library: Path, tmp_path: Path):
    with started(tmp_path / "exporter", engine, nvml_library, QUICK._replace(changes={"gpu0.lost": 1})) as rig:
        wait_until_ready(rig.exporter)
        page = rig.until("the other one", lambda page: page.get(of(1, "gpu_up")) == 1)
        assert page["llmcost_gpus_visible{}"] == 2
        assert page["llmcost_nvml_errors_total{call=nvmlDeviceGetHandleByIndex,error=gpu_is_lost}"] >= 1
        assert not [series for series in page if FIRST in series]
        rig.scenario.remove("gpu0.lost")
        rig.until_up(True, True, seconds=5)


def test_the_driver_goes_under_us_and_comes_back(fleet: dict[str, Rig]):
    rig = fleet["loses its driver"]
    before = rig.until_up(True, True)
    rig.scenario.update(GONE)
    lost = rig.until("the loss", lambda page: page.get(source("driver_mismatch")) == 1)
    lost = rig.until_up(False, False)
    assert gauges(lost, FIRST) == gauges(lost, SECOND) == set()
    assert lost["llmcost_source_up{source=gpu,target=auto}"] == 0
    assert lost["llmcost_source_errors_total{reason=driver_mismatch,source=gpu,target=auto}"] > 0
    meters(rig)
    tokens = "llmcost_output_tokens_total{engine=chat,model=tiny-llama,tier=}"
    rig.until("more tokens", lambda page: page[tokens] > lost[tokens])
    assert rig.exporter.ask("/-/ready").status == 200
    rig.scenario.remove(*GONE)
    back = rig.until_up(True, True, seconds=8)
    assert back[source("visible")] == 1
    assert back["llmcost_source_up{source=gpu,target=auto}"] == 1
    assert sum(back[name] for name in counters(back, "error=driver_mismatch")) >= 1
    falls(before, back)


def falls(before: Page, page: Page) -> None:
    """No counter does."""
    assert {
        name: (value, page.get(name)) for name, value in counters(before).items() if page.get(name, -1) < value
    } == {}


def test_a_driver_that_stays_away_ends_an_exporter_that_is_told_to_end(fleet: dict[str, Rig]):
    rig = fleet["loses its driver for good"]
    assert rig.exporter.process.wait(timeout=30) == 1
    log = rig.exporter.log.read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1] == (
        "the GPU driver is gone: nvmlInit: the driver was replaced under us; "
        "only a restart of this process can load its new library"
    )


# What somebody asks for ------------------------------------------------------------------------------------------


def test_sigusr1_lets_go_of_the_driver_and_takes_it_back_after_it_was_loaded_anew(fleet: dict[str, Rig]):
    rig = fleet["is told to let go"]
    before, threads = rig.until_up(True, True), rig.threads()
    rig.exporter.process.send_signal(SIGUSR1)
    released = rig.until("the release", lambda page: page.get(source("released")) == 1, seconds=3)
    let_go(rig, threads - 2)
    assert released[of(0, "gpu_up")] == released[of(1, "gpu_up")] == 0
    meters(rig)
    rig.scenario.update({
        "gpu0.energy": 1_000_000, "gpu1.energy": 8_765_432_109 + 2_000, "gpu1.ecc.corrected.volatile": 0,
    })  # fmt: skip
    rig.exporter.process.send_signal(SIGUSR1)
    page = rig.until_up(True, True, seconds=4)
    assert page[of(0, "gpu_energy_joules_total")] == pytest.approx(1000)  # its counter began anew
    assert page[of(1, "gpu_energy_joules_total")] == pytest.approx(2)
    ecc = [of(1, "gpu_ecc_errors_total", severity="corrected", lifetime=life) for life in ("volatile", "aggregate")]
    assert [before[name] for name in ecc] == [2, 5]
    assert [page[name] for name in ecc] == [0, 5]  # as the GPU counts
    busy = of(0, "gpu_busy_seconds_total")
    assert page[busy] - released[busy] < 1
    assert rig.threads() == threads


def let_go(rig: Rig, threads: int) -> None:
    """The driver is not held any more, and so many threads are left, within two seconds."""
    ends = time.monotonic() + 2
    while (rig.scenario.held() != NOTHING_HELD or rig.threads() != threads) and time.monotonic() < ends:
        time.sleep(0.02)
    assert rig.scenario.held() == NOTHING_HELD
    assert rig.threads() == threads


def test_a_reload_ends_the_threads_and_keeps_what_was_counted(fleet: dict[str, Rig]):
    rig = fleet["is reloaded"]
    rig.until_up(True, True)
    threads = rig.threads()
    rig.scenario.append("gpu0.xids", 79).update({"gpu0.energy": 9_876_543_210 + 3_000, "gpu1.power": "!999"})
    rig.until("an event", lambda page: page[of(0, "gpu_xid_errors_total", xid="79")] == 1)
    before = rig.until("an error", lambda page: "nvml_errors_total" in families(page))
    text = rig.config.read_text()
    reload(rig, text.replace("source: auto", "source: none"))
    rig.until("nobody", lambda page: page.get(source("config", "none")) == 1)
    none = rig.until_up(False, False)
    assert not [series for series in none if "source=gpu" in series]
    let_go(rig, threads - 3)
    kept = {name: value for name, value in counters(before).items() if "source=gpu" not in name}
    falls(kept, none)
    reload(rig, text)
    page = rig.until_up(True, True)
    assert page[of(0, "gpu_energy_joules_total")] == pytest.approx(3)
    falls(kept, page)
    assert rig.threads() == threads


def reload(rig: Rig, text: str) -> None:
    rig.config.write_text(text)
    rig.exporter.process.send_signal(SIGHUP)


def test_a_rough_ride_costs_no_memory_and_no_counter_falls(fleet: dict[str, Rig]):
    rig = fleet["is shaken"]
    rig.until_up(True, True)
    text = rig.scenario.path.read_text(encoding="utf-8")
    rough: tuple[Mapping[str, object], ...] = (
        {"gpu0.power": "!999"}, {"gpu0.lost": 1}, {}, {"gpu1.energy": 1}, {"gpu1.fields": "!4"}, {"gpu1.handle": "!4"},
        {"gpu0.utilization": "!3", "gpu0.name": "\\xff"}, {"gpu0.mig_mode": "1 1"}, {"gpu1.xids": "13 31 79"},
        {"driver_gone": "!9"}, {"gpu0.clocks_event_reasons": "0xfff"}, {"gpu1.gpm": 0}, {"gpu0.delay_ms": 30},
    )  # fmt: skip
    grown, last = 0.0, rig.page()
    for turn in range(300):
        rig.scenario.write(text).update(rough[turn % len(rough)])
        time.sleep(0.02)
        page = rig.page()
        falls({name: value for name, value in last.items() if "ecc_errors" not in name}, page)
        last = page
        if turn == 60:
            grown = -page["process_resident_memory_bytes{}"]
    grown += last["process_resident_memory_bytes{}"]
    assert grown < 3 * 2**20
    rig.scenario.write(text)
    rig.until_up(True, True, seconds=20)
    assert "a bug" not in rig.exporter.log.read_text()


def test_all_of_them_end_when_they_are_told_to(fleet: dict[str, Rig]):
    left = {name: rig.exporter for name, rig in fleet.items() if rig.exporter.process.poll() is None}
    for exporter in left.values():
        exporter.process.send_signal(SIGTERM)
    assert {name: exporter.end() for name, exporter in left.items()} == dict.fromkeys(left, 0)
    logs = "".join(rig.exporter.log.read_text() for rig in fleet.values())
    assert "Traceback" not in logs
    assert "Fatal" not in logs
