"""THE table: every family that the page can have, one row each."""

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from exporter.core.money import LABELS, Kind
from exporter.core.readings import Buckets
from exporter.core.snapshot import EngineView, Snapshot, SourceView

PREFIX: Final = "llmcost_"


class Type(StrEnum):
    """What a family is."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Fleet(StrEnum):
    """How the values of several exporters make one: `none` must not be summed or averaged."""

    SUM = "sum"
    MAX = "max"
    NONE = "none"


Sample = tuple[tuple[str, ...], float | Buckets]


class Row(NamedTuple):
    """One family: name without prefix, type, help, labels, fleet aggregation, and its samples out of a snapshot.

    `stays` marks counters and health families, which remain on the page when the beat has stopped. With `nano` the
    samples are integers of 10^-9 of the family's unit, and the page shows them to the last digit.
    """

    name: str
    type: Type
    help: str
    labels: tuple[str, ...]
    fleet: Fleet
    samples: Callable[[Snapshot], Iterable[Sample]]
    stays: bool = False
    nano: bool = False


def _counter(name: str, kind: Kind, text: str, *, nano: bool = False) -> Row:
    def read(snapshot: Snapshot) -> Iterable[Sample]:
        return snapshot.totals.get(kind, {}).items()

    return Row(name, Type.COUNTER, text, LABELS[kind], Fleet.SUM, read, stays=True, nano=nano)


def _derived_counter(
    name: str,
    labels: tuple[str, ...],
    text: str,
    samples: Callable[[Snapshot], Iterable[Sample]],
    *,
    nano: bool = False,
) -> Row:
    return Row(name, Type.COUNTER, text, labels, Fleet.SUM, samples, stays=True, nano=nano)


def _engine(
    name: str,
    text: str,
    value: Callable[[EngineView], float | None],
    *,
    fleet: Fleet = Fleet.NONE,
    label: Callable[[EngineView], str] | None = None,
    label_name: str = "",
) -> Row:
    def read(snapshot: Snapshot) -> Iterator[Sample]:
        for engine in snapshot.engines:
            if (number := value(engine)) is not None:
                yield ((engine.name, label(engine)) if label else (engine.name,)), number

    return Row(name, Type.GAUGE, text, ("engine", label_name) if label else ("engine",), fleet, read)


def _model(name: str, text: str, value: str, fleet: Fleet) -> Row:
    def read(snapshot: Snapshot) -> Iterator[Sample]:
        for engine in snapshot.engines:
            for model, gauges in engine.models.items():
                if (number := getattr(gauges, value)) is not None:
                    yield (engine.name, model), number

    return Row(name, Type.GAUGE, text, ("engine", "model"), fleet, read)


def _source(name: str, text: str, value: Callable[[SourceView], float | None], fleet: Fleet) -> Row:
    def read(snapshot: Snapshot) -> Iterator[Sample]:
        for source in snapshot.sources:
            if (number := value(source)) is not None:
                yield (source.source, source.target), number

    return Row(name, Type.GAUGE, text, ("source", "target"), fleet, read, stays=True)


def _health(name: str, text: str, value: Callable[[Snapshot], float | None], fleet: Fleet) -> Row:
    def read(snapshot: Snapshot) -> Iterator[Sample]:
        if (number := value(snapshot)) is not None:
            yield (), number

    return Row(name, Type.GAUGE, text, (), fleet, read, stays=True)


def _usd_per_million_tokens(snapshot: Snapshot) -> Iterator[Sample]:
    for engine in snapshot.engines:
        for window, view in engine.windows.items():
            if view.usd_per_million_output_tokens is not None:
                yield (engine.name, "output", window), view.usd_per_million_output_tokens
            if view.usd_per_million_total_tokens is not None:
                yield (engine.name, "total", window), view.usd_per_million_total_tokens


def _load(snapshot: Snapshot) -> Iterator[Sample]:
    for engine in snapshot.engines:
        for window, view in engine.windows.items():
            if view.load_ratio is not None:
                yield (engine.name, window), view.load_ratio


def _cached_prompt_tokens(snapshot: Snapshot) -> Iterator[Sample]:
    """Cached tokens are part of the prompt tokens: where an engine counts them earlier, they wait for the prompt."""
    prompt = snapshot.totals.get(Kind.PROMPT_TOKENS, {})
    for labels, total in snapshot.totals.get(Kind.CACHED_PROMPT_TOKENS, {}).items():
        yield labels, min(total, prompt.get(labels, 0))


def _unpriced_gpu(snapshot: Snapshot) -> Iterator[Sample]:
    by_gpu: dict[str, int] = {}
    for (_, gpu), total in snapshot.totals.get(Kind.UNPRICED_GPU, {}).items():
        by_gpu[gpu] = by_gpu.get(gpu, 0) + total
    return (((gpu,), total) for gpu, total in by_gpu.items())


def _unobserved(snapshot: Snapshot) -> Iterator[Sample]:
    yield (), snapshot.totals.get(Kind.UNOBSERVED, {}).get((), 0)


def _ttft(snapshot: Snapshot) -> Iterator[Sample]:
    return (((engine.name, model), buckets) for engine in snapshot.engines for model, buckets in engine.ttft.items())


def _ttft_p95(snapshot: Snapshot) -> Iterator[Sample]:
    for engine in snapshot.engines:
        for window, seconds in engine.ttft_p95_seconds.items():
            if seconds is not None:
                yield (engine.name, window), seconds


def _signals(snapshot: Snapshot) -> Iterator[Sample]:
    for engine in snapshot.engines:
        for signal in engine.signals:
            if signal.value is not None:
                yield (engine.name, signal.name), signal.value


def _signal_ratios(snapshot: Snapshot) -> Iterator[Sample]:
    for engine in snapshot.engines:
        for signal in engine.signals:
            if signal.ratio is not None:
                yield (engine.name, signal.name), signal.ratio


def _thresholds(snapshot: Snapshot) -> Iterator[Sample]:
    for engine in snapshot.engines:
        for signal in engine.signals:
            yield (engine.name, signal.name, "up"), signal.up
            yield (engine.name, signal.name, "down"), signal.down


def _gpu_prices(snapshot: Snapshot) -> Iterator[Sample]:
    seen = {
        (engine.gpu, engine.gpu_price_source): engine.gpu_price_usd_per_hour
        for engine in snapshot.engines
        if engine.gpu_price_usd_per_hour is not None and engine.gpus
    }
    return iter(seen.items())


def _source_errors(snapshot: Snapshot) -> Iterator[Sample]:
    for source in snapshot.sources:
        for reason, count in source.errors.items():
            yield (source.source, source.target, reason), count


def _build_info(snapshot: Snapshot) -> Iterator[Sample]:
    yield (snapshot.version, snapshot.role), 1


# fmt: off
ROWS: Final[tuple[Row, ...]] = (
    _counter("spend_usd_total", Kind.SPEND,
        "The bill in US dollars: time paid for, by what it bought. Booked at once and final.", nano=True),
    _engine("spend_usd_per_hour",
        "What the engine costs an hour now: its GPUs and its share of standing costs. Absent while a price is unknown.",
        lambda engine: engine.spend_usd_per_hour, fleet=Fleet.SUM),
    Row("usd_per_million_tokens", Type.GAUGE,
        "Spend of the engine per million tokens over a window: output, or prompt and output. Absent below min_tokens.",
        ("engine", "tokens", "window"), Fleet.NONE, _usd_per_million_tokens),
    Row("engine_load_ratio", Type.GAUGE,
        "Output tokens per second over a window ÷ the best five minutes of seven days, or the configured capacity.",
        ("engine", "window"), Fleet.NONE, _load),
    _engine("underused_spend_usd_per_hour",
        "What the missing load costs an hour: spend_usd_per_hour x (1 - load of the last 5 minutes).",
        lambda engine: engine.underused_spend_usd_per_hour, fleet=Fleet.SUM),
    _derived_counter("unpriced_gpu_seconds_total", ("gpu",),
        "GPU time charged nothing because the GPU has no price. Any increase means that the bill is incomplete.",
        _unpriced_gpu, nano=True),
    Row("gpu_price_usd_per_hour", Type.GAUGE,
        "Price in force of one GPU for an hour, and the form of the config that it comes from.",
        ("gpu", "source"), Fleet.MAX, _gpu_prices),
    _engine("gpus_charged",
        "GPUs that the engine pays for, as the config says.", lambda engine: engine.gpus, fleet=Fleet.SUM),
    _counter("prompt_tokens_total", Kind.PROMPT_TOKENS, "Prompt tokens that the engine counted, cached ones included."),
    _derived_counter("cached_prompt_tokens_total", LABELS[Kind.CACHED_PROMPT_TOKENS],
        "Prompt tokens found in the engine's cache: a part of prompt_tokens_total, never to be added to it.",
        _cached_prompt_tokens),
    _counter("output_tokens_total", Kind.OUTPUT_TOKENS,
        "Output tokens that the engine counted, those of aborted requests included."),
    _counter("requests_total", Kind.REQUESTS,
        "Finished requests by the engine's own reason; abandoned: the client hung up (where that can be computed)."),
    _model("requests_running", "Requests that the engine is working on.", "running", Fleet.SUM),
    _model("requests_waiting", "Requests that wait in the engine's queue: the queue depth.", "waiting", Fleet.SUM),
    _model("kv_cache_usage_ratio",
        "Share of the KV cache in use, 0-1; the mean over data-parallel ranks.", "kv_cache_usage_ratio", Fleet.NONE),
    Row("ttft_seconds", Type.HISTOGRAM,
        "Time to first token in the engine's own buckets, counted on through the engine's restarts.",
        ("engine", "model"), Fleet.SUM, _ttft, stays=True),
    Row("ttft_p95_seconds", Type.GAUGE,
        "95th percentile of TTFT over a window, interpolated like histogram_quantile. Never average it.",
        ("engine", "window"), Fleet.NONE, _ttft_p95),
    _engine("ttft_target_seconds",
        "The TTFT that the config promises.", lambda engine: engine.ttft_target_seconds, fleet=Fleet.MAX),
    Row("scaling_signal", Type.GAUGE,
        "A signal of this replica: requests waiting, mean GPU utilisation, or p95 TTFT of the last minute in seconds.",
        ("engine", "signal"), Fleet.NONE, _signals),
    Row("scaling_signal_ratio", Type.GAUGE,
        "A signal divided by its scale-up threshold: above 1 asks for another replica.",
        ("engine", "signal"), Fleet.NONE, _signal_ratios),
    Row("scaling_threshold", Type.GAUGE,
        "What a signal is compared with, in the signal's own unit.",
        ("engine", "signal", "edge"), Fleet.MAX, _thresholds),
    _engine("min_replicas",
        "The fewest replicas that the engine's workload allows.",
        lambda engine: engine.min_replicas, fleet=Fleet.MAX,
        label=lambda engine: engine.workload, label_name="workload"),
    _counter("cold_starts_total", Kind.COLD_STARTS, "Starts of the engine's process that were seen."),
    _engine("cold_start_seconds",
        "Process start to first answer of the last start seen.",
        lambda engine: engine.cold_start_seconds, fleet=Fleet.MAX),
    _source("source_up",
        "1 where the last read of the source worked, else 0.", lambda source: float(source.up), Fleet.NONE),
    _source("source_last_success_timestamp_seconds",
        "When the source was last read.", lambda source: source.last_success, Fleet.NONE),
    _source("source_read_seconds", "How long the last read took.", lambda source: source.read_seconds, Fleet.NONE),
    _source("source_interval_seconds",
        "How often the source is read.", lambda source: source.interval_seconds, Fleet.MAX),
    Row("source_errors_total", Type.COUNTER,
        "Reads that failed, by reason.", ("source", "target", "reason"), Fleet.SUM, _source_errors, stays=True),
    _health("accounting_start_timestamp_seconds",
        "Since when the counters of money and tokens have been counting.",
        lambda snapshot: snapshot.accounting_start, Fleet.NONE),
    _derived_counter("unobserved_seconds_total", (),
        "Time that was not charged because the exporter was away for longer than max_gap.",
        _unobserved, nano=True),
    _health("config_last_reload_successful",
        "1 where the last load of the config files worked, else 0: what could not be read stays as it was.",
        lambda snapshot: float(snapshot.config.successful), Fleet.NONE),
    _health("config_last_reload_success_timestamp_seconds",
        "When the config in force was loaded.", lambda snapshot: snapshot.config.last_success, Fleet.NONE),
    Row("build_info", Type.GAUGE,
        "The exporter's version and role; always 1.", ("version", "role"), Fleet.NONE, _build_info, stays=True),
)
# fmt: on
