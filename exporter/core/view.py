"""From meters and totals to what is shown: every gauge of an engine, derived in one place."""

from dataclasses import dataclass
from typing import Final

from exporter.clock import Instant
from exporter.config.model import Config
from exporter.core.meter import EngineMeter, Terms
from exporter.core.money import NANO
from exporter.core.prices import HourlyPrice, in_force
from exporter.core.scaling import Signal, min_replicas, signals
from exporter.core.snapshot import EngineView, WindowView
from exporter.core.standing import StandingCost, nano_usd_per_hour
from exporter.core.windows import WINDOWS, EngineTotals, EngineWindows

_TTFT_WINDOWS: Final = {"1m": 60 * NANO, "5m": 300 * NANO}
_MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What is known of one engine when a beat ends."""

    terms: Terms
    meter: EngineMeter
    windows: EngineWindows
    totals: EngineTotals
    gpu_utilization: float | None


def engine_view(config: Config, costs: tuple[StandingCost, ...], facts: EngineFacts, now: Instant) -> EngineView:
    """Derive all gauges of one engine; what tells the engine's present is None while its page cannot be read."""
    engine, meter = facts.terms.engine, facts.meter
    price = facts.terms.gpu_price_now or in_force(facts.terms.gpu_prices, now.wall)
    rate = _usd_per_hour(costs, facts.terms, price, now)
    windows = {name: _window(config, facts, now, length) for name, length in WINDOWS.items()}
    load = windows["5m"].load_ratio
    p95 = {name: meter.ttft_quantile(0.95, now.monotonic, length) for name, length in _TTFT_WINDOWS.items()}
    cold_start = meter.last_cold_start
    return EngineView(
        name=engine.name,
        model=meter.model,
        tier=engine.tier or "",
        workload=engine.workload,
        kind=meter.reading.kind if meter.reading else None,
        state="up" if meter.reading else ("loading" if meter.is_loading else "down"),
        gpus=float(engine.gpus_charged),
        gpu=facts.terms.gpu,
        gpu_price_usd_per_hour=None if price.nano_usd_per_hour is None else float(price.nano_usd_per_hour / NANO),
        gpu_price_source=price.source,
        spend_usd_per_hour=rate,
        underused_spend_usd_per_hour=None if rate is None or load is None else rate * (1 - load),
        windows=windows,
        models={name or meter.model: gauges for name, gauges in meter.reading.models.items()} if meter.reading else {},
        ttft=dict(meter.ttft),
        ttft_p95_seconds=p95,
        ttft_target_seconds=engine.ttft_target_seconds,
        signals=_signals(config, facts, p95["1m"]),
        min_replicas=min_replicas(engine),
        cold_start_seconds=cold_start.seconds if cold_start else None,
    )


def _usd_per_hour(costs: tuple[StandingCost, ...], terms: Terms, price: HourlyPrice, now: Instant) -> float | None:
    standing = nano_usd_per_hour(costs, terms.engine.name, now.wall)
    gpus = terms.engine.gpus_charged
    if not gpus:
        return float(standing / NANO)
    return None if price.nano_usd_per_hour is None else float((standing + gpus * price.nano_usd_per_hour) / NANO)


def _window(config: Config, facts: EngineFacts, now: Instant, length: int) -> WindowView:
    moved = facts.windows.moved(now.monotonic, length, facts.totals)

    def per_million(tokens: int) -> float | None:
        unknown = moved.unpriced_gpu_ns or tokens < config.min_tokens
        return None if unknown else moved.spend / NANO / tokens * _MILLION

    return WindowView(
        usd_per_million_output_tokens=per_million(moved.output_tokens),
        usd_per_million_total_tokens=per_million(moved.prompt_tokens + moved.output_tokens),
        load_ratio=_load(facts, moved.output_tokens, moved.duration_ns),
    )


def _load(facts: EngineFacts, output_tokens: int, duration_ns: int) -> float | None:
    configured = facts.terms.engine.max_output_tokens_per_second
    peak = float(configured) if configured else facts.windows.peak_output_tokens_per_second()
    if facts.meter.reading is None or not peak or not duration_ns:
        return None
    return min(output_tokens * NANO / duration_ns / peak, 1.0)


def _signals(config: Config, facts: EngineFacts, ttft_p95: float | None) -> tuple[Signal, ...]:
    reading = facts.meter.reading
    waiting = [gauges.waiting for gauges in reading.models.values() if gauges.waiting is not None] if reading else []
    return signals(
        config.scaling,
        facts.terms.engine,
        waiting=sum(waiting) if waiting else None,
        ttft_p95=ttft_p95,
        gpu_utilization=facts.gpu_utilization,
    )
