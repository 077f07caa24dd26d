"""Rules of a query: is it one, does it answer with one number, are its names real?"""

import difflib
import re
from collections.abc import Iterator
from typing import Final

from exporter.core.linting import engine_metrics
from exporter.core.linting.autoscalers import Signal
from exporter.core.linting.case import Case
from exporter.core.linting.engine_metrics import COUNTER, GAUGE, HISTOGRAM, VLLM, VLLM_PREFIX
from exporter.core.linting.expressions import Aggregation, Call, Expression, Number, Selector, Text, children, selectors
from exporter.core.linting.findings import Finding, Severity
from exporter.core.linting.meaning import filter_of, is_scalar, single

PREFIX: Final = "llmcost_"
_SCRAPE_LABELS: Final = (
    "cluster namespace job instance pod container node service endpoint prometheus prometheus_replica le __name__"
)
_OF_THE_SCRAPE: Final = frozenset(_SCRAPE_LABELS.split())
_RATES: Final = frozenset(("rate", "irate", "increase"))
_COUNTING: Final = "resets changes absent absent_over_time count count_over_time present_over_time timestamp group"
_OF_COUNTERS: Final = _RATES | frozenset(_COUNTING.split())
_COUNTER: Final = re.compile(  # many a gauge of other exporters ends in _count or _sum
    r"\w+_(total|bucket)|\w+_(seconds|milliseconds|ms|bytes|tokens)_(sum|count)|tgi_request_(count|success|failure)"
    r"|nv_inference_(count|exec_count|request_(success|failure)|\w+_duration_us)"
)


def several(case: Case) -> Iterator[Finding]:
    """LLM030."""
    for signal in case.queries():
        if signal.asked is not None and single(signal.asked) is None:
            message = f"the query may return several elements: {_outermost(signal.asked)}"
            yield case.found("LLM030", Severity.ERROR, signal.line, message)


def _outermost(expression: Expression) -> str:
    match expression:
        case Selector(name, _):
            return f"{name or 'it'} is not aggregated, each pod is an element"
        case Aggregation(operator, _, _, True):
            return f"{operator} without labels leaves all the others"
        case Aggregation(operator, _, labels, False) if labels:
            return f"{operator} by ({', '.join(labels)}) has one for each"
    return "nothing around it makes them one"


def scalars(case: Case) -> Iterator[Finding]:
    """LLM035."""
    for signal in case.queries():
        if signal.asked is not None and is_scalar(signal.asked):
            message = f"the query answers with a scalar: {_kind_of_scalar(signal.asked)}"
            yield case.found("LLM035", Severity.ERROR, signal.line, message)


def _kind_of_scalar(expression: Expression) -> str:
    match expression:
        case Call(function, _):
            return f"{function}() is the outermost"
        case Number():
            return "a bare number"
        case Text():
            return "a text"
    return "arithmetic of scalars alone"


def filtered(case: Case) -> Iterator[Finding]:
    """LLM036."""
    for signal in case.queries():
        comparison = filter_of(signal.asked) if signal.asked is not None else None
        if comparison is not None:
            # Of several series one may hold at any time; of one number it is sure that it does not always.
            severity = Severity.WARNING if single(comparison) is None else Severity.ERROR
            message = f"the answer is empty where `{comparison.operator}` does not hold"
            yield case.found("LLM036", severity, signal.line, message)


def unreadable(case: Case) -> Iterator[Finding]:
    """LLM031."""
    for signal in case.queries():
        if signal.problem:
            yield case.found("LLM031", Severity.ERROR, signal.line, f"the query is no PromQL: {signal.problem}")


def unknown_metric(case: Case) -> Iterator[Finding]:
    """LLM032."""
    for signal in case.scaler.signals:
        for name in dict.fromkeys(selector.name for selector, _ in _selectors(signal)):
            problem, instead = _unknown(name, case)
            if problem:
                yield case.found("LLM032", Severity.ERROR, signal.line, problem, instead)


def _selectors(signal: Signal) -> list[tuple[Selector, tuple[str, ...]]]:
    return [] if signal.asked is None else selectors(signal.asked)


def _unknown(name: str, case: Case) -> tuple[str, str]:
    if name.startswith(VLLM_PREFIX):
        return _unknown_of_vllm(name.removeprefix(VLLM_PREFIX))
    if not name.startswith(PREFIX) or ":" in name or not case.families:
        return "", ""
    known = _own(case)
    if name in known:
        return "", ""
    return f"{name} is none of this exporter's metrics", _close(name, list(known))


def _own(case: Case) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, family in case.families.items():
        found |= dict(engine_metrics.histogram(name)) if family.type == HISTOGRAM else {name: family.type}
    return found


def _unknown_of_vllm(bare: str) -> tuple[str, str]:
    if bare in VLLM:
        return "", ""
    instead = engine_metrics.replacement(bare)
    if instead is not None:
        return f"vLLM no longer exports {VLLM_PREFIX}{bare}", f"Use {instead}."
    return f"vLLM exports no {VLLM_PREFIX}{bare}", _close(f"{VLLM_PREFIX}{bare}", [VLLM_PREFIX + one for one in VLLM])


def _close(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name[:100], known, n=1)
    return f"Did you mean {close[0]}?" if close else ""


def rates(case: Case) -> Iterator[Finding]:
    """LLM033."""
    for signal in case.queries():
        told: set[str] = set()
        for selector, inside in _selectors(signal):
            problem = _misused(selector.name, inside, case)
            if problem and selector.name not in told:
                told.add(selector.name)
                yield case.found("LLM033", Severity.ERROR, signal.line, problem)


def _misused(name: str, inside: tuple[str, ...], case: Case) -> str:
    kind = _type(name, case)
    if kind == COUNTER and _OF_COUNTERS.isdisjoint(inside):
        return f"{name} is a counter, and there is no rate() around it"
    if kind == GAUGE and not _RATES.isdisjoint(inside):
        return f"{name} is a gauge, and there is a rate() around it"
    return ""


def _type(name: str, case: Case) -> str:
    if name.startswith(VLLM_PREFIX):
        return VLLM.get(name.removeprefix(VLLM_PREFIX), "")
    if name.startswith(PREFIX):
        return _own(case).get(name, "")
    return COUNTER if _COUNTER.fullmatch(name) else ""


def labels(case: Case) -> Iterator[Finding]:
    """LLM034."""
    for signal in case.scaler.signals:
        told: set[tuple[str, str]] = set()
        for name, label in _used(signal.asked, ()) if signal.asked is not None else ():
            known = _labels_of(name, case)
            if known is not None and label not in known | _OF_THE_SCRAPE and (name, label) not in told:
                told.add((name, label))
                has = ", ".join(sorted(known)) or "none"
                message = f"{name} has no label {label}; its own are: {has}"
                yield case.found("LLM034", Severity.WARNING, signal.line, message)


def _used(expression: Expression, grouped: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield each metric with the labels that are asked of it, the innermost grouping included."""
    if isinstance(expression, Selector):
        for label in (*(matcher.label for matcher in expression.matchers), *grouped):
            yield expression.name, label
    if isinstance(expression, Aggregation) and not expression.without:
        grouped = expression.labels
    for child in children(expression):
        yield from _used(child, grouped)


def _labels_of(name: str, case: Case) -> frozenset[str] | None:
    if not name.startswith(PREFIX):
        return None
    for suffix in ("", "_bucket", "_sum", "_count"):
        family = case.families.get(name.removesuffix(suffix) if suffix else name)
        if family is not None and (not suffix or name.endswith(suffix)):
            return frozenset(family.labels)
    return None
