"""What a dashboard is: rows of panels, the variables that all have, and the links between them."""

import itertools
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as model

from grafana.panels import DATASOURCE, Panel, build

TAG: Final = "llm-cost"
RUNBOOKS: Final = "https://git.example/llm-cost-exporter/blob/main/docs/runbooks"  # where your copy is
VLLM: Final = "https://github.com/vllm-project/vllm/tree/main/examples/observability/dashboards/grafana"


@dataclass(frozen=True)
class Row:
    """Panels under one heading, from left to right and top to bottom; each line is 24 wide."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """A dashboard; `uid` is its name for ever, and the name of its file."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    since: str = "now-24h"


def dashboard_of(board: Board) -> model.Dashboard:
    """Return a dashboard as Grafana has it."""
    builder = dashboard.Dashboard(board.title).uid(board.uid).description(board.description)
    builder.tags([TAG]).time(board.since, "now").refresh("1m").timezone("browser").readonly()
    builder.tooltip(model.DashboardCursorSync.CROSSHAIR)
    for variable in _variables():
        builder.with_variable(variable)
    for link in _links():
        builder.link(link)
    _place(builder, board.rows)
    return builder.build()


def _place(builder: dashboard.Dashboard, rows: tuple[Row, ...]) -> None:
    """Add rows one below the other; the SDK begins a line anew when one is full."""
    numbers = itertools.count(1)
    for row in rows:
        builder.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            builder.with_panel(build(panel, next(numbers)))


def _variables() -> list[Any]:
    fleet = 'cluster=~"$cluster", namespace=~"$namespace"'
    return [
        dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
        _choice("cluster", "Cluster", "label_values(llmcost_build_info, cluster)"),
        _choice("namespace", "Namespace", 'label_values(llmcost_build_info{cluster=~"$cluster"}, namespace)'),
        _choice("engine", "Engine", f"label_values(llmcost_gpus_charged{{{fleet}}}, engine)"),
        _choice("budget", "Budget", f"label_values(llmcost_budget_limit_usd{{{fleet}}}, budget)"),
        dashboard.TextBoxVariable("runbooks").label("Runbooks at").default_value(RUNBOOKS),
    ]


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """Return a variable whose choice of all also takes what has no such label."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )


def _links() -> list[dashboard.DashboardLink]:
    ours = dashboard.DashboardLink("LLM cost").type(model.DashboardLinkType.DASHBOARDS).tags([TAG])
    engines = dashboard.DashboardLink("vLLM").type(model.DashboardLinkType.DASHBOARDS).tags(["vllm"])
    source = dashboard.DashboardLink("Dashboards of vLLM").type(model.DashboardLinkType.LINK).url(VLLM)
    return [
        ours.include_vars(True).keep_time(True),
        engines.as_dropdown(True).keep_time(True),
        source.target_blank(True).icon("external link"),
    ]
