"""On a real NVIDIA GPU: the page says what the driver's own tool says, and what the GPU drew is what is paid.

Needs `nvidia-smi`, and a Python with torch to make a load: GPU_LOAD_PYTHON, by default `python3`. The engine is a
replayed recording. What is missing fails, and says so. The first GPU is looked at; nothing on it is changed.
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml
import pytest

from tests.processes import replayed

from .conftest import Exporter, Page, Poll, wait_for

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

Measured = Callable[..., None]
LOAD_PYTHON = os.environ.get("GPU_LOAD_PYTHON", "python3")
LOAD_SECONDS = 25  # in which all that is asked each ten seconds is asked twice
LOAD = f"""
import sys, time
try:
    import torch
except ImportError as error:
    sys.exit(f"{{sys.executable}} cannot make a load: {{error}}; GPU_LOAD_PYTHON names another Python")
left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
torch.cuda.synchronize()
print("busy", flush=True)
ends = time.monotonic() + {LOAD_SECONDS}
while time.monotonic() < ends:
    for _ in range(16):
        left @ right
    torch.cuda.synchronize()
"""
CONFIG = """\
interval: 1s
engines: [{{name: chat, url: "{url}", gpus: {gpus}}}]
gpu: {{source: nvml}}
prices: {{gpu: {price}}}
"""
A_JOULE_COSTS = 1e-6
BY_ENERGY = "{owned: {purchase_usd: 0, lifetime: 1y, usd_per_kwh: 3.6}}"
ANOTHERS = "GPU-ffffffff-0000-4000-8000-000000000000"
NOT_OURS = "none of the GPUs that the driver shows is one that is asked for"
GPU_TOTALS = ("llmcost_gpu_energy_joules_total", "llmcost_gpu_busy_seconds_total", "llmcost_gpu_throttle_seconds_total")
TOTALS = ("llmcost_spend_usd_total", "llmcost_nvml_polls_total", "llmcost_nvml_poll_seconds_total")
SHARES = ("utilization", "graphics_active", "sm_active", "sm_occupancy", "tensor_active", "dram_active")
# By nvidia-smi's name: our family, its label, what one of theirs is of ours, by how many of theirs two looks differ.
# fmt: off
SAME: dict[str, tuple[str, dict[str, str], float, float]] = {
    "memory.total": ("memory_total_bytes", {}, 2**20, 1),
    "memory.reserved": ("memory_reserved_bytes", {}, 2**20, 1),
    "memory.used": ("memory_used_bytes", {}, 2**20, 1),
    "utilization.gpu": ("utilization_ratio", {}, 0.01, 5),
    "utilization.memory": ("memory_activity_ratio", {}, 0.01, 5),
    "power.draw": ("power_watts", {}, 1, 10),
    "enforced.power.limit": ("power_limit_watts", {}, 1, 0),
    "temperature.gpu": ("temperature_celsius", {"sensor": "gpu"}, 1, 3),
    "temperature.memory": ("temperature_celsius", {"sensor": "memory"}, 1, 3),
    "temperature.gpu.tlimit": ("temperature_margin_celsius", {}, 1, 3),
    "clocks.mem": ("clock_hertz", {"domain": "memory"}, 1e6, 0),
    "clocks.max.sm": ("clock_max_hertz", {"domain": "sm"}, 1e6, 0),
    "ecc.errors.corrected.aggregate.total":
        ("ecc_errors_total", {"severity": "corrected", "lifetime": "aggregate"}, 1, 0),
}
# fmt: on


def nvidia_smi(*arguments: str) -> list[list[str]]:
    """The rows of a query."""
    if shutil.which("nvidia-smi") is None:
        pytest.fail("there is no `nvidia-smi` on the path: these tests need an NVIDIA GPU", pytrace=False)
    command = ["nvidia-smi", *arguments, "--format=csv,noheader,nounits"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
    return [line.split(", ") for line in done.stdout.splitlines()]


def said(uuid: str, *fields: str) -> dict[str, str]:
    """What the driver's tool says of a GPU; in brackets why it says nothing."""
    (row,) = nvidia_smi(f"--id={uuid}", f"--query-gpu={','.join(fields)}")
    return dict(zip(fields, row, strict=True))


def computing() -> set[int]:
    """The processes that have a CUDA context."""
    return {int(row[0]) for row in nvidia_smi("--query-compute-apps=pid")}


def drawn_joules(uuid: str) -> float:
    """The GPU's own counter by the bare binding; `nvidia-smi` does not tell it."""
    pynvml.nvmlInit()
    millijoules: int = pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    pynvml.nvmlShutdown()
    return millijoules / 1e3


def of_gpu(page: Page, family: str, **labels: str) -> float:
    """The value of the one series of a family, -1 without it."""
    value = page.value(f"llmcost_gpu_{family}", **labels)
    return -1.0 if value is None else value


def labels_of(page: Page, name: str) -> list[dict[str, str]]:
    """The labels of a family's series that are not 0."""
    return [dict(labels) for (found, labels), value in page.samples.items() if found == f"llmcost_{name}" and value]


def settled(exporter: Exporter) -> Page:
    """A page later by what is asked each five seconds, two beats, and what a driver needs to call a GPU idle."""
    time.sleep(8)
    return exporter.page()


@contextmanager
def watching(folder: Path, gpus: str, price: str) -> Iterator[Exporter]:
    """Our exporter beside an engine that has these GPUs."""
    with replayed(folder, "--skip=155s") as url, Exporter(url, folder, CONFIG.format(**locals())) as exporter:
        yield exporter


@contextmanager
def load(uuid: str) -> Iterator[int]:
    """Multiply matrices on a GPU; yields the process once it is busy, and waits for its end."""
    variables, pipe = {**os.environ, "CUDA_VISIBLE_DEVICES": uuid}, subprocess.PIPE
    process = subprocess.Popen([LOAD_PYTHON, "-c", LOAD], env=variables, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "busy\n":
        pytest.fail(f"there is no load on the GPU: {process.communicate()[1]}", pytrace=False)
    yield process.pid
    _, errors = process.communicate(timeout=LOAD_SECONDS + 60)
    assert process.returncode == 0, errors


def open_devices(exporter: Exporter) -> set[str]:
    """The GPUs that our process has open, as files."""
    files = {os.path.realpath(file) for file in Path(f"/proc/{exporter._process.pid}/fd").iterdir()}
    return {file for file in files if file.removeprefix("/dev/nvidia").isdecimal()}


@pytest.fixture(scope="module")
def uuid() -> str:
    """The first GPU."""
    rows = nvidia_smi("--query-gpu=uuid")
    return rows[0][0] if rows else pytest.fail("nvidia-smi shows no GPU", pytrace=False)


@pytest.fixture(scope="module")
def charged(uuid: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """An exporter that charges for nothing but the GPU's energy, and has asked for everything twice."""
    with watching(tmp_path_factory.mktemp("charged"), f"[{uuid}]", BY_ENERGY) as exporter:
        time.sleep(12)
        yield exporter


def test_the_page_says_what_nvidia_smi_says(uuid: str, charged: Exporter, measured: Measured) -> None:
    """Of an idle GPU, since two looks at a busy one differ."""
    theirs, page = said(uuid, *SAME), charged.page()
    known = {name: float(text) for name, text in theirs.items() if text.strip("[]") not in ("N/A", "Not Supported")}
    ours = {name: of_gpu(page, family, **labels) / unit for name, (family, labels, unit, _) in SAME.items()}
    (info,), (driver,) = labels_of(page, "gpu_info"), labels_of(page, "nvml_info")
    identity = said(uuid, "name", "uuid", "pci.bus_id", "index", "driver_version")
    state = said(uuid, "mig.mode.current", "clocks_event_reasons.active")
    reasons = {labels["reason"] for labels in labels_of(page, "gpu_throttle_active")}
    has = {labels["field"] for labels in labels_of(page, "gpu_field_supported")}
    measured(theirs=theirs, ours=ours, info=info, driver=driver, state=state, reasons=reasons, has=sorted(has))
    assert {name for name, value in ours.items() if value >= 0} == known.keys()
    assert known == {name: pytest.approx(ours[name], abs=SAME[name][3] + 0.01) for name in known}
    shown = (info["name"], info["uuid"], info["pci_bus_id"], info["gpu"], driver["driver_version"])
    assert tuple(identity.values()) == shown
    assert (info["mig_mode"] == "enabled") == (state["mig.mode.current"] == "Enabled")
    assert ("idle" in reasons) == bool(int(state["clocks_event_reasons.active"], 16) & 1)
    assert labels_of(page, "engine_gpu_info") == [{"engine": "chat", "gpu": info["gpu"], "uuid": uuid}]
    assert page.total("llmcost_nvml_errors_total") == 0


def test_looking_takes_nothing_from_the_gpu(uuid: str, tmp_path: Path, measured: Measured) -> None:
    """No CUDA context, no memory; and a GPU is priced by the name that it tells."""
    name, count = said(uuid, "name")["name"], len(nvidia_smi("--query-gpu=uuid"))
    before = float(said(uuid, "memory.used")["memory.used"])
    with watching(tmp_path, str(count), f"{{by_name: {{{name}: 3.6}}}}") as exporter:
        page, users = settled(exporter), computing()
        after = float(said(uuid, "memory.used")["memory.used"])
        measured(mib_before=before, mib_after=after, computing=users, devices=open_devices(exporter))
    assert exporter._process.pid not in users
    assert after - before <= 1
    assert page.value("llmcost_gpu_price_usd_per_hour", source="by_name", gpu=name) == 3.6
    assert page.value("llmcost_gpus_visible") == page.value("llmcost_gpus_expected") == count


def test_a_load_is_seen_and_its_energy_is_paid(uuid: str, charged: Exporter, measured: Measured) -> None:
    """From one idle moment to another, so that it matters little how old the counter is on a page."""
    before, drawn, began = settled(charged), drawn_joules(uuid), time.monotonic()
    with Poll(charged) as poll:
        with load(uuid) as worker:
            time.sleep(LOAD_SECONDS - 5)
            theirs, users = said(uuid, "utilization.gpu", "power.draw", "memory.used"), computing()
            during = charged.page()
        after, drawn = settled(charged), drawn_joules(uuid) - drawn
    lasted, powers = time.monotonic() - began, [of_gpu(page, "power_watts") for page in poll.pages]
    by_power = statistics.mean(powers) * lasted
    most = {share: max(of_gpu(page, f"{share}_ratio") for page in poll.pages) for share in SHARES}
    joules, busy, throttled = (after.total(name) - before.total(name) for name in GPU_TOTALS)
    spent, passes, seconds = (after.total(name) - before.total(name) for name in TOTALS)
    measured(
        drawn=drawn, joules=joules, by_power=by_power, spent=spent, busy=busy, lasted=lasted, throttled=throttled,
        most=most, watts=(powers[0], max(powers), powers[-1]), theirs=theirs, computing=users, worker=worker,
        memory_mib=of_gpu(during, "memory_used_bytes") / 2**20, milliseconds_a_pass=seconds / passes * 1e3,
        signal=during.value("llmcost_scaling_signal", signal="gpu_utilization"), slowest_scrape_seconds=poll.slowest,
    )  # fmt: skip
    assert charged._process.pid not in users
    assert most["utilization"] >= 0.95
    assert busy == pytest.approx(LOAD_SECONDS, abs=4)
    assert max(powers) > 1.5 * powers[0]
    assert joules == pytest.approx(drawn, abs=8 * powers[-1]), "one counter, up to eight idle seconds apart"
    assert joules == pytest.approx(by_power, rel=0.1)
    assert throttled < lasted + 10, "seconds of one reason; what was before comes up to ten seconds late"
    assert spent == pytest.approx(joules * A_JOULE_COSTS, rel=1e-6)
    assert of_gpu(during, "throttle_active", reason="idle") == 0
    assert most["tensor_active"] > 0.3 or not of_gpu(after, "field_supported", field="gpu_tensor_active_ratio")
    assert min(of_gpu(page, "up") for page in poll.pages) == 1


def test_what_was_let_go_is_closed(charged: Exporter, measured: Measured) -> None:
    """SIGUSR1 frees the GPU for a reset; a second one takes it back, and its counters go on."""
    before, held, began = charged.page(), open_devices(charged), time.monotonic()
    charged._process.send_signal(signal.SIGUSR1)
    wait_for("it is let go", lambda: charged.page().values("llmcost_gpu_source_info", reason="released"))
    wait_for("it is closed", lambda: not open_devices(charged))
    closed = time.monotonic()
    charged._process.send_signal(signal.SIGUSR1)
    wait_for("it is taken back", lambda: charged.page().value("llmcost_gpu_up"))
    measured(held=held, seconds_to_close=closed - began, seconds_to_return=time.monotonic() - closed)
    assert held
    assert settled(charged).total(GPU_TOTALS[0]) > before.total(GPU_TOTALS[0])


@pytest.mark.usefixtures("uuid")
def test_a_gpu_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    """Of `own` GPUs, those that the engines name, none is here."""
    with watching(tmp_path, f"[{ANOTHERS}]", "{usd_per_hour: 3.6}") as exporter:
        page = settled(exporter)
    command = [sys.executable, "-m", "exporter", "doctor", f"--config.file={tmp_path / 'config.yml'}"]
    doctor = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert page.values("llmcost_source_up", source="gpu") == [0]
    assert labels_of(page, "gpu_source_info") == [{"source": "nvml", "reason": "not_ours"}]
    assert not page.values("llmcost_gpu_up")
    assert NOT_OURS in exporter.log()
    assert doctor.returncode == 1
    assert f"gives nothing: {NOT_OURS}" in doctor.stdout
    assert f"{ANOTHERS} is not seen here" in doctor.stdout
