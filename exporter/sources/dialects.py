"""Whose metric is called what: one readable table, and the translation of a page into a reading.

A row gives, for each fact, the names that servers have used, newest first. The first name that the page has counts;
names joined in one tuple are added up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from exporter.config.model import Disaggregation, Kind
from exporter.core.readings import Buckets, Counted, EngineReading, HistogramSeries, ModelGauges, Series
from exporter.sources.exposition import ExpositionError, Sample, by_name

Labels = tuple[tuple[str, str], ...]
Names = tuple[tuple[str, ...], ...]  # alternatives, each a tuple of names to add up


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one kind of server names its metrics; `sign` is text that only its pages contain."""

    kind: Kind
    sign: str
    counters: Mapping[Counted, Names]
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    kv_cache: tuple[str, ...]
    ttft: tuple[str, ...]
    start_time: str = "process_start_time_seconds"
    model_label: str = "model_name"
    outcome_label: str = "finished_reason"
    http_routes: tuple[str, ...] = ()


# https://docs.vllm.ai/en/latest/design/metrics.html; names of 0.4 to 0.32 as found in the releases
VLLM: Final = Dialect(
    kind=Kind.VLLM,
    sign="vllm:generation_tokens",  # a router in front re-exports other vllm: names, never this one
    counters={
        Counted.PROMPT_TOKENS: (("vllm:prompt_tokens_total",),),
        Counted.CACHED_PROMPT_TOKENS: (
            ("vllm:prompt_tokens_cached_total",),  # 0.16+
            ("vllm:prefix_cache_hits_total",),  # V1 0.9.2+; gpu_prefix_cache_hits before it counted blocks at first
        ),
        Counted.OUTPUT_TOKENS: (("vllm:generation_tokens_total",),),
        Counted.REQUESTS: (("vllm:request_success_total",),),
        Counted.HTTP_REQUESTS: (("http_requests_total",),),
    },
    running=("vllm:num_requests_running",),
    waiting=("vllm:num_requests_waiting",),
    kv_cache=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),  # 0.9.2+, V0 and V1 up to 0.11; both are ratios
    ttft=("vllm:time_to_first_token_seconds",),
    http_routes=("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"),
)

# The decode side of a disaggregated pair counts prompts that the prefill side has computed and counted.
_DECODE_PROMPT_TOKENS: Final = "vllm:prompt_tokens_by_source_total"
_COMPUTED_ELSEWHERE: Final = ("source", "external_kv_transfer")

# llama-server --metrics; no labels, no start time, no histograms. Its prompt counter leaves cached tokens out.
LLAMACPP: Final = Dialect(
    kind=Kind.LLAMACPP,
    sign="llamacpp:tokens_predicted_total",
    counters={
        Counted.PROMPT_TOKENS: (("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),),
        Counted.CACHED_PROMPT_TOKENS: (("llamacpp:prompt_tokens_cached_total",),),
        Counted.OUTPUT_TOKENS: (("llamacpp:tokens_predicted_total",),),
    },
    running=("llamacpp:requests_processing",),
    waiting=("llamacpp:requests_deferred",),
    kv_cache=("llamacpp:kv_cache_usage_ratio",),
    ttft=(),
)

_BEYOND_ANY_COUNT: Final = 2.0**63
_BEYOND_ANY_TIME: Final = 1e11  # Unix seconds

DIALECTS: Final = (VLLM, LLAMACPP)

# Pages that are often pointed at by mistake, and what to do instead.
_OTHERS: Final = {
    "litellm_": "a LiteLLM proxy; point the address at the inference engine behind it",
    "vllm_router_": "a vLLM router; point the address at the inference engine behind it",
    "vllm:num_incoming_requests": "a vLLM router; point the address at the inference engine behind it",
    "llmcost_": "this exporter itself",
}


class UnknownPageError(ValueError):
    """A page without the metrics of any engine, or of the one that the config names; says what it looks like."""


def recognise(text: str, kind: Kind) -> Dialect:
    """Choose the dialect of a page.

    Raises:
        UnknownPageError: no dialect of `kind` fits.
    """
    found = next((dialect for dialect in DIALECTS if dialect.sign in text), None)
    if found is not None and kind in (Kind.AUTO, found.kind):
        return found
    if found is not None:
        raise UnknownPageError(f"expected a page of {kind}, found one of {found.kind}")
    raise UnknownPageError(f"expected the metrics page of an inference engine, found {_looks_like(text)}")


def _looks_like(text: str) -> str:
    for sign, what in _OTHERS.items():
        if sign in text:
            return f"the page of {what}"
    if not text.strip():
        return "an empty page"
    if text.lstrip()[:1] == "<":
        return "an HTML page"
    if "process_start_time_seconds" in text and "http_request" in text:
        return "a page without any engine metric (vLLM writes such a page when it runs with --disable-log-stats)"
    return "something else"


def wanted_names(dialect: Dialect) -> frozenset[str]:
    """Return the names of all samples that a dialect needs."""
    counters = (name for alternatives in dialect.counters.values() for names in alternatives for name in names)
    histograms = (f"{name}_{part}" for name in dialect.ttft for part in ("bucket", "sum", "count"))
    gauges = (*dialect.running, *dialect.waiting, *dialect.kv_cache, dialect.start_time)
    extra = (_DECODE_PROMPT_TOKENS,) if dialect is VLLM else ()
    return frozenset((*counters, *histograms, *gauges, *extra))


def translate(dialect: Dialect, samples: Sequence[Sample], disaggregation: Disaggregation) -> EngineReading:
    """Turn the wanted samples of a page into a reading; a value that can be no count is as if it were not there.

    Raises:
        ExpositionError: a histogram is not whole.
    """
    page = by_name(samples)
    names = dict(dialect.counters)
    if disaggregation is Disaggregation.DECODE and _DECODE_PROMPT_TOKENS in page:
        names[Counted.PROMPT_TOKENS] = ((_DECODE_PROMPT_TOKENS,),)
    counters: dict[Series, int] = {}
    for counted, alternatives in names.items():
        for sample in _chosen(page, alternatives):
            series = _counter(dialect, counted, sample)
            if series is not None and _is_count(sample.value):
                counters.setdefault(series, round(sample.value))
    return EngineReading(
        kind=dialect.kind,
        start_time=_start_time(page.get(dialect.start_time, [])),
        counters=counters,
        ttft=_histograms(dialect, page),
        models=_gauges(dialect, page),
    )


def _chosen(page: Mapping[str, list[Sample]], alternatives: Names) -> list[Sample]:
    for names in alternatives:
        found = [sample for name in names for sample in page.get(name, [])]
        if found:
            return found
    return []


def _counter(dialect: Dialect, counted: Counted, sample: Sample) -> Series | None:
    labels = dict(sample.labels)
    if counted is Counted.HTTP_REQUESTS and (
        labels.get("status") not in ("2xx", "200") or labels.get("handler") not in dialect.http_routes
    ):
        return None
    if _COMPUTED_ELSEWHERE in sample.labels:
        return None
    outcome = labels.get(dialect.outcome_label, "") if counted is Counted.REQUESTS else ""
    model, inner = _identity(sample.labels, dialect.model_label)
    return Series(counted, model, outcome, f"{sample.name},{inner}")


@lru_cache(maxsize=4096)
def _identity(labels: Labels, model_label: str) -> tuple[str, str]:
    """Return the model that labels name, and what else tells series apart, but for a bucket's bound."""
    told_apart = [f"{name}={value}" for name, value in labels if name not in (model_label, "le")]
    return dict(labels).get(model_label, ""), ",".join(told_apart)


def _start_time(samples: list[Sample]) -> float | None:
    return samples[0].value if samples and 0 < samples[0].value < _BEYOND_ANY_TIME else None


def _gauges(dialect: Dialect, page: Mapping[str, list[Sample]]) -> dict[str, ModelGauges]:
    running, waiting = _by_model(dialect, page, dialect.running), _by_model(dialect, page, dialect.waiting)
    kv_cache = _by_model(dialect, page, dialect.kv_cache)
    output = _by_model(dialect, page, dialect.counters[Counted.OUTPUT_TOKENS][0])
    return {
        model: ModelGauges(
            running=round(sum(running[model])) if model in running else None,
            waiting=round(sum(waiting[model])) if model in waiting else None,
            kv_cache_usage_ratio=sum(kv_cache[model]) / len(kv_cache[model]) if model in kv_cache else None,
        )
        for model in sorted({*running, *waiting, *kv_cache, *output})
    }


def _by_model(dialect: Dialect, page: Mapping[str, list[Sample]], names: tuple[str, ...]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    found = next((page[name] for name in names if name in page), [])
    for sample in {sample.labels: sample for sample in reversed(found)}.values():  # of the same series, the first
        if _is_count(sample.value):
            values.setdefault(_identity(sample.labels, dialect.model_label)[0], []).append(sample.value)
    return values


def _histograms(dialect: Dialect, page: Mapping[str, list[Sample]]) -> dict[HistogramSeries, Buckets]:
    name = next((name for name in dialect.ttft if f"{name}_bucket" in page), None)
    if name is None:
        return {}
    buckets: dict[tuple[str, str], dict[float, int]] = {}
    for sample in page[f"{name}_bucket"]:
        series = _identity(sample.labels, dialect.model_label)
        buckets.setdefault(series, {}).setdefault(_bound(sample.labels, name), _count(sample.value, name))
    summed = reversed(page.get(f"{name}_sum", []))
    sums = {_identity(sample.labels, dialect.model_label): sample.value for sample in summed}
    return {
        HistogramSeries(*series): _whole_histogram(counts, sums.get(series), name) for series, counts in buckets.items()
    }


@lru_cache(maxsize=4096)
def _bound(labels: Labels, name: str) -> float:
    text = dict(labels).get("le", "")
    try:
        bound = float(text)
    except ValueError:
        bound = math.nan
    if math.isnan(bound):
        raise ExpositionError(f"{name}_bucket: expected le to be a number, found {text!r}")
    return bound


def _is_count(value: float) -> bool:
    """Tell whether a value can be a number of things; NaN is not, nor is what no engine reaches in a lifetime."""
    return 0 <= value < _BEYOND_ANY_COUNT


def _count(value: float, name: str) -> int:
    if not _is_count(value):
        raise ExpositionError(f"{name}_bucket: expected a count, found {value}")
    return round(value)


def _whole_histogram(counts: dict[float, int], total: float | None, name: str) -> Buckets:
    bounds = tuple(sorted(counts))
    if bounds[-1] != math.inf or total is None or not _is_count(total):
        raise ExpositionError(f"{name}: expected a whole histogram, found one without its +Inf bucket or its sum")
    return Buckets(bounds, tuple(counts[bound] for bound in bounds), total)


def resolved(dialect: Dialect, text: str) -> dict[str, str | None]:
    """Say for each fact under which name a page has it, None where it does not."""
    names = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if line and line[0] != "#"}
    alternatives: dict[str, Names] = {str(counted): found for counted, found in dialect.counters.items()}
    alternatives |= {
        "running": tuple((name,) for name in dialect.running),
        "waiting": tuple((name,) for name in dialect.waiting),
        "kv_cache_usage": tuple((name,) for name in dialect.kv_cache),
        "ttft": tuple((f"{name}_bucket",) for name in dialect.ttft),
        "start_time": ((dialect.start_time,),),
    }
    return {fact: _first_found(found, names) for fact, found in alternatives.items()}


def _first_found(alternatives: Names, names: set[str]) -> str | None:
    return next((" + ".join(some) for some in alternatives if names.intersection(some)), None)
