"""The real command line as processes: started, waited for, asked and ended."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

REPOSITORY = Path(__file__).parent.parent
RECORDING = REPOSITORY / "tests/fixtures/recordings/vllm-0.32.0.jsonl.xz"


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Exporter:
    """One running command and its log."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return Reply(response.status, {key.lower(): value for key, value in response.getheaders()}, body)

    def metrics(self) -> dict[str, float]:
        return samples(self.ask("/metrics").text)

    def snapshot(self) -> Any:
        return json.loads(self.ask("/v1/snapshot").body)

    def until(self, what: str, condition: "Any", seconds: float = 20) -> dict[str, float]:
        """Scrape until the condition holds on the page, and return the page."""
        ends = time.monotonic() + seconds
        page: dict[str, float] = {}
        while time.monotonic() < ends:
            page = self.metrics()
            if condition(page):
                return page
            time.sleep(0.05)
        raise AssertionError(f"{what}: not within {seconds} s; log:\n{self.log.read_text()}\npage: {page}")

    def end(self, name: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(name)
        try:
            return self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it did not end within 5 s of {name.name}") from None


def samples(page: str) -> dict[str, float]:
    """A page by `name{label=value,…}`, labels in alphabetical order."""
    return {
        sample.name
        + "{"
        + ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
        + "}": sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def running(folder: Path, *arguments: str, port: int | None = None, wait: bool = True) -> Iterator[Exporter]:
    """Run a command; `serve` gets a port of its own, and is waited for until it is ready."""
    port = port or free_port()
    log = folder / f"{arguments[0]}-{port}.log"
    flags = [f"--web.listen-address=127.0.0.1:{port}"] if arguments[0] == "serve" else []
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "exporter", *arguments, *flags], stdout=file, stderr=file, cwd=REPOSITORY,
            env={**os.environ, "PYTHONWARNINGS": "error"},
        )  # fmt: skip
    exporter = Exporter(process, port, log)
    try:
        if wait and arguments[0] == "serve":
            wait_until_ready(exporter)
        yield exporter
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_until_ready(exporter: Exporter, seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and exporter.process.poll() is None:
        with contextlib.suppress(OSError):
            if exporter.ask("/-/ready").status == 200:
                return
        time.sleep(0.02)
    raise AssertionError(f"not ready; log:\n{exporter.log.read_text()}")


@contextlib.contextmanager
def replayed(folder: Path, *flags: str) -> Iterator[str]:
    """Replay the bundled recording as an engine, and return its address; it may not listen yet."""
    port = free_port()
    with running(folder, "replay", str(RECORDING), f"--listen-address=127.0.0.1:{port}", *flags):
        yield f"http://127.0.0.1:{port}"
