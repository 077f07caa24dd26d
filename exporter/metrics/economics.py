"""The rows of what follows from the money: self-hosting beside an API, and cascades."""

from collections.abc import Iterator
from typing import Final

from exporter.core.money import Kind
from exporter.core.snapshot import Snapshot
from exporter.metrics.row import Fleet, Row, Sample, Type, counter

_EDGE: Final = ("cascade", "from_tier", "to_tier")


def _ratios(snapshot: Snapshot) -> Iterator[Sample]:
    for view in snapshot.economics.break_even:
        for window, ratio in view.ratios.items():
            yield (view.engine, view.api_model, window), ratio


def _requests(snapshot: Snapshot) -> Iterator[Sample]:
    for view in snapshot.economics.break_even:
        if view.requests_per_day is not None:
            yield (view.engine, view.api_model), view.requests_per_day


def _escalations(snapshot: Snapshot) -> Iterator[Sample]:
    for view in snapshot.economics.edges:
        for window, ratio in view.ratios.items():
            yield (*view.edge, window), ratio


def _break_even(snapshot: Snapshot) -> Iterator[Sample]:
    for view in snapshot.economics.edges:
        if view.break_even_ratio is not None:
            yield tuple(view.edge), view.break_even_ratio


# fmt: off
ECONOMICS: Final[tuple[Row, ...]] = (
    counter("api_equivalent_usd_total", Kind.API_EQUIVALENT,
        "What the same tokens would have cost at the API of prices.api.compare_with, without tiers for long prompts.",
        nano=True),
    Row("break_even_ratio", Type.GAUGE,
        "Self-hosted spend per dollar that the API would have taken. Below 1 self-hosting wins.",
        ("engine", "api_model", "window"), Fleet.NONE, _ratios),
    Row("break_even_requests_per_day", Type.GAUGE,
        "Requests a day from which on self-hosting pays, at today's tokens per request; absent under 50 requests.",
        ("engine", "api_model"), Fleet.NONE, _requests),
    Row("escalation_ratio", Type.GAUGE,
        "Requests that a tier handed over per request that it received.", (*_EDGE, "window"), Fleet.NONE, _escalations),
    Row("escalation_break_even_ratio", Type.GAUGE,
        "Escalation ratio above which going straight to the bigger tier is cheaper; absent under 50 requests in 24 h.",
        _EDGE, Fleet.NONE, _break_even),
)
# fmt: on
