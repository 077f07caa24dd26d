"""The signals that say when to scale: waiting requests, GPU utilisation, TTFT against its target."""

from dataclasses import dataclass
from typing import Final

from exporter.config.model import Engine, Scaling, Workload

_MIN_REPLICAS: Final = {
    Workload.INTERACTIVE: 1,  # somebody waits: a cold start is minutes
    Workload.WEBHOOK: 1,  # the caller gives up before a cold start ends
    Workload.BATCH: 0,
    Workload.NIGHTLY: 0,
    Workload.SCHEDULED: 0,
}


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal of this replica in its own unit, and the values above (`up`) and below (`down`) which to scale.

    `value` is None while it is not known.
    """

    name: str
    value: float | None
    up: float
    down: float

    @property
    def ratio(self) -> float | None:
        """Value ÷ scale-up threshold: above 1 asks for another replica."""
        return None if self.value is None else self.value / self.up


def signals(
    scaling: Scaling,
    engine: Engine,
    *,
    waiting: int | None,
    ttft_p95: float | None,
    gpu_utilization: float | None = None,
) -> tuple[Signal, ...]:
    """Return the signals of an engine: requests waiting, GPU utilisation (0-1), p95 TTFT of the last minute (seconds).

    The TTFT thresholds are multiples of the engine's target; without a target there is no such signal.
    """
    depth, utilization = scaling.queue_depth, scaling.gpu_utilization
    found = [
        Signal("queue_depth", waiting, float(depth.up), float(depth.down)),
        Signal("gpu_utilization", gpu_utilization, float(utilization.up), float(utilization.down)),
    ]
    target = engine.ttft_target_seconds
    if target is not None:
        found.append(Signal("ttft", ttft_p95, float(scaling.ttft.up) * target, float(scaling.ttft.down) * target))
    return tuple(found)


def min_replicas(engine: Engine) -> int:
    """Return the fewest replicas that the engine's workload allows, or what the config says."""
    return min_replicas_of(engine.workload) if engine.min_replicas is None else engine.min_replicas


def min_replicas_of(workload: Workload) -> int:
    """Return the fewest replicas that a type of workload allows."""
    return _MIN_REPLICAS[workload]
