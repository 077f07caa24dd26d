"""The snapshot as JSON, for scripts.

Counters are integers in the unit that their kind names; times are Unix seconds.
"""

from typing import Any

import msgspec

from exporter.core.money import LABELS
from exporter.core.snapshot import EngineView, Snapshot


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
            "sources": snapshot.sources,
            "totals": [
                {"kind": kind, "labels": dict(zip(LABELS[kind], labels, strict=True)), "amount": amount}
                for kind, accounts in snapshot.totals.items()
                for labels, amount in accounts.items()
            ],
        }
    )


def _engine(engine: EngineView) -> dict[str, Any]:
    shown = {name: getattr(engine, name) for name in engine.__slots__ if name not in ("ttft", "signals")}
    signals = {
        signal.name: {"value": signal.value, "ratio": signal.ratio, "up": signal.up, "down": signal.down}
        for signal in engine.signals
    }
    return {**shown, "signals": signals}
