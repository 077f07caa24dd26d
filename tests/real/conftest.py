"""What these tests run: a real vLLM, our exporter and a real Prometheus, each a process of its own.

Nothing here is skipped: where a part cannot be had, the test fails and says why.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

HERE = Path(__file__).parent
USD_PER_HOUR = 0.80
INTERVAL = 1.0

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Page:
    """The samples of a metrics page by name and labels."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def parse(cls, text: str) -> Self:
        found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        samples = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}
        assert len(samples) == len(found), "a series stands twice on one page"
        return cls(samples)

    def values(self, name: str, **labels: str) -> list[float]:
        wanted = labels.items()
        return [value for (found, has), value in self.samples.items() if found == name and has >= wanted]

    def total(self, name: str, **labels: str) -> float:
        """The sum over the series with these labels, 0 without any."""
        return sum(self.values(name, **labels))

    def value(self, name: str, **labels: str) -> float | None:
        """The value of the one series with these labels, None without it."""
        values = self.values(name, **labels)
        assert len(values) <= 1, f"{len(values)} series of {name} with {labels}"
        return values[0] if values else None

    def counters(self, prefix: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """All that only rises: counters, and the parts of histograms."""
        endings = ("_total", "_bucket", "_count", "_sum")
        return {
            key: value for key, value in self.samples.items() if key[0].startswith(prefix) and key[0].endswith(endings)
        }

    def replies(self) -> float:
        """On an engine's page: requests for a completion that its HTTP layer has answered."""
        return self.total("http_requests_total", handler="/v1/completions", status="2xx")

    def abandoned(self) -> float:
        """On an engine's page: replies that no finished request explains."""
        return self.replies() - self.total("vllm:request_success_total")


def get(url: str, timeout: float = 10.0) -> str:  # Prometheus' own default for a scrape
    with urllib.request.urlopen(url, timeout=timeout) as reply:
        return str(reply.read().decode())


def answers(url: str) -> bool:
    try:
        get(url)
    except OSError:
        return False
    return True


def wait_for(what: str, condition: Callable[[], Answer | None], seconds: float = 30.0) -> Answer:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:g} s in vain: {what}")
        time.sleep(0.1)
    return answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(command: list[str], ready_url: str, log: Path, seconds: float = 30.0) -> subprocess.Popen[bytes]:
    """Start a process and wait until it says that it is ready."""
    with log.open("wb") as to:
        process = subprocess.Popen(command, stdout=to, stderr=subprocess.STDOUT)
    try:
        wait_for(f"{command[0]} is ready", lambda: answers(ready_url) or process.poll() is not None, seconds)
        assert process.poll() is None, log.read_text(encoding="utf-8")
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


class Vllm:
    """A real vLLM on a port of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def _run(self, command: str) -> None:
        script = [str(HERE / "real_vllm.sh"), command, str(self.port)]
        done = subprocess.run(script, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            pytest.fail(f"real_vllm.sh {command}: exit code {done.returncode}\n{done.stdout}", pytrace=False)

    def start(self) -> float:
        """Install what is missing, start, wait until healthy; returns how long that took in seconds."""
        began = time.monotonic()
        self._run("start")
        return time.monotonic() - began

    def stop(self) -> None:
        self._run("stop")

    def kill(self) -> None:
        """SIGKILL to the whole process group."""
        self._run("kill")

    def page(self) -> Page:
        return Page.parse(get(f"{self.url}/metrics"))

    def idle_page(self) -> Page:
        """Wait until nothing runs and nothing has moved for a second, and return the page."""

        def idle() -> Page | None:
            before = self.page()
            time.sleep(1)
            after = self.page()
            busy = after.total("vllm:num_requests_running") + after.total("vllm:num_requests_waiting")
            moved = before.counters("vllm:") != after.counters("vllm:") or before.replies() != after.replies()
            return None if busy or moved else after

        return wait_for("the engine is idle", idle, seconds=60)

    def load(self, *arguments: str) -> dict[str, Any]:
        """Send requests and return what the clients saw; fails where one got neither an answer nor hung up."""
        command = [sys.executable, str(HERE / "load.py"), "--url", self.url, *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        assert set(result["outcome"]) <= {"ok", "aborted"}, result
        return result


class Exporter:
    """Our exporter as users start it."""

    def __init__(self, engine_url: str, folder: Path, config: str = "") -> None:
        """Read an engine; `config` stands in the place of flags."""
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = folder / "exporter.log"
        self._flags = [f"--engine.url={engine_url}", f"--gpu.usd-per-hour={USD_PER_HOUR}", "--gpu.count=1"]
        self._flags.append(f"--interval={INTERVAL:g}s")
        if config:
            (folder / "config.yml").write_text(config, encoding="utf-8")
            self._flags = [f"--config.file={folder / 'config.yml'}", f"--storage.path={folder / 'ledger'}"]

    def __enter__(self) -> Self:
        command = [
            *(sys.executable, "-m", "exporter", "serve", *self._flags),
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]
        self._process = started(command, f"{self.url}/-/ready", self._log)
        return self

    def __exit__(self, *_: object) -> None:
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            pytest.fail(f"did not end within 5 s of SIGTERM\n{self.log()}")
        self.seconds_to_end = time.monotonic() - began
        assert code == 0, self.log()
        assert "Traceback" not in self.log(), self.log()

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def page(self) -> Page:
        return Page.parse(get(f"{self.url}/metrics"))

    def fresh_page(self) -> Page:
        """The first page whose reading of the engine began after now."""
        now = time.time()

        def fresh() -> Page | None:
            page = self.page()
            read = page.value("llmcost_source_last_success_timestamp_seconds", source="engine") or 0.0
            took = page.value("llmcost_source_read_seconds", source="engine") or 0.0
            return page if read - took > now else None

        return wait_for("the exporter has read the engine", fresh)

    def snapshot(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(get(f"{self.url}/v1/snapshot"))
        return found


class Poll(threading.Thread):
    """Scrapes an exporter twice a second in the background, as long as the `with` lasts."""

    def __init__(self, exporter: Exporter, pause: float = 0.5) -> None:
        super().__init__(daemon=True)
        self.pages: list[Page] = []
        self.slowest = 0.0  # seconds
        self._exporter, self._pause, self._end = exporter, pause, threading.Event()
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            while not self._end.is_set():
                began = time.monotonic()
                self.pages.append(self._exporter.page())
                self.slowest = max(self.slowest, time.monotonic() - began)
                self._end.wait(self._pause)
        except Exception as error:  # noqa: BLE001 - shown by the test, in its own thread
            error.add_note(
                f"{time.ctime()}, load average {os.getloadavg()}, the exporter's log:\n{self._exporter.log()}"
            )
            self._error = error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()
        if self._error is not None:
            raise self._error


class Prometheus:
    """A real Prometheus that scrapes addresses once a second."""

    def __init__(self, folder: Path, **targets: str) -> None:
        self._binary = shutil.which("prometheus") or pytest.fail("there is no `prometheus` on the path", pytrace=False)
        self._folder, self._targets = folder, targets
        self.url = f"http://127.0.0.1:{free_port()}"

    def __enter__(self) -> Self:
        config = self._folder / "prometheus.json"  # JSON is YAML
        jobs = [
            {"job_name": job, "static_configs": [{"targets": [url.removeprefix("http://")]}]}
            for job, url in self._targets.items()
        ]
        scraping = {"scrape_interval": "1s", "scrape_timeout": "1s"}
        config.write_text(json.dumps({"global": scraping, "scrape_configs": jobs}), encoding="utf-8")
        command = [
            *(self._binary, f"--config.file={config}", f"--storage.tsdb.path={self._folder / 'tsdb'}"),
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]
        self._process = started(command, f"{self.url}/-/ready", self._folder / "prometheus.log")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)

    def query(self, promql: str, at: float) -> list[float]:
        """The values of an instant query."""
        parameters = urllib.parse.urlencode({"query": promql, "time": f"{at:.3f}"})
        answer = json.loads(get(f"{self.url}/api/v1/query?{parameters}"))
        assert answer["status"] == "success", answer
        return [float(series["value"][1]) for series in answer["data"]["result"]]


@pytest.fixture(scope="session")
def vllm() -> Iterator[Vllm]:
    server = Vllm()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def exporter(vllm: Vllm, tmp_path: Path) -> Iterator[Exporter]:
    with Exporter(vllm.url, tmp_path) as running:
        running.fresh_page()
        yield running
    sys.stdout.write(f"  seconds from SIGTERM to the exporter's end = {running.seconds_to_end:.2f}\n")


@pytest.fixture
def measured(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Iterator[Callable[..., None]]:
    """Keeps figures: in the report as properties, and on the terminal with -s."""
    lines: list[str] = []

    def keep(**figures: object) -> None:
        for name, figure in figures.items():
            record_property(name, figure)
            lines.append(f"  {name} = {figure}")

    yield keep
    sys.stdout.write("\n".join([f"\n{request.node.name}:", *lines, ""]))
