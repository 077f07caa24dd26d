"""Usage events under load: a running exporter with a ledger on the disk, fed over kept connections.

`python -m benchmarks.usage` prints the figures, and what dominates in the event loop.
"""

import contextlib
import os
import pstats
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.process import free_port
from tests.processes import Exporter, wait_until_ready

CONNECTIONS = 8
BATCH = 100
SECONDS = 5
TICK = os.sysconf("SC_CLK_TCK")
FEATURES = [("document_summary", "docs"), ("search", "docs"), ("chat", "support"), ("translation", "web")]
MODELS = [("llama-3.1-8b", "fast"), ("llama-3.1-70b", "balanced"), ("my-api-model", "best")]
EVENT = (
    '{"id": "%s-%d", "feature": "%s", "team": "%s", "model": "%s", "engine": null, "provider": null, "tier": "%s", '
    '"input_tokens": %d, "cached_input_tokens": 0, "output_tokens": 300, "cascade": "support", '
    '"escalated_from": null, "at": "%s"}'
)
CONFIG = """\
engines:
  - {name: small, url: "http://127.0.0.1:9", models: [llama-3.1-8b, llama-3.1-8b-instruct], tier: fast}
  - {name: large, url: "http://127.0.0.2:9", models: [llama-3.1-70b], tier: balanced}
prices:
  gpu: {usd_per_hour: 0.80}
  api: {models: [{model: my-api-model, input_usd_per_million: 0.15, output_usd_per_million: 0.60}]}
budgets: [{name: inference, daily_usd: 25}, {name: docs, monthly_usd: 600, match: {team: docs}}]
cascades: [{name: support, tiers: [fast, balanced, best]}]
limits: {events_per_day: 1000000000}
"""
PROFILED = """
import cProfile, sys, time
from exporter.cli import main
profile = cProfile.Profile(time.thread_time)
try:
    profile.runcall(main, sys.argv[2:])
except SystemExit:
    profile.dump_stats(sys.argv[1])
"""


class Measured(NamedTuple):
    """Durable events in a second by the clock, in a second of the process's CPU time, and the slowest but one of 100.

    The first is what this machine came to, with all else that ran on it, the disk included. The last two are the CPU
    time of an event in the event loop's thread (HTTP, reading, keys, books) and in the ledger's.
    """

    per_second: float
    per_cpu_second: float
    p99_seconds: float
    loop_seconds: float
    ledger_seconds: float


def measure(seconds: float = SECONDS, profile: Path | None = None) -> Measured:
    """Feed it as fast as it acknowledges."""
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder), profile) as exporter:
        port, process = exporter.port, exporter.process.pid
        _feed(port, "warm", 1)
        before, began = _cpu_seconds(process), time.perf_counter()
        found = sorted(_feed(port, "event", seconds))
        lasted, after = time.perf_counter() - began, _cpu_seconds(process)
    events = len(found) * BATCH
    cpu = {thread: spent - before.get(thread, 0) for thread, spent in after.items()}
    loop = cpu.pop(process)
    return Measured(
        per_second=events / lasted,
        per_cpu_second=events / (loop + sum(cpu.values())),
        p99_seconds=found[len(found) * 99 // 100],
        loop_seconds=loop / events,
        ledger_seconds=sum(cpu.values()) / events,
    )


@contextlib.contextmanager
def _serving(folder: Path, profile: Path | None) -> Iterator[Exporter]:
    """Run the exporter until it takes events; the loop's thread is profiled where a file for that is named."""
    config, port, log = folder / "config.yml", free_port(), folder / "log"
    config.write_text(CONFIG)
    flags = (f"--config.file={config}", f"--storage.path={folder}/ledger", f"--web.listen-address=127.0.0.1:{port}")
    start = ("-c", PROFILED, str(profile)) if profile else ("-m", "exporter")
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, *start, "serve", *flags], stdout=file, stderr=file)
    exporter = Exporter(process, port, log)
    try:
        wait_until_ready(exporter)
        while exporter.ask("/v1/usage", "POST", b'{"feature": "a", "model": "m"}').status == 503:
            time.sleep(0.05)
        yield exporter
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


def _feed(port: int, name: str, seconds: float) -> list[float]:
    """Post on all connections at once, again as soon as a body is acknowledged; returns how long each took."""
    found: list[float] = []
    expected = b'{"accepted":%d,"duplicates":0}' % BATCH
    number = 0
    with contextlib.ExitStack() as held, selectors.DefaultSelector() as ready:
        connections = [held.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(CONNECTIONS)]
        for connection in connections:
            connection.sendall(_request(name, number))
            number += 1
            ready.register(connection, selectors.EVENT_READ, time.perf_counter())
        waiting, ends = CONNECTIONS, time.perf_counter() + seconds
        while waiting:
            for key, _ in ready.select(timeout=10):
                answer = key.fileobj.recv(65536)  # type: ignore[union-attr]
                now = time.perf_counter()
                if not answer.startswith(b"HTTP/1.1 202 ") or not answer.endswith(expected):
                    raise AssertionError(f"expected {expected!r}, found {answer[:400]!r}")
                found.append(now - key.data)
                waiting -= 1
                if now < ends:
                    key.fileobj.sendall(_request(name, number))  # type: ignore[union-attr]
                    ready.modify(key.fileobj, selectors.EVENT_READ, time.perf_counter())
                    number, waiting = number + 1, waiting + 1
    return found


def _request(name: str, number: int) -> bytes:
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    lines = []
    for event in range(number * BATCH, (number + 1) * BATCH):
        of, by = MODELS[event % len(MODELS)], FEATURES[event % len(FEATURES)]
        lines.append(EVENT % (name, event, *by, *of, event % 2000, f"{at}.{event % 1000:03}Z"))
    body = "\n".join(lines).encode()
    return b"POST /v1/usage HTTP/1.1\r\nHost: exporter:9409\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def _cpu_seconds(process: int) -> dict[int, float]:
    """Return the CPU time of each thread."""
    found = {}
    for path in Path(f"/proc/{process}/task").iterdir():
        fields = (path / "stat").read_text().rpartition(")")[2].split()
        found[int(path.name)] = (int(fields[11]) + int(fields[12])) / TICK
    return found


def main() -> None:
    found = measure()
    print(f"durable events, batches of {BATCH} over {CONNECTIONS} connections: {found.per_second:,.0f} a second")
    print(f"in a second of the process's CPU: {found.per_cpu_second:,.0f} (limit: 20,000)")
    print(
        f"of one event: {found.loop_seconds * 1e6:.1f} us in the loop, {found.ledger_seconds * 1e6:.1f} in the ledger"
    )
    print(f"a body is acknowledged within {found.p99_seconds * 1e3:.0f} ms (p99)")
    with tempfile.NamedTemporaryFile() as profile:
        measure(2, Path(profile.name))
        pstats.Stats(profile.name).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
