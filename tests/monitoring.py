"""Prometheus and Alertmanager, for real: found, started, waited for, asked and ended."""

import contextlib
import http.client
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode


def wait(condition: Callable[[], bool], what: str, seconds: float = 30, more: Callable[[], object] = str) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"{what}: not within {seconds} s; {more()}"
        time.sleep(0.05)


def get(port: int, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        return json.loads(body) if response.status == 200 and body[:1] in b"[{" else response.status
    finally:
        connection.close()


@contextlib.contextmanager
def daemon(folder: Path, command: list[str], port: int) -> Iterator[None]:
    """Run a server until it is ready, and end it."""
    log = folder / f"{Path(command[0]).name}.log"

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError):
            return bool(get(port, "/-/ready") == 200)
        return False

    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            wait(ready, f"{command[0]} is ready")
            yield
        finally:
            process.kill()


def query(port: int, expr: str, at: float | None = None) -> list[dict[str, Any]]:
    """What Prometheus answers to an instant query: labels under `metric`, figures under `value`."""
    asked = urlencode({"query": expr, **({} if at is None else {"time": f"{at}"})})
    said = get(port, f"/api/v1/query?{asked}")
    assert isinstance(said, dict), (said, expr)
    assert said["status"] == "success", (said, expr)
    found: list[dict[str, Any]] = said["data"]["result"]
    return found
