"""Queries held against the table of metrics: names, labels and their values, and what a fleet must not sum."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import promql_parser as promql
import yaml

from exporter.config.model import Alerts
from exporter.core.alerting import thresholds
from exporter.core.money import Category
from exporter.metrics import PREFIX, ROWS, Fleet, Row, Type

ROOT: Final = Path(__file__).parent.parent
TARGET: Final = frozenset({"cluster", "namespace", "job", "instance", "pod", "container", "node"})  # the scrape's
FOREIGN: Final[Mapping[str, frozenset[str]]] = {
    "up": frozenset(),
    "ALERTS": frozenset({"alertname", "alertstate", "severity", "action", "engine", "budget", "period"}),
    "process_cpu_seconds_total": frozenset(),  # prometheus_client's
    "process_start_time_seconds": frozenset(),
    "process_resident_memory_bytes": frozenset(),
}
COUNTING: Final = frozenset({"count", "count_values", "group"})
VALUELESS: Final = frozenset({"absent", "absent_over_time", "present_over_time", "count_over_time", "changes", "resets",
                              "timestamp", "time", "vector"})  # fmt: skip
COMPARISONS: Final = frozenset({"==", "!=", ">", "<", ">=", "<="})
VALUES: Final[Mapping[str, frozenset[str]]] = {
    "alert": frozenset(threshold.alert for threshold in thresholds(Alerts())),
    "category": frozenset(Category),
    "edge": frozenset({"up", "down"}),
    "signal": frozenset({"queue_depth", "gpu_utilization", "ttft"}),
    "period": frozenset({"day", "month"}),
    "tokens": frozenset({"output", "total"}),
    "source": frozenset({"engine", "gpu", "network", "nvml", "dcgm", "none"}),
}
WINDOWS: Final = {"ttft_p95_seconds": {"1m", "5m"}, "budget_burn_rate": {"5m", "30m", "1h", "6h", "24h"}}


class Rule(NamedTuple):
    """One rule of rules/: a recording rule, or an alert with its labels and annotations."""

    file: str
    name: str
    expr: str
    is_alert: bool
    duration: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    interval: str


def read_rules(folder: Path = ROOT / "rules") -> tuple[Rule, ...]:
    return tuple(
        Rule(
            path.name,
            rule.get("alert") or rule["record"],
            rule["expr"],
            "alert" in rule,
            rule.get("for", "0s"),
            rule.get("labels", {}),
            rule.get("annotations", {}),
            group["interval"],
        )
        for path in sorted(folder.glob("*.yml"))
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    )


def family(name: str) -> Row | None:
    """Return the row that a series of the page belongs to."""
    known = {f"{PREFIX}{row.name}": row for row in ROWS}
    histogram = known.get(re.sub("_(bucket|sum|count)$", "", name))
    return known.get(name) or (histogram if histogram is not None and histogram.type is Type.HISTOGRAM else None)


class Reader:
    """Reads queries that may use the series of recording rules."""

    def __init__(self, rules: tuple[Rule, ...] = ()) -> None:
        self._recorded = {rule.name: rule for rule in rules if not rule.is_alert}
        self._labels: dict[str, frozenset[str]] = {}
        self._carried: dict[str, frozenset[str]] = {}

    def problems(self, query: str) -> tuple[str, ...]:
        """Return what is wrong with a query; nothing for a good one."""
        try:
            expr = promql.parse(query)
        except ValueError as error:
            return (f"does not parse: {error}",)
        found: list[str] = []

        def look(node: promql.Expr) -> None:
            match node:
                case promql.VectorSelector():
                    found.extend(self._selector(node))
                case promql.AggregateExpr():
                    found.extend(self._aggregate(node))
                case promql.BinaryExpr():
                    found.extend(self._binary(node))

        promql.walk(expr, look)
        return tuple(found)

    def labels(self, expr: promql.Expr) -> frozenset[str]:
        """Return the labels that the result can have, those of the scrape included."""
        match _bare(expr):
            case promql.VectorSelector() as selector:
                return self._labels_of(_name(selector)) or frozenset()
            case promql.AggregateExpr() as aggregate:
                return self._labels_of_aggregate(aggregate)
            case promql.BinaryExpr() as binary:
                return self._labels_of_binary(binary)
            case promql.Call() as call:
                return self._labels_of_call(call)
        return frozenset()

    def carried(self, expr: promql.Expr) -> frozenset[str]:
        """Return the families whose values are in the result's: those that only filter it are not."""
        match _bare(expr):
            case promql.VectorSelector() as selector:
                return self._carried_by(_name(selector))
            case promql.AggregateExpr() as aggregate if str(aggregate.op) not in COUNTING:
                return self.carried(aggregate.expr)
            case promql.BinaryExpr() as binary:
                return self._carried_by_binary(binary)
            case promql.Call() as call if call.func.name not in VALUELESS:
                return frozenset[str]().union(*map(self.carried, call.args))
        return frozenset()

    def _selector(self, selector: promql.VectorSelector) -> Iterator[str]:
        name = _name(selector)
        labels = self._labels_of(name)
        if labels is None:
            yield f"there is no {name or 'name'}"
            return
        for matcher in selector.matchers.matchers:
            if matcher.name not in labels | {"__name__"}:
                yield f"{name} has no label {matcher.name}"
            yield from (
                f"{name} has no {matcher.name}={value!r}"
                for value in _literals(matcher)
                if not _is_value(name, matcher.name, value)
            )

    def _aggregate(self, aggregate: promql.AggregateExpr) -> Iterator[str]:
        named = frozenset(aggregate.modifier.labels if aggregate.modifier else ())
        for label in sorted(named - self.labels(aggregate.expr)):
            yield f"{aggregate.op} by {label}, which nothing in it has"
        if str(aggregate.op) in {"sum", "avg"}:
            for name in sorted(self.carried(aggregate.expr)):
                row = family(name)
                if row is not None and row.fleet is Fleet.NONE:
                    yield f"{aggregate.op} of {name}, which a fleet has no {aggregate.op} of"

    def _binary(self, binary: promql.BinaryExpr) -> Iterator[str]:
        matching = binary.modifier.matching if binary.modifier else None
        if matching is not None:
            left, right = self.labels(binary.lhs), self.labels(binary.rhs)
            either = matching.type == promql.LabelModifierType.Exclude
            known = left | right if either else left & right
            for label in sorted(frozenset(matching.labels) - known):
                yield f"{binary.op} matches by {label}, which {'neither side has' if either else 'one side lacks'}"

    def _labels_of(self, name: str) -> frozenset[str] | None:
        """Return the labels of a series; None where there is none of that name."""
        row = family(name)
        if row is not None:
            return TARGET.union(row.labels, {"le"} if name.endswith("_bucket") else ())
        if name in FOREIGN:
            return TARGET | FOREIGN[name]
        rule = self._recorded.get(name)
        if rule is None:
            return None
        if name not in self._labels:
            self._labels[name] = frozenset()  # for a rule that uses its own last value
            self._labels[name] = self.labels(promql.parse(rule.expr)) | frozenset(rule.labels)
        return self._labels[name]

    def _labels_of_aggregate(self, aggregate: promql.AggregateExpr) -> frozenset[str]:
        named, inner = frozenset(aggregate.modifier.labels if aggregate.modifier else ()), self.labels(aggregate.expr)
        if str(aggregate.op) in {"topk", "bottomk"}:
            return inner
        is_without = aggregate.modifier is not None and aggregate.modifier.type == promql.AggModifierType.Without
        return inner - named if is_without else inner & named

    def _labels_of_binary(self, binary: promql.BinaryExpr) -> frozenset[str]:
        left, right, modifier = self.labels(binary.lhs), self.labels(binary.rhs), binary.modifier
        if str(binary.op) == "or" or not (_is_vector(binary.lhs) and _is_vector(binary.rhs)):
            return left | right
        if str(binary.op) in {"and", "unless"} or modifier is None or modifier.matching is None:
            return left
        if modifier.card == promql.VectorMatchCardinality.OneToOne:
            named = frozenset(modifier.matching.labels)
            return left - named if modifier.matching.type == promql.LabelModifierType.Exclude else left & named
        many = left if modifier.card == promql.VectorMatchCardinality.ManyToOne else right
        return many | frozenset(modifier.group_labels or ())

    def _labels_of_call(self, call: promql.Call) -> frozenset[str]:
        vectors = [argument for argument in call.args if _is_vector(argument)]
        inner = self.labels(vectors[-1]) if vectors else frozenset[str]()
        match call.func.name:
            case "histogram_quantile":
                return inner - {"le"}
            case "label_replace" | "label_join":
                return inner | {call.args[1].val}
            case "absent" | "absent_over_time" | "vector":
                return frozenset()
        return inner

    def _carried_by_binary(self, binary: promql.BinaryExpr) -> frozenset[str]:
        operation = str(binary.op)
        if operation in COMPARISONS and binary.modifier is not None and binary.modifier.return_bool:
            return frozenset()
        if operation in {"and", "unless"} or (operation in COMPARISONS and _is_vector(binary.lhs)):
            return self.carried(binary.lhs)
        return self.carried(binary.lhs) | self.carried(binary.rhs)

    def _carried_by(self, name: str) -> frozenset[str]:
        if name not in self._recorded:
            return frozenset() if name.endswith("_info") else frozenset({name})  # what is always 1 changes no sum
        if name not in self._carried:
            self._carried[name] = frozenset()  # as above
            self._carried[name] = self.carried(promql.parse(self._recorded[name].expr))
        return self._carried[name]


def _bare(expr: Any) -> promql.Expr:
    """Return what stands in brackets, behind a sign or before a range."""
    while isinstance(expr, promql.ParenExpr | promql.UnaryExpr | promql.SubqueryExpr | promql.MatrixSelector):
        expr = expr.vector_selector if isinstance(expr, promql.MatrixSelector) else expr.expr
    assert isinstance(expr, promql.Expr)
    return expr


def _name(selector: promql.VectorSelector) -> str:
    named = [matcher.value for matcher in selector.matchers.matchers if matcher.name == "__name__"]
    return selector.name or "".join(named)


def _is_vector(expr: promql.Expr) -> bool:
    match _bare(expr):
        case promql.BinaryExpr() as binary:
            return _is_vector(binary.lhs) or _is_vector(binary.rhs)
        case promql.Call() as call:
            return call.func.name not in {"time", "scalar", "pi"}
        case promql.NumberLiteral() | promql.StringLiteral():
            return False
    return True


def _literals(matcher: promql.Matcher) -> list[str]:
    """Return the values that a matcher names, where it names any."""
    if matcher.op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual):
        return [matcher.value]
    return matcher.value.split("|") if re.fullmatch(r"[\w|]+", matcher.value) else []


def _is_value(name: str, label: str, value: str) -> bool:
    row = family(name)
    if label == "window" and row is not None:
        return value in WINDOWS.get(row.name, {"5m", "1h", "24h"})
    return label not in VALUES or (row is None and label == "source") or value in VALUES[label]
