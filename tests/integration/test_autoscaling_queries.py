"""What an autoscaler asks, asked of a real Prometheus' engine: numbers that come out of series as they might be."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.config.model import Engine
from exporter.core.autoscaling import Fleet, triggers
from tests.programs import program

CHAT = Engine(name="chat", url="http://a")
FLEET = Fleet(engine=CHAT, requests_per_replica=16, max_replicas=9, cold_start_seconds=600)
CAPPED = replace(FLEET, budget="inference")
UP, LOADING = 3, 3


def series(affordable: float | None = 4) -> dict[str, str]:
    """Three replicas that answer too slowly, three that are loading, and money for four."""
    found = {}
    for number in range(UP + LOADING):
        up = number < UP
        pod = f'pod="{number}"'
        found[f'llmcost_source_up{{source="engine", target="chat", {pod}}}'] = f"{int(up)}x20"
        if up:
            found[f'llmcost_requests_running{{engine="chat", {pod}}}'] = "16x20"
            found[f'llmcost_requests_waiting{{engine="chat", {pod}}}'] = "20x20"
            found[f'llmcost_ttft_seconds_bucket{{engine="chat", {pod}, le="5"}}'] = "0x20"
            found[f'llmcost_ttft_seconds_bucket{{engine="chat", {pod}, le="10"}}'] = "0+30x20"
            found[f'llmcost_ttft_seconds_bucket{{engine="chat", {pod}, le="+Inf"}}'] = "0+30x20"
            found[f'llmcost_engine_gpu_info{{engine="chat", gpu="0", {pod}}}'] = "1x20"
            found[f'llmcost_gpu_busy_seconds_total{{gpu="0", {pod}}}'] = "0+15x20"
            if affordable is not None:
                found[f'llmcost_max_affordable_replicas{{budget="inference", engine="chat", {pod}}}'] = (
                    f"{affordable}x20"
                )
    for signal, edge, value in (("ttft", "up", 4), ("gpu_utilization", "down", 0.2)):
        found[f'llmcost_scaling_threshold{{engine="chat", signal="{signal}", edge="{edge}"}}'] = f"{value}x20"
    return found


def asked(folder: Path, fleet: Fleet, given: dict[str, str], **expected: float) -> None:
    """Hold each trigger's number, as promtool computes it after five minutes, against what is expected."""
    queries = {trigger.name: trigger.query for trigger in triggers(fleet)}
    assert set(expected) == {name.replace("-", "_") for name in queries}
    cases: list[dict[str, Any]] = [
        {"expr": f"round({query}, 0.01)", "eval_time": "5m", "exp_samples": [{"labels": "{}", "value": number}]}
        for query, number in zip(queries.values(), (expected[name.replace("-", "_")] for name in queries), strict=True)
    ]
    inputs = [{"series": name, "values": values} for name, values in given.items()]
    test = {
        "evaluation_interval": "15s",
        "tests": [{"interval": "15s", "input_series": inputs, "promql_expr_test": cases}],
    }
    file = folder / "queries.yml"
    file.write_text(yaml.safe_dump(test), encoding="utf-8")
    done = subprocess.run([program("promtool"), "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_trigger_asks_for_what_there_is_to_do(tmp_path: Path):
    asked(tmp_path, FLEET, series(), load=3 * 36, ttft=2.44, gpu_busy=3)


def test_money_bounds_every_trigger_also_while_replicas_load(tmp_path: Path):
    """Replicas that load are asked for already, and nobody counts them: a ratio of those that answer went past it."""
    asked(tmp_path, CAPPED, series(), load=4 * 16, ttft=4, gpu_busy=3)


def test_money_for_fewer_than_there_are_lets_none_be_held(tmp_path: Path):
    asked(tmp_path, CAPPED, series(affordable=2), load=2 * 16, ttft=2, gpu_busy=2)


@pytest.mark.parametrize("fleet", [CAPPED, replace(CAPPED, budget="other")])
def test_money_that_is_not_known_bounds_nothing(tmp_path: Path, fleet: Fleet):
    asked(tmp_path, fleet, series(affordable=None), load=3 * 36, ttft=7.31, gpu_busy=3)
