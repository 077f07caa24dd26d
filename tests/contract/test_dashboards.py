"""The dashboards: what the program writes, and queries that a fleet can be asked."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser as promql
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from exporter.metrics import Type
from grafana import BOARDS, FOLDER, written
from tests.promql import ROOT, Reader, family, read_rules

FILES = sorted(FOLDER.glob("*.json"))
DASHBOARDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
PROVISIONING = ROOT / "grafana/provisioning"
RULES = read_rules()
READER = Reader(RULES)
RUNBOOKS = {rule.name.lower() for rule in RULES if rule.is_alert}
FILLED = {"$__rate_interval": "5m", "$cluster": ".*", "$namespace": ".*", "$engine": ".*", "$budget": ".*"}
OVER_TIME = {"rate", "increase", "irate", "resets", "changes", "absent_over_time"}


class Target(NamedTuple):
    """One query of a panel, its variables filled in."""

    board: str
    panel: dict[str, Any]
    query: dict[str, Any]

    @property
    def expr(self) -> str:
        return filled(self.query["expr"])

    @property
    def name(self) -> str:
        return f"{self.board}: {self.panel['title']}: {self.query['refId']}"


def filled(expr: str) -> str:
    for name, value in FILLED.items():
        expr = expr.replace(name, value)
    return expr


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


PANELS = [(name, panel) for name, board in DASHBOARDS.items() for panel in panels(board)]
TARGETS = [Target(name, panel, query) for name, panel in PANELS for query in panel["targets"]]
each_board = pytest.mark.parametrize("board", DASHBOARDS.values(), ids=DASHBOARDS)
each_panel = pytest.mark.parametrize("panel", [panel for _, panel in PANELS],
                                     ids=[f"{name}: {panel['title']}" for name, panel in PANELS])  # fmt: skip
each_target = pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])


def test_the_files_are_what_the_program_writes():
    assert {path.name: path.read_text(encoding="utf-8") for path in FILES} == written(), "run `make dashboards`"
    assert len(FILES) == len(BOARDS) == 4


@each_board
def test_a_dashboard_can_be_provisioned_as_it_is(board: dict[str, Any]):
    assert 39 <= board["schemaVersion"] <= 42
    assert re.fullmatch(r"llmcost-[a-z]+", board["uid"])
    assert not {"__inputs", "__requires", "id"} & {key for key, value in board.items() if value is not None}
    assert board["tags"] == ["llm-cost"]
    assert [variable["name"] for variable in board["templating"]["list"]] == [
        "datasource", "cluster", "namespace", "engine", "budget", "runbooks"
    ]  # fmt: skip
    assert board["editable"] is False


@each_board
def test_nothing_is_asked_of_a_source_that_is_not_chosen(board: dict[str, Any]):
    def sources(node: Any) -> Iterator[Any]:
        if isinstance(node, dict):
            yield from ([node["datasource"]] if "datasource" in node else [])
            for value in node.values():
                yield from sources(value)
        elif isinstance(node, list):
            for value in node:
                yield from sources(value)

    found = list(sources(board["panels"])) + list(sources(board["templating"]))
    assert found
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in found)


@each_board
def test_a_variable_of_all_takes_what_has_no_such_label(board: dict[str, Any]):
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            assert variable["allValue"] == ".*"
            assert variable["includeAll"]
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert found, variable["query"]
            assert not READER.problems(filled(found[1]))
            assert found[2] in READER.labels(promql.parse(filled(found[1])))


@each_board
def test_panels_lie_on_the_grid_and_not_on_each_other(board: dict[str, Any]):
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = set(itertools.product(range(place["x"], place["x"] + place["w"]),
                                      range(place["y"], place["y"] + place["h"])))  # fmt: skip
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)


@each_board
def test_links_lead_to_the_other_dashboards_and_to_those_of_vllm(board: dict[str, Any]):
    tags = [link["tags"] for link in board["links"] if link["type"] == "dashboards"]
    assert tags == [["llm-cost"], ["vllm"]]
    assert all(link["includeVars"] and link["keepTime"] for link in board["links"] if link["tags"] == ["llm-cost"])


@each_board
def test_a_round_trip_through_the_sdk_loses_no_key(board: dict[str, Any]):
    register_default_plugins()
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    assert sorted(keys(again)) == sorted(keys(board))


def keys(node: Any, path: str = "") -> Iterator[str]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield f"{path}/{key}"
        yield from keys(value, f"{path}/{key}")


@each_panel
def test_a_panel_explains_itself(panel: dict[str, Any]):
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["title"]
    assert defaults["unit"]
    assert defaults["noValue"]
    assert panel["description"].endswith(".")
    named = set(re.findall(r"[a-z]+(?:_[a-z0-9]+)+", panel["description"]))
    used = {name for target in panel["targets"] for name in re.findall(r"\b(?:llmcost_)?([a-z]\w+)", target["expr"])}
    assert named & used or not [target for target in panel["targets"] if "llmcost_" in target["expr"]]
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == sorted(set(letters))


@each_panel
def test_a_runbook_that_a_panel_links_exists(panel: dict[str, Any]):
    for link in panel.get("links", ()):
        found = re.fullmatch(r"\$\{runbooks\}/(\w+)\.md", link["url"])
        assert found, link["url"]
        assert found[1] in RUNBOOKS


def test_every_alert_of_a_figure_can_be_reached():
    linked = {link["url"] for _, panel in PANELS for link in panel.get("links", ())}
    assert {f"${{runbooks}}/{name}.md" for name in RUNBOOKS} - linked == {"${runbooks}/llmcostwatchdog.md"}


@each_target
def test_a_query_asks_for_what_the_exporter_has(target: Target):
    assert READER.problems(target.expr) == ()


@each_target
def test_a_query_is_confined_by_the_variables(target: Target):
    selectors = re.findall(r"\{([^}]*)\}", target.query["expr"])
    assert selectors or target.query["expr"] == "vector(1)"
    assert all('cluster=~"$cluster", namespace=~"$namespace"' in selector for selector in selectors)


@each_target
def test_a_legend_names_only_labels_that_its_query_leaves(target: Target):
    named = set(re.findall(r"\{\{(\w+)\}\}", target.query.get("legendFormat", "")))
    assert named <= READER.labels(promql.parse(target.expr))


@each_target
def test_a_query_computes_what_can_be_computed(target: Target):
    problems = list(computed_badly(promql.parse(target.expr)))
    assert problems == []


def computed_badly(expr: promql.Expr) -> list[str]:
    found: list[str] = []

    def look(node: promql.Expr) -> None:
        match node:
            case promql.Call() as call if call.func.name == "histogram_quantile" and "le" not in grouped(call.args[1]):
                found.append("a quantile of buckets that are not summed by le")
            case promql.BinaryExpr() as binary if str(binary.op) == "/" and not is_guarded(binary.rhs):
                found.append(f"a division by what may be 0: {promql_text(binary.rhs)}")
            case promql.Call() as call if call.func.name in {"rate", "increase"}:
                found.extend(of_no_counter(call))

    promql.walk(expr, look)
    bare = counters(expr)
    return found + [f"the whole life of {name}" for name in bare]


def grouped(expr: promql.Expr) -> set[str]:
    return set(expr.modifier.labels) if isinstance(expr, promql.AggregateExpr) and expr.modifier else set()


def is_guarded(expr: promql.Expr) -> bool:
    while isinstance(expr, promql.ParenExpr):
        expr = expr.expr
    return isinstance(expr, promql.NumberLiteral) or (isinstance(expr, promql.BinaryExpr) and str(expr.op) == ">")


def promql_text(expr: promql.Expr) -> str:
    return str(expr.prettify())


def of_no_counter(call: promql.Call) -> Iterator[str]:
    for argument in call.args:
        if isinstance(argument, promql.MatrixSelector):
            row = family(argument.vector_selector.name or "")
            if row is not None and row.type is Type.GAUGE:
                yield f"{call.func.name} of the gauge {row.name}"


def counters(expr: promql.Expr) -> list[str]:
    """Return counters whose raw value is used: it is as old as the exporter."""
    found: list[str] = []

    def look(node: promql.Expr, within: bool) -> None:
        match node:
            case promql.VectorSelector():
                row = family(node.name or "")
                if row is not None and row.type is not Type.GAUGE and not within:
                    found.append(node.name or "")
            case promql.Call():
                for argument in node.args:
                    look(argument, within or node.func.name in OVER_TIME)
            case promql.AggregateExpr() | promql.ParenExpr() | promql.UnaryExpr():
                look(node.expr, within)
            case promql.BinaryExpr():
                look(node.lhs, within)
                look(node.rhs, within)

    look(expr, within=False)
    return found


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("histogram_quantile(0.9, sum by (engine) (rate(llmcost_ttft_seconds_bucket[5m])))", "summed by le"),
        ("llmcost_budget_spent_usd / llmcost_budget_limit_usd", "division"),
        ("sum(llmcost_spend_usd_total)", "whole life"),
        ("rate(llmcost_budget_spent_usd[5m])", "gauge"),
        ("llmcost_budget_spent_usd / (llmcost_budget_limit_usd > 0)", ""),
        ("sum(rate(llmcost_spend_usd_total[5m])) / 3600", ""),
    ],
)
def test_bad_arithmetic_is_told(query: str, said: str):
    problems = computed_badly(promql.parse(query))
    assert said in problems[0] if said else problems == []


def test_provisioning_names_the_source_and_the_folder():
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "$PROMETHEUS_URL"
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards/llm-cost.yml").read_text())["providers"]
    assert provider["options"]["path"] == "$DASHBOARDS_PATH"
    assert provider["allowUiUpdates"] is False


def test_the_files_are_small_enough_for_a_config_map():
    assert sum(path.stat().st_size for path in FILES) < 2**20
