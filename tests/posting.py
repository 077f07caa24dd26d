"""Applications in tests: they post usage events, and post them again until they are told that they were taken."""

import contextlib
import http.client
import json
import random
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.core.money import Kind
from exporter.ledger import Saved
from tests.ledgers import saved
from tests.processes import Exporter, Reply, free_port, running

FEATURES = ("summary", "search", "chat")
PAGE_MODEL = "tiny-llama"  # as the replayed engine names what the config calls "served"
CONFIG = """\
interval: 200ms
engines: [{{name: chat, url: "{url}", models: [served], tier: fast}}]
prices:
  gpu: {{usd_per_hour: 3600}}
  api: {{models: [{{model: api, input_usd_per_million: 0.15, output_usd_per_million: 0.60}}]}}
usage: {{settle: 3s}}
"""


def event(number: int, chance: random.Random) -> dict[str, Any]:
    """One of a kind: it says the same whenever it is posted."""
    return {
        "id": f"event-{number}",
        "feature": chance.choice(FEATURES),
        "team": "docs",
        "model": chance.choice(("served", "api")),
        "input_tokens": chance.randrange(1000),
        "output_tokens": chance.randrange(1000),
    }


def post(exporter: Exporter, body: object) -> Reply:
    return exporter.ask("/v1/usage", "POST", body=json.dumps(body).encode())


class Application:
    """Posts batches one after the other, each until it is acknowledged, whoever answers at the address."""

    def __init__(self, port: int, name: str, seed: int) -> None:
        self._port, self._name, self._chance = port, name, random.Random(seed)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.acknowledged: list[dict[str, Any]] = []
        self.retries = 0
        self.wrong: list[str] = []

    def _run(self) -> None:
        number = 0
        while not self._ended.is_set():
            batch = []
            for _ in range(self._chance.randrange(1, 30)):
                number += 1
                batch.append(event(number, self._chance) | {"id": f"{self._name}-{number}"})
            while not self._taken(batch):
                self.retries += 1
                time.sleep(0.02)
            self.acknowledged += batch

    def _taken(self, batch: list[dict[str, Any]]) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
            with contextlib.closing(connection):
                connection.request("POST", "/v1/usage", json.dumps(batch))
                response = connection.getresponse()
                body = response.read()
                if response.status not in (202, 503):
                    self.wrong.append(f"{response.status}: {body[:200]!r}")
                return response.status == 202
        return False

    def __enter__(self) -> "Application":
        self._thread.start()
        return self

    def end(self) -> None:
        """Have the last batch acknowledged, too."""
        self._ended.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)


def kill_under_ingest(root: Path, url: str, kills: int, seed: int) -> int:
    """Kill exporters while applications post; returns how many events were acknowledged, each counted once."""
    chance, port = random.Random(seed), free_port()
    config = root / "config.yml"
    config.write_text(CONFIG.format(url=url))
    serve = ("serve", f"--config.file={config}", f"--storage.path={root}/data", "--log.level=error")
    with running(root, *serve, port=port) as first:
        first.until("a beat", lambda page: page.get("llmcost_source_up{source=engine,target=chat}") == 1)
        first.end(signal.SIGKILL)
    with Application(port, "a", seed) as one, Application(port, "b", seed + 1) as other:
        for _ in range(kills):
            with running(root, *serve, port=port, wait=False) as killed:
                time.sleep(chance.uniform(0.3, 1.5))
                assert killed.process.poll() is None, killed.log.read_text()
                killed.end(signal.SIGKILL)
        with running(root, *serve, port=port) as last:
            one.end()
            other.end()
            last.until("a beat", lambda page: page.get("llmcost_source_up{source=engine,target=chat}") == 1)
            assert last.end() == 0
    assert one.wrong + other.wrong == []
    assert one.retries + other.retries >= kills // 2, "nobody was interrupted"
    acknowledged = one.acknowledged + other.acknowledged
    check(saved(root / "data"), acknowledged)
    return len(acknowledged)


def check(found: Saved, events: list[dict[str, Any]]) -> None:
    """All events are booked once, and both books agree to the nano-dollar."""
    assert _of(found, Kind.FEATURE_REQUESTS) == _sums(events, lambda _: 1)
    assert _of(found, Kind.FEATURE_OUTPUT_TOKENS) == _sums(events, lambda one: one["output_tokens"])
    totals = found.totals
    api = sum(150 * one["input_tokens"] + 600 * one["output_tokens"] for one in events if one["model"] == "api")
    bill = dict.fromkeys(("api", "compute_busy"), 0)
    for account, amount in totals.items():
        if account.kind is Kind.SPEND and account.labels[0] in bill:
            bill[account.labels[0]] += amount
    shown = sum(amount for account, amount in totals.items() if account.kind is Kind.ATTRIBUTED)
    pending = sum(amount for (_, item), amount in found.pending.items() if item[0] == "nano_usd")
    assert bill["api"] == api
    assert sum(bill.values()) == shown + pending
    of_buckets = dict.fromkeys(totals, 0)
    for (account, _), amount in found.buckets.items():
        of_buckets[account] += amount
    assert of_buckets == totals


def _of(found: Saved, kind: Kind) -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = {}
    for account, amount in found.totals.items():
        if account.kind is kind and amount:
            feature, _, name, _ = account.labels
            model = "served" if name == PAGE_MODEL else name  # an alias goes by the page's name, once that is known
            sums[feature, model] = sums.get((feature, model), 0) + amount
    return sums


def _sums(events: list[dict[str, Any]], value: Any) -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = {}
    for one in events:
        key = one["feature"], one["model"]
        sums[key] = sums.get(key, 0) + value(one)
    return {key: amount for key, amount in sums.items() if amount}


def labels(page: Mapping[str, float], family: str) -> dict[str, float]:
    """Return the samples of one family."""
    return {name: value for name, value in page.items() if name.startswith(f"llmcost_{family}{{")}
