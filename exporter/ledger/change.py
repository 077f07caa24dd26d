"""What is written into a ledger, and what is found in one."""

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, NamedTuple, TypeVar

from exporter.core.attribution import Claim, Claimant, Item, Slot
from exporter.core.money import Account, Kind
from exporter.core.periods import QUARTER

log = logging.getLogger(__name__)

BUCKET_SECONDS: Final = QUARTER

# In meta, Unix nanoseconds: all standing costs between the two are booked.
ACCOUNTING_START: Final = "accounting_start"
LAST_BEAT: Final = "last_beat"

_SAMPLES_WAITING: Final = 50_000

Sample = tuple[str, int, tuple[int, ...]]  # series, Unix seconds, values
Named = TypeVar("Named")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one commit writes, whole or not at all. Changes add up.

    `totals` and `buckets` are increments in each account's unit, a bucket by the Unix second at which it starts.
    Of the slots those that are `closed` are forgotten first; `pending` and `claims` are increments. `rests` (less than
    one unit, waiting in its account), `states` (None forgets one) and `meta` are newest values.
    """

    totals: Mapping[Account, int] = field(default_factory=dict)
    rests: Mapping[Account, Fraction] = field(default_factory=dict)
    buckets: Mapping[tuple[Account, int], int] = field(default_factory=dict)
    pending: Mapping[tuple[Slot, Item], int] = field(default_factory=dict)
    claims: Mapping[tuple[Slot, Claimant], Claim] = field(default_factory=dict)
    closed: AbstractSet[Slot] = frozenset()
    states: Mapping[str, bytes | None] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    meta: Mapping[str, str] = field(default_factory=dict)

    def merged(self, *newer: "Change") -> "Change":
        """Return the change that does what this one and then newer ones do."""
        pile = Pile()
        for change in (self, *newer):
            pile.add(change)
        return pile.change()


class Key(NamedTuple):
    """What makes a delivery the same one when it comes again: `key` names it, `body` stands for all that it says."""

    key: bytes
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Deliveries that are written together, each of them once however often it comes.

    Of `keys` those that the ledger does not know are new. `effect` returns what the new ones change, by their
    positions; it is called in the writer's thread, and may not look at anything that moves. Where one is a conflict,
    the others are written only if the batch `is_partial`.
    """

    keys: Sequence[Key]
    effect: Callable[[Sequence[int]], Change]
    is_partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a batch; `change` is what was written.

    Nothing of it is where there is a `problem`, in words, or, unless the batch is partial, where there are `conflicts`:
    positions of known keys with another body.
    """

    new: Sequence[int] = ()
    duplicates: int = 0
    conflicts: Sequence[int] = ()
    problem: str | None = None
    change: Change = Change()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which buckets are read: of these kinds of accounts, those that start at the Unix second `since` or later.

    Those within `back` seconds of the newest are read as well: our clock may be ahead now, and right later.
    """

    kinds: Collection[Kind] = tuple(Kind)
    since: int = 0
    back: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a ledger holds; of the buckets only those that were asked for, and no rest of 0."""

    totals: Mapping[Account, int] = field(default_factory=dict)
    rests: Mapping[Account, Fraction] = field(default_factory=dict)
    buckets: Mapping[tuple[Account, int], int] = field(default_factory=dict)
    pending: Mapping[tuple[Slot, Item], int] = field(default_factory=dict)
    claims: Mapping[tuple[Slot, Claimant], Claim] = field(default_factory=dict)
    states: Mapping[str, bytes] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    meta: Mapping[str, str] = field(default_factory=dict)


def moment(meta: Mapping[str, str], name: str) -> int | None:
    """Return a moment that the meta of a ledger has, in Unix nanoseconds; None where it has none, or a damaged one."""
    text = meta.get(name, "")
    return int(text) if text.isdecimal() else None


class Pile:
    """Changes added up. However long they wait, there is a bound to them: of the samples only the newest are kept."""

    def __init__(self) -> None:
        self._totals: dict[Account, int] = {}
        self._rests: dict[Account, Fraction] = {}
        self._buckets: dict[tuple[Account, int], int] = {}
        self._pending: dict[tuple[Slot, Item], int] = {}
        self._claims: dict[tuple[Slot, Claimant], Claim] = {}
        self._closed: set[Slot] = set()
        self._states: dict[str, bytes | None] = {}
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES_WAITING)
        self._meta: dict[str, str] = {}

    def add(self, newer: Change) -> None:
        """Add a change, newer than all before."""
        self._close(newer.closed)
        _add(self._totals, newer.totals)
        _add(self._buckets, newer.buckets)
        _add(self._pending, newer.pending)
        for claimed, claim in newer.claims.items():
            self._claims[claimed] = self._claims[claimed].plus(claim) if claimed in self._claims else claim
        self._rests.update(newer.rests)
        self._states.update(newer.states)
        dropped = len(self._samples) + len(newer.samples) - _SAMPLES_WAITING
        if dropped > 0:
            log.warning("the ledger has not been written for long: %d samples of windows are dropped", dropped)
        self._samples.extend(newer.samples)
        self._meta.update(newer.meta)

    def _close(self, slots: AbstractSet[Slot]) -> None:
        self._closed |= slots
        if slots:
            self._pending = {key: amount for key, amount in self._pending.items() if key[0] not in slots}
            self._claims = {key: claim for key, claim in self._claims.items() if key[0] not in slots}

    def change(self) -> Change:
        """Return all of it as one change; nothing may be added any more."""
        return Change(
            totals=self._totals,
            rests=self._rests,
            buckets=self._buckets,
            pending=self._pending,
            claims=self._claims,
            closed=frozenset(self._closed),
            states=self._states,
            samples=tuple(self._samples),
            meta=self._meta,
        )


def _add(amounts: dict[Named, int], more: Mapping[Named, int]) -> None:
    for name, amount in more.items():
        amounts[name] = amounts.get(name, 0) + amount
