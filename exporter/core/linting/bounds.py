"""Rules of how many replicas, and when they go."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Final

from exporter.core.linting.autoscalers import RESOURCES
from exporter.core.linting.case import Case
from exporter.core.linting.documents import Node
from exporter.core.linting.findings import Finding, Severity

_DEFAULT_WINDOW_SECONDS: Final = Decimal(300)  # of an HPA, and KEDA's cooldown
_COLD_STARTS: Final = 2
_DOUBLE_PERCENT: Final = 100
_PAUSED: Final = ("metadata", "annotations", "autoscaling.keda.sh/paused-replicas")


def too_few(case: Case) -> Iterator[Finding]:
    """LLM010."""
    node = case.document.node
    severity = Severity.ERROR if case.demand.is_known else Severity.WARNING
    fewest: tuple[tuple[Decimal | int | None, int, str], ...] = (
        (case.scaler.least, _line_of_least(case), "goes down to"),
        (_number(node.at(*_PAUSED)) if case.scaler.is_keda else None, node.line_of(*_PAUSED), "is paused at"),
    )
    for least, line, how in fewest:
        if case.has_gpu is not False and least is not None and least < case.demand.replicas:
            message = f"{how} {least}, and needs {case.demand.replicas}: {case.demand.reason}"
            yield case.found("LLM010", severity, line, message)


def _line_of_least(case: Case) -> int:
    spec = case.scaler.spec
    names = ("idleReplicaCount", "minReplicaCount") if case.scaler.is_keda else ("minReplicas",)
    return next((spec.line_of(name) for name in names if spec.at(name) is not None), spec.line)


def no_minimum(case: Case) -> Iterator[Finding]:
    """LLM011."""
    if case.scaler.minimum is not None or case.has_gpu is False:
        return
    if case.scaler.is_keda:
        message = "minReplicaCount is absent, so it is 0"
        yield case.found("LLM011", Severity.WARNING, case.scaler.spec.line, message)
    else:
        yield case.found("LLM011", Severity.NOTE, case.scaler.spec.line, "minReplicas is absent, so it is 1")


def no_maximum(case: Case) -> Iterator[Finding]:
    """LLM012."""
    if case.scaler.is_keda and case.scaler.maximum is None and case.has_gpu is not False:
        message = "maxReplicaCount is absent, so it is 100"
        yield case.found("LLM012", Severity.WARNING, case.scaler.spec.line, message)


def contradiction(case: Case) -> Iterator[Finding]:
    """LLM013."""
    minimum, maximum = _number(case.scaler.minimum), _number(case.scaler.maximum)
    if minimum is not None and maximum is not None and minimum > maximum and case.scaler.maximum is not None:
        message = f"the minimum {minimum} is above the maximum {maximum}"
        yield case.found("LLM013", Severity.ERROR, case.scaler.maximum.line, message)
    idle = case.scaler.spec.at("idleReplicaCount") if case.scaler.is_keda else None
    if idle is None:
        return
    count = idle.number
    if count != 0 or minimum is None or minimum == 0:
        message = f"idleReplicaCount {idle.text} is not 0, or not below minReplicaCount"
        yield case.found("LLM013", Severity.ERROR, idle.line, message)


def window(case: Case) -> Iterator[Finding]:
    """LLM050."""
    behavior, cold = case.scaler.behavior, case.cold_start
    if case.has_gpu is False or not case.scaler.signals:
        return
    if behavior is not None and behavior.text_at("scaleDown", "selectPolicy") == "Disabled":
        return
    node = behavior.at("scaleDown", "stabilizationWindowSeconds") if behavior is not None else None
    seconds = _number(node)
    written = node is not None and seconds is not None
    seconds = _DEFAULT_WINDOW_SECONDS if seconds is None else seconds
    if seconds >= _COLD_STARTS * Decimal(cold.seconds):
        return
    # Where nobody measured the cold start, only a window below one is sure to be wrong.
    severe = cold.is_known or seconds < Decimal(cold.seconds)
    line = node.line if node is not None else case.scaler.spec.line
    message = (
        f"the scale-down window is {_seconds(seconds)}{'' if written else ' by default'}, "
        f"twice the cold start ({cold.source}: {_seconds(cold.seconds)}) is {_seconds(_COLD_STARTS * cold.seconds)}"
    )
    instead = (
        f"behavior.scaleDown.stabilizationWindowSeconds: {_seconds(_COLD_STARTS * cold.seconds).removesuffix(' s')}"
    )
    yield case.found("LLM050", Severity.WARNING if severe else Severity.NOTE, line, message, instead)


def cooldown(case: Case) -> Iterator[Finding]:
    """LLM051."""
    if not case.scaler.is_keda or not case.scaler.scales_to_zero or case.has_gpu is False:
        return
    node = case.scaler.spec.at("cooldownPeriod")
    seconds = _number(node)
    seconds = _DEFAULT_WINDOW_SECONDS if seconds is None else seconds
    if seconds < Decimal(case.cold_start.seconds):
        line = node.line if node is not None else case.scaler.spec.line
        source = f"{case.cold_start.source}: {_seconds(case.cold_start.seconds)}"
        message = f"the cooldown before zero is {_seconds(seconds)}, a cold start ({source}) is longer"
        yield case.found("LLM051", Severity.WARNING, line, message)


def doubling(case: Case) -> Iterator[Finding]:
    """LLM052."""
    if case.has_gpu is False or case.scaler.behavior is None:
        return
    for policy in case.scaler.behavior.items_at("scaleUp", "policies"):
        value = _number(policy.at("value"))
        if policy.text_at("type") == "Percent" and value is not None and value > _DOUBLE_PERCENT:
            message = f"scale-up may add {value} % at once"
            yield case.found("LLM052", Severity.NOTE, policy.line_of("value"), message)


def no_fallback(case: Case) -> Iterator[Finding]:
    """LLM020."""
    reads = [one for one in case.scaler.signals if one.source not in RESOURCES and one.source != "cron"]
    if not case.scaler.is_keda or not reads or case.has_gpu is False:
        return
    fallback = case.scaler.spec.at("fallback")
    if fallback is None:
        yield case.found("LLM020", Severity.WARNING, case.scaler.spec.line, "there is no fallback")
        return
    lacking = [key for key in ("failureThreshold", "replicas") if fallback.at(key) is None]
    if lacking:
        message = f"the fallback lacks {' and '.join(lacking)}"
        yield case.found("LLM020", Severity.ERROR, fallback.line, message)
    elif _number(fallback.at("replicas")) == 0 and case.scaler.least != 0:  # at zero it must not start one
        message = "the fallback has 0 replicas, which KEDA takes for no fallback"
        yield case.found("LLM020", Severity.WARNING, fallback.line_of("replicas"), message)


def _number(node: Node | None) -> Decimal | None:
    return None if node is None else node.number


def _seconds(amount: Decimal | float) -> str:
    return f"{float(amount):g} s" if amount < 10**6 else f"{float(amount):.0f} s"
