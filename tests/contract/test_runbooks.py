"""Each alert has a runbook, and each query of a rule or a runbook asks for what the exporter has."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.programs import program
from tests.promql import ROOT, Reader, Rule, read_rules

RUNBOOKS = ROOT / "docs/runbooks"
PAGES = sorted(RUNBOOKS.glob("*.md"))
HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
RULES = read_rules()
ALERTS = [rule for rule in RULES if rule.is_alert]
PROMISED = """
    QueueDepthHigh QueueDepthLow GpuUtilizationHigh GpuUtilizationLow TtftTargetMissed TtftComfortable KvCacheFull
    InteractiveScaledToZero
    BudgetWarning BudgetHardCap BudgetUnknown BudgetBurnFast BudgetBurnSlow BudgetForecastOver BudgetExhaustionSoon
    EscalationRateHigh EscalationRateCritical EscalationAboveBreakEven CostAboveBreakEven IdleSpendHigh
    ColdStartsFrequent ColdStartSlow RightSizingCandidate UnpricedTokens UsageOverclaimed
    SourceDown SourceStale LedgerWriteFailed ConfigReloadFailed GpuLost GpuThrottled GpuMemoryErrors
    ExporterDown ExporterAbsent Watchdog
"""


def queries(path: Path) -> list[str]:
    return re.findall(r"^ *```promql\n(.+?)^ *```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_rules_have_the_alerts_that_were_promised():
    assert {rule.name for rule in ALERTS} == {f"LLMCost{name}" for name in PROMISED.split()}


def test_each_alert_has_a_runbook_and_each_runbook_an_alert():
    assert {path.name for path in RUNBOOKS.iterdir()} == {f"{rule.name.lower()}.md" for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule.name)
def test_an_alert_says_who_acts_and_what_it_is_about(rule: Rule):
    assert set(rule.labels) <= {"severity", "action"}
    assert rule.labels["severity"] in {"critical", "warning", "info", "none"}
    assert rule.labels.get("action", "scale_up") in {"scale_up", "scale_down"}
    assert set(rule.annotations) == {"summary", "description", "runbook_url"}
    assert re.fullmatch(r"[A-Z][^{}]*\.", rule.annotations["summary"])
    assert "{{ $value" in rule.annotations["description"]
    assert rule.annotations["runbook_url"] == f"docs/runbooks/{rule.name.lower()}.md"
    assert (RUNBOOKS / f"{rule.name.lower()}.md").read_text(encoding="utf-8").startswith(f"# {rule.name}\n")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_runbook_has_the_four_parts_and_something_to_ask(path: Path):
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert queries(path)
    assert text.count("```") % 2 == 0
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_key_of_the_config_that_a_runbook_names_exists(path: Path):
    known = set(re.findall(r"[a-z_]+", (ROOT / "config.example.yml").read_text(encoding="utf-8")))
    for key in re.findall(r"`((?:scaling|alerts|budgets\[\]|engines\[\]|prices|gpu)\.[a-z_.]+)`", path.read_text()):
        assert set(key.replace("[]", "").split(".")) <= known, key


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_asks_for_what_the_exporter_has(rule: Rule):
    assert Reader(RULES).problems(rule.expr) == ()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_runbook_asks_for_what_the_exporter_has(path: Path):
    reader = Reader(RULES)
    assert {query: found for query in queries(path) if (found := reader.problems(query))} == {}


def test_prometheus_itself_reads_the_queries_of_the_runbooks(tmp_path: Path):
    rules = [
        {"record": f"runbook:query:{path.stem}_{number}", "expr": query}
        for path in PAGES
        for number, query in enumerate(queries(path))
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "runbooks", "rules": rules}]}))
    done = subprocess.run([program("promtool"), "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("llmcost_spend_total", "there is no llmcost_spend_total"),
        ("sum(", "does not parse"),
        ('llmcost_requests_waiting{tier="fast"}', "has no label tier"),
        ('llmcost_ttft_p95_seconds{window="1h"}', "has no window='1h'"),
        ('llmcost_ttft_p95_seconds{window=~"1m|1h"}', "has no window='1h'"),
        ('llmcost_alert_threshold{alert="LLMCostQueueDepthHigh"}', "has no alert="),
        ("sum by (tier) (llmcost_requests_waiting)", "by tier, which nothing in it has"),
        ("max by (cluster) (max by (engine) (llmcost_min_replicas))", "by cluster, which nothing in it has"),
        ("llmcost_requests_waiting / on (engine, model) llmcost_min_replicas", "by model, which one side lacks"),
        ("llmcost_requests_waiting / ignoring (tier) llmcost_min_replicas", "by tier, which neither side has"),
        ("sum by (budget) (llmcost_budget_consumed_ratio)", "sum of llmcost_budget_consumed_ratio"),
        ("avg(max by (engine) (llmcost_kv_cache_usage_ratio) > 0.5)", "avg of llmcost_kv_cache_usage_ratio"),
        ("avg(budget:llmcost_budget_consumed_ratio:max)", "avg of llmcost_budget_consumed_ratio"),
        ("sum(max_over_time((llmcost_source_up * 2)[5m:1m]))", "sum of llmcost_source_up"),
    ],
)
def test_what_is_wrong_with_a_query_is_found(query: str, problem: str):
    expr = "max by (budget) (llmcost_budget_consumed_ratio)"
    recorded = Rule("x.yml", "budget:llmcost_budget_consumed_ratio:max", expr, False, "0s", {}, {}, "1m")
    found = Reader((recorded,)).problems(query)
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize(
    "query",
    [
        "count by (cluster, namespace) (llmcost_source_up == 1)",
        "sum(llmcost_source_up == bool 0)",
        "sum by (engine) (llmcost_requests_waiting and on (instance, engine) llmcost_kv_cache_usage_ratio > 0.9)",
        "sum by (le) (rate(llmcost_ttft_seconds_bucket[5m]))",
        'sum by (of) (label_replace(llmcost_requests_running, "of", "$1", "engine", "(.*)"))',
        "avg by (engine) (llmcost_engine_gpu_info * ignoring (engine) group_left () llmcost_gpu_busy_seconds_total)",
        "max by (engine) (llmcost_budget_limit_usd * on (instance) group_right () llmcost_min_replicas)",
    ],
)
def test_a_good_query_is_left_alone(query: str):
    assert Reader().problems(query) == ()
