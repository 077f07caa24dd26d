"""Running processes, ours and another exporter beside it: memory, CPU, start, and scrapes under load."""

import contextlib
import http.client
import importlib.util
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from benchmarks import gpus
from benchmarks.pages import RECORDING, series

SECONDS = 60
SCRAPE_SECONDS = 5
TICK = os.sysconf("SC_CLK_TCK")
OTHER = "nvitop_exporter"


class Measured(NamedTuple):
    """One process in the minute after it had settled; `poll_seconds` is the mean time that asking one GPU took."""

    ready_seconds: float
    first_rss_mib: float
    rss_mib: float
    cpu_ratio: float
    threads: int
    series: int
    series_of_a_gpu: int
    poll_seconds: float


class Results(NamedTuple):
    without_gpus: Measured
    ours: Measured
    other: Measured | None
    scrape_p99_seconds: float


class Program:
    """A process that has a page."""

    def __init__(self, command: Iterable[str], port: int, path: str, environment: Mapping[str, str]) -> None:
        self.port = port
        self.starts: list[float] = []
        self._path, self._command, self._environment = path, [sys.executable, "-m", *command], environment

    def __enter__(self) -> Self:
        began = time.perf_counter()
        self.process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not self._is_ready():
            if self.process.poll() is not None or time.perf_counter() - began > 30:
                self.__exit__()
                raise AssertionError(f"it ended, or was not ready within 30 s: {' '.join(self._command[1:])}")
            time.sleep(0.005)
        self.starts.append(time.perf_counter() - began)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=10)

    def _is_ready(self) -> bool:
        try:
            return self.get(self._path)[0] == 200
        except OSError:
            return False

    def get(self, path: str) -> tuple[int, str]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def page(self) -> str:
        return self.get("/metrics")[1]

    @property
    def rss_mib(self) -> float:
        return self._status("VmRSS") / 1024

    @property
    def threads(self) -> int:
        return self._status("Threads")

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def other_is_installed() -> bool:
    return importlib.util.find_spec(OTHER) is not None


def measure() -> Results:
    """Measure all in the same minute: what else this machine does then, it does to all of them."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        # As an installed package has it, whatever the environment says about writing any.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
        engine = free_port()
        replay = ("exporter", "replay", str(RECORDING), f"--listen-address=127.0.0.1:{engine}", "--skip=155s")
        stack.enter_context(Program(replay, engine, "/metrics", environment))
        programs = [_ours(Path(folder), engine, count, environment) for count in (0, gpus.COUNT)]
        if other_is_installed():
            port = free_port()
            programs.append(Program((OTHER, f"--port={port}", "--hostname=bench"), port, "/metrics", environment))
        return _measure(programs)


def _ours(folder: Path, engine: int, count: int, environment: Mapping[str, str]) -> Program:
    config, port = folder / f"{count}.yml", free_port()
    config.write_text(
        f"engines: [{{url: 'http://127.0.0.1:{engine}', gpus: {count or 1}}}]\n"
        "prices: {gpu: {usd_per_hour: 0.80}}\n"
        f"gpu: {{source: {'nvml' if count else 'none'}}}\n"
    )
    flags = (f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}", "--log.level=error")
    return Program(("exporter", "serve", *flags), port, "/-/ready", environment)


def _measure(programs: list[Program]) -> Results:
    for program in programs * 5:
        with program:
            pass
    alone, ours, *others = programs
    with ours:
        with contextlib.ExitStack() as stack:
            for program in (alone, *others):
                stack.enter_context(program)
            found = _minute(programs)
        p99 = scrape_p99(ours.port)
        found[1] = found[1]._replace(rss_mib=max(found[1].rss_mib, ours.rss_mib))  # being scraped hard is part of it
    return Results(found[0], found[1], found[2] if others else None, p99)


def _minute(programs: list[Program]) -> list[Measured]:
    first = [program.rss_mib for program in programs]
    time.sleep(gpus.SETTLING_SECONDS)
    last = pages = [program.page() for program in programs]
    for page in pages[1:]:
        if any(gpus.uuid(number) not in page for number in range(gpus.COUNT)):
            raise AssertionError(f"expected {gpus.COUNT} GPUs on the page, found:\n{page}")
    cpu, began = [program.cpu_seconds for program in programs], time.monotonic()
    for number in range(1, SECONDS // SCRAPE_SECONDS + 1):
        time.sleep(max(began + number * SCRAPE_SECONDS - time.monotonic(), 0))
        last = [program.page() for program in programs]
    seconds = time.monotonic() - began
    return [
        Measured(
            ready_seconds=statistics.median(program.starts[1:]),  # the first one writes the bytecode
            first_rss_mib=first[number],
            rss_mib=program.rss_mib,
            cpu_ratio=(program.cpu_seconds - cpu[number]) / seconds,
            threads=program.threads,
            series=series(last[number]),
            series_of_a_gpu=series(last[number], gpus.uuid(0)),
            poll_seconds=_poll_seconds(pages[number], last[number]),
        )
        for number, program in enumerate(programs)
    ]


def _poll_seconds(before: str, after: str) -> float:
    polls = _sum("llmcost_nvml_polls_total", after) - _sum("llmcost_nvml_polls_total", before)
    spent = _sum("llmcost_nvml_poll_seconds_total", after) - _sum("llmcost_nvml_poll_seconds_total", before)
    return spent / polls if polls else 0


def _sum(name: str, page: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}\{{.*\}} (\S+)$", page, re.MULTILINE))


def scrape_p99(port: int) -> float:
    """Scrape 200 times a second for five seconds, on one kept connection, as a server of many scrapers would see it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    found, began = [], time.perf_counter()
    for number in range(1000):
        time.sleep(max(began + number / 200 - time.perf_counter(), 0))
        asked = time.perf_counter()
        connection.request("GET", "/metrics")
        connection.getresponse().read()
        found.append(time.perf_counter() - asked)
    return sorted(found)[989]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
