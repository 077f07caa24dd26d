"""What a row of the table is: one family of the page, and how a fleet of exporters aggregates it."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, NamedTuple

from exporter.core.money import LABELS, Kind
from exporter.core.readings import Buckets
from exporter.core.snapshot import Snapshot

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


def counter(name: str, kind: Kind, text: str, *, nano: bool = False) -> Row:
    """Return the row of a kind of accounts as they are; `nano` for those that count in 10^-9 of the family's unit."""

    def read(snapshot: Snapshot) -> Iterable[Sample]:
        return snapshot.totals.get(kind, {}).items()

    return Row(name, Type.COUNTER, text, LABELS[kind], Fleet.SUM, read, stays=True, nano=nano)
