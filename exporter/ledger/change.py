"""What is written into a ledger, and what is found in one."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from exporter.core.money import Account
from exporter.core.periods import QUARTER

log = logging.getLogger(__name__)

BUCKET_SECONDS: Final = QUARTER

_SAMPLES_WAITING: Final = 50_000

Sample = tuple[str, int, tuple[int, ...]]  # series, Unix seconds, values


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one commit writes, whole or not at all. Changes add up.

    `totals` and `buckets` are increments in each account's unit, a bucket by the Unix second at which it starts;
    `rests` (less than one unit, waiting in its account), `states` (None forgets one) and `meta` are newest values.
    """

    totals: Mapping[Account, int] = field(default_factory=dict)
    rests: Mapping[Account, Fraction] = field(default_factory=dict)
    buckets: Mapping[tuple[Account, int], int] = field(default_factory=dict)
    states: Mapping[str, bytes | None] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    meta: Mapping[str, str] = field(default_factory=dict)

    def merged(self, newer: "Change") -> "Change":
        """Return the change that does what this one and then a newer one do."""
        pile = Pile()
        pile.add(self)
        pile.add(newer)
        return pile.change()


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a ledger holds; of the buckets only those that were asked for, and no rest of 0."""

    totals: Mapping[Account, int] = field(default_factory=dict)
    rests: Mapping[Account, Fraction] = field(default_factory=dict)
    buckets: Mapping[tuple[Account, int], int] = field(default_factory=dict)
    states: Mapping[str, bytes] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    meta: Mapping[str, str] = field(default_factory=dict)


class Pile:
    """Changes added up. However long they wait, there is a bound to them: of the samples only the newest are kept."""

    def __init__(self) -> None:
        self._totals: dict[Account, int] = {}
        self._rests: dict[Account, Fraction] = {}
        self._buckets: dict[tuple[Account, int], int] = {}
        self._states: dict[str, bytes | None] = {}
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES_WAITING)
        self._meta: dict[str, str] = {}

    def add(self, newer: Change) -> None:
        """Add a change, newer than all before."""
        for account, amount in newer.totals.items():
            self._totals[account] = self._totals.get(account, 0) + amount
        for bucket, amount in newer.buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + amount
        self._rests.update(newer.rests)
        self._states.update(newer.states)
        dropped = len(self._samples) + len(newer.samples) - _SAMPLES_WAITING
        if dropped > 0:
            log.warning("the ledger has not been written for long: %d samples of windows are dropped", dropped)
        self._samples.extend(newer.samples)
        self._meta.update(newer.meta)

    def change(self) -> Change:
        """Return all of it as one change; nothing may be added any more."""
        return Change(
            totals=self._totals,
            rests=self._rests,
            buckets=self._buckets,
            states=self._states,
            samples=tuple(self._samples),
            meta=self._meta,
        )
