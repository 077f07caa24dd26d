"""Rules of the workloads themselves: replicas, probes, rollouts."""

from collections.abc import Iterator
from decimal import Decimal
from math import ceil
from typing import Final

from exporter.core.linting import targets
from exporter.core.linting.documents import Document, Node
from exporter.core.linting.findings import Finding, Severity, found
from exporter.core.linting.targets import ColdStart, Facts, Target

_DEFAULT_SURGE: Final = "25%"


def unscaled_zero(document: Document, scaled: bool) -> Iterator[Finding]:  # noqa: FBT001 - one fact of the workload
    """LLM070, LLM061."""
    replicas = document.spec.at("replicas")
    if replicas is None:
        return
    if scaled:
        message = f"replicas is {replicas.text}, and an autoscaler sets it, too"
        yield found("LLM061", Severity.NOTE, document, replicas.line, message)
    elif replicas.number == 0:
        message = "replicas is 0, and the files have no autoscaler for it"
        yield found("LLM070", Severity.WARNING, document, replicas.line, message)


def probes(document: Document, facts: Facts) -> Iterator[Finding]:
    """LLM071, LLM072."""
    cold = targets.cold_start(Target(document.name, document), facts)
    for container in targets.gpu_containers(document):
        yield from _killed(document, container, cold)
        if container.at("readinessProbe") is None and container.at("startupProbe") is None:
            name = container.text_at("name")
            message = f"container {name} has neither a readinessProbe nor a startupProbe"
            yield found("LLM072", Severity.WARNING, document, container.line, message)


def _killed(document: Document, container: Node, cold: ColdStart) -> Iterator[Finding]:
    startup = targets.startup_seconds(container)
    probe = "livenessProbe" if startup is None else "startupProbe"
    patience = targets.probe_seconds(container, probe)
    if patience is None or patience >= cold.seconds or (startup is not None and not cold.is_known):
        return
    severity = Severity.ERROR if cold.is_known else Severity.WARNING
    message = (
        f"the {probe} kills container {container.text_at('name')} {patience:g} s after its start, "
        f"a cold start takes {cold.seconds:g} s ({cold.source})"
    )
    yield found("LLM071", severity, document, container.line_of(probe), message)


def surge(document: Document) -> Iterator[Finding]:
    """LLM073."""
    spec = document.spec
    if document.kind != "Deployment" or spec.text_at("strategy", "type") == "Recreate":
        return
    node = spec.at("strategy", "rollingUpdate", "maxSurge")
    replicas = spec.at("replicas")
    count = replicas.number if replicas is not None else None
    extra = _extra(node.text if node is not None else _DEFAULT_SURGE, Decimal(1) if count is None else count)
    if extra:
        line = node.line if node is not None else spec.line
        message = f"a rollout starts {extra} more, each with its GPUs, before an old one goes"
        yield found("LLM073", Severity.NOTE, document, line, message)


def _extra(text: str, replicas: Decimal) -> int:
    """Return how many pods a surge adds; a percentage is rounded up."""
    node = Node(text.removesuffix("%"), 0)
    if node.number is None or not replicas:
        return 0
    return ceil(node.number * replicas / 100) if text.endswith("%") else int(node.number)
