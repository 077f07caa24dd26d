"""The snapshot as JSON, for scripts.

Counters are integers in the unit that their kind names (of GPUs: nanoseconds, nanojoules, bytes, counts), gauges in the
unit of their family; times are Unix seconds.
"""

from typing import Any

import msgspec

from exporter.core.gpus import GpuView
from exporter.core.money import LABELS
from exporter.core.snapshot import EngineView, GpusView, Snapshot


def encode(snapshot: Snapshot) -> bytes:
    """Return a snapshot as JSON."""
    return msgspec.json.encode(
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
            "totals": [
                {"kind": kind, "labels": dict(zip(LABELS[kind], labels, strict=True)), "amount": amount}
                for kind, accounts in snapshot.totals.items()
                for labels, amount in accounts.items()
            ],
        }
    )


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
