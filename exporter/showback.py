"""Showback in motion: open slots, what of them waits for the ledger, and how well events cover the engines' work."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from exporter.core.attribution import Closed, Item, Settling, Slot, pending_item
from exporter.core.coverage import WINDOWS, Coverage
from exporter.core.money import NANO, Account, Entry, Kind
from exporter.ledger import Change, Sample, Saved

_SERIES: Final = "slot:"
_MONEY: Final = "nano_usd"


class HandedOver(NamedTuple):
    """What a commit must hold beside the totals."""

    pending: dict[tuple[Slot, Item], int]
    closed: set[Slot]
    samples: list[Sample]


class Showback:
    """The second book's part that is still open."""

    def __init__(self, saved: Saved, settle_seconds: float, last_beat: int | None) -> None:
        """Go on with what an earlier process left open at its last beat (Unix nanoseconds)."""
        self.settling = Settling(settle_seconds, None if last_beat is None else last_beat // NANO)
        self.settling.restore(saved.pending, saved.claims)
        self._shown = self.settling.pending_nano_usd()
        self._coverage: dict[str, Coverage] = {}
        for series, end, (claimed, counted, *_) in (one for one in saved.samples if one[0].startswith(_SERIES)):
            self._coverage.setdefault(series.removeprefix(_SERIES), Coverage()).add(end, claimed, counted)
        self._waiting = HandedOver({}, set(), [])

    def pend(self, account: Account, amount: int, at: int) -> None:
        """Let what was booked at an instant (Unix nanoseconds) wait for its slot to close, if it settles anything."""
        found = pending_item(account)
        if not amount or found is None:
            return
        engine, item = found
        slot, _ = self.settling.place(engine, at // NANO)
        self.settling.pend(slot, item, amount)
        self._waiting.pending[slot, item] = self._waiting.pending.get((slot, item), 0) + amount

    def close(self, now: int) -> Iterator[Entry]:
        """Settle what has waited long enough at a Unix second, and yield what each feature pays."""
        for closed in self.settling.close(now):
            self._remember(closed)
            yield from closed.entries

    def _remember(self, closed: Closed) -> None:
        slot, claimed, counted = closed.slot, closed.claimed_tokens, closed.counted_tokens
        self._coverage.setdefault(slot.engine, Coverage()).add(slot.end, claimed, counted)
        self._waiting.closed.add(slot)
        self._waiting.samples.append((_SERIES + slot.engine, slot.end, (claimed, counted)))
        for key in [key for key in self._waiting.pending if key[0] == slot]:
            del self._waiting.pending[key]

    def handed_over(self) -> HandedOver:
        """Return what has come about since the last time."""
        waiting, self._waiting = self._waiting, HandedOver({}, set(), [])
        return waiting

    def take(self, change: Change) -> None:
        """Take in claims that are written."""
        for (slot, claimant), claim in change.claims.items():
            self.settling.claim(slot, claimant, claim)

    def show(self, account: Account, amount: int) -> None:
        """Follow what the page shows: busy time is pending until it is attributed."""
        found = pending_item(account)
        if found is not None and found[1][0] == _MONEY:
            self._shown[found[0]] = self._shown.get(found[0], 0) + amount
        elif account.kind is Kind.ATTRIBUTED and account.labels[2]:
            engine = account.labels[2]
            self._shown[engine] = self._shown.get(engine, 0) - amount

    def pending_nano_usd(self) -> Mapping[str, int]:
        """Return by engine what the shown bill has for busy time and the shown showback has not."""
        return dict(self._shown)

    def coverage(self, now: int) -> dict[tuple[str, str], float]:
        """Return tokens claimed ÷ tokens counted by engine and window, as far as slots are settled at a Unix second."""
        until = self.settling.settled_until(now)
        found = {}
        for engine, coverage in self._coverage.items():
            for name, window in WINDOWS.items():
                ratio = coverage.ratio(window, until)
                if ratio is not None:
                    found[engine, name] = ratio
        return found
