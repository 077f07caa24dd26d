"""`make demo` for real: everything is there, the figures come within a minute, and one Ctrl-C ends it all."""

import asyncio
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner

from demo import children
from demo.__main__ import main
from demo.children import Children
from demo.ports import HOST, free_ports
from exporter.metrics import PREFIX, ROWS
from tests.demos import Demo, running_demo
from tests.monitoring import get, query, wait
from tests.processes import RECORDING

DRIVERS: Final = "the driver's own, and no driver is asked: these GPUs come from DCGM"
WITHOUT_SAMPLES: Final = {
    "gateway_booked_spend_usd_total": "no LiteLLM is part of the demo",
    "gateway_spend_usd_total": "no LiteLLM is part of the demo",
    "budget_forecast_usd": "needs an hour of history",
    "gpu_field_supported": DRIVERS,
    "gpu_mig_dram_active_ratio": "no GPU of the demo is divided",
    "gpu_mig_graphics_active_ratio": "no GPU of the demo is divided",
    "gpu_mig_info": "no GPU of the demo is divided",
    "gpu_mig_memory_total_bytes": "no GPU of the demo is divided",
    "gpu_mig_memory_used_bytes": "no GPU of the demo is divided",
    "gpu_mig_sm_active_ratio": "no GPU of the demo is divided",
    "gpu_mig_tensor_active_ratio": "no GPU of the demo is divided",
    "gpu_pcie_bytes_total": DRIVERS,
    "gpu_xid_errors_total": DRIVERS,
    "gpu_xid_last_timestamp_seconds": DRIVERS,
    "nvml_call_stuck_seconds": DRIVERS,
    "nvml_errors_total": DRIVERS,
    "nvml_poll_seconds_total": DRIVERS,
    "nvml_polls_total": DRIVERS,
}
IS: Final = {
    "engine chat-small": "replayed",
    "engine chat-large": "replayed",
    "GPUs": "synthetic",
    "usage events": "synthetic",
    "budget checks": "synthetic",
    "exporter": "real",
    "Prometheus": "real",
    "Alertmanager": "real",
}
PAYERS: Final = {
    "chat-small": {"support_chat", "search_answers", "document_summary"},
    "chat-large": {"support_chat", "document_summary", "code_review"},
}
EDGE: Final = "cascade=support,from_tier=fast,to_tier=balanced"


def families(page: dict[str, float]) -> set[str]:
    """The families that have samples, without the prefix; of a histogram that is its count."""
    return {re.sub("_count$", "", key.partition("{")[0].removeprefix(PREFIX)) for key in page}


def payers(page: dict[str, float], engine: str) -> set[str]:
    """The features that pay for a part of an engine, "" for APIs."""
    name = re.compile(rf"llmcost_attributed_spend_usd_total{{engine={engine},feature=(\w+)")
    return {match[1] for key, value in page.items() if value and (match := name.match(key))} - {"unattributed"}


@pytest.mark.timeout(120)
def test_every_family_has_samples_but_for_those_that_cannot(demo: Demo):
    names = {str(row.name) for row in ROWS}
    expected = names - WITHOUT_SAMPLES.keys()
    page = demo.at().until(f"all of {sorted(expected)}", lambda page: expected <= families(page), seconds=60)
    assert names - families(page) == WITHOUT_SAMPLES.keys()


@pytest.mark.timeout(120)
def test_features_pay_for_engines_and_apis(demo: Demo):
    def is_shared(page: dict[str, float]) -> bool:
        covered = (page[f"llmcost_attribution_coverage_ratio{{engine={engine},window=5m}}"] for engine in PAYERS)
        return all(payers(page, engine) == all_of for engine, all_of in PAYERS.items()) and all(
            0.8 < ratio < 1.2 for ratio in covered
        )

    page = demo.at().until(f"paid by {PAYERS}, and nearly all is claimed", is_shared, seconds=60)
    assert payers(page, "") <= {"document_summary", "code_review"}
    results = ("late", "conflict", "rejected")
    assert [page[f"llmcost_usage_events_total{{result={result}}}"] for result in results] == [0, 0, 0]


@pytest.mark.timeout(120)
def test_a_cascade_escalates_and_gpus_work_for_engines(demo: Demo):
    page = demo.at().until("escalations", lambda page: page[f"llmcost_escalations_total{{{EDGE}}}"] > 20, 60)
    assert 0.1 < page[f"llmcost_escalation_ratio{{{EDGE},window=5m}}"] < 0.4
    assert page["llmcost_cold_starts_total{engine=chat-large}"] >= 1  # one more whenever the recording begins anew
    gpus = [key for key in page if key.startswith("llmcost_engine_gpu_info{")]
    assert [re.sub(r".*engine=([\w-]+),gpu=(\d).*", r"\1 \2", key) for key in sorted(gpus)] == [
        "chat-large 1", "chat-large 2", "chat-small 0",
    ]  # fmt: skip


@pytest.mark.timeout(120)
def test_budgets_warn_and_would_deny(demo: Demo):
    denied = "llmcost_budget_denied_total{budget=search,mode=shadow}"
    page = demo.at().until("shadow denials", lambda page: page[denied] > 0, 90)
    assert 0.75 <= page["llmcost_budget_consumed_ratio{budget=inference,period=day}"] < 0.9
    assert 0.6 <= page["llmcost_budget_consumed_ratio{budget=inference,period=month}"] < 0.9
    log = demo.folder / "notifications.log"
    wait(lambda: "BudgetWarning inference" in log.read_text(), "the warning", 60, demo.said.read_text)


@pytest.mark.timeout(120)
def test_prometheus_has_the_page_and_all_rules(demo: Demo):
    def is_known() -> bool:
        target = '{cluster="demo",namespace="llm"}'
        names = ("attributed_spend_usd_total", "escalations_total", "budget_spent_usd", "gpu_power_watts")
        return all(query(demo.prometheus, f"llmcost_{name}{target}") for name in names)

    wait(is_known, "Prometheus knows the page", 30)
    groups = get(demo.prometheus, "/api/v1/rules")["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    assert get(demo.prometheus, "/api/v1/alertmanagers")["data"]["activeAlertmanagers"]


def test_it_says_what_is_real(demo: Demo):
    assert {what: place.is_ for what, place in demo.places.items()} == IS
    assert b"SYNTHETIC" in demo.at("GPUs").ask("/metrics").body


@pytest.mark.timeout(120)
def test_one_ctrl_c_ends_all(tmp_path: Path):
    with running_demo(tmp_path) as demo:
        started = demo.children()
        assert len(started) == 5
        assert demo.end(signal.SIGINT) == 0
    assert not any(Path(f"/proc/{process}").exists() for process in started)
    for word in ("Traceback", "killed", "ended"):
        assert word not in demo.said.read_text()


@pytest.mark.timeout(120)
def test_it_goes_on_without_an_engine_and_ends_without_the_exporter(tmp_path: Path):
    with running_demo(tmp_path) as demo:
        started = demo.children()
        replay, exporter = (
            next(process for process, command in started.items() if part in command)
            for part in (f" replay {RECORDING}", " serve ")
        )
        os.kill(replay, signal.SIGKILL)
        wait(lambda: "ended with -9; the end of its log:" in demo.said.read_text(), "it says so", 10)
        assert len(demo.children()) == 4
        os.kill(exporter, signal.SIGKILL)
        assert demo.process.wait(timeout=10) == 1
    assert "exporter ended with -9" in demo.said.read_text()
    assert not any(Path(f"/proc/{process}").exists() for process in started)


def test_a_port_that_is_taken_is_told(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        ports = free_ports()._replace(prometheus=other.getsockname()[1])
        monkeypatch.setattr("demo.__main__.Ports", lambda: ports)
        result = CliRunner().invoke(main, [])
    assert result.exit_code == 1
    assert result.output == (f"Error: taken on {HOST}: {ports.prometheus} (prometheus); --free-ports takes others\n")


async def test_a_program_that_dies_is_told_with_the_end_of_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    programs = Children(tmp_path)
    child = await programs.start("short", sys.executable, "-c", "print('first'); print('last'); raise SystemExit(3)")
    await child.process.wait()
    await programs.end()
    assert capsys.readouterr().err == "short ended with 3; the end of its log:\n  first\n  last\n"


async def test_a_program_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(children, "_END_SECONDS", 0.2)
    programs = Children(tmp_path)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    child = await programs.start("deaf", sys.executable, "-c", deaf)
    async with asyncio.timeout(10):
        while not child.log.read_text():
            await asyncio.sleep(0.01)
    await programs.end()
    assert child.process.returncode == -signal.SIGKILL
    assert capsys.readouterr().err == "deaf did not end within 0.2 s, and is killed\n"
