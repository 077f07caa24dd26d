"""What an autoscaler asks, asked of a real Prometheus that scraped the demo: one number each."""

import math
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from exporter.cli import main
from tests.demos import Demo
from tests.monitoring import query, wait
from tests.processes import REPOSITORY


def the_one(demo: Demo, expr: str) -> dict[str, Any]:
    """The only element of the answer, once there is one."""
    wait(lambda: len(query(demo.prometheus, expr)) == 1, expr, seconds=60)
    (said,) = query(demo.prometheus, expr)
    return said


@pytest.mark.timeout(120)
@pytest.mark.parametrize("flags", [(), ("--cap-by-budget=inference",)], ids=["load", "capped"])
def test_each_trigger_asks_for_one_number(demo: Demo, flags: tuple[str, ...]):
    config = REPOSITORY / "demo/config.yml"
    done = CliRunner().invoke(main, ["manifests", f"--config.file={config}", "scaledobject", "--namespace=llm", *flags])
    assert done.exit_code == 0, done.output
    triggers = [trigger for document in yaml.safe_load_all(done.stdout) for trigger in document["spec"]["triggers"]]
    assert len(triggers) == 6
    for trigger in triggers:
        expr = trigger["metadata"]["query"]
        said = the_one(demo, expr)
        assert said["metric"] == {}
        assert math.isfinite(float(said["value"][1])), trigger["name"]


@pytest.mark.timeout(120)
def test_no_query_is_empty_where_the_budget_is_not_known(demo: Demo):
    config = REPOSITORY / "demo/config.yml"
    flags = ("--namespace=llm", "--cap-by-budget=inference")
    done = CliRunner().invoke(main, ["manifests", f"--config.file={config}", "scaledobject", *flags])
    (first, *_) = yaml.safe_load_all(done.stdout)
    for trigger in first["spec"]["triggers"]:
        expr = trigger["metadata"]["query"].replace('budget="inference"', 'budget="nobody knows"')
        assert math.isfinite(float(the_one(demo, expr)["value"][1])), trigger["name"]
