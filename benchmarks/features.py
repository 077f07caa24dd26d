"""A thousand features on twenty models: what a page of so many label sets costs in beats and scrapes."""

import contextlib
import http.client
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.processes import Exporter, running

FEATURES, MODELS = 1000, 20
_SCRAPES = 40
_BEATS = 10
_BATCH = 500


class Measured(NamedTuple):
    """Series and bytes of the page, CPU seconds of a beat and of a scrape in seconds at most, resident MiB."""

    series: int
    page_bytes: int
    beat_cpu_seconds: float
    slowest_scrape_seconds: float
    rss_mib: float


def measure() -> Measured:
    """Post an event of every feature on every model, then let it beat, and scrape it."""
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder)) as exporter:
        for model in range(MODELS):
            for first in range(0, FEATURES, _BATCH):
                _post(exporter, model, range(first, first + _BATCH))
        expected = FEATURES * MODELS
        exporter.until("all on the page", lambda page: _features(page) == expected, seconds=60)
        before = _cpu_seconds(exporter)
        time.sleep(_BEATS)
        beat = (_cpu_seconds(exporter) - before) / _BEATS
        body, slowest = b"", 0.0
        for _ in range(_SCRAPES):
            began = time.perf_counter()
            body = exporter.ask("/metrics").body
            slowest = max(slowest, time.perf_counter() - began)
        series = sum(not line.startswith(b"#") for line in body.splitlines())
        return Measured(series, len(body), beat, slowest, _rss_mib(exporter))


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[Exporter]:
    models = [{"model": f"api-{n}", "input_usd_per_million": 1, "output_usd_per_million": 2} for n in range(MODELS)]
    config = {
        "interval": "1s",
        "engines": [{"name": "chat", "url": "http://127.0.0.1:9", "gpus": 0}],
        "prices": {"api": {"models": models}},
        "limits": {"attribution_series": 2 * FEATURES * MODELS},
    }
    (folder / "config.yml").write_text(json.dumps(config))
    flags = (f"--config.file={folder}/config.yml", f"--storage.path={folder}/ledger", "--log.level=error")
    with running(folder, "serve", *flags) as exporter:
        exporter.until("a beat", lambda page: "llmcost_source_up{source=engine,target=chat}" in page)
        yield exporter


def _post(exporter: Exporter, model: int, features: range) -> None:
    events = [
        {"feature": f"feature-{n}", "team": "docs", "model": f"api-{model}", "output_tokens": 1} for n in features
    ]
    reply = exporter.ask("/v1/usage", "POST", json.dumps(events).encode())
    if reply.status != http.client.ACCEPTED:
        raise AssertionError(f"expected 202, found {reply.status}: {reply.text}")


def _features(page: dict[str, float]) -> int:
    return sum(name.startswith("llmcost_feature_requests_total{") for name in page)


def _cpu_seconds(exporter: Exporter) -> float:
    fields = Path(f"/proc/{exporter.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mib(exporter: Exporter) -> float:
    status = Path(f"/proc/{exporter.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
