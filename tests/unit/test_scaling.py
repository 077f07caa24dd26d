"""Signals, their thresholds, and the fewest replicas of a workload."""

import pytest

from exporter.config.model import Engine, Scaling, Workload
from exporter.core.scaling import min_replicas, signals

CHAT = Engine(url="http://x", ttft_target=0.4)


def test_thresholds_are_the_configs_and_multiples_of_the_ttft_target():
    found = {signal.name: (signal.up, signal.down) for signal in signals(Scaling(), CHAT, waiting=None, ttft_p95=None)}
    assert found == {"queue_depth": (10.0, 2.0), "gpu_utilization": (0.8, 0.2), "ttft": (0.8, 0.2)}


def test_a_signal_that_is_not_known_has_no_ratio():
    assert {signal.ratio for signal in signals(Scaling(), CHAT, waiting=None, ttft_p95=None)} == {None}


def test_a_ratio_above_one_asks_for_another_replica():
    found = {signal.name: signal.ratio for signal in signals(Scaling(), CHAT, waiting=15, ttft_p95=0.4)}
    assert found == {"queue_depth": 1.5, "gpu_utilization": None, "ttft": 0.5}


@pytest.mark.parametrize(
    ("workload", "target", "replicas"),
    [
        (Workload.INTERACTIVE, 0.5, 1),
        (Workload.WEBHOOK, None, 1),
        (Workload.BATCH, None, 0),
        (Workload.NIGHTLY, None, 0),
        (Workload.SCHEDULED, None, 0),
    ],
)
def test_what_a_workload_demands(workload: Workload, target: float | None, replicas: int):
    engine = Engine(url="http://x", workload=workload)
    assert (engine.ttft_target_seconds, min_replicas(engine)) == (target, replicas)
    names = [signal.name for signal in signals(Scaling(), engine, waiting=1, ttft_p95=1.0)]
    assert ("ttft" in names) == (target is not None)


def test_the_config_overrides_the_fewest_replicas():
    assert min_replicas(Engine(url="http://x", min_replicas=3)) == 3
    assert min_replicas(Engine(url="http://x", min_replicas=0)) == 0
