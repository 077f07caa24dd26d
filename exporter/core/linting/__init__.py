"""Manifests of autoscalers and GPU workloads, looked through for wrong signals and traps of scaling to zero."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from exporter.core.linting import bounds, deployments, queries, signals, targets, triggers
from exporter.core.linting.autoscalers import Autoscaler, autoscalers
from exporter.core.linting.case import Case, case_of
from exporter.core.linting.documents import Document, Node, objects
from exporter.core.linting.findings import RULES, Finding, Severity, found
from exporter.core.linting.targets import Facts, Family, Target

__all__ = ["RULES", "Document", "Facts", "Family", "Finding", "Node", "Severity", "concerned", "lint", "objects"]

Allowed = Mapping[tuple[str, int], frozenset[str]]  # by file and line: the rules that a comment there allows

_RULES: Final[tuple[Callable[[Case], Iterator[Finding]], ...]] = (
    signals.resource,
    signals.request_count,
    signals.utilization_alone,
    signals.waiting_alone,
    signals.wake,
    signals.always_zero,
    bounds.too_few,
    bounds.no_minimum,
    bounds.no_maximum,
    bounds.contradiction,
    bounds.window,
    bounds.cooldown,
    bounds.doubling,
    bounds.no_fallback,
    triggers.null_values,
    triggers.threshold,
    triggers.threshold_unit,
    triggers.metric_type,
    triggers.activation,
    triggers.incomplete,
    triggers.address,
    triggers.not_a_string,
    triggers.removed_key,
    queries.several,
    queries.scalars,
    queries.filtered,
    queries.unreadable,
    queries.unknown_metric,
    queries.rates,
    queries.labels,
)
_GONE: Final = {
    "autoscaling/v2beta1": "autoscaling/v2",
    "autoscaling/v2beta2": "autoscaling/v2",
    "keda.k8s.io/v1alpha1": "keda.sh/v1alpha1",
    "extensions/v1beta1": "apps/v1",
    "apps/v1beta1": "apps/v1",
    "apps/v1beta2": "apps/v1",
}


def lint(documents: Iterable[Document], facts: Facts, allowed: Allowed | None = None) -> list[Finding]:
    """Return what is wrong with the objects, by file and line.

    Args:
        documents: all objects of all files; what belongs together is joined.
        facts: what the files cannot say.
        allowed: what comments allow; a rule that does not exist is a finding of its own elsewhere.
    """
    everything = tuple(documents)
    ignored = allowed or {}
    kept = (one for one in _all(everything, facts) if one.rule not in ignored.get((one.file, one.line), ()))
    return sorted(kept, key=lambda one: (one.file, one.line, one.rule, one.message))


def concerned(documents: Iterable[Document]) -> list[Document]:
    """Return the objects that the rules look at."""
    kinds = {"ScaledObject", "HorizontalPodAutoscaler", *targets.WORKLOADS}
    return [document for document in documents if document.kind in kinds]


def _all(documents: tuple[Document, ...], facts: Facts) -> Iterator[Finding]:
    scalers = list(autoscalers(documents))
    for scaler in scalers:
        case = case_of(scaler, documents, facts)
        for rule in _RULES:
            yield from rule(case)
    yield from _rivals(scalers)
    scaled = {id(target.document) for target in (one.target(documents) for one in scalers) if target.document}
    for document in concerned(documents):
        yield from _old_version(document)
        if document.kind in targets.WORKLOADS and targets.has_gpu(Target(document.name, document)):
            yield from deployments.unscaled_zero(document, id(document) in scaled)
            yield from deployments.probes(document, facts)
            yield from deployments.surge(document)


def _old_version(document: Document) -> Iterator[Finding]:
    if document.api_version in _GONE:
        message = f"{document.api_version} is gone"
        line = document.node.line_of("apiVersion")
        yield found("LLM080", Severity.ERROR, document, line, message, f"apiVersion: {_GONE[document.api_version]}.")


def _rivals(scalers: list[Autoscaler]) -> Iterator[Finding]:
    """Find a second autoscaler of the same target, which is where the finding stands."""
    named = [one for one in scalers if _target(one)[1]]  # what names no target shares none
    for place, second in enumerate(named):
        for first in named[:place]:
            if _target(first) == _target(second) and first.document.is_in_namespace_of(second.document):
                line = second.spec.line_of("scaleTargetRef", "name")
                message = f"{first.document.title} scales {_target(second)[1]}, too ({first.document.file})"
                yield found("LLM060", Severity.ERROR, second.document, line, message)
                break


def _target(scaler: Autoscaler) -> tuple[str, str]:
    target = scaler.spec.at("scaleTargetRef") or Node({}, 0)
    return target.text_at("kind") or "Deployment", target.text_at("name")
