"""The rows of engines: money, prices, tokens, requests, and what a scaler looks at."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from exporter.core.money import LABELS, Kind
from exporter.core.snapshot import EngineView, Snapshot
from exporter.metrics.row import Fleet, Row, Sample, Type, counter


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
    for (*_, gpu), total in snapshot.totals.get(Kind.UNPRICED_GPU, {}).items():
        by_gpu[gpu] = by_gpu.get(gpu, 0) + total
    return (((gpu,), total) for gpu, total in by_gpu.items())


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
    """Of engines with the same kind of GPU the dearest counts: their energy may differ."""
    prices: dict[tuple[str, ...], float] = {}
    for engine in snapshot.engines:
        if engine.gpu_price_usd_per_hour is not None and engine.gpus:
            labels = (engine.gpu, engine.gpu_price_source)
            prices[labels] = max(prices.get(labels, 0.0), engine.gpu_price_usd_per_hour)
    return iter(prices.items())


# fmt: off
ENGINES: Final[tuple[Row, ...]] = (
    counter("spend_usd_total", Kind.SPEND,
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
    counter("network_sent_bytes_total", Kind.SENT_BYTES,
        "Bytes that the pod or machine has sent, without the loopback; counted where prices.network is set."),
    Row("gpu_price_usd_per_hour", Type.GAUGE,
        "Price in force of one GPU for an hour, and the form of the config that it comes from.",
        ("gpu", "source"), Fleet.MAX, _gpu_prices),
    _engine("gpus_charged",
        "GPUs that the engine pays for, as the config says.", lambda engine: engine.gpus, fleet=Fleet.SUM),
    counter("prompt_tokens_total", Kind.PROMPT_TOKENS, "Prompt tokens that the engine counted, cached ones included."),
    _derived_counter("cached_prompt_tokens_total", LABELS[Kind.CACHED_PROMPT_TOKENS],
        "Prompt tokens found in the engine's cache: a part of prompt_tokens_total, never to be added to it.",
        _cached_prompt_tokens),
    counter("output_tokens_total", Kind.OUTPUT_TOKENS,
        "Output tokens that the engine counted, those of aborted requests included."),
    counter("requests_total", Kind.REQUESTS,
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
    Row("alert_threshold", Type.GAUGE,
        "What an alert rule compares with, in the unit of what it compares. Absent: the config switches the alert off.",
        ("alert", "severity"), Fleet.MAX, lambda snapshot: snapshot.alert_thresholds.items()),
    _engine("min_replicas",
        "The fewest replicas that the engine's workload allows.",
        lambda engine: engine.min_replicas, fleet=Fleet.MAX,
        label=lambda engine: engine.workload, label_name="workload"),
    counter("cold_starts_total", Kind.COLD_STARTS, "Starts of the engine's process that were seen."),
    _engine("cold_start_seconds",
        "Process start to first answer of the last start seen.",
        lambda engine: engine.cold_start_seconds, fleet=Fleet.MAX),
)
# fmt: on
