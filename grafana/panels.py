"""What a panel is, and how it becomes Grafana's JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE: Final = looks.DataSourceRef(type_val="prometheus", uid="${datasource}")
RED, AMBER, GREEN, BLUE, GREY = "red", "orange", "green", "blue", "#8e8e8e"


class Kind(Enum):
    """How figures are drawn."""

    SERIES = auto()
    STACKED = auto()
    BARS = auto()
    STAT = auto()
    STATES = auto()
    TABLE = auto()


@dataclass(frozen=True)
class Query:
    """One target of a panel.

    `name` is the legend of a series, or the column of a table, whose figures have their own `unit`. A `line` is what
    the others are compared with: it is drawn dashed.
    """

    expr: str
    name: str = ""
    unit: str = ""
    line: bool = False


@dataclass(frozen=True)
class Panel:
    """A panel: `description` says what is computed from which metric, `empty` why nothing may be shown.

    `edges` colour a figure from each value on; `words` replace values; `runbooks` name alerts that look at the same
    figures; `step` is the shortest interval between two points.
    """

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    kind: Kind = Kind.SERIES
    width: int = 12
    height: int = 8
    empty: str = "No data"
    decimals: int | None = None
    least: float | None = 0
    edges: tuple[tuple[float, str], ...] = ()
    words: dict[str, tuple[str, str]] = field(default_factory=dict)  # text and colour by value
    hidden: tuple[str, ...] = ()  # columns of a table
    runbooks: tuple[str, ...] = ()
    step: str = ""


_BUILDERS: Final[dict[Kind, type[Any]]] = {
    Kind.SERIES: timeseries.Panel,
    Kind.STACKED: timeseries.Panel,
    Kind.BARS: timeseries.Panel,
    Kind.STAT: stat.Panel,
    Kind.STATES: statetimeline.Panel,
    Kind.TABLE: table.Panel,
}


def build(panel: Panel, number: int) -> Any:
    """Return the builder of a panel that has no place yet."""
    builder = _BUILDERS[panel.kind]()
    builder.id(number).title(panel.title).description(panel.description).datasource(DATASOURCE)
    builder.unit(panel.unit).no_value(panel.empty)
    builder.grid_pos(model.GridPos(h=panel.height, w=panel.width))
    builder.thresholds(_thresholds(panel.edges))
    builder.mappings(_mappings(panel))
    if panel.decimals is not None:
        builder.decimals(panel.decimals)
    if panel.least is not None and panel.kind in (Kind.SERIES, Kind.STACKED, Kind.BARS):
        builder.min(panel.least)
    if panel.step:
        builder.interval(panel.step)
    if panel.runbooks:
        builder.links([_runbook(alert) for alert in panel.runbooks])
    for letter, query in zip(_letters(panel.queries), panel.queries, strict=True):
        builder.with_target(_target(panel.kind, letter, query))
    _finish(builder, panel)
    return builder


def _letters(queries: Sequence[Query]) -> list[str]:
    return [chr(ord("A") + index) for index in range(len(queries))]


def _target(kind: Kind, letter: str, query: Query) -> prometheus.Dataquery:
    target = prometheus.Dataquery().datasource(DATASOURCE).ref_id(letter).expr(query.expr)
    if kind is Kind.TABLE:
        return target.instant().format(PromQueryFormat.TABLE)
    return (target.instant() if kind is Kind.STAT else target.range()).legend_format(query.name or "__auto")


def _thresholds(edges: Sequence[tuple[float, str]]) -> dashboard.ThresholdsConfig:
    steps = [model.Threshold(value=None, color=GREEN if edges else BLUE)]
    steps += [model.Threshold(value=value, color=color) for value, color in edges]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def _mappings(panel: Panel) -> list[Any]:
    named = {
        value: model.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(panel.words.items())
    }
    odd = model.SpecialValueMap(
        options=model.DashboardSpecialValueMapOptions(
            match=model.SpecialValueMatch.NULL_AND_NAN, result=model.ValueMappingResult(text=panel.empty)
        )
    )
    return [*([model.ValueMap(options=named)] if named else []), odd]


def _runbook(alert: str) -> dashboard.DashboardLink:
    url = f"${{runbooks}}/{alert.lower()}.md"
    return dashboard.DashboardLink(f"Runbook: {alert}").type(model.DashboardLinkType.LINK).url(url).target_blank(True)


def _finish(builder: Any, panel: Panel) -> None:
    match panel.kind:
        case Kind.STAT:
            builder.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
            builder.color_mode(looks.BigValueColorMode.VALUE).graph_mode(looks.BigValueGraphMode.NONE)
        case Kind.STATES:
            builder.merge_values(True).show_value(looks.VisibilityMode.AUTO)
            builder.legend(_legend())
        case Kind.TABLE:
            _columns(builder, panel)
        case _:
            _drawn(builder, panel)


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(looks.LegendDisplayMode.LIST)
        .placement(looks.LegendPlacement.BOTTOM)
        .show_legend(True)
    )


def _drawn(builder: Any, panel: Panel) -> None:
    builder.legend(_legend()).line_width(2).show_points(looks.VisibilityMode.NEVER)
    builder.tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING))
    builder.fill_opacity(8 if panel.kind is Kind.SERIES else 60)
    if panel.kind is not Kind.SERIES:
        builder.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL))
    if panel.kind is Kind.BARS:
        builder.draw_style(looks.GraphDrawStyle.BARS)
    for letter, query in zip(_letters(panel.queries), panel.queries, strict=True):
        if query.line:
            builder.override_by_query(letter, _dashed())


def _dashed() -> list[model.DynamicConfigValue]:
    return [
        model.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 8]}),
        model.DynamicConfigValue(id_val="custom.lineWidth", value=1),
        model.DynamicConfigValue(id_val="custom.fillOpacity", value=0),
        model.DynamicConfigValue(id_val="custom.stacking", value={"group": False, "mode": "none"}),
        model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": GREY}),
    ]


def _columns(builder: Any, panel: Panel) -> None:
    """Make one row of what has the same labels, with a column for each query."""
    several = len(panel.queries) > 1
    values = [f"Value #{letter}" if several else "Value" for letter in _letters(panel.queries)]
    if several:
        builder.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    names = {value: query.name for value, query in zip(values, panel.queries, strict=True)}
    hidden = dict.fromkeys(("Time", "__name__", *panel.hidden), True)
    order = {value: 100 + index for index, value in enumerate(values)}
    builder.with_transformation(
        model.DataTransformerConfig(
            id_val="organize", options={"excludeByName": hidden, "indexByName": order, "renameByName": names}
        )
    )
    for query in panel.queries:
        if query.unit:
            builder.override_by_name(query.name, [model.DynamicConfigValue(id_val="unit", value=query.unit)])
