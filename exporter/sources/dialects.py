"""Whose metric is called what: one readable table, and the translation of a page into a reading.

A row gives, for each fact, the names that servers have used, newest first. The first name that the page has counts;
names joined in one tuple are added up.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Final

from exporter.config.model import Disaggregation, Kind
from exporter.core.readings import Buckets, Counted, EngineReading, HistogramSeries, ModelGauges, Series
from exporter.sources.exposition import ExpositionError, Sample, by_name

# beside what is counted
RUNNING: Final = "running"
WAITING: Final = "waiting"
KV_CACHE: Final = "kv_cache_usage"
TTFT: Final = "ttft"
# called the same by all that have them
_MODEL: Final = "model_name"
_OUTCOME: Final = "finished_reason"
_START_TIME: Final = "process_start_time_seconds"

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
    names: Mapping[str, Names]
    repeated: tuple[str, ...] = ()
    decode: Mapping[str, Names] = field(default_factory=dict)

    def fits(self, text: str) -> bool:
        """Tell whether a name on the page begins with the sign; inside of other names and of labels it says nothing."""
        return f"\n{self.sign}" in text or f"# TYPE {self.sign}" in text or text.startswith(self.sign)


# https://docs.vllm.ai/en/latest/design/metrics.html; names of 0.4 to 0.32 as found in the releases
VLLM: Final = Dialect(
    kind=Kind.VLLM,
    known_from=KnownFrom.SERVERS,
    sign="vllm:generation_tokens",  # a router in front re-exports other vllm: names, never this one
    names={
        Counted.PROMPT_TOKENS: (("vllm:prompt_tokens_total",),),
        Counted.CACHED_PROMPT_TOKENS: (
            ("vllm:prompt_tokens_cached_total",),  # 0.16+
            ("vllm:prefix_cache_hits_total",),  # V1 0.9.2+; gpu_prefix_cache_hits before it counted blocks at first
        ),
        Counted.OUTPUT_TOKENS: (("vllm:generation_tokens_total",),),
        Counted.REQUESTS: (("vllm:request_success_total",),),
        Counted.HTTP_REQUESTS: (("http_requests_total",),),
        Counted.PREFILL_TIME: (("vllm:request_prefill_time_seconds_sum",),),  # 0.6.4+
        Counted.DECODE_TIME: (("vllm:request_decode_time_seconds_sum",),),
        RUNNING: (("vllm:num_requests_running",),),
        WAITING: (("vllm:num_requests_waiting",),),
        KV_CACHE: (
            ("vllm:kv_cache_usage_perc",),  # 0.9.2+; both are ratios
            ("vllm:gpu_cache_usage_perc",),  # V0, and V1 up to 0.11
        ),
        TTFT: (("vllm:time_to_first_token_seconds_bucket",),),
    },
    decode={Counted.PROMPT_TOKENS: (("vllm:prompt_tokens_by_source_total",), ("vllm:prompt_tokens_total",))},  # 0.16+
)

# Prompt tokens of this source were computed, and counted, by the prefill engine.
_COMPUTED_ELSEWHERE: Final = ("source", "external_kv_transfer")
_GENERATING_ROUTES: Final = ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses")

# llama-server --metrics; no labels, no start time, no histograms. Its prompt counter leaves cached tokens out.
LLAMACPP: Final = Dialect(
    kind=Kind.LLAMACPP,
    known_from=KnownFrom.SERVERS,
    sign="llamacpp:tokens_predicted_total",
    names={
        Counted.PROMPT_TOKENS: (("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),),
        Counted.CACHED_PROMPT_TOKENS: (("llamacpp:prompt_tokens_cached_total",),),
        Counted.OUTPUT_TOKENS: (("llamacpp:tokens_predicted_total",),),
        RUNNING: (("llamacpp:requests_processing",),),
        WAITING: (("llamacpp:requests_deferred",),),
        KV_CACHE: (("llamacpp:kv_cache_usage_ratio",),),
    },
)

# SGLang 0.5 with --enable-metrics; no start time, since it always writes in multi-process mode. Tokens and requests are
# counted in front of all ranks, when a request ends. One aborted while it ran is among them, so the counter of aborted
# ones adds nothing. Gauges come from each rank's scheduler: data-parallel ranks divide the requests, all others hold
# the same ones. Where requests have priorities, the series without one is the sum of the rest.
SGLANG: Final = Dialect(
    kind=Kind.SGLANG,
    known_from=KnownFrom.SOURCE,
    sign="sglang:",
    names={
        Counted.PROMPT_TOKENS: (("sglang:prompt_tokens_total",),),  # cached ones included
        Counted.CACHED_PROMPT_TOKENS: (("sglang:cached_tokens_total",),),  # one series for each cache they came from
        Counted.OUTPUT_TOKENS: (("sglang:generation_tokens_total",),),
        Counted.REQUESTS: (("sglang:num_requests_total",),),
        RUNNING: (("sglang:num_running_reqs",),),
        WAITING: (("sglang:num_queue_reqs",),),
        KV_CACHE: (("sglang:token_usage",),),
        TTFT: (("sglang:time_to_first_token_seconds_bucket",),),
    },
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
    names={
        Counted.PROMPT_TOKENS: (("prompt_tokens_total",),),
        Counted.OUTPUT_TOKENS: (("generation_tokens_total",),),
        Counted.REQUESTS: (("request_finish_total",), ("request_success_total",)),  # the older one may tell no reason
        RUNNING: (("num_requests_running",),),
        WAITING: (("num_requests_waiting",),),
        KV_CACHE: (("gpu_cache_usage_perc",),),  # a ratio
        TTFT: (("time_to_first_token_seconds_bucket",),),
    },
)

# TGI; no labels, no start time, no TTFT: its queue time ends before the first token is made. Its only token counts are
# the sums of two histograms, of prompts when they are accepted and of answers when they are finished.
# https://huggingface.co/docs/text-generation-inference/reference/metrics
TGI: Final = Dialect(
    kind=Kind.TGI,
    known_from=KnownFrom.DOCUMENTATION,
    sign="tgi_request_",
    names={
        Counted.PROMPT_TOKENS: (("tgi_request_input_length_sum",),),
        Counted.OUTPUT_TOKENS: (("tgi_request_generated_tokens_sum",),),
        Counted.REQUESTS: (("tgi_request_success",),),
        RUNNING: (("tgi_batch_current_size",),),
        WAITING: (("tgi_queue_size",),),
    },
)

_PER_UNIT: Final = {Counted.PREFILL_TIME: 10**9, Counted.DECODE_TIME: 10**9}  # nanoseconds of a second
_BEYOND_ANY_COUNT: Final = 2.0**53  # from there on a page's numbers are no longer told apart
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
    if found is None:
        raise UnknownPageError(f"expected the metrics page of an inference engine, found {_looks_like(text)}")
    if kind not in (Kind.AUTO, found.kind):
        raise UnknownPageError(f"expected a page of {kind}, found one of {found.kind}")
    return found


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


def _facts(dialect: Dialect) -> dict[str, Names]:
    """Return under which names a page may have each fact."""
    gauges = {fact: dialect.names.get(fact, ()) for fact in (RUNNING, WAITING, KV_CACHE, TTFT)}
    return {**dialect.names, **gauges, "start_time": ((_START_TIME,),)}


def wanted_names(dialect: Dialect) -> frozenset[str]:
    """Return the names of all samples that a dialect needs."""
    tables = (*_facts(dialect).values(), *dialect.decode.values())
    names = {name for alternatives in tables for names in alternatives for name in names}
    return frozenset(names | {f"{name.removesuffix('_bucket')}_sum" for name in names if name.endswith("_bucket")})


def resolved(dialect: Dialect, text: str) -> dict[str, str | None]:
    """Say for each fact under which name a page has it, None where it does not."""
    names = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if line and line[0] != "#"}
    return {
        str(fact): next((" + ".join(some) for some in alternatives if names.intersection(some)), None)
        for fact, alternatives in _facts(dialect).items()
    }


def translate(dialect: Dialect, samples: Sequence[Sample], disaggregation: Disaggregation) -> EngineReading:
    """Turn the wanted samples of a page into a reading; a value that can be no count is as if it were not there.

    Raises:
        ExpositionError: a histogram is not whole.
    """
    page = by_name(samples)
    names = {**dialect.names, **(dialect.decode if disaggregation is Disaggregation.DECODE else {})}
    counters: dict[Series, int] = {}
    for counted in Counted:
        for sample in _chosen(page, names.get(counted, ())):
            series = _counter(counted, sample)
            if series is not None and _is_count(sample.value):
                counters.setdefault(series, round(sample.value * _PER_UNIT.get(counted, 1)))
    start_time = next((sample.value for sample in page.get(_START_TIME, [])), 0.0)
    return EngineReading(
        kind=dialect.kind,
        start_time=start_time if 0 < start_time < _BEYOND_ANY_TIME else None,
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


def _counter(counted: Counted, sample: Sample) -> Series | None:
    labels = dict(sample.labels)
    answers = labels.get("status") in ("2xx", "200") and labels.get("handler") in _GENERATING_ROUTES
    if _COMPUTED_ELSEWHERE in sample.labels or (counted is Counted.HTTP_REQUESTS and not answers):
        return None
    outcome = labels.get(_OUTCOME, "") if counted is Counted.REQUESTS else ""
    model, inner = _identity(sample.labels)
    return Series(counted, model, outcome, f"{sample.name},{inner}")


@lru_cache(maxsize=4096)
def _identity(labels: Labels, repeated: tuple[str, ...] = ("le",)) -> tuple[str, str]:
    """Return the model that labels name, and what else tells series apart: not the bound, where it is a bucket's."""
    told_apart = [f"{name}={value}" for name, value in labels if name != _MODEL and name not in repeated]
    return dict(labels).get(_MODEL, ""), ",".join(told_apart)


def _gauges(dialect: Dialect, page: Mapping[str, list[Sample]]) -> dict[str, ModelGauges]:
    facts = (RUNNING, WAITING, KV_CACHE, Counted.OUTPUT_TOKENS)
    running, waiting, kv_cache, output = (_by_model(dialect, page, fact) for fact in facts)
    return {
        model: ModelGauges(
            running=round(sum(running[model])) if model in running else None,
            waiting=round(sum(waiting[model])) if model in waiting else None,
            kv_cache_usage_ratio=sum(kv_cache[model]) / len(kv_cache[model]) if model in kv_cache else None,
        )
        for model in sorted({*running, *waiting, *kv_cache, *output})
    }


def _by_model(dialect: Dialect, page: Mapping[str, list[Sample]], fact: str) -> dict[str, list[float]]:
    found = _chosen(page, dialect.names.get(fact, ()))
    first = {sample.labels: sample.value for sample in reversed(found)}  # of the same series
    greatest: dict[tuple[str, str], float] = {}
    for labels, value in first.items():
        told_apart = _identity(labels, dialect.repeated)
        if _is_count(value):
            greatest[told_apart] = max(value, greatest.get(told_apart, 0.0))
    values: dict[str, list[float]] = {}
    for (model, _), value in greatest.items():
        values.setdefault(model, []).append(value)
    return values


def _histograms(dialect: Dialect, page: Mapping[str, list[Sample]]) -> dict[HistogramSeries, Buckets]:
    found = _chosen(page, dialect.names.get(TTFT, ()))
    name = found[0].name.removesuffix("_bucket") if found else ""
    buckets: dict[tuple[str, str], dict[float, int]] = {}
    for sample in found:
        bound = _bound(sample.labels, name)
        if not _is_count(sample.value):
            raise ExpositionError(f"{name}_bucket: expected a count, found {sample.value}")
        buckets.setdefault(_identity(sample.labels), {}).setdefault(bound, round(sample.value))
    sums = {_identity(sample.labels): sample.value for sample in reversed(page.get(f"{name}_sum", []))}
    return {
        HistogramSeries(*series): _whole_histogram(counts, sums.get(series), name) for series, counts in buckets.items()
    }


@lru_cache(maxsize=4096)
def _bound(labels: Labels, name: str) -> float:
    text = dict(labels).get("le", "")
    with suppress(ValueError):
        if not math.isnan(bound := float(text)):
            return bound
    raise ExpositionError(f"{name}_bucket: expected le to be a number, found {text!r}")


def _is_count(value: float) -> bool:
    """Tell whether a value can be a number of things; NaN is not, nor is what no engine reaches in a lifetime."""
    return 0 <= value < _BEYOND_ANY_COUNT


def _whole_histogram(counts: dict[float, int], total: float | None, name: str) -> Buckets:
    bounds = tuple(sorted(counts))
    if bounds[-1] != math.inf or total is None or not _is_count(total):
        raise ExpositionError(f"{name}: expected a whole histogram, found one without its +Inf bucket or its sum")
    return Buckets(bounds, tuple(counts[bound] for bound in bounds), total)
