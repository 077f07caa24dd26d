"""What an autoscaler is told: queries that come to one number, and windows that a cold start fits into.

The HPA that KEDA makes takes the most replicas that any trigger asks for. So there is one trigger for the load, one for
broken promises, and one that only holds what there is while GPUs are busy. Thresholds that the config has are read from
the exporter's page: one number has one place.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

from exporter.config.model import Engine
from exporter.core.scaling import min_replicas

LEAST_SCALE_DOWN_SECONDS: Final = 300  # queue depth is low for so long before a replica goes
LEAST_COOLDOWN_SECONDS: Final = 600  # GPUs are idle for so long before the last one goes
_COLD_STARTS: Final = 2  # a replica that goes must be missed for longer than it takes to come back


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The replicas of one engine, as Prometheus sees them.

    `selector` is what else their series have in common, as matchers of PromQL, `budget` whose money bounds them.
    `wake_query` says how many requests wait elsewhere: without replicas nobody here knows.
    """

    engine: Engine
    selector: str = ""
    requests_per_replica: int
    max_replicas: int
    cold_start_seconds: float
    budget: str | None = None
    wake_query: str | None = None

    @property
    def min_replicas(self) -> int:
        """The fewest replicas that the engine's workload allows."""
        return min_replicas(self.engine)


@dataclass(frozen=True, slots=True)
class Trigger:
    """One number and its threshold: `AverageValue` asks for value ÷ threshold replicas, `Value` for that × today's."""

    name: str
    metric_type: str
    query: str
    threshold: str
    activation_threshold: str = "0"


def scale_down_seconds(cold_start_seconds: float) -> int:
    """Return how long load must be low before a replica goes: twice a cold start, or 5 minutes."""
    return max(LEAST_SCALE_DOWN_SECONDS, ceil(_COLD_STARTS * cold_start_seconds))


def cooldown_seconds(cold_start_seconds: float) -> int:
    """Return how long nothing may happen before the last replica goes: twice a cold start, or 10 minutes."""
    return max(LEAST_COOLDOWN_SECONDS, ceil(_COLD_STARTS * cold_start_seconds))


def triggers(fleet: Fleet) -> list[Trigger]:
    """Return what scales an engine; with a budget none asks for more replicas than its money keeps."""
    found = [_load(fleet)]
    if fleet.engine.ttft_target_seconds is not None:
        found.append(_ttft(fleet))
    found.append(_busy(fleet))
    if fleet.min_replicas == 0 and fleet.wake_query is not None:
        found.append(_requests(fleet, "wake", fleet.wake_query))
    return found


def _load(fleet: Fleet) -> Trigger:
    """All requests, also those that are worked on: else busy replicas would go as soon as nobody waits."""
    query = f"sum({_of(fleet, 'requests_running')}) + sum({_of(fleet, 'requests_waiting')})"
    return _requests(fleet, "load", query)


def _requests(fleet: Fleet, name: str, query: str) -> Trigger:
    each = str(fleet.requests_per_replica)
    return Trigger(name, "AverageValue", _within_budget(fleet, query, f" * {each}"), each)


def _ttft(fleet: Fleet) -> Trigger:
    """TTFT ÷ the threshold of the config, 0 where there are no requests."""
    buckets = f"sum by (le) (rate({_of(fleet, 'ttft_seconds_bucket')}[2m]))"
    limit = _of(fleet, "scaling_threshold", _is("signal", "ttft"), _is("edge", "up"))
    query = f"((histogram_quantile(0.95, {buckets}) / scalar(max({limit}))) > 0) or vector(0)"
    if fleet.budget is None:
        return Trigger("ttft", "Value", query, "1")
    # Replicas, and not a ratio of them: only so the limit is one of what is asked for, whoever is still loading.
    return Trigger("ttft", "AverageValue", _within_budget(fleet, f"{_replicas(fleet)} * ({query})"), "1")


def _busy(fleet: Fleet) -> Trigger:
    """As many replicas as there are while GPUs are busy, else 0: it holds, and never asks for more."""
    gpus = (
        f"{_of(fleet, 'engine_gpu_info')} * ignoring (engine) group_left () "
        f"rate(llmcost_gpu_busy_seconds_total{f'{{{fleet.selector}}}' if fleet.selector else ''}[1m])"
    )
    limit = _of(fleet, "scaling_threshold", _is("signal", "gpu_utilization"), _is("edge", "down"))
    query = f"({_replicas(fleet)} * (avg({gpus}) >= bool scalar(max({limit})))) or vector(0)"
    return Trigger("gpu-busy", "AverageValue", _within_budget(fleet, query), "1")


def _within_budget(fleet: Fleet, query: str, times: str = "") -> str:
    """Return a number that is no more than affordable replicas (times something)."""
    if fleet.budget is None:
        return query
    # Where the budget is not known there is no such number, and nothing is bounded.
    return f"(clamp_max({query}, {_affordable(fleet)}{times}) >= 0) or ({query})"


def _replicas(fleet: Fleet) -> str:
    up = _matchers(fleet.selector, _is("source", "engine"), _is("target", fleet.engine.name))
    return f"(count(llmcost_source_up{{{up}}} == 1) or vector(0))"


def _affordable(fleet: Fleet) -> str:
    return f"scalar(min({_of(fleet, 'max_affordable_replicas', _is('budget', fleet.budget or ''))}))"


def _of(fleet: Fleet, name: str, *more: str) -> str:
    return f"llmcost_{name}{{{_matchers(fleet.selector, _is('engine', fleet.engine.name), *more)}}}"


def _matchers(*matchers: str) -> str:
    return ", ".join(matcher for matcher in matchers if matcher)


def _is(label: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{label}="{escaped}"'
