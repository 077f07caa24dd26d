"""Rules of a trigger's own keys: thresholds, types, what is missing, what is gone."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Final
from urllib.parse import urlsplit

from exporter.core.linting.autoscalers import RESOURCES, Signal
from exporter.core.linting.case import Case
from exporter.core.linting.findings import Finding, Severity
from exporter.core.linting.meaning import Unit, Whose, is_switch, unit, whose

_REQUIRED: Final = ("serverAddress", "query", "threshold")
_GONE: Final = {"prometheus": ("metricName",), "cpu": ("type",), "memory": ("type",)}
_LEAST_MILLISECONDS: Final = 100  # nobody promises that many seconds to a first token
_GREATEST_SHARE: Final = Decimal(1)


def null_values(case: Case) -> Iterator[Finding]:
    """LLM021."""
    for signal in case.queries():
        node = signal.node.at("metadata", "ignoreNullValues")
        if node is None or node.text.lower() not in ("false", "f", "0"):
            line = node.line if node is not None else signal.node.line_of("metadata")
            message = "ignoreNullValues is true" if node is not None else "ignoreNullValues is absent, so it is true"
            yield case.found("LLM021", Severity.ERROR, line, message)


def threshold(case: Case) -> Iterator[Finding]:
    """LLM040."""
    for signal in case.scaler.signals:
        node = signal.threshold
        if node is not None and (node.number is None or node.number <= 0):
            message = f"the threshold is {node.text[:40]!r}"
            yield case.found("LLM040", Severity.ERROR, node.line, message)
        activation = signal.node.at("metadata", "activationThreshold") if signal.source == "prometheus" else None
        if activation is not None and (activation.number is None or activation.number < 0):
            message = f"the activation threshold is {activation.text[:40]!r}"
            yield case.found("LLM040", Severity.ERROR, activation.line, message)


def threshold_unit(case: Case) -> Iterator[Finding]:
    """LLM041."""
    for signal in case.scaler.signals:
        value = signal.threshold.number if signal.threshold is not None else None
        if value is None or value <= 0 or signal.asked is None or signal.threshold is None:
            continue
        problem = _misfit(unit(signal.asked), value)
        if problem:
            yield case.found("LLM041", Severity.ERROR, signal.threshold.line, f"the threshold is {value:f}, {problem}")


def _misfit(found: Unit | None, value: Decimal) -> str:
    if found is Unit.SHARE and value > _GREATEST_SHARE:
        return f"and the query answers with {found}"
    if found is Unit.PERCENT and value <= _GREATEST_SHARE:
        return f"and the query answers with {found}"
    if found is Unit.SECONDS and value >= _LEAST_MILLISECONDS:
        return f"and the query answers in {found}, not in milliseconds"
    return ""


def metric_type(case: Case) -> Iterator[Finding]:
    """LLM042."""
    for signal in case.scaler.signals:
        if signal.source in RESOURCES or signal.source == "cron":
            continue
        line = signal.node.line_of("metricType") if signal.is_keda else signal.node.line_of("target", "type")
        problem = _wrong_type(signal)
        if problem:
            yield case.found("LLM042", Severity.ERROR, line, problem)


def _wrong_type(signal: Signal) -> str:
    if signal.metric_type == "Utilization":
        return f"Utilization for {signal.source or 'a trigger'}: only CPU and memory have it"
    if signal.source == "pods" or signal.asked is None:  # for pods it is the mean over them
        return ""
    of = whose(signal.asked)
    if signal.metric_type == "Value" and of is Whose.FLEET and not is_switch(signal.asked):
        return "Value of the whole load, times the replicas that there are: write AverageValue"
    if of is Whose.REPLICA and (signal.metric_type == "AverageValue" or (signal.is_keda and not signal.metric_type)):
        said = "" if signal.metric_type else " by default"
        return f"AverageValue{said} of what is a mean, a ratio or a percentile already"
    return ""


def activation(case: Case) -> Iterator[Finding]:
    """LLM043."""
    if not case.scaler.is_keda or not case.scaler.scales_to_zero or case.has_gpu is False:
        return
    for signal in case.queries():
        if signal.node.at("metadata", "activationThreshold") is None:
            message = "activationThreshold is absent, so anything above 0 starts a replica"
            yield case.found("LLM043", Severity.NOTE, signal.node.line_of("metadata"), message)


def incomplete(case: Case) -> Iterator[Finding]:
    """LLM044."""
    spec = case.scaler.spec
    if not case.target.name:
        message = "there is no scaleTargetRef" if spec.at("scaleTargetRef") is None else "scaleTargetRef names nothing"
        yield case.found("LLM044", Severity.ERROR, spec.line_of("scaleTargetRef"), message)
    if case.scaler.is_keda and not case.scaler.signals:
        yield case.found("LLM044", Severity.ERROR, spec.line_of("triggers"), "there is no trigger")
    for signal in case.scaler.signals:
        if signal.is_keda and not signal.source:
            yield case.found("LLM044", Severity.ERROR, signal.node.line, "a trigger has no type")
    for signal in case.queries():
        lacking = [key for key in _REQUIRED if signal.node.at("metadata", key) is None]
        if lacking:
            line = signal.node.line_of("metadata")
            yield case.found("LLM044", Severity.ERROR, line, f"the prometheus trigger lacks {', '.join(lacking)}")


def address(case: Case) -> Iterator[Finding]:
    """LLM046."""
    for signal in case.queries():
        node = signal.node.at("metadata", "serverAddress")
        if node is None or "$" in node.text:  # a variable: whoever applies it knows
            continue
        shown, host = repr(node.text[:80]), _host(node.text)
        if host is None:
            message = f"serverAddress is {shown}, which has no http:// or https://"
            yield case.found("LLM046", Severity.ERROR, node.line, message)
        elif "." not in host and ":" not in host:
            message = f"serverAddress is {shown}: {host[:80]} is looked for in the namespace of KEDA's operator"
            instead = f"http://{host[:80]}.<namespace>.svc:9090."
            yield case.found("LLM046", Severity.WARNING, node.line, message, instead)


def _host(url: str) -> str | None:
    """Return the host of an address that KEDA can ask, else None."""
    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket that does not close
        return None
    return parts.hostname if parts.scheme in ("http", "https") else None


def not_a_string(case: Case) -> Iterator[Finding]:
    """LLM045."""
    for signal in case.scaler.signals:
        metadata = signal.node.at("metadata") if signal.is_keda else None
        for key, node in (metadata.fields if metadata is not None else {}).items():
            if node.value is not None and not node.is_string:
                what = node.text[:40] if node.text else "a list or a mapping"
                message = f"{key} is {what}, not a string"
                yield case.found("LLM045", Severity.ERROR, node.line, message, f'{key}: "{what}".' if node.text else "")


def removed_key(case: Case) -> Iterator[Finding]:
    """LLM081."""
    for signal in case.scaler.signals:
        for key in _GONE.get(signal.source, ()) if signal.is_keda else ():
            node = signal.node.at("metadata", key)
            if node is not None:
                message = f"metadata.{key} of a {signal.source} trigger is gone"
                yield case.found("LLM081", Severity.WARNING, node.line, message)
