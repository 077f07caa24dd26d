"""The running process: memory, CPU, start, and scrapes under load."""

import http.client
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

RECORDING = Path(__file__).parent.parent / "tests/fixtures/recordings/vllm-0.32.0.jsonl.xz"
SECONDS = 40


class Measured(NamedTuple):
    rss_mib: float
    cpu_ratio: float
    ready_seconds: float
    scrape_p99_seconds: float


def measure() -> Measured:
    engine, port = free_port(), free_port()
    replay = start("replay", str(RECORDING), f"--listen-address=127.0.0.1:{engine}", "--skip=155s")
    serve_flags = (
        "serve", f"--engine.url=http://127.0.0.1:{engine}", "--gpu.usd-per-hour=0.80",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    )  # fmt: skip
    try:
        starts = []
        for _ in range(6):
            exporter, seconds = start_until_ready(serve_flags, port)
            starts.append(seconds)
            end(exporter)
        ready = statistics.median(starts[1:])  # the first one warms the disk's cache
        exporter, _ = start_until_ready(serve_flags, port)
        time.sleep(10)
        before = cpu_seconds(exporter.pid)
        time.sleep(SECONDS)
        cpu = (cpu_seconds(exporter.pid) - before) / SECONDS
        p99 = scrape_p99(port)
        found = Measured(rss_mib(exporter.pid), cpu, ready, p99)
        end(exporter)
        return found
    finally:
        end(replay)


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "exporter", *arguments], stderr=subprocess.DEVNULL)


def start_until_ready(flags: tuple[str, ...], port: int) -> tuple[subprocess.Popen[bytes], float]:
    began = time.perf_counter()
    process = start(*flags)
    while time.perf_counter() - began < 30:
        try:
            if get(port, "/-/ready") == 200:
                return process, time.perf_counter() - began
        except OSError:
            time.sleep(0.005)
    raise AssertionError("the exporter was not ready within 30 s")


def get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


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


def rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=10)
