"""HPAs and ScaledObjects, read into one form."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from exporter.core.linting import promql
from exporter.core.linting.documents import Document, Node
from exporter.core.linting.engine_metrics import colon
from exporter.core.linting.expressions import Binary, Call, Expression, Matcher, Selector, children
from exporter.core.linting.promql import QueryError
from exporter.core.linting.targets import WORKLOADS, Target

RESOURCES: Final = frozenset(("cpu", "memory"))
KEDA_MINIMUM: Final = 0
HPA_MINIMUM: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One number that an autoscaler looks at.

    `source` is cpu, memory, a trigger's type of KEDA, or the type of an HPA's metric in small letters. `asked` is what
    is asked of Prometheus; for an HPA it is the metric that it names, which an adapter asks for. `metrics` are those
    that count: a scalar() that is not added but divides, multiplies or is compared with only sets a limit.
    """

    node: Node
    source: str
    metric_type: str
    is_keda: bool
    query: Node | None = None
    threshold: Node | None = None
    asked: Expression | None = None
    metrics: tuple[str, ...] = ()
    problem: str = ""

    @property
    def line(self) -> int:
        """Where its query stands, or else its beginning."""
        return self.query.line if self.query is not None else self.node.line


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaler:
    """What sets the replicas of one target."""

    document: Document
    is_keda: bool
    minimum: Node | None
    maximum: Node | None
    behavior: Node | None
    signals: tuple[Signal, ...]

    @property
    def spec(self) -> Node:
        """Its specification."""
        return self.document.spec

    @property
    def least(self) -> int | None:
        """The fewest replicas that it goes down to: as written, or by default; None where that is no number."""
        idle = self.spec.at("idleReplicaCount") if self.is_keda else None
        node = idle if idle is not None else self.minimum
        if node is None:
            return KEDA_MINIMUM if self.is_keda else HPA_MINIMUM
        return int(node.number) if node.number is not None else None

    @property
    def scales_to_zero(self) -> bool:
        """Whether there may be no replica at all."""
        return self.least == 0

    def target(self, documents: tuple[Document, ...]) -> Target:
        """Return what it scales."""
        name = self.spec.text_at("scaleTargetRef", "name")
        kind = self.spec.text_at("scaleTargetRef", "kind") or "Deployment"
        for document in documents:
            same = document.kind == kind and document.name == name and kind in WORKLOADS
            if name and same and document.is_in_namespace_of(self.document):
                return Target(name, document, self.document)
        return Target(name, None, self.document)


def autoscalers(documents: tuple[Document, ...]) -> Iterator[Autoscaler]:
    """Yield the autoscalers among objects."""
    for document in documents:
        if document.kind == "ScaledObject":
            yield _of_keda(document)
        elif document.kind == "HorizontalPodAutoscaler":
            yield _of_hpa(document)


def _of_keda(document: Document) -> Autoscaler:
    spec = document.spec
    return Autoscaler(
        document=document,
        is_keda=True,
        minimum=spec.at("minReplicaCount"),
        maximum=spec.at("maxReplicaCount"),
        behavior=spec.at("advanced", "horizontalPodAutoscalerConfig", "behavior"),
        signals=tuple(_trigger(node) for node in spec.items_at("triggers")),
    )


def _trigger(node: Node) -> Signal:
    source = node.text_at("type")
    query = node.at("metadata", "query")
    asked, problem = _asked(query.text) if source == "prometheus" and query is not None else (None, "")
    return Signal(
        node=node,
        source=source,
        metric_type=node.text_at("metricType") or node.text_at("metadata", "type"),
        is_keda=True,
        query=query if source == "prometheus" else None,
        threshold=node.at("metadata", "threshold") if source == "prometheus" else None,
        asked=asked,
        metrics=_counted(asked),
        problem=problem,
    )


def _asked(query: str) -> tuple[Expression | None, str]:
    try:
        return promql.parse(query), ""
    except QueryError as error:
        return None, str(error)


def _counted(asked: Expression | None, *, limits: bool = False) -> tuple[str, ...]:
    """Return the names that count; where `limits` is set, what stands inside of scalar() does not."""
    match asked:
        case None:
            return ()
        case Selector(name, _):
            return (name,)
        case Call("scalar", _) if limits:
            return ()
        case Binary(operator, _, _):
            limits = limits or operator not in ("+", "or", "and", "unless")
    return tuple(name for child in children(asked) for name in _counted(child, limits=limits))


def _of_hpa(document: Document) -> Autoscaler:
    spec = document.spec
    signals = [_metric(node) for node in spec.items_at("metrics")]
    old = spec.at("targetCPUUtilizationPercentage")
    if old is not None:
        signals.append(Signal(node=old, source="cpu", metric_type="Utilization", is_keda=False))
    return Autoscaler(
        document=document,
        is_keda=False,
        minimum=spec.at("minReplicas"),
        maximum=spec.at("maxReplicas"),
        behavior=spec.at("behavior"),
        signals=tuple(signals),
    )


def _metric(node: Node) -> Signal:
    kind = node.text_at("type")
    body = node.at(f"{kind[:1].lower()}{kind[1:]}") or Node({}, node.line)
    target = body.at("target") or Node({}, node.line)
    metric_type = target.text_at("type")
    name = body.at("metric", "name")
    selector = body.at("metric", "selector", "matchLabels")
    labels = {key: value.text for key, value in (selector.fields if selector is not None else {}).items()}
    matchers = tuple(Matcher(label, "=", value) for label, value in labels.items())
    resource = kind in ("Resource", "ContainerResource")
    return Signal(
        node=body,
        source=body.text_at("name") if resource else kind.lower(),
        metric_type=metric_type,
        is_keda=False,
        query=name,
        threshold=None if resource else target.at("averageValue") or target.at("value"),
        asked=Selector(colon(name.text), matchers) if name is not None else None,
        metrics=(colon(name.text),) if name is not None else (),
    )
