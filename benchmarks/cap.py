"""Budget checks under load: a running exporter with a ledger, asked over kept connections as gateways ask."""

import contextlib
import os
import selectors
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from tests.processes import Exporter, running

CONNECTIONS = 8
SECONDS = 5
_CONFIG = """\
interval: 5s
engines: [{{name: chat, url: "http://127.0.0.1:9"}}]
prices: {{gpu: {{usd_per_hour: 3600}}}}
budgets:
{budgets}
"""
_BUDGET = "  - {{name: budget-{number}, monthly_usd: {usd}, hard_cap: true{more}}}\n"
_ASKED = "/v1/budgets/check?feature=document_summary&team=docs&model=llama-3.1-8b&deny_status=403"


class Measured(NamedTuple):
    """Checks in a second by the clock, in a second of the exporter's CPU time, and the slowest but one in a hundred.

    The first is what this machine came to, with all else that ran on it; the second is what one core to itself does.
    """

    per_second: float
    per_cpu_second: float
    p99_seconds: float


def measure(*, denied: bool) -> Measured:
    """Ask an exporter that holds ten budgets as fast as it answers; of those that apply, all are spent or none is."""
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder), denied=denied) as exporter:
        asked = f"GET {_ASKED} HTTP/1.1\r\nHost: exporter:9409\r\n\r\n".encode()
        expected = b"HTTP/1.1 403 " if denied else b"HTTP/1.1 200 "
        _ask(exporter.port, asked, expected, 0.5)
        cpu, began = _cpu_seconds(exporter), perf_counter()
        found = sorted(_ask(exporter.port, asked, expected, SECONDS))
        seconds, cpu = perf_counter() - began, _cpu_seconds(exporter) - cpu
    return Measured(len(found) / seconds, len(found) / cpu, found[len(found) * 99 // 100])


@contextlib.contextmanager
def _serving(folder: Path, *, denied: bool) -> Iterator[Exporter]:
    matches = [", match: {team: docs}" if number % 2 else "" for number in range(10)]
    usd = "0.001" if denied else "1000000000"
    budgets = "".join(_BUDGET.format(number=number, usd=usd, more=more) for number, more in enumerate(matches))
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(budgets=budgets))
    with running(folder, "serve", f"--config.file={config}", f"--storage.path={folder}/ledger") as exporter:
        name = "llmcost_budget_consumed_ratio{budget=budget-0,period=month}"
        exporter.until("a beat after spend", lambda page: page.get(name, 0) >= denied)
        yield exporter


def _ask(port: int, asked: bytes, expected: bytes, seconds: float) -> list[float]:
    """Ask on all connections at once, again as soon as an answer is there; returns how long each took."""
    found: list[float] = []
    with contextlib.ExitStack() as held, selectors.DefaultSelector() as ready:
        for _ in range(CONNECTIONS):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(asked)
            ready.register(connection, selectors.EVENT_READ, [perf_counter()])
        ends = perf_counter() + seconds
        while perf_counter() < ends:
            for key, _ in ready.select(timeout=1):
                answer = key.fileobj.recv(65536)  # type: ignore[union-attr]
                if not answer.startswith(expected) or not answer.endswith(b"}"):
                    raise AssertionError(f"expected {expected!r}, found {answer[:200]!r}")
                now = perf_counter()
                found.append(now - key.data[0])
                key.data[0] = now
                key.fileobj.sendall(asked)  # type: ignore[union-attr]
    return found


def _cpu_seconds(exporter: Exporter) -> float:
    fields = Path(f"/proc/{exporter.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
