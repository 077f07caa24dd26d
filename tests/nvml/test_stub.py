"""The stub speaks NVML's binary interface: the real pynvml is asked, in a process that loads it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.nvml.stub import HERE, NOTHING_HELD, NoCompilerError, Scenario, build, build_or_skip, environment

SCENARIOS = sorted(path.stem for path in (HERE / "scenarios").glob("*.txt"))
CAPTURED = {"h200"}  # of a real GPU

# Answers each line of Python with its value, or with the name of what it raised.
CHILD = """
import ctypes, json, re, sys, threading, time
import pynvml as p
from pynvml import *

gpu = p.nvmlDeviceGetHandleByIndex

def plain(value):
    if isinstance(value, ctypes.Array):
        return list(value)
    if isinstance(value, ctypes.Union):
        return value.ullVal
    if isinstance(value, ctypes.Structure):
        return {name: getattr(value, name) for name, *_ in value._fields_}
    return getattr(value, "value", None) if isinstance(value, ctypes._SimpleCData) else getattr(value, "__dict__", None)

def seconds(*calls):
    "How long each call took, all of them at once."
    took = [0.0] * len(calls)
    def run(i):
        began = time.monotonic()
        calls[i]()
        took[i] = time.monotonic() - began
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return took

def gpm(first, second, *metrics):
    request = p.c_nvmlGpmMetricsGet_t(version=1, numMetrics=len(metrics), sample1=first, sample2=second)
    for i, metric in enumerate(metrics):
        request.metrics[i].metricId = metric
    p.nvmlGpmMetricsGet(request)
    return [(metric.nvmlReturn, metric.value) for metric in request.metrics[:len(metrics)]]

for line in sys.stdin:
    try:
        answer = eval(line)
    except Exception as error:
        answer = type(error).__name__.removeprefix("NVMLError_")
    print(json.dumps(answer, default=plain), flush=True)
"""


class Client:
    """A process with pynvml in it: called with an expression, it gives the value or the exception's name."""

    def __init__(self, library: Path, scenario: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment(library, scenario)},
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def __call__(self, expression: str) -> Any:
        self.send(expression)
        return self.receive()

    def send(self, expression: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_or_skip(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def client(library: Path) -> Iterator[Client]:
    with Client(library, library.parent / "scenario.txt") as client:
        yield client


@pytest.fixture
def scenario(library: Path) -> Scenario:
    return Scenario(library.parent / "scenario.txt").copy("two-healthy")


@pytest.fixture
def ask(client: Client, scenario: Scenario) -> Iterator[Client]:  # noqa: ARG001 - its file comes first
    """One process serves the whole file; each test starts it on two healthy GPUs."""
    client("nvmlInit()")
    yield client
    client("[nvmlShutdown() for _ in range(3)]")


def test_values_come_back(ask: Client) -> None:
    assert ask("(h := gpu(1)) and None") is None
    wanted: dict[str, object] = {
        "nvmlSystemGetDriverVersion()": "580.82.07",
        "nvmlSystemGetNVMLVersion()": "13.580.82.07",
        "nvmlSystemGetCudaDriverVersion()": 13000,
        "nvmlSystemGetCudaDriverVersion_v2()": 13000,
        "nvmlDeviceGetCount()": 2,
        "nvmlDeviceGetIndex(h)": 1,
        "nvmlDeviceGetUUID(h)": "GPU-91e4d7b0-2c65-4f38-8b1d-c03a96f2e57a",
        "nvmlDeviceGetName(h)": "NVIDIA H100 80GB HBM3",
        "nvmlDeviceGetMinorNumber(h)": 1,
        "nvmlDeviceGetArchitecture(h)": 9,
        "nvmlDeviceGetPciInfo(h).busId": "00000000:86:00.0",
        "nvmlDeviceGetPciInfo(h).busIdLegacy": "0000:86:00.0",
        "nvmlDeviceGetPciInfo(h).bus": 0x86,
        "nvmlDeviceGetMemoryInfo(h)": {"total": 85520809984, "free": 9518542080, "used": 76002267904},
        "nvmlDeviceGetMemoryInfo(h, version=p.nvmlMemory_v2)": {
            "version": 0x2000028, "total": 85520809984, "reserved": 502267904, "free": 9518542080, "used": 75500000000
        },
        "nvmlDeviceGetUtilizationRates(h)": {"gpu": 88, "memory": 36},
        "nvmlDeviceGetPowerUsage(h)": 698000,
        "nvmlDeviceGetEnforcedPowerLimit(h)": 700000,
        "nvmlDeviceGetPowerManagementLimit(h)": 700000,
        "nvmlDeviceGetTotalEnergyConsumption(h)": 8765432109,
        "nvmlDeviceGetTemperature(h, 0)": 71,
        "nvmlDeviceGetTemperatureV(h, 0)": 71,
        "nvmlDeviceGetTemperatureV(h, 1)": "InvalidArgument",
        "nvmlDeviceGetMarginTemperature(h)": 16,
        "[nvmlDeviceGetClockInfo(h, i) for i in range(4)]": [1755, 1755, 2619, 1410],
        "[nvmlDeviceGetMaxClockInfo(h, i) for i in range(4)]": [1980, 1980, 2619, 1545],
        "nvmlDeviceGetCurrentClocksEventReasons(h)": 4,
        "nvmlDeviceGetCurrentClocksThrottleReasons(h)": 4,
        "nvmlDeviceGetPerformanceState(h)": 0,
        "nvmlDeviceGetPersistenceMode(h)": 1,
        "[nvmlDeviceGetTotalEccErrors(h, e, c) for e in (0, 1) for c in (0, 1)]": [2, 5, 0, 1],
        "nvmlDeviceGetRemappedRows(h)": [1, 0, 0, 0],
        "nvmlDeviceGetMigMode(h)": [0, 0],
        "nvmlDeviceGetMaxMigDeviceCount(h)": 0,
        "nvmlDeviceIsMigDeviceHandle(h)": 0,
        "nvmlDeviceGetGraphicsRunningProcesses(h)": [],
        "nvmlDeviceGetMPSComputeRunningProcesses(h)": [],
    }  # fmt: skip
    assert {call: ask(call) for call in wanted} == wanted


def test_processes_are_asked_for_in_two_calls(ask: Client, scenario: Scenario) -> None:
    scenario.update({"gpu0.processes": "10:1000 11:2000 12:3000"})
    found = ask("nvmlDeviceGetComputeRunningProcesses(gpu(0))")
    assert [(process["pid"], process["usedGpuMemory"]) for process in found] == [(10, 1000), (11, 2000), (12, 3000)]
    scenario.update({"gpu0.processes": ""})
    assert ask("nvmlDeviceGetComputeRunningProcesses(gpu(0))") == []


def test_what_is_unset_is_not_supported(ask: Client, scenario: Scenario) -> None:
    scenario.remove("gpu0.utilization", "gpu0.memory", "gpu0.ecc.corrected.volatile", "gpu0.processes", "cuda_version")
    assert ask("nvmlDeviceGetUtilizationRates(gpu(0))") == "NotSupported"
    assert ask("nvmlDeviceGetMemoryInfo(gpu(0), version=p.nvmlMemory_v2)") == "NotSupported"
    assert ask("nvmlDeviceGetTotalEccErrors(gpu(0), 0, 0)") == "NotSupported"
    assert ask("nvmlDeviceGetComputeRunningProcesses(gpu(0))") == "NotSupported"
    assert ask("nvmlSystemGetCudaDriverVersion()") == "NotSupported"
    assert ask("nvmlDeviceGetFanSpeed(gpu(0))") == "NotSupported"
    assert ask("nvmlDeviceGetSamples(gpu(0), 0, 0)") == "NotSupported"
    assert ask("nvmlDeviceGetUtilizationRates(gpu(1))") == {"gpu": 88, "memory": 36}


def test_a_bare_gpu_has_a_name_and_a_uuid(ask: Client, scenario: Scenario) -> None:
    scenario.write("count=11\n")
    assert ask("nvmlDeviceGetCount()") == 11
    assert ask("nvmlDeviceGetName(gpu(10))") == "Stub GPU"
    assert ask("nvmlDeviceGetUUID(gpu(10))") == "GPU-00000000-0000-0000-0000-000000000010"
    assert ask("nvmlDeviceGetIndex(nvmlDeviceGetHandleByUUID('GPU-00000000-0000-0000-0000-000000000010'))") == 10
    assert ask("gpu(11)") == "InvalidArgument"


def test_error_codes_become_their_exceptions(ask: Client, scenario: Scenario) -> None:
    names = {
        2: "InvalidArgument", 4: "NoPermission", 6: "NotFound", 9: "DriverNotLoaded", 13: "FunctionNotFound",
        15: "GpuIsLost", 16: "ResetRequired", 17: "OperatingSystem", 18: "LibRmVersionMismatch", 19: "InUse",
        26: "Deprecated", 27: "NotReady", 28: "GpuNotFound", 999: "Unknown",
    }  # fmt: skip
    for code, name in names.items():
        scenario.update({"gpu0.power": f"!{code}"})
        assert ask("nvmlDeviceGetPowerUsage(gpu(0))") == name
    assert ask("nvmlErrorString(15)") == "GPU is lost"
    assert ask("nvmlErrorString(12345)") == "Unknown Error"
    assert ask("[bool(nvmlErrorString(code)) for code in [*range(31), 999]]") == [True] * 32


def test_a_wrong_struct_version_is_refused(ask: Client) -> None:
    assert ask("nvmlDeviceGetMemoryInfo(gpu(0), version=0x2000030)") == "ArgumentVersionMismatch"


def test_each_field_has_its_own_result(ask: Client, scenario: Scenario) -> None:
    scenario.update({"gpu0.field.82": "!4", "gpu0.field.197": 2**64 - 1})
    call = "[(f.fieldId, f.nvmlReturn, f.value.ullVal) for f in nvmlDeviceGetFieldValues(gpu(0), [74, 82, 197, 5])]"
    assert ask(call) == [[74, 0, 12_500_000_000], [82, 4, 0], [197, 0, 2**64 - 1], [5, 3, 0]]
    scenario.update({"gpu0.fields": "!999"})
    assert ask(call) == "Unknown"


def test_lost_and_back(ask: Client, scenario: Scenario) -> None:
    ask("(h := gpu(0)) and None")
    scenario.update({"gpu0.lost": 1})
    for call in (
        "nvmlDeviceGetPowerUsage(h)", "nvmlDeviceGetUUID(h)", "nvmlDeviceGetFieldValues(h, [74])", "gpu(0)",
        "nvmlDeviceGetHandleByUUID('GPU-3a1c8f52-7d0e-4b96-a2c4-5e9f01b7d348')",
    ):  # fmt: skip
        assert ask(call) == "GpuIsLost", call
    assert ask("nvmlDeviceGetPowerUsage(gpu(1))") == 698000
    scenario.update({"gpu0.lost": 0})
    assert ask("nvmlDeviceGetPowerUsage(h)") == 612345


def test_handles_by_index_uuid_and_bus(ask: Client, scenario: Scenario) -> None:
    uuid = "GPU-91e4d7b0-2c65-4f38-8b1d-c03a96f2e57a"
    assert ask(f"nvmlDeviceGetIndex(nvmlDeviceGetHandleByUUID('{uuid}'))") == 1
    assert ask("nvmlDeviceGetIndex(nvmlDeviceGetHandleByPciBusId('0000:86:00.0'))") == 1
    assert ask("nvmlDeviceGetHandleByUUID('GPU-none')") == "NotFound"
    assert ask("nvmlDeviceGetHandleByPciBusId('0000:87:00.0')") == "NotFound"
    scenario.update({"gpu1.handle": "!4"})
    assert ask("gpu(1)") == ask(f"nvmlDeviceGetHandleByUUID('{uuid}')") == "NoPermission"
    assert ask("nvmlDeviceGetCount()") == 2
    scenario.set(count=1)
    assert ask("gpu(1)") == "InvalidArgument"
    scenario.set(count=0)
    assert ask("nvmlDeviceGetCount()") == 0


def test_a_delayed_call_answers_what_holds_after_it(ask: Client, scenario: Scenario) -> None:
    scenario.update({"gpu0.power.delay_ms": 300})
    assert ask("seconds(lambda: nvmlDeviceGetTemperature(gpu(0), 0))")[0] < 0.2
    began = time.monotonic()
    ask.send("nvmlDeviceGetPowerUsage(gpu(0))")
    time.sleep(0.1)
    scenario.update({"gpu0.power": 5})
    assert ask.receive() == 5
    assert time.monotonic() - began >= 0.3


def test_a_gpus_delay_holds_all_its_calls_and_no_other_gpus(ask: Client, scenario: Scenario) -> None:
    ask("(h := gpu(0), i := gpu(1)) and None")
    scenario.update({"gpu0.delay_ms": 2000})
    slow, fast, other = ask(
        "seconds(lambda: nvmlDeviceGetPowerUsage(h),"
        " lambda: [nvmlDeviceGetPowerUsage(i) for _ in range(1000)], lambda: nvmlDeviceGetCount())"
    )
    assert slow >= 2
    assert fast < 0.5
    assert other < 0.5


def test_every_change_is_seen_at_once(ask: Client, scenario: Scenario) -> None:
    """Also one that follows within a tick of the file system's clock, in a file of the same length."""
    ask("(h := gpu(0)) and None")
    for power in range(100, 400):
        scenario.write(f"gpu0.power={power}\n")
        assert ask("nvmlDeviceGetPowerUsage(h)") == power


def test_a_scenario_that_went_stays_in_force(ask: Client, scenario: Scenario) -> None:
    scenario.path.unlink()
    assert ask("nvmlDeviceGetPowerUsage(gpu(0))") == 612345


def test_initialisation_fails_then_works(library: Path, scenario: Scenario) -> None:
    scenario.set(init="!18")
    with Client(library, scenario.path) as ask:
        assert ask("nvmlInit()") == "LibRmVersionMismatch"
        assert ask("nvmlDeviceGetCount()") == "Uninitialized"
        scenario.remove("init")
        assert ask("nvmlDeviceGetCount()") == "Uninitialized"
        assert ask("nvmlInit() or nvmlDeviceGetCount()") == 2
        scenario.set(init="!9")
        assert ask("nvmlDeviceGetCount()") == 2
        assert ask("nvmlInit()") == "DriverNotLoaded"


def test_initialisation_without_a_scenario(library: Path, tmp_path: Path) -> None:
    with Client(library, tmp_path / "none.txt") as ask:
        assert ask("nvmlInit()") == "DriverNotLoaded"


def test_shutdown_is_counted_and_forgiven(ask: Client) -> None:
    ask("nvmlInit()")
    assert ask("nvmlShutdown() or nvmlDeviceGetCount()") == 2
    ask("(h := gpu(0)) and None")
    assert ask("nvmlShutdown() or nvmlDeviceGetCount()") == "Uninitialized"
    assert ask("nvmlDeviceGetPowerUsage(h)") == "Uninitialized"
    assert ask("nvmlShutdown()") is None
    assert ask("nvmlInit() or nvmlDeviceGetPowerUsage(h)") == 612345


def test_the_driver_goes_under_us(ask: Client, scenario: Scenario) -> None:
    ask("(h := gpu(0)) and None")
    scenario.set(driver_gone="!18", init="!18")
    calls = ("nvmlDeviceGetPowerUsage(h)", "nvmlDeviceGetCount()", "gpu(0)", "nvmlSystemGetDriverVersion()")
    assert {ask(call) for call in calls} == {"LibRmVersionMismatch"}
    assert ask("nvmlShutdown()") is None
    assert ask("nvmlInit()") == "LibRmVersionMismatch"
    scenario.remove("driver_gone", "init")
    assert ask("nvmlInit() or nvmlDeviceGetPowerUsage(h)") == 612345


def test_sparse_mig_slots(ask: Client, scenario: Scenario) -> None:
    scenario.copy("mig")
    ask("(h := gpu(0), m := nvmlDeviceGetMigDeviceHandleByIndex(h, 2)) and None")
    uuid = "MIG-a90b4c8d-7e61-5f02-8b3a-6d5e4f3a2b1c"
    wanted: dict[str, object] = {
        "nvmlDeviceGetMigMode(h)": [1, 1],
        "nvmlDeviceGetMaxMigDeviceCount(h)": 7,
        "nvmlDeviceGetUtilizationRates(h)": "NotSupported",
        "nvmlDeviceGetMigDeviceHandleByIndex(h, 1)": "NotFound",
        "nvmlDeviceGetMigDeviceHandleByIndex(h, 7)": "InvalidArgument",
        "nvmlDeviceIsMigDeviceHandle(m)": 1,
        "nvmlDeviceGetUUID(m)": uuid,
        "nvmlDeviceGetName(m)": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "nvmlDeviceGetIndex(m)": 2,
        "nvmlDeviceGetGpuInstanceId(m)": 9,
        "nvmlDeviceGetComputeInstanceId(m)": 0,
        "nvmlDeviceGetMemoryInfo(m, version=p.nvmlMemory_v2).used": 5_000_000_000,
        "nvmlDeviceGetAttributes(m).gpuInstanceSliceCount": 1,
        "nvmlDeviceGetAttributes(m).memorySizeMB": 9984,
        "nvmlDeviceGetAttributes(h)": "NotSupported",
        "nvmlDeviceGetIndex(nvmlDeviceGetDeviceHandleFromMigDeviceHandle(m))": 0,
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle(h)": "InvalidArgument",
        f"nvmlDeviceGetGpuInstanceId(nvmlDeviceGetHandleByUUID('{uuid}'))": 9,
        "nvmlDeviceGetPowerUsage(m)": "NotSupported",
    }
    assert {call: ask(call) for call in wanted} == wanted
    scenario.update({"gpu0.lost": 1})
    assert ask("nvmlDeviceGetGpuInstanceId(m)") == "GpuIsLost"
    scenario.remove("gpu0.lost", "gpu0.mig2.uuid")
    assert ask("nvmlDeviceGetGpuInstanceId(m)") == "NotFound"


def test_gpm_over_two_samples(ask: Client, scenario: Scenario) -> None:
    scenario.update({"gpu0.gpm.5": "!4"})
    ask("(h := gpu(0), a := nvmlGpmSampleAlloc(), b := nvmlGpmSampleAlloc()) and None")
    assert ask("nvmlGpmQueryDeviceSupport(h).isSupportedDevice") == 1
    assert ask("gpm(a, b, 2)") == "InvalidArgument"  # nothing sampled yet
    ask("[nvmlGpmSampleGet(h, a), nvmlGpmSampleGet(h, b)] and None")
    assert ask("gpm(a, b, 2, 10, 5, 11)") == [[0, 87.5], [0, 67], [4, 0], [3, 0]]
    ask("nvmlGpmSampleGet(gpu(1), b) and None")
    assert ask("gpm(a, b, 2)") == "InvalidArgument"
    scenario.update({"gpu0.gpm": 0})
    assert ask("nvmlGpmQueryDeviceSupport(h).isSupportedDevice") == 0
    assert ask("nvmlGpmSampleGet(h, a)") == "NotSupported"
    assert ask("[nvmlGpmSampleFree(a), nvmlGpmSampleFree(b)]") == [None, None]


def test_gpm_of_a_mig_instance(ask: Client, scenario: Scenario) -> None:
    scenario.copy("mig")
    ask("(h := gpu(0), a := nvmlGpmSampleAlloc(), b := nvmlGpmSampleAlloc()) and None")
    ask("[nvmlGpmMigSampleGet(h, 9, a), nvmlGpmMigSampleGet(h, 9, b)] and None")
    assert ask("gpm(a, b, 2)") == [[0, 11.5]]
    ask("[nvmlGpmSampleGet(nvmlDeviceGetMigDeviceHandleByIndex(h, 0), sample) for sample in (a, b)] and None")
    assert ask("gpm(a, b, 2)") == [[0, 61.5]]
    assert ask("nvmlGpmMigSampleGet(h, 5, a)") == "NotFound"


def test_xids_are_delivered_once(ask: Client, scenario: Scenario) -> None:
    scenario.update({"gpu0.xids": "31", "gpu1.xids": ""})
    ask("(s := nvmlEventSetCreate()) and None")
    assert ask("nvmlDeviceGetSupportedEventTypes(gpu(0))") == 8
    assert ask("nvmlDeviceRegisterEvents(gpu(0), 4, s)") == "InvalidArgument"
    assert ask("[nvmlDeviceRegisterEvents(gpu(i), 8, s) for i in (0, 1)]") == [None, None]
    wait = "(lambda e: [nvmlDeviceGetIndex(e.device), e.eventType, e.eventData])(nvmlEventSetWait(s, 0))"
    assert ask(wait) == "Timeout"
    scenario.append("gpu0.xids", 13).append("gpu0.xids", 79).append("gpu1.xids", 63)
    assert [ask(wait) for _ in range(4)] == [[0, 8, 13], [0, 8, 79], [1, 8, 63], "Timeout"]
    scenario.append("gpu1.xids", 79).update({"gpu1.lost": 1})
    assert ask("nvmlEventSetWait(s, 0).eventData") == 79  # its last words
    assert ask(wait) == "GpuIsLost"
    scenario.append("gpu0.xids", 43)
    assert ask(wait) == [0, 8, 43]
    assert ask("nvmlEventSetFree(s)") is None


def test_waiting_for_an_xid(ask: Client, scenario: Scenario) -> None:
    ask("(s := nvmlEventSetCreate(), nvmlDeviceRegisterEvents(gpu(0), 8, s)) and None")
    began = time.monotonic()
    assert ask("nvmlEventSetWait(s, 200)") == "Timeout"
    assert 0.2 <= time.monotonic() - began < 1
    ask.send("nvmlEventSetWait(s, 10_000).eventData")
    time.sleep(0.05)
    scenario.append("gpu0.xids", 119)
    assert ask.receive() == 119
    assert time.monotonic() - began < 2


def test_a_garbled_name(ask: Client, scenario: Scenario) -> None:
    scenario.copy("garbage-name")
    assert ask("nvmlDeviceGetName(gpu(0))") == "UnicodeDecodeError"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_bundled_scenario_holds_together(ask: Client, scenario: Scenario, name: str) -> None:
    keys = scenario.copy(name).keys()
    origin = (HERE / "scenarios" / f"{name}.txt").read_text(encoding="utf-8").splitlines()[1]
    assert origin.startswith("# captured by doctor --capture") if name in CAPTURED else "not captured" in origin
    count = ask("nvmlDeviceGetCount()")
    assert len(set(ask(f"[nvmlDeviceGetUUID(gpu(i)) for i in range({count})]"))) == count
    assert len(set(ask(f"[nvmlDeviceGetPciInfo(gpu(i)).busId for i in range({count})]"))) == count
    for key, value in keys.items():
        if key.endswith((".memory", ".memory_v1")) and "clock" not in key:
            total, *parts = map(int, value.split())
            assert total == sum(parts), key


SYMBOLS = """
nvmlInitWithFlags nvmlShutdown nvmlErrorString nvmlSystemGetDriverVersion nvmlSystemGetNVMLVersion
nvmlSystemGetCudaDriverVersion nvmlDeviceGetCount_v2 nvmlDeviceGetHandleByIndex_v2 nvmlDeviceGetHandleByUUID
nvmlDeviceGetUUID nvmlDeviceGetName nvmlDeviceGetPciInfo_v3 nvmlDeviceGetMinorNumber nvmlDeviceGetMemoryInfo
nvmlDeviceGetMemoryInfo_v2 nvmlDeviceGetUtilizationRates nvmlDeviceGetSamples nvmlDeviceGetPowerUsage
nvmlDeviceGetEnforcedPowerLimit nvmlDeviceGetTotalEnergyConsumption nvmlDeviceGetTemperature nvmlDeviceGetTemperatureV
nvmlDeviceGetMarginTemperature nvmlDeviceGetClockInfo nvmlDeviceGetMaxClockInfo nvmlDeviceGetCurrentClocksEventReasons
nvmlDeviceGetPerformanceState nvmlDeviceGetPersistenceMode nvmlDeviceGetTotalEccErrors nvmlDeviceGetRemappedRows
nvmlDeviceGetFieldValues nvmlDeviceGetMigMode nvmlDeviceGetMaxMigDeviceCount nvmlDeviceGetMigDeviceHandleByIndex
nvmlDeviceIsMigDeviceHandle nvmlDeviceGetDeviceHandleFromMigDeviceHandle nvmlDeviceGetGpuInstanceId
nvmlDeviceGetComputeInstanceId nvmlDeviceGetComputeRunningProcesses_v3 nvmlDeviceGetProcessUtilization
nvmlGpmQueryDeviceSupport nvmlGpmSampleAlloc nvmlGpmSampleGet nvmlGpmMigSampleGet nvmlGpmMetricsGet nvmlGpmSampleFree
nvmlEventSetCreate nvmlDeviceRegisterEvents nvmlEventSetWait_v2 nvmlEventSetFree
"""


def test_the_symbols_that_pynvml_calls_are_exported(ask: Client) -> None:
    names = SYMBOLS.split()
    assert ask(f"[name for name in {names} if not hasattr(p.nvmlLib, name)]") == []
    called = ask("re.findall(r'nvml[A-Z]\\w+', open(p.__file__).read())")
    assert set(names) - set(called) == set()


def test_the_scenario_file(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path / "s.txt").write("# a comment\n\na=1\ngpu0.name=x = y\n")
    assert scenario.keys() == {"a": "1", "gpu0.name": "x = y"}
    scenario.set(a=2).update({"gpu0.power": 5}).append("gpu0.xids", 13).append("gpu0.xids", 79).remove("gpu0.name")
    assert scenario.keys() == {"a": "2", "gpu0.power": "5", "gpu0.xids": "13 79"}
    assert [path.name for path in tmp_path.iterdir()] == ["s.txt"]


def test_the_journal_tells_what_is_held(library: Path, tmp_path: Path) -> None:
    scenario = Scenario(tmp_path / "scenario.txt").copy("two-healthy")
    with Client(library, scenario.path) as ask:
        ask("nvmlInit()")
        assert scenario.held() == {**NOTHING_HELD, "clients": 1}
        ask("(s := nvmlEventSetCreate(), g := nvmlGpmSampleAlloc()) and None")
        ask("[nvmlInit(), nvmlShutdown()]")
        assert scenario.held() == {**NOTHING_HELD, "clients": 1, "event_sets": 1, "gpm_samples": 1}
        ask("[nvmlEventSetFree(s), nvmlGpmSampleFree(g), nvmlShutdown()]")
        assert scenario.held() == NOTHING_HELD
        ask("nvmlInit()")
        scenario.update({"gpu0.delay_ms": 300})
        ask.send("seconds(lambda: gpu(0), lambda: time.sleep(0.1) or nvmlShutdown())")
        ask.receive()
        assert scenario.held() == {**NOTHING_HELD, "delayed_calls": 1}


def test_an_older_driver_lacks_functions(tmp_path: Path) -> None:
    library = build_or_skip(tmp_path, without=("nvmlDeviceGetTemperatureV",))
    scenario = Scenario(tmp_path / "scenario.txt").copy("two-healthy")
    with Client(library, scenario.path) as ask:
        ask("nvmlInit()")
        assert ask("nvmlDeviceGetTemperatureV(gpu(0), 0)") == "FunctionNotFound"
        assert ask("nvmlDeviceGetTemperature(gpu(0), 0)") == 63


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoCompilerError, match="needs a C compiler"):
        build(tmp_path)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="install Debian's package gcc"):
        build_or_skip(tmp_path)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI must have one"):
        build_or_skip(tmp_path)
