"""Cascades: how often a small model hands over to a bigger one, what that costs, and whether it pays at all."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from exporter.config.model import Cascade, CascadeSource
from exporter.core.break_even import LEAST_REQUESTS
from exporter.core.meter import ABANDONED
from exporter.core.money import Account, Entry, Kind
from exporter.core.track import Values


class Edge(NamedTuple):
    """A step of a cascade, from one tier to a bigger one."""

    cascade: str
    from_tier: str
    to_tier: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeView:
    """One step now.

    `ratios` are escalations ÷ requests of the smaller tier by window; above `break_even_ratio` going straight to the
    bigger tier is cheaper (below 0: it always is). None where too little is known.
    """

    edge: Edge
    source: CascadeSource
    ratios: Mapping[str, float] = field(default_factory=dict)
    break_even_ratio: float | None = None


def edges(cascade: Cascade) -> list[Edge]:
    """Return the steps from each tier to the next."""
    return [Edge(cascade.name, *pair) for pair in pairwise(cascade.tiers)]


def from_engines(cascade: Cascade, entries: Iterable[Entry], tier: str) -> Iterator[Entry]:
    """Yield what an engine of a tier tells of a cascade that is counted from engines, by its entries of one beat.

    Every request of a tier but the first counts as one that the tier before it has handed over.
    """
    if cascade.source is not CascadeSource.ENGINES or tier not in cascade.tiers:
        return
    before = {bigger: smaller for smaller, bigger in pairwise(cascade.tiers)}
    for entry in entries:
        if entry.account.kind is Kind.REQUESTS and entry.account.labels[2] != ABANDONED:
            yield entry._replace(account=Account(Kind.CASCADE_REQUESTS, (cascade.name, tier)))
            if tier in before:
                yield entry._replace(account=Account(Kind.ESCALATIONS, (cascade.name, before[tier], tier)))


def cost_of_a_request(moved: Values | None) -> Fraction | None:
    """Return what a request of a tier cost on average, in nano-dollars; None where there were too few.

    Args:
        moved: over the last day: the tier's spend (nano-dollars), and its requests.
    """
    if moved is None or moved[1] < LEAST_REQUESTS:
        return None
    return Fraction(moved[0], moved[1])


def break_even_ratio(smaller: Fraction | None, bigger: Fraction | None) -> float | None:
    """Return the escalation rate above which going straight to the bigger tier is cheaper: 1 − c_from ÷ c_to.

    A request costs c_from first and, at rate r, c_to as well: c_from + r × c_to is below c_to while r < 1 − c_from ÷
    c_to, with c the mean cost of a request of each tier.
    """
    return None if smaller is None or not bigger else float(1 - smaller / bigger)


def spent_on_first_tries(edge: Edge, escalated: int, costed: int, cost: Fraction | None, at: int) -> Iterator[Entry]:
    """Yield what the first tries cost that were thrown away since the last time; they wait while no cost is known.

    Args:
        edge: the step.
        escalated: requests that were handed over so far.
        costed: those of them whose first try is booked.
        cost: of a request of the smaller tier, in nano-dollars.
        at: Unix nanoseconds.
    """
    due = escalated - costed
    if cost is not None and due > 0:
        yield Entry(Account(Kind.ESCALATION_SPEND, edge), due * cost, at)
        yield Entry(Account(Kind.COSTED_ESCALATIONS, edge), due, at)
