"""Rules of what is looked at: CPU, requests, utilisation, and whether it is there at zero replicas."""

import re
from collections.abc import Iterator
from typing import Final

from exporter.core.linting.autoscalers import RESOURCES, Signal
from exporter.core.linting.case import Case
from exporter.core.linting.engine_metrics import is_on_the_engines_page
from exporter.core.linting.expressions import Aggregation, Binary, Call, Expression, Number
from exporter.core.linting.findings import Finding, Severity
from exporter.core.linting.meaning import is_switch

_REQUESTS: Final = re.compile(
    r"\w*http_requests(_total|_per_second)?|requests[_-]per[_-]second|(\w+_)?rps|(\w+_)?qps|istio_requests_total"
    r"|istio_request_duration_milliseconds_count|nginx_ingress_controller_requests|traefik_\w+_requests_total"
    r"|envoy_\w+_rq_total|vllm:(request_success_total|num_incoming_requests_total|current_qps)"
    r"|vllm:e2e_request_latency_seconds_count|llmcost_(feature_)?requests_total|tgi_request_(count|success)"
    r"|sglang:num_requests_total|nv_inference_request_success|http_request_duration_\w+_count"
)
_IN_WORK: Final = re.compile(
    r"(vllm:)?num_requests_running|llmcost_requests_running|sglang:num_running_reqs|tgi_batch_current_size"
    r"|llamacpp:requests_processing"
)
_WAITING: Final = re.compile(
    r"(vllm:)?num_requests_waiting|llmcost_requests_waiting|sglang:num_queue_reqs|tgi_queue_size"
    r"|llamacpp:requests_deferred|nv_inference_pending_request_count"
)
_QUEUED: Final = re.compile(  # TTFT and the whole latency are longer where requests wait
    rf"{_WAITING.pattern}|waiting|queue|pending|backlog|(^|_)lag(_|$)"
    r"|(ttft|time_to_first_token|e2e\w*latency|request_latency)[\w:]*(?<!_count)$"
)
_QUEUES: Final = re.compile(r"queue|mq|kafka|pulsar|jetstream|^stan$|redis|pubsub|servicebus|eventhub|kinesis")
_UTILIZATION: Final = re.compile(
    r"DCGM_FI_DEV_(GPU|MEM_COPY)_UTIL|DCGM_FI_PROF_GR_ENGINE_ACTIVE|llmcost_gpu_(utilization_ratio|busy_seconds_total)"
    r"|llmcost_gpu_graphics_active_ratio|nv_gpu_utilization|gpu_utilization|nvidia_smi_utilization\w*|gpu[_-]util\w*"
)


def resource(case: Case) -> Iterator[Finding]:
    """LLM001."""
    if case.has_gpu is False:
        return
    for signal in case.scaler.signals:
        if signal.source in RESOURCES:
            what = "CPU" if signal.source == "cpu" else "memory"
            message = f"{what} is the signal of a GPU workload{case.assumption}"
            yield case.found("LLM001", case.grade, signal.node.line, message)
    if not case.scaler.is_keda and not case.scaler.signals:
        message = f"no metrics: an HPA without them scales on CPU at 80 %{case.assumption}"
        yield case.found("LLM001", case.grade, case.scaler.spec.line, message)


def request_count(case: Case) -> Iterator[Finding]:
    """LLM002."""
    if case.has_gpu is False:
        return
    counts_waiting = any(_is_of_a_queue(signal) for signal in case.scaler.signals)
    for signal in case.scaler.signals:
        keeps_awake = counts_waiting and signal.asked is not None and is_switch(signal.asked)
        if _all(signal, _REQUESTS) and not keeps_awake:
            message = f"the number of requests alone is the signal: {', '.join(sorted(set(signal.metrics)))}"
            yield case.found("LLM002", case.grade, signal.line, message + case.assumption)
        elif _all(signal, _IN_WORK) and not counts_waiting:
            message = "requests in work alone are the signal: they stop rising just when the queue begins"
            yield case.found("LLM002", case.grade, signal.line, message + case.assumption)


def _is_of_a_queue(signal: Signal) -> bool:
    """Tell whether it rises with those that wait, in the engine or in front of it."""
    return bool(_QUEUES.search(signal.source)) or any(_QUEUED.search(name) for name in signal.metrics)


def utilization_alone(case: Case) -> Iterator[Finding]:
    """LLM003."""
    signals = case.scaler.signals
    if case.has_gpu is not False and signals and all(_all(one, _UTILIZATION) for one in signals):
        message = f"GPU utilisation is all that scales it up: {', '.join(sorted(set(signals[0].metrics)))}"
        yield case.found("LLM003", Severity.ERROR, signals[0].line, message)


def waiting_alone(case: Case) -> Iterator[Finding]:
    """LLM004."""
    signals = case.scaler.signals
    holding = (name for one in signals for name in one.metrics)
    if any(_IN_WORK.fullmatch(name) or _UTILIZATION.fullmatch(name) for name in holding):
        return
    for signal in signals:
        if _all(signal, _WAITING) and signal.metric_type in ("", "AverageValue"):
            message = "only requests that wait are counted: with an empty queue busy replicas go"
            yield case.found("LLM004", Severity.NOTE, signal.line, message)


def wake(case: Case) -> Iterator[Finding]:
    """LLM014."""
    signals = case.scaler.signals
    if not signals or not case.scaler.scales_to_zero or case.has_gpu is False:
        return
    if all(_is_gone_at_zero(signal) for signal in signals):
        names = sorted({name for signal in signals for name in signal.metrics}) or sorted(
            {one.source for one in signals}
        )
        message = f"at zero replicas there is none of its signals: {', '.join(names)}"
        yield case.found("LLM014", Severity.ERROR, signals[0].line, message)


def _all(signal: Signal, pattern: re.Pattern[str]) -> bool:
    return bool(signal.metrics) and all(pattern.fullmatch(name) for name in signal.metrics)


def _is_gone_at_zero(signal: Signal) -> bool:
    if signal.source in RESOURCES:
        return True
    if signal.asked is None or signal.source not in ("prometheus", "external", "pods", "object"):
        return False  # another type of trigger, or a query that is not read: benefit of the doubt
    return bool(signal.metrics) and all(is_on_the_engines_page(name) for name in signal.metrics)


def always_zero(case: Case) -> Iterator[Finding]:
    """LLM022."""
    queries = list(case.queries())
    if queries and all(one.asked is not None and _falls_back_to_zero(one.asked) for one in queries):
        message = "without data every query answers 0, by `or vector(0)`"
        yield case.found("LLM022", Severity.WARNING, queries[0].line, message)


def _falls_back_to_zero(expression: Expression) -> bool:
    match expression:
        case Binary("or", left, right):
            return _is_zero(right) or _falls_back_to_zero(left)
        case Binary(operator, left, right) if operator in ("+", "-", "*", "/"):
            sides = [one for one in (left, right) if not isinstance(one, Number)]
            return bool(sides) and all(_falls_back_to_zero(one) for one in sides)
        case Call(_, arguments) | Aggregation(_, arguments):
            return any(_falls_back_to_zero(one) for one in arguments)
    return False


def _is_zero(expression: Expression) -> bool:
    match expression:
        case Call("vector", (Number(0),)):
            return True
    return False
