"""Whose metric is called what: one readable table, and the translation of a page into a reading.

A row gives, for each fact, the names that servers have used, newest first. The first name that the page has counts;
names joined in one tuple are added up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Final

from exporter.config.model import Disaggregation, Kind
from exporter.core.readings import Buckets, Counted, EngineReading, HistogramSeries, ModelGauges, Series
from exporter.sources.exposition import ExpositionError, Sample, by_name

Labels = tuple[tuple[str, str], ...]
Names = tuple[tuple[str, ...], ...]  # alternatives, each a tuple of names to add up


class KnownFrom(StrEnum):
    """How well a dialect is known."""

    SERVERS = "pages of real servers"
    SOURCE = "its source code"
    DOCUMENTATION = "its documentation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one kind of server names its metrics.

    `sign` begins a metric's name on its pages and on no other kind's. `repeated` are labels of gauges whose series
    tell the same again, or a part of it: of these the greatest value counts. `decode` replaces counters of an engine
    whose prompts a prefill engine computes and counts.
    """

    kind: Kind
    known_from: KnownFrom
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
    repeated: tuple[str, ...] = ()
    decode: Mapping[Counted, Names] = field(default_factory=dict)

    def fits(self, text: str) -> bool:
        """Tell whether a name on the page begins with the sign; inside of other names and of labels it says nothing."""
        return f"\n{self.sign}" in text or f"# TYPE {self.sign}" in text or text.startswith(self.sign)


# https://docs.vllm.ai/en/latest/design/metrics.html; names of 0.4 to 0.32 as found in the releases
VLLM: Final = Dialect(
    kind=Kind.VLLM,
    known_from=KnownFrom.SERVERS,
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
    decode={Counted.PROMPT_TOKENS: (("vllm:prompt_tokens_by_source_total",), ("vllm:prompt_tokens_total",))},  # 0.16+
)

# Prompt tokens of this source were computed, and counted, by the prefill engine.
_COMPUTED_ELSEWHERE: Final = ("source", "external_kv_transfer")

# llama-server --metrics; no labels, no start time, no histograms. Its prompt counter leaves cached tokens out.
LLAMACPP: Final = Dialect(
    kind=Kind.LLAMACPP,
    known_from=KnownFrom.SERVERS,
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

# SGLang 0.5 with --enable-metrics; no start time, since it always writes in multi-process mode. Tokens and requests are
# counted in front of all ranks, when a request ends. One aborted while it ran is among them, so the counter of aborted
# ones adds nothing. Gauges come from each rank's scheduler: data-parallel ranks divide the requests, all others hold
# the same ones. Where requests have priorities, the series without one is the sum of the rest.
SGLANG: Final = Dialect(
    kind=Kind.SGLANG,
    known_from=KnownFrom.SOURCE,
    sign="sglang:",
    counters={
        Counted.PROMPT_TOKENS: (("sglang:prompt_tokens_total",),),  # cached ones included
        Counted.CACHED_PROMPT_TOKENS: (("sglang:cached_tokens_total",),),  # one series for each cache they came from
        Counted.OUTPUT_TOKENS: (("sglang:generation_tokens_total",),),
        Counted.REQUESTS: (("sglang:num_requests_total",),),
    },
    running=("sglang:num_running_reqs",),
    waiting=("sglang:num_queue_reqs",),
    kv_cache=("sglang:token_usage",),
    ttft=("sglang:time_to_first_token_seconds",),
    repeated=("tp_rank", "pp_rank", "moe_ep_rank", "priority"),
    decode={Counted.PROMPT_TOKENS: (), Counted.CACHED_PROMPT_TOKENS: ()},
)

# NIM for LLMs 1.x, on /v1/metrics; from 2.0 on it serves the page of the vLLM or SGLang inside. Its names have no
# prefix; the sign is the one that no other server was seen to use.
# https://docs.nvidia.com/nim/large-language-models/latest/observability.html
NIM: Final = Dialect(
    kind=Kind.NIM,
    known_from=KnownFrom.DOCUMENTATION,
    sign="num_request_max",
    counters={
        Counted.PROMPT_TOKENS: (("prompt_tokens_total",),),
        Counted.OUTPUT_TOKENS: (("generation_tokens_total",),),
        Counted.REQUESTS: (("request_finish_total",), ("request_success_total",)),  # the older one may tell no reason
    },
    running=("num_requests_running",),
    waiting=("num_requests_waiting",),
    kv_cache=("gpu_cache_usage_perc",),  # a ratio
    ttft=("time_to_first_token_seconds",),
)

# TGI; no labels, no start time, no TTFT: its queue time ends before the first token is made. Its only token counts are
# the sums of two histograms, of prompts when they are accepted and of answers when they are finished.
# https://huggingface.co/docs/text-generation-inference/reference/metrics
TGI: Final = Dialect(
    kind=Kind.TGI,
    known_from=KnownFrom.DOCUMENTATION,
    sign="tgi_request_",
    counters={
        Counted.PROMPT_TOKENS: (("tgi_request_input_length_sum",),),
        Counted.OUTPUT_TOKENS: (("tgi_request_generated_tokens_sum",),),
        Counted.REQUESTS: (("tgi_request_success",),),
    },
    running=("tgi_batch_current_size",),
    waiting=("tgi_queue_size",),
    kv_cache=(),
    ttft=(),
)

_BEYOND_ANY_COUNT: Final = 2.0**63
_BEYOND_ANY_TIME: Final = 1e11  # Unix seconds

DIALECTS: Final = (VLLM, LLAMACPP, SGLANG, NIM, TGI)  # the first that fits: some wrap vLLM and add names of their own

# Pages that are often pointed at by mistake, and what to do instead.
_OTHERS: Final = {
    "litellm_": "a LiteLLM proxy; point the address at the inference engine behind it",
    "vllm_router_": "a vLLM router; point the address at the inference engine behind it",
    "vllm:num_incoming_requests": "a vLLM router; point the address at the inference engine behind it",
    "sgl_router_": "an SGLang router; point the address at the inference engine behind it",
    "smg_": "an SGLang gateway; point the address at the inference engine behind it",
    "llmcost_": "this exporter itself",
}


class UnknownPageError(ValueError):
    """A page without the metrics of any engine, or of the one that the config names; says what it looks like."""


def recognise(text: str, kind: Kind) -> Dialect:
    """Choose the dialect of a page.

    Raises:
        UnknownPageError: no dialect of `kind` fits.
    """
    found = next((dialect for dialect in DIALECTS if dialect.fits(text)), None)
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
    tables = (*dialect.counters.values(), *dialect.decode.values())
    counters = (name for alternatives in tables for names in alternatives for name in names)
    histograms = (f"{name}_{part}" for name in dialect.ttft for part in ("bucket", "sum", "count"))
    gauges = (*dialect.running, *dialect.waiting, *dialect.kv_cache, dialect.start_time)
    return frozenset((*counters, *histograms, *gauges))


def translate(dialect: Dialect, samples: Sequence[Sample], disaggregation: Disaggregation) -> EngineReading:
    """Turn the wanted samples of a page into a reading; a value that can be no count is as if it were not there.

    Raises:
        ExpositionError: a histogram is not whole.
    """
    page = by_name(samples)
    names = {**dialect.counters, **(dialect.decode if disaggregation is Disaggregation.DECODE else {})}
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
def _identity(labels: Labels, model_label: str, repeated: tuple[str, ...] = ("le",)) -> tuple[str, str]:
    """Return the model that labels name, and what else tells series apart: not the bound, where it is a bucket's."""
    told_apart = [f"{name}={value}" for name, value in labels if name != model_label and name not in repeated]
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
    found = next((page[name] for name in names if name in page), [])
    first = {sample.labels: sample.value for sample in reversed(found)}  # of the same series
    greatest: dict[tuple[str, str], float] = {}
    for labels, value in first.items():
        told_apart = _identity(labels, dialect.model_label, dialect.repeated)
        if _is_count(value) and value >= greatest.get(told_apart, 0.0):
            greatest[told_apart] = value
    values: dict[str, list[float]] = {}
    for (model, _), value in greatest.items():
        values.setdefault(model, []).append(value)
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
