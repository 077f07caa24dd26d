"""doctor about GPUs, as a process that loads the stub: what it says, and what it writes down."""

import contextlib
import http.server
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.nvml.stub import HERE, NOTHING_HELD, Scenario, environment
from tests.processes import REPOSITORY

SCENARIOS = sorted(path.stem for path in (HERE / "scenarios").glob("*.txt"))
FIXTURES = REPOSITORY / "tests/fixtures"
ENGINE_PAGE = FIXTURES / "captures/vllm-0.32.0/saturated.prom"
FIRST, SECOND = "GPU-3a1c8f52-7d0e-4b96-a2c4-5e9f01b7d348", "GPU-91e4d7b0-2c65-4f38-8b1d-c03a96f2e57a"
MIG_3G = "MIG-5c1f7a3e-0d24-5b68-9a7c-1e2f3a4b5c6d"
WITHOUT_LIBRARY = {"LD_LIBRARY_PATH": ""}
# What a minute would take is given up after ten seconds.
HANGS = {
    "a GPU": (("doctor",), {"gpu0.utilization.delay_ms": 60_000}),
    "the driver": (("doctor",), {"init.delay_ms": 60_000}),
    "a capture": (("doctor", "--capture=out.txt"), {"gpu1.power.delay_ms": 60_000}),
}

# Scenarios in which much is refused, in every way in which it can be.
REFUSALS = {
    "refused": ("two-healthy", {
        "driver_version": "!999", "gpu0.power": "!23", "gpu0.temperature": "!4", "gpu0.fields": "!999",
        "gpu0.xids": "!3", "gpu0.gpm.5": "!4", "gpu0.name": r"\x21 a\x5cb\x20", "gpu1.handle": "!15",
    }),
    "refused in part": ("mig", {
        "gpu0.field.82": "!4", "gpu0.mig1.uuid": "!4", "gpu0.mig2.ci": "!999", "gpu0.gpm": "!4",
    }),
}  # fmt: skip


class Report(NamedTuple):
    """What a doctor said, section by section, without the spaces in front."""

    code: int
    sections: Mapping[str, list[str]]
    errors: str

    def has(self, section: str, start: str) -> bool:
        return any(line.startswith(start) for line in self.sections[section])

    @property
    def problems(self) -> list[str]:
        return [line for lines in self.sections.values() for line in lines if line.startswith("PROBLEM")]


def report(code: int, output: str, errors: str) -> Report:
    sections: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith(" "):
            sections[list(sections)[-1]].append(" ".join(line.split()))
        else:
            sections[line] = []
    return Report(code, sections, errors)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of a server with an engine's metrics, and with every page of a dcgm-exporter under its name."""

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = ENGINE_PAGE if self.path == "/metrics" else FIXTURES / f"dcgm{self.path}"
            body = page.read_bytes() if page.is_file() else self.path[1:].encode() + b" 1\n"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Doctor:
    """Runs the command in a folder of its own, beside the stub's scenario."""

    def __init__(self, folder: Path, library: Path, engine_url: str) -> None:
        self.folder, self.stub, self.engine_url = folder, library, engine_url
        self.scenario = Scenario(folder / "scenario.txt").copy("two-healthy")

    def start(self, *arguments: str, **environ: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "exporter", *arguments], cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "error", "HOSTNAME": "",
                 **environment(self.stub, self.scenario.path), **environ},
        )  # fmt: skip

    def run(self, *arguments: str, **environ: str) -> Report:
        process = self.start(*arguments, **environ)
        output, errors = process.communicate(timeout=30)
        return report(process.returncode, output, errors)

    def flags(self, gpus: str = "2") -> tuple[str, ...]:
        return f"--engine.url={self.engine_url}", "--gpu.usd-per-hour=3", f"--gpu.count={gpus}"

    def look(self, gpus: str = "2", **environ: str) -> Report:
        return self.run("doctor", *self.flags(gpus), **environ)

    def by_config(self, gpu: str, gpus: str, prices: str = "usd_per_hour: 3", **environ: str) -> Report:
        config = self.folder / "config.yml"
        engine = f'{{name: chat, url: "{self.engine_url}", gpus: {gpus}}}'
        config.write_text(f"engines: [{engine}]\ngpu: {{{gpu}}}\nprices: {{gpu: {{{prices}}}}}\n")
        return self.run("doctor", f"--config.file={config}", **environ)

    def capture(self, name: str) -> Path:
        done = self.run("doctor", f"--capture={name}")
        assert (done.code, done.errors) == (0, "")
        return self.folder / name


@pytest.fixture
def doctor(tmp_path: Path, nvml_library: Path, served: str) -> Doctor:
    return Doctor(tmp_path, nvml_library, served)


@pytest.fixture(scope="module", autouse=True)
def hanging(
    tmp_path_factory: pytest.TempPathFactory, nvml_library: Path, served: str
) -> Iterator[Mapping[str, "subprocess.Popen[str]"]]:
    """Those that wait for long start first, and wait while the other tests run."""
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, (arguments, changes) in HANGS.items():
            doctor = Doctor(tmp_path_factory.mktemp("hanging"), nvml_library, served)
            doctor.scenario.update(changes)
            flags = () if name == "a capture" else doctor.flags()
            processes[name] = stack.enter_context(doctor.start(*arguments, *flags))
            stack.callback(processes[name].kill)
        yield processes


# What it says ----------------------------------------------------------------------------------------------------


def test_healthy_gpus_are_told_and_whose_they_are(doctor: Doctor) -> None:
    began = time.monotonic()
    found = doctor.look()
    assert time.monotonic() - began < 3
    assert (found.code, found.problems, found.errors) == (0, [], "")
    assert found.sections["GPU"] == [
        "asked for: source auto, select own",
        "ok the driver (NVML) is asked",
        f"ok library: {doctor.stub}, driver 580.82.07, NVML 13.580.82.07, CUDA 13.0",
        f"ok GPU 0: NVIDIA H100 80GB HBM3, {FIRST}, 76.0 of 85.5 GB used, 97% busy, 612 W",
        f"ok GPU 1: NVIDIA H100 80GB HBM3, {SECOND}, 75.5 of 85.5 GB used, 88% busy, 698 W",
        "ok 2 GPU(s) visible, and as many charged for by the config",
        "ok default: has GPU 0, GPU 1",
    ]


def test_more_gpus_than_are_charged_for_are_a_warning(doctor: Doctor) -> None:
    found = doctor.look("1")
    assert found.code == 0
    assert "warning 2 GPU(s) visible, and 1 charged for by the config" in found.sections["GPU"]
    assert found.has("GPU", "default: nobody can tell which GPUs it has; a list of UUIDs under its gpus tells")
    assert found.sections["GPU"][-1].endswith("its signal gpu_utilization is off")


def test_a_gpu_that_the_config_names_and_nobody_sees_is_a_warning(doctor: Doctor) -> None:
    found = doctor.by_config("", f"[{SECOND}, GPU-away]")
    assert found.code == 0
    assert found.sections["GPU"][-5:] == [
        "left out, as nobody asks for them: 1 GPU(s)",
        "ok 2 GPU(s) visible, and as many charged for by the config",
        "ok chat: has GPU 1",
        "warning chat: GPU-away is not seen here",
        "chat: not all of them tell how busy they are; its signal gpu_utilization is off",
    ]


def test_mig_instances_are_told_and_that_their_gpu_does_not_tell_how_busy_it_is(doctor: Doctor) -> None:
    doctor.scenario.copy("mig")
    found = doctor.by_config("", f"[{{uuid: {MIG_3G}, slices: 3}}]")
    assert found.code == 0
    assert f"ok GPU 0: MIG 2/0: 3g.40gb, {MIG_3G}, 20.0 of 42.7 GB used" in found.sections["GPU"]
    assert found.has("GPU", "ok GPU 0: MIG 9/0: 1g.10gb, MIG-a90b4c8d")
    assert found.has("GPU", "GPU 0 cannot tell: gpu_memory_activity_ratio, gpu_utilization_ratio")
    assert found.sections["GPU"][-2:] == [
        "ok chat: has GPU 0",
        "chat: not all of them tell how busy they are; its signal gpu_utilization is off",
    ]
    assert found.sections["Prices"] == ["ok chat: pays for 0.428571 GPU(s), each 3 USD an hour (usd_per_hour)"]


def test_what_a_consumer_card_does_not_have_is_one_line(doctor: Doctor) -> None:
    doctor.scenario.copy("consumer")
    found = doctor.look("1")
    (line,) = [line for line in found.sections["GPU"] if "cannot tell" in line]
    assert found.code == 0
    assert line.startswith("GPU 0 cannot tell: gpu_dram_active_ratio, gpu_ecc_errors_total, ")


def test_no_gpu_is_fine_unless_the_driver_was_asked_for(doctor: Doctor) -> None:
    doctor.scenario.write("count=0\ndriver_version=580.82.07\n")
    found = doctor.look()
    assert found.code == 0
    assert found.has("GPU", "nobody is asked, since the driver shows no GPU here")
    assert found.has("GPU", f"ok library: {doctor.stub}, driver 580.82.07, NVML unknown")
    assert found.has("GPU", "- Kubernetes: one ResourceClaim (DRA)")
    found = doctor.by_config("source: nvml", "1")
    assert found.code == 1
    assert found.problems == [
        "PROBLEM the driver (NVML) is asked, and gives nothing: the driver shows no GPU here"
    ]  # fmt: skip


def test_no_library_is_told_as_the_linker_tells_it(doctor: Doctor) -> None:
    found = doctor.look(**WITHOUT_LIBRARY)
    assert found.code == 0
    assert found.has("GPU", "nobody is asked, since dlopen: the NVIDIA driver's library is not in this container")
    assert "(libnvidia-ml.so.1: cannot open shared object file: No such file or directory)" in found.sections["GPU"][1]
    assert found.has("GPU", "library: looked for as libnvidia-ml.so.1, /usr/local/nvidia/lib64/libnvidia-ml.so.1, ")
    broken = doctor.folder / "libbroken.so"
    broken.write_text("not a library")
    found = doctor.by_config(f"source: nvml, nvml_library: {broken}", "1", **WITHOUT_LIBRARY)
    assert found.code == 1
    assert f"({broken}: " in found.problems[0]
    found = doctor.by_config(f"nvml_library: {doctor.stub}", "2", **WITHOUT_LIBRARY)
    assert found.has("GPU", f"ok library: {doctor.stub}")


def test_a_lost_gpu_is_a_problem_and_the_others_go_on(doctor: Doctor) -> None:
    doctor.scenario.update({"gpu0.lost": 1})
    found = doctor.look()
    assert found.code == 1
    assert found.problems == ["PROBLEM GPU 0: the GPU has fallen off the bus or is otherwise lost"]
    assert found.has("GPU", f"ok GPU 1: NVIDIA H100 80GB HBM3, {SECOND}")
    assert found.has("GPU", "failed: nvmlDeviceGetHandleByIndex: the GPU has fallen off the bus")


def test_a_gpu_that_answers_nothing_is_told_by_name(doctor: Doctor) -> None:
    answers = set(doctor.scenario.keys()) - {"gpu1.uuid", "gpu1.name"}
    doctor.scenario.update({key: "!999" for key in (*answers, "gpu1.fields") if key.startswith("gpu1.")})
    assert doctor.look().problems == [f"PROBLEM GPU 1: NVIDIA H100 80GB HBM3, {SECOND}: unknown"]


def test_a_driver_that_does_not_come_back_is_a_problem_whoever_was_asked_for(doctor: Doctor) -> None:
    doctor.scenario.set(init="!18")
    found = doctor.look()
    assert found.code == 1
    assert found.problems[0].startswith("PROBLEM nobody is asked, since nvmlInit: the driver was replaced under us")


@pytest.mark.parametrize(
    ("gpu", "environ", "code", "lines"),
    [
        (
            "dcgm_url: {url}/4.x-kubernetes.prom",
            {"POD_NAME": "chat-0", "POD_NAMESPACE": "llm"},
            0,
            [
                "we are pod chat-0 of namespace llm",
                "its page shows 2 GPU(s); ours: 1; left out: GPU 1 (GPU-0a1b2c3d-0000-4000-8000-000000000002)",
                "ok GPU 0: NVIDIA H100 80GB HBM3, GPU-0a1b2c3d-0000-4000-8000-000000000001, 78.1 of 85.5 GB used,"
                " 97% busy, 512 W",
                "ok 1 GPU(s) visible, and as many charged for by the config",
                "ok chat: has GPU 0",
            ],
        ),
        (
            "source: dcgm, select: all, dcgm_url: {url}/bare-metal-8.prom",
            {},
            0,
            ["ok {url}/bare-metal-8.prom is asked", "its page shows 8 GPU(s); ours: 8"],
        ),
        (
            "source: dcgm, dcgm_url: {url}/4.x-kubernetes.prom",
            {"POD_NAME": "another"},
            1,
            [
                "PROBLEM {url}/4.x-kubernetes.prom is asked, and gives nothing: the page shows 2 GPUs, and none belongs"
                " to pod another; set gpu.select to UUIDs or all",
                "we are pod another of namespace unknown",
            ],
        ),
        ('dcgm_url: "http://${{NODE_IP}}:9400"', {}, 1, ["we are pod unknown (set POD_NAME) of namespace unknown"]),
    ],
    ids=["own", "all", "another's", "nowhere"],
)
def test_a_dcgm_exporter_is_told_with_what_was_left_out(
    doctor: Doctor, served: str, gpu: str, environ: dict[str, str], code: int, lines: list[str]
) -> None:
    found = doctor.by_config(gpu.format(url=served), "1", **WITHOUT_LIBRARY, **environ)
    assert found.code == code
    for line in lines:
        assert line.format(url=served) in found.sections["GPU"]
    assert not found.has("GPU", "- Kubernetes")


@pytest.mark.parametrize(
    ("prices", "lines"),
    [
        (
            'by_name: {"NVIDIA H100 80GB HBM3": 2.99}',
            ["ok chat: pays for 2 GPU(s), each 2.99 USD an hour (by_name, 'NVIDIA H100 80GB HBM3')"],
        ),
        (
            "by_name: {H100: 2.99}",
            [
                "PROBLEM chat: pays for 2 GPU(s), and no price is in force, since by_name does not have"
                " 'NVIDIA H100 80GB HBM3'; GPU time is counted as unpriced"
            ],
        ),
        (
            "owned: {purchase_usd: 35040, lifetime: 4y, usd_per_kwh: 0.2, pue: 1.5}",
            [
                "ok chat: pays for 2 GPU(s), each 1 USD an hour (owned)",
                "ok chat: and their energy, 0.3 USD a kWh with PUE, as the GPUs count it",
            ],
        ),
    ],
    ids=["by name", "by another name", "owned"],
)
def test_prices_are_those_of_the_gpus_that_are_seen(doctor: Doctor, prices: str, lines: list[str]) -> None:
    found = doctor.by_config("", "2", prices)
    assert found.sections["Prices"] == lines


@pytest.mark.parametrize(
    ("watts", "line"),
    [
        ("", "PROBLEM chat: and their energy, 0.2 USD a kWh with PUE, which is not measured here; GPU time is counted"
         " as unpriced"),
        (", watts: 350", "chat: and their energy, 0.2 USD a kWh with PUE, at 350 W each, as it is not measured here"),
    ],
)  # fmt: skip
def test_energy_that_is_not_measured_is_assumed_or_missing(doctor: Doctor, watts: str, line: str) -> None:
    prices = f"owned: {{purchase_usd: 35040, lifetime: 4y, usd_per_kwh: 0.2{watts}}}"
    assert doctor.by_config("source: none", "2", prices).sections["Prices"][1] == line


def test_a_page_known_from_elsewhere_than_a_server_says_so(doctor: Doctor, served: str) -> None:
    found = doctor.run("doctor", f"--engine.url={served}/sglang:num_running_reqs", "--gpu.count=0", **WITHOUT_LIBRARY)
    assert "default: pages of sglang are known from its source code alone" in found.sections["Engines"]


# What it writes down ---------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """A scenario, what was written down of it, and what was written down of that."""

    original: Mapping[str, str]
    first: Path
    second: Path
    held: Mapping[str, int]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path, served: str) -> Mapping[str, Written]:
    """All of them at once: a capture waits between two samples."""
    doctors = {}
    for name in (*SCENARIOS, *REFUSALS):
        doctors[name] = Doctor(tmp_path_factory.mktemp(name), nvml_library, served)
        base, changes = REFUSALS.get(name, (name, {}))
        doctors[name].scenario.copy(base).update(changes)
    originals = {name: doctor.scenario.keys() for name, doctor in doctors.items()}
    _capture_all(doctors, "first.txt")
    for doctor in doctors.values():
        doctor.scenario.write((doctor.folder / "first.txt").read_text(encoding="utf-8"))
    _capture_all(doctors, "second.txt")
    return {
        name: Written(
            originals[name], doctor.folder / "first.txt", doctor.folder / "second.txt", doctor.scenario.held()
        )
        for name, doctor in doctors.items()
    }


def _capture_all(doctors: Mapping[str, Doctor], file: str) -> None:
    processes = [doctor.start("doctor", f"--capture={file}") for doctor in doctors.values()]
    for process in processes:
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("name", [*SCENARIOS, *REFUSALS])
def test_what_is_written_down_plays_the_same(written: Mapping[str, Written], name: str) -> None:
    """A capture has what the stub said, and one of its replay is the same but for the time it took."""
    original, first, second, held = written[name]
    assert _timeless(second) == _timeless(first)
    keys = Scenario(first).keys()
    differ = [key for key, value in keys.items() if _told(value) != _told(original.get(key, "!3"))]
    assert not [key for key in differ if not key.endswith(("uuid", "pci_bus_id", "count"))]
    identities = [value for key, value in original.items() if key.endswith(("uuid", "pci_bus_id")) and value != "!4"]
    assert not [identity for identity in identities if identity in first.read_text(encoding="utf-8")]
    assert held == NOTHING_HELD


def _told(value: str) -> list[object]:
    """What a value says: numbers are the same in every way of writing them."""
    return [float(int(word, 0)) if re.fullmatch(r"0x[0-9a-f]+", word) else _number(word) for word in value.split()]


def _number(word: str) -> object:
    try:
        return float(word)
    except ValueError:
        return word


def _timeless(path: Path) -> list[str]:
    text = re.sub(r"(?m)^# (\S+) \d+ us$", r"# \1", path.read_text(encoding="utf-8"))
    return re.sub(r"\d{4}-\d\d-\d\d", "DATE", text).splitlines()


def test_a_replay_is_seen_as_the_original_was(doctor: Doctor, written: Mapping[str, Written]) -> None:
    before = doctor.look().sections["GPU"]
    doctor.scenario.write(written["two-healthy"].first.read_text(encoding="utf-8"))
    uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
    assert [uuid.sub("", line) for line in doctor.look().sections["GPU"]] == [uuid.sub("", line) for line in before]


def test_a_capture_tells_where_it_comes_from_and_what_it_took(doctor: Doctor) -> None:
    doctor.scenario.update({"gpu1.energy.delay_ms": 50})
    lines = doctor.capture("out.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# 2 x NVIDIA H100 80GB HBM3"
    assert re.fullmatch(
        r"# captured by doctor --capture of llm-cost-exporter \S+ on \d{4}-\d\d-\d\d, nvidia-ml-py \S+", lines[1]
    )
    (took,) = [int(line.split()[2]) for line in lines if line.startswith("# gpu1.energy ")]
    assert 50_000 <= took < 1_000_000
    assert "gpu1.uuid=GPU-00000000-0000-0000-0000-000000000001" in lines
    assert "gpu1.pci_bus_id=00000000:01:00.0" in lines


def test_a_capture_has_every_call_that_is_made() -> None:
    """Those that the scenario has no key for, or that are made by a function that both use, are named here."""
    named = {
        path.stem: set(re.findall(r'"(nvml[A-Z]\w+)"', path.read_text(encoding="utf-8")))
        for path in (REPOSITORY / "exporter/sources").glob("nvml*.py")
    }
    shared = {"nvmlInit", "nvmlShutdown", "nvmlDeviceGetFieldValues", "nvmlGpmMetricsGet", "nvmlEventSetCreate",
              "nvmlEventSetWait_v2", "nvmlEventSetFree"}  # fmt: skip
    captured = named.pop("nvml_capture")
    assert set().union(*named.values()) - captured == shared | {"nvmlDeviceGetHandleByUUID"}


def test_a_capture_writes_over_nothing(doctor: Doctor) -> None:
    out = doctor.folder / "out.txt"
    out.write_text("precious")
    done = doctor.run("doctor", f"--capture={out}")
    assert (done.code, done.errors) == (2, f"{out}: expected a new file, found one that exists\n")
    assert out.read_text() == "precious"
    done = doctor.run("doctor", "--capture=no/such/folder.txt")
    assert (done.code, done.errors) == (2, "no/such/folder.txt: cannot be written: No such file or directory\n")


def test_a_capture_without_a_driver_says_why(doctor: Doctor) -> None:
    done = doctor.run("doctor", "--capture=out.txt", **WITHOUT_LIBRARY)
    assert done.code == 1
    assert done.errors.startswith("out.txt: not written: dlopen: the NVIDIA driver's library is not in this container")
    doctor.scenario.set(init="!9")
    done = doctor.run("doctor", "--capture=out.txt")
    assert (done.code, done.errors) == (1, "out.txt: not written: nvmlInit: the NVIDIA driver is not loaded\n")
    assert not (doctor.folder / "out.txt").exists()


# What hangs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "line"),
    [
        ("a GPU", f"PROBLEM GPU 0: NVIDIA H100 80GB HBM3, {FIRST}: nvmlDeviceGetUtilizationRates hangs"),
        ("the driver", "PROBLEM the driver: nvmlInit hangs, without an answer for 10 s"),
    ],
)
def test_a_call_that_hangs_is_named_and_not_waited_for(
    hanging: Mapping[str, "subprocess.Popen[str]"], who: str, line: str
) -> None:
    output, errors = hanging[who].communicate(timeout=20)
    found = report(hanging[who].returncode, output, errors)
    assert (found.code, found.problems, errors) == (1, [line], "")
    assert list(found.sections)[-1] == "Ledger"


def test_a_capture_that_hangs_names_the_call(hanging: Mapping[str, "subprocess.Popen[str]"]) -> None:
    output, errors = hanging["a capture"].communicate(timeout=20)
    assert (hanging["a capture"].returncode, output) == (1, "")
    assert errors == (
        "out.txt: not written: nvmlDeviceGetPowerUsage: hangs (gpu1.power has had no answer for 10 s)\n"
    )  # fmt: skip
