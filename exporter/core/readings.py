"""What a source read at one moment, frozen. None or absent means not known, never 0."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Counted(StrEnum):
    """Counters of an engine."""

    PROMPT_TOKENS = "prompt_tokens"
    CACHED_PROMPT_TOKENS = "cached_prompt_tokens"
    OUTPUT_TOKENS = "output_tokens"
    REQUESTS = "requests"
    HTTP_REQUESTS = "http_requests"  # replies with a 2xx status on the routes that generate
    PREFILL_TIME = "prefill_time"  # nanoseconds that finished requests spent on their prompts, all together
    DECODE_TIME = "decode_time"  # likewise on their output


class Series(NamedTuple):
    """One counter as the engine keeps it; `inner` tells apart what is summed later (data-parallel ranks, sources)."""

    counted: Counted
    model: str
    outcome: str  # how requests finished; empty for other counters
    inner: str


class Buckets(NamedTuple):
    """A histogram as the engine keeps it: upper bounds (seconds, the last +Inf), cumulative counts, sum (seconds)."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


class HistogramSeries(NamedTuple):
    """The identity of one inner histogram."""

    model: str
    inner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGauges:
    """What one model of an engine is doing now."""

    running: int | None = None
    waiting: int | None = None
    kv_cache_usage_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReading:
    """One page of an engine.

    `start_time` is the engine's process start in Unix seconds, None where the page does not say.
    """

    kind: str
    start_time: float | None
    counters: Mapping[Series, int]
    ttft: Mapping[HistogramSeries, Buckets]
    models: Mapping[str, ModelGauges]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A read that gave nothing: a reason from a short list (a label), and what happened in words.

    `loading` is True where the engine itself said that it is not ready yet.
    """

    reason: str
    detail: str
    loading: bool = False
