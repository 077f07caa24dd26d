"""The snapshot as JSON, for scripts.

Counters are integers in the unit that their kind names (of GPUs: nanoseconds, nanojoules, bytes, counts), gauges in the
unit of their family; times are Unix seconds. Budgets are as `GET /v1/budgets` tells them, in exact US dollars.
"""

from collections.abc import Mapping
from typing import Any

from exporter.core.break_even import BreakEvenView
from exporter.core.cap import Override
from exporter.core.cascades import EdgeView
from exporter.core.gpus import GpuView
from exporter.core.money import LABELS
from exporter.core.snapshot import EngineView, GpusView, Snapshot
from exporter.web import budgets_json


def encode(snapshot: Snapshot, overrides: Mapping[str, Override]) -> bytes:
    """Return a snapshot as JSON, with the overrides in force by budget."""
    return budgets_json.encode(
        {
            "at": snapshot.at,
            "version": snapshot.version,
            "role": snapshot.role,
            "interval_seconds": snapshot.interval_seconds,
            "accounting_start": snapshot.accounting_start,
            "config": snapshot.config,
            "engines": [_engine(engine) for engine in snapshot.engines],
            "gpus": _gpus(snapshot.gpus),
            "sources": snapshot.sources,
            "budgets": [budgets_json.budget(view, overrides.get(view.budget.name)) for view in snapshot.budgets],
            "break_even": [_break_even(view) for view in snapshot.economics.break_even],
            "cascades": [_step(view) for view in snapshot.economics.edges],
            "attribution": {
                "pending_nano_usd": snapshot.showback.pending,
                "coverage_ratio": [
                    {"engine": engine, "window": window, "ratio": ratio}
                    for (engine, window), ratio in snapshot.showback.coverage.items()
                ],
                "value_ratio": snapshot.showback.value_ratios,
            },
            "totals": [
                {"kind": kind, "labels": dict(zip(LABELS[kind], labels, strict=True)), "amount": amount}
                for kind, accounts in snapshot.totals.items()
                for labels, amount in accounts.items()
            ],
        }
    )


def _break_even(view: BreakEvenView) -> dict[str, Any]:
    said = {True: "reachable", False: "not reachable with the replicas of today", None: "not known yet"}
    return {
        "engine": view.engine,
        "api_model": view.api_model,
        "ratio": view.ratios,
        "requests_per_day": view.requests_per_day,
        "most_requests_per_day": view.most_requests_per_day,
        "break_even": said[view.is_reachable],
    }


def _step(view: EdgeView) -> dict[str, Any]:
    return {
        **view.edge._asdict(),
        "source": view.source,
        "escalation_ratio": view.ratios,
        "break_even_ratio": view.break_even_ratio,
    }


def _gpus(gpus: GpusView) -> dict[str, Any]:
    return {
        "source": gpus.source,
        "reason": gpus.reason,
        "detail": gpus.detail,
        "visible": gpus.visible,
        "expected": gpus.expected,
        "devices": [_gpu(gpu) for gpu in gpus.gpus],
        "engines": [{"engine": engine, "gpu": index, "uuid": uuid} for engine, index, uuid in gpus.engines],
    }


def _gpu(gpu: GpuView) -> dict[str, Any]:
    reading = gpu.reading
    return {
        "gpu": reading.index,
        "uuid": reading.uuid,
        "name": reading.name,
        "up": reading.up,
        "age_seconds": gpu.age_seconds,
        "families": {family: dict(samples) for family, samples in gpu.families.items()},
        "instances": [instance.uuid for instance in reading.instances],
    }


def _engine(engine: EngineView) -> dict[str, Any]:
    shown = {name: getattr(engine, name) for name in engine.__slots__ if name not in ("ttft", "signals")}
    signals = {
        signal.name: {"value": signal.value, "ratio": signal.ratio, "up": signal.up, "down": signal.down}
        for signal in engine.signals
    }
    return {**shown, "signals": signals}
