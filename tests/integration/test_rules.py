"""The rules as promtool reads them, and what every alert must have."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.config.model import Alerts
from exporter.core.alerting import thresholds
from tests.faster import differences, faster
from tests.programs import program
from tests.rules_mutants import RULES, equivalents, every_mutant, name_of, rules_of, turned

FILES = sorted(RULES.glob("*.yml"))
TESTS = sorted((RULES / "tests").glob("*_test.yml"))
ALL = [rule for path in FILES for rule in rules_of(yaml.safe_load(path.read_bytes()))]
ALERTS = [rule for rule in ALL if "alert" in rule]
# Numbers that nobody sets: windows in seconds, and how much must be known before anything is said.
FIXED = {
    "budget_period:llmcost_budget_burn_rate:min1h": {"3600"},
    "budget_period:llmcost_budget_burn_rate:min6h": {"21600"},
    "budget_period:llmcost_budget_runway_seconds:increase1h": {"3600"},
    "LLMCostBudgetForecastOver": {"0.05"},  # of the period is known
    "cascade_from_tier_to_tier:llmcost_escalations:ratio_increase1h": {"50"},  # requests
    "LLMCostCostAboveBreakEven": {"1e6"},  # tokens
    "LLMCostIdleSpendHigh": {"0.5"},  # of the spend
    "LLMCostLedgerWriteFailed": {"300"},  # the window of the failures, in seconds
    "engine:llmcost_ttft_seconds:p95_rate2m": {"0.95"},  # the percentile
    "engine:llmcost_ttft_seconds_count:tail_rate2m": {"120", "0.05"},  # the window, and what is beyond the percentile
}
NUMBER = re.compile(
    r"""
      "[^"]*" | \#[^\n]* | \{[^}]*\} | \[[^\]]*\] | \boffset\s+\S+
    | (?<! [\w:.] ) (?P<number> \d+ (?:\.\d+)? (?:e\d+)? ) (?! [\w:.] )
    """,
    re.VERBOSE,
)


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_to_criticise():
    promtool("check", "rules", "--lint=all", "--lint-fatal", *FILES)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_the_tests_of_the_rules_pass(path: Path):
    promtool("test", "rules", path)


def test_every_file_has_tests_and_one_group_for_a_topic():
    for path in FILES:
        assert [group["name"] for group in yaml.safe_load(path.read_bytes())["groups"]] == [f"llmcost_{path.stem}"]
        assert RULES / "tests" / f"{path.stem}_test.yml" in TESTS


def test_alerts_of_one_name_have_one_summary():
    assert len({(rule["alert"], rule["annotations"]["summary"]) for rule in ALERTS}) == len(
        {rule["alert"] for rule in ALERTS}
    )


@pytest.mark.parametrize("rule", ALL, ids=name_of)
def test_no_number_that_an_operator_sets_stands_in_a_rule(rule: dict[str, Any]):
    numbers = {found["number"] for found in NUMBER.finditer(str(rule["expr"]))} - {None, "0", "1"}
    assert numbers == FIXED.get(name_of(rule), set())


def test_every_threshold_of_the_config_has_its_alert_and_every_other_none():
    queries = {rule["alert"]: rule["expr"] for rule in ALERTS}
    used = {name for query in queries.values() for name in re.findall(r'alert="(\w+)"', query)}
    rows = list(thresholds(Alerts()))
    assert used == {row.alert for row in rows}
    severities = {rule["alert"]: rule["labels"]["severity"] for rule in ALERTS}
    assert {row.alert: row.severity for row in rows} == {
        row.alert: severities[row.alert.removesuffix("Day")] for row in rows
    }


def test_only_mutants_that_exist_are_excused():
    assert equivalents().keys() <= {mutant.key for mutant in every_mutant()}


def test_an_operator_is_turned_and_a_matcher_is_not():
    query = 'a{b!="> 1", c="and"} > 1 and on (x) "<" or record:and:sum == bool 2 # > 3\nunless d >= 0'
    turns = dict(turned(query))
    assert [*turns] == ["> becomes <", "and becomes unless", "== becomes !=", "unless becomes and", ">= becomes <="]
    assert turns["> becomes <"] == query.replace("} > 1", "} < 1")
    assert turns["unless becomes and"] == query.replace("unless", "and")


SLOW = """
groups:
  - name: a
    interval: 15s
    rules:
      - alert: A
        expr: |
          rate(a{window="5m"}[5m] offset 1h) # in [5m]
          > max_over_time(b[1h:20s])
        for: 1m
        annotations: {summary: "In 5m."}
"""


def test_durations_are_divided_wherever_they_are_durations():
    (rule,) = rules_of(yaml.safe_load(faster(SLOW, 20)))
    assert rule == {
        "alert": "A",
        "expr": 'rate(a{window="5m"}[15s] offset 180s) # in [5m]\n> max_over_time(b[180s:1s])\n',
        "for": "3s",
        "annotations": {"summary": "In 5m."},
    }
    assert differences(SLOW, faster(SLOW, 20), 20) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("750ms", "15s"), ("[15s]", "[5m]"), ("[15s]", "[16s]"), ("180s)", "1h)"), (":1s]", ":20s]"), ("3s", "1m"),
        ('"5m"', '"15s"'), ("> max", "< max"), ("In 5m", "In 15s"), ("alert: A", "alert: B"),
    ],
)  # fmt: skip
def test_any_other_change_is_told(old: str, new: str):
    fast = faster(SLOW, 20)
    assert fast.count(old) == 1
    assert differences(SLOW, fast.replace(old, new), 20)
