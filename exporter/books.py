"""The books: the one owner of every total and every window over it.

Whatever moves money or counts posts entries here. A post is applied whole, between two awaits of the event loop, so
no lock is needed. The totals live in memory; a commit to disk belongs at the head of `post`, before anything is
applied.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Final

from exporter.core.money import Account, Entry, Kind
from exporter.core.windows import EngineTotals, EngineWindows

_ENGINE_FIRST = (Kind.UNPRICED_GPU, Kind.PROMPT_TOKENS, Kind.OUTPUT_TOKENS)

_FINEST: Final = 10**30  # of a unit: a rest stays small however often time is cut


class Books:
    """Totals by account, and each engine's windows."""

    def __init__(self) -> None:
        self._totals: dict[Kind, dict[tuple[str, ...], int]] = {kind: {} for kind in Kind}
        self._rests: dict[Account, Fraction] = {}  # less than one unit, waiting in its account
        self._by_engine: dict[tuple[Kind, str], int] = {}
        self._windows: dict[str, EngineWindows] = {}

    async def post(self, entries: Iterable[Entry]) -> None:
        """Book entries, all or none.

        Raises:
            ValueError: an amount is negative; nothing has been booked.
        """
        entries = list(entries)
        if any(entry.amount < 0 for entry in entries):
            raise ValueError("expected amounts of 0 or more")
        for account, amount, _ in entries:
            self._apply(account, amount)

    def _apply(self, account: Account, amount: Fraction | int) -> None:
        owed = amount + self._rests.get(account, 0)
        whole = int(owed)
        self._rests[account] = Fraction(owed - whole).limit_denominator(_FINEST)
        totals = self._totals[account.kind]
        totals[account.labels] = totals.get(account.labels, 0) + whole
        engine = _engine_of(account)
        if engine is not None:
            key = (account.kind, engine)
            self._by_engine[key] = self._by_engine.get(key, 0) + whole

    def totals(self) -> Mapping[Kind, Mapping[tuple[str, ...], int]]:
        """Return a copy of all totals, in each account's unit."""
        return {kind: dict(totals) for kind, totals in self._totals.items()}

    def engine_totals(self, engine: str) -> EngineTotals:
        """Return what one engine has cost and done."""
        kinds = (Kind.SPEND, Kind.UNPRICED_GPU, Kind.PROMPT_TOKENS, Kind.OUTPUT_TOKENS)
        return EngineTotals(*(self._by_engine.get((kind, engine), 0) for kind in kinds))

    def forget_windows(self, engine: str) -> None:
        """Begin the windows of an engine anew: it was away, and its past says nothing of the present."""
        self._windows.pop(engine, None)

    def windows(self, engine: str) -> EngineWindows:
        """Return the windows of one engine, empty ones for an engine not seen before."""
        return self._windows.setdefault(engine, EngineWindows())


def _engine_of(account: Account) -> str | None:
    if account.kind is Kind.SPEND:
        return account.labels[1]
    return account.labels[0] if account.kind in _ENGINE_FIRST else None
