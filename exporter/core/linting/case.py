"""An autoscaler together with what is known of its target: what its rules are given."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from exporter.core.linting import targets
from exporter.core.linting.autoscalers import Autoscaler, Signal
from exporter.core.linting.documents import Document
from exporter.core.linting.engine_metrics import is_on_the_engines_page
from exporter.core.linting.findings import Finding, Severity, found
from exporter.core.linting.targets import ColdStart, Demand, Facts, Family, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One autoscaler and its target; `has_gpu` is None where the files do not say."""

    scaler: Autoscaler
    target: Target
    has_gpu: bool | None
    demand: Demand
    cold_start: ColdStart
    families: Mapping[str, Family]

    @property
    def document(self) -> Document:
        """The autoscaler's object."""
        return self.scaler.document

    @property
    def assumption(self) -> str:
        """What a message adds where the target is not known."""
        return "" if self.has_gpu else f" (no {self.target.name or 'target'} in the files: a GPU workload is assumed)"

    @property
    def grade(self) -> Severity:
        """How bad it is what is wrong for GPUs alone."""
        return Severity.ERROR if self.has_gpu else Severity.WARNING

    def found(self, rule: str, severity: Severity, line: int, message: str, instead: str = "") -> Finding:
        """Return a finding of this autoscaler."""
        return found(rule, severity, self.document, line, message, instead)

    def queries(self) -> Iterator[Signal]:
        """Yield the signals that ask Prometheus."""
        return (one for one in self.scaler.signals if one.source == "prometheus")


def case_of(scaler: Autoscaler, documents: tuple[Document, ...], facts: Facts) -> Case:
    """Join an autoscaler to what it scales."""
    target = scaler.target(documents)
    has_gpu = targets.has_gpu(target)
    if has_gpu is None and (target.name in facts.engines or _asks_engines(scaler)):
        has_gpu = True
    return Case(
        scaler=scaler,
        target=target,
        has_gpu=has_gpu,
        demand=targets.demand(target, facts, documents),
        cold_start=targets.cold_start(target, facts),
        families=facts.families,
    )


def _asks_engines(scaler: Autoscaler) -> bool:
    return any(is_on_the_engines_page(name) for one in scaler.signals for name in one.metrics)
