"""The example of Alertmanager's config, and the page on alerts: held against the rules, by Alertmanager's own tool."""

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from promql_parser import parse, parse_duration

from tests.programs import program
from tests.promql import ROOT, Reader, Rule, read_rules

EXAMPLE = ROOT / "rules/alertmanager/example.yml"
CASES = ROOT / "rules/alertmanager/tests/routes.yml"
PAGE = ROOT / "docs/alerts.md"
TOPICS = ("scaling.yml", "budgets.yml", "efficiency.yml", "exporter.yml")
BEAT_AND_SCRAPE = timedelta(seconds=5 + 15)
RULES = read_rules()
ALERTS = sorted((rule for rule in RULES if rule.is_alert), key=lambda rule: TOPICS.index(rule.file))
CONFIG: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
MATCHER = re.compile(r'(\w+)(=~|!=|!~|=)"(.*)"')


class Route(NamedTuple):
    """Where an alert ends up, and how it is grouped there."""

    receiver: str
    group_wait: str


def amtool(*arguments: str) -> str:
    done = subprocess.run([program("amtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def amlint(*arguments: str) -> None:
    command = [str(Path(sys.executable).with_name("amlint")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def matches(labels: dict[str, str], matchers: list[str]) -> bool:
    for matcher in matchers:
        found = MATCHER.fullmatch(matcher)
        assert found, matcher
        name, operator, wanted = found.groups()
        is_so = re.fullmatch(wanted if "~" in operator else re.escape(wanted), labels.get(name, "")) is not None
        if is_so is operator.startswith("!"):
            return False
    return True


def routes(labels: dict[str, str], node: dict[str, Any], group_wait: str = "30s") -> Iterator[Route]:
    """Walk the tree of routes as Alertmanager does."""
    group_wait = node.get("group_wait", group_wait)
    is_taken = False
    for child in node.get("routes", ()):
        if matches(labels, child["matchers"]):
            is_taken = True
            yield from routes(labels, child, group_wait)
            if not child.get("continue"):
                return
    if not is_taken:
        yield Route(node["receiver"], group_wait)


def labels_of(rule: Rule) -> dict[str, str]:
    return {"alertname": rule.name, **rule.labels}


def meant(rule: Rule) -> Iterator[str]:
    """Say who should hear of an alert, in the order of the routes."""
    severity = rule.labels["severity"]
    if severity == "none":
        yield "dead-man"
    if rule.name.startswith("LLMCostBudget"):
        yield "finance"
    if severity == "critical":
        yield "pager"
    if "action" in rule.labels:
        yield "autoscaler"
    elif severity in {"warning", "info"}:
        yield {"warning": "tickets", "info": "nobody"}[severity]


def test_alertmanager_takes_the_example():
    assert "SUCCESS" in amtool("check-config", str(EXAMPLE))


def test_the_linter_finds_nothing_neither_beside_the_rules():
    amlint("check", "--strict", str(EXAMPLE), "--rules", "rules/*.yml")


def test_the_cases_hold_and_reach_every_route():
    amlint("test", str(EXAMPLE), str(CASES), "--fail-under", "100")


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule.name)
def test_every_alert_goes_where_its_severity_and_action_say(rule: Rule):
    expected = list(meant(rule))
    assert [route.receiver for route in routes(labels_of(rule), CONFIG["route"])] == expected
    labels = [f"{name}={value}" for name, value in labels_of(rule).items()]
    verify = f"--verify.receivers={','.join(expected)}"
    amtool("config", "routes", "test", f"--config.file={EXAMPLE}", verify, *labels)


@pytest.mark.parametrize(
    "case", [case for case in yaml.safe_load(CASES.read_text()) if "firing" not in case], ids=lambda case: case["name"]
)
def test_alertmanagers_own_tool_agrees_with_the_cases(case: dict[str, Any]):
    labels = [f"{name}={value}" for name, value in case["labels"].items()]
    verify = f"--verify.receivers={','.join(case['expect'])}"
    amtool("config", "routes", "test", f"--config.file={EXAMPLE}", verify, *labels)


def test_alerts_that_inhibit_and_those_that_are_inhibited_have_the_labels_that_must_be_equal():
    reader = Reader(RULES)
    for inhibition in CONFIG["inhibit_rules"]:
        for side in ("source_matchers", "target_matchers"):
            concerned = [rule for rule in ALERTS if matches(labels_of(rule), inhibition[side])]
            assert concerned, inhibition
            for rule in concerned:
                has = reader.labels(parse(rule.expr))
                assert has >= set(inhibition["equal"]), (rule.name, set(inhibition["equal"]) - has)


def test_no_alert_inhibits_itself():
    for inhibition in CONFIG["inhibit_rules"]:
        for rule in ALERTS:
            is_source = matches(labels_of(rule), inhibition["source_matchers"])
            assert not (is_source and matches(labels_of(rule), inhibition["target_matchers"])), rule.name


def length(duration: str) -> timedelta:
    return timedelta() if duration == "0s" else parse_duration(duration)


def in_words(time: timedelta) -> str:
    minutes, seconds = divmod(round(time.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(f"{number} {unit}" for number, unit in ((hours, "h"), (minutes, "min"), (seconds, "s")) if number)


def known_after(rule: Rule) -> str:
    told = [route for route in routes(labels_of(rule), CONFIG["route"]) if route.receiver != "nobody"]
    if not told:
        return "never"
    wait = min(length(route.group_wait) for route in told)
    return in_words(BEAT_AND_SCRAPE + length(rule.interval) + length(rule.duration) + wait)


def row(rule: Rule) -> str:
    """Return the first cells of an alert's row; its threshold follows."""
    action = f"`{rule.labels['action']}` " if "action" in rule.labels else ""
    name = f"[{rule.name}](runbooks/{rule.name.lower()}.md)"
    return f"| {name} | {rule.labels['severity']} | {action}| {rule.duration} | {known_after(rule)} | "


def test_the_page_says_of_every_alert_what_the_rules_say():
    _, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- alerts:")
    lines = [line for line in rest.partition("<!-- alerts: end")[0].splitlines() if line.startswith("| [")]
    expected = [row(rule) for rule in ALERTS]
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected


def test_every_threshold_that_the_page_names_is_a_key_of_the_config():
    example = (ROOT / "config.example.yml").read_text(encoding="utf-8")
    keys = set(re.findall(r"[a-z_]+", example))
    for path in re.findall(r"`((?:scaling|alerts|budgets\[\]|engines\[\])\.[a-z_.]+)`", PAGE.read_text()):
        assert set(path.replace("[]", "").split(".")) <= keys, path
