"""The shipped rules and the shipped route, for real: Prometheus scrapes the exporter, Alertmanager tells a webhook.

Time goes twenty times faster in the rules and in the route; nothing else is changed, but that every receiver is a
webhook of ours. What is told is exactly what the tables below say.
"""

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.faster import differences, faster
from tests.monitoring import daemon, get, wait
from tests.processes import REPOSITORY, Exporter, free_port, replayed, running
from tests.programs import program

FASTER = 20
RULES = sorted((REPOSITORY / "rules").glob("*.yml"))
ROUTE = REPOSITORY / "rules/alertmanager/example.yml"
QUEUE = REPOSITORY / "tests/fixtures/captures/vllm-0.32.0/saturated.prom"
TARGET = {"cluster": "c", "namespace": "llm"}
CONFIG = """\
interval: 200ms
engines:
  - {{name: chat, url: "{chat}", gpus: 1}}
  - {{name: queued, url: "{queued}", gpus: 0.001}}
gpu: {{source: none}}
prices: {{gpu: {{usd_per_hour: {usd_per_hour}}}}}
budgets:
  - {{name: inference, monthly_usd: {limit}, match: {{engine: chat}}}}
  - {{name: trial, monthly_usd: 0.1, match: {{engine: chat}}}}
alerts: {{exhaustion: null}}
"""
PROMETHEUS = """\
global: {{scrape_interval: 500ms, evaluation_interval: 1s}}
rule_files: ["{rules}/*.yml"]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:{alertmanager}"]}}]}}]}}
scrape_configs:
  - job_name: llm-cost
    static_configs: [{{targets: ["127.0.0.1:{exporter}"], labels: {labels}}}]
"""
QUICK, SLOW = 5 * 3600, 1  # US dollars an hour: five percent of the limit in a second, or next to nothing


# Who is told of what: whose budget or queue it is, and whether its end is told as well.
EXPECTED = {
    ("autoscaler", "QueueDepthHigh", "queued"): ("firing", "resolved"),
    ("tickets", "BudgetWarning", "inference"): ("firing", "resolved"),
    ("finance", "BudgetWarning", "inference"): ("firing", "resolved"),
    ("pager", "BudgetBurnFast", "inference"): ("firing", "resolved"),
    ("finance", "BudgetBurnFast", "inference"): ("firing", "resolved"),
    ("pager", "BudgetHardCap", "inference"): ("firing", "resolved"),
    ("finance", "BudgetHardCap", "inference"): ("firing", "resolved"),
    ("pager", "BudgetHardCap", "trial"): ("firing",),  # at once, so that its BudgetBurnFast is no news
    ("finance", "BudgetHardCap", "trial"): ("firing",),
    ("dead-man", "Watchdog", ""): ("firing",),
}
GROUPED_BY = {
    "autoscaler": {"cluster", "namespace", "engine"},
    "tickets": {"alertname", "cluster", "namespace", "budget", "period"},
    "pager": {"alertname", "cluster", "namespace", "budget", "period"},
    "finance": {"cluster", "namespace", "budget", "period"},
    "dead-man": set(),
}


class Told(NamedTuple):
    """One alert in one notification."""

    receiver: str
    alert: str
    whose: str
    status: str


class Receiver:
    """A webhook that writes down what it is told, by the path that it is told at."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.grouped_by: dict[str, set[str]] = {}

    def take(self, path: str, body: bytes) -> bytes:
        said, receiver = json.loads(body), path.lstrip("/")
        self.grouped_by.setdefault(receiver, set()).update(said["groupLabels"])
        for alert in said["alerts"]:
            assert said["groupLabels"].items() <= alert["labels"].items()
            self.told.append(Told(receiver, *named(alert["labels"]), alert["status"]))
        return b""


def named(labels: dict[str, str]) -> tuple[str, str]:
    """An alert's name without the prefix that all have, and whose it is."""
    return labels["alertname"].removeprefix("LLMCost"), labels.get("budget") or labels.get("engine") or ""


@contextlib.contextmanager
def served(answer: Callable[[str, bytes], bytes]) -> Iterator[int]:
    """Answer each request by its path and body, and yield the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = answer(self.path, self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # who asked does not wait any more
                self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815 - what the library looks for

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def told_to(webhook: int, route: str) -> str:
    """Replace every receiver by a path of a webhook."""
    config = yaml.safe_load(route)
    config["receivers"] = [
        {
            "name": receiver["name"],
            "webhook_configs": [{"url": f"http://127.0.0.1:{webhook}/{receiver['name']}", "send_resolved": True}],
        }
        for receiver in config["receivers"]
    ]
    return yaml.safe_dump(config, sort_keys=False)


@contextlib.contextmanager
def alertmanager(folder: Path, webhook: int) -> Iterator[int]:
    port, config = free_port(), folder / "alertmanager.yml"
    config.write_text(told_to(webhook, faster(ROUTE.read_text(encoding="utf-8"), FASTER)))
    command = [
        program("prometheus-alertmanager"), f"--config.file={config}", f"--storage.path={folder}/alertmanager",
        f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=", "--log.level=warn",
    ]  # fmt: skip
    with daemon(folder, command, port):
        yield port


@contextlib.contextmanager
def prometheus(folder: Path, exporter: int, alertmanager: int) -> Iterator[int]:
    port, config, rules = free_port(), folder / "prometheus.yml", folder / "rules"
    rules.mkdir()
    for path in RULES:
        (rules / path.name).write_text(faster(path.read_text(encoding="utf-8"), FASTER))
    config.write_text(
        PROMETHEUS.format(rules=rules, alertmanager=alertmanager, exporter=exporter, labels=json.dumps(TARGET))
    )
    command = [
        program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder}/prometheus",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
        f"--query.lookback-delta={300 // FASTER}s", f"--rules.alert.resend-delay={60 // FASTER}s",
    ]  # fmt: skip
    with daemon(folder, command, port):
        yield port


class World(NamedTuple):
    """Everything that runs, and what can be done to it."""

    exporter: Exporter
    prometheus: int
    alertmanager: int
    receiver: Receiver
    spend: Callable[[int, int], None]  # at so many US dollars an hour, with such a limit
    engine: list[bytes]  # the page of the engine that has a queue

    def wait_until_consumed(self, ratio: float) -> None:
        name = "llmcost_budget_consumed_ratio{budget=inference,period=month}"
        self.exporter.until(f"{name} {ratio}", lambda page: page.get(name, 0) >= ratio, seconds=40)

    def wait_until_told(self, receiver: str, alert: str, whose: str, *statuses: str) -> None:
        for status in statuses:
            told = Told(receiver, alert, whose, status)
            wait(partial(self.receiver.told.__contains__, told), str(told), 60, self.state)

    def alerts(self, state: str) -> set[tuple[str, str]]:
        """What Alertmanager has now in a state."""
        found = get(self.alertmanager, "/api/v2/alerts")
        return {named(alert["labels"]) for alert in found if alert["status"]["state"] == state}

    def state(self) -> str:
        lines = [*self.receiver.told, self.alerts("active"), self.alerts("suppressed"), self.exporter.log.read_text()]
        return "\n".join(str(line) for line in lines)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    receiver, page = Receiver(), [QUEUE.read_bytes()]
    program("prometheus")
    with (
        served(receiver.take) as webhook,
        served(lambda _path, _body: page[0]) as queued,
        replayed(tmp_path, "--skip=30s") as chat,
        alertmanager(tmp_path, webhook) as alertmanager_port,
    ):
        config = tmp_path / "config.yml"

        def write(usd_per_hour: int, limit: int) -> None:
            url = f"http://127.0.0.1:{queued}"
            config.write_text(CONFIG.format(chat=chat, queued=url, usd_per_hour=usd_per_hour, limit=limit))

        write(QUICK, 100)
        with (
            running(tmp_path, "serve", f"--config.file={config}", f"--storage.path={tmp_path}/ledger") as exporter,
            prometheus(tmp_path, exporter.port, alertmanager_port) as prometheus_port,
        ):

            def spend(usd_per_hour: int, limit: int) -> None:
                write(usd_per_hour, limit)
                assert exporter.ask("/-/reload", "POST").status == 200

            yield World(exporter, prometheus_port, alertmanager_port, receiver, spend, page)


@pytest.mark.timeout(180)
def test_a_budget_and_a_queue_are_told_to_whom_the_route_says_and_to_nobody_else(world: World):
    world.wait_until_consumed(0.82)
    world.spend(SLOW, 100)
    for receiver, alert in (
        ("autoscaler", "QueueDepthHigh"),
        ("tickets", "BudgetWarning"),
        ("finance", "BudgetWarning"),
    ):
        world.wait_until_told(receiver, alert, "queued" if receiver == "autoscaler" else "inference", "firing")
    world.engine[0] = re.sub(rb"(?m)^(vllm:num_requests_waiting\S*) .*", rb"\1 0", world.engine[0])
    world.spend(QUICK, 100)
    world.wait_until_consumed(1)
    world.spend(SLOW, 100)
    world.wait_until_told("pager", "BudgetHardCap", "inference", "firing")
    assert world.alerts("suppressed") == {("BudgetBurnFast", "inference"), ("BudgetBurnFast", "trial")}
    assert ("BudgetWarning", "inference") not in world.alerts("active")
    world.spend(SLOW, 1_000_000)
    for told, statuses in EXPECTED.items():
        world.wait_until_told(*told, *statuses)
    assert set(world.receiver.told) == {Told(*told, status) for told, all_of in EXPECTED.items() for status in all_of}
    assert world.receiver.grouped_by == GROUPED_BY
    groups = get(world.prometheus, "/api/v1/rules")["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}, groups


@pytest.mark.parametrize("path", [*RULES, ROUTE], ids=lambda path: path.name)
def test_time_goes_faster_and_nothing_else_changes(path: Path):
    text = path.read_text(encoding="utf-8")
    assert differences(text, faster(text, FASTER), FASTER) == []
