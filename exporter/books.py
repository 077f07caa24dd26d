"""The books: the one owner of every total and every window over it.

Whatever moves money or counts posts entries here. A post is applied whole, between two awaits of the event loop, so
no lock is needed. With a ledger behind them, what is posted waits for `flush`, which hands everything since the last
one over as one change; what the page shows is what the ledger has committed, so that no restart can make it fall,
while windows and budgets go by what is posted.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from fractions import Fraction
from functools import partial
from typing import Final

import msgspec

from exporter.config.model import Budget
from exporter.core.budgets import BudgetMeter
from exporter.core.cap import Override
from exporter.core.money import NANO, Account, Entry, Kind
from exporter.core.periods import QUARTER, Quarters, merged
from exporter.core.snapshot import LedgerView
from exporter.core.windows import EngineTotals, EngineWindows
from exporter.ledger import Change, Ledger, Sample, Saved

_ENGINE_FIRST: Final = (Kind.UNPRICED_GPU, Kind.PROMPT_TOKENS, Kind.OUTPUT_TOKENS)
_UNOBSERVED: Final = Account(Kind.UNOBSERVED, ())
BY_QUARTER: Final = (Kind.SPEND, Kind.UNPRICED_GPU, Kind.UNOBSERVED)  # what budgets look at
_OVERRIDE: Final = "override:"  # and a budget's name: the key of what a ledger keeps about it
_FINEST: Final = 10**30  # of a unit: a rest stays small however often time is cut


class Fate(Enum):
    """What became of an override."""

    IN_FORCE = auto()
    REPLACED = auto()  # a later one came before it was written
    NOT_WRITTEN = auto()


class Books:
    """Totals by account, each engine's windows, and the budgets."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        """Go on from what a ledger holds. Without one all is kept in memory."""
        self._ledger = ledger
        self._commit_seen = asyncio.Event()
        self._committed_number = 0
        self.awaits_ledger = False  # what was spent is not known yet
        self._early: dict[Account, Entry] = {}  # posted meanwhile
        self.budgets: dict[str, BudgetMeter] = {}
        self._begin(ledger.saved if ledger else Saved())

    def await_ledger(self) -> None:
        """Show and book nothing before there is a ledger to go on from."""
        self.awaits_ledger = True

    def go_on(self, ledger: Ledger) -> None:
        """Go on from what the awaited ledger holds, and begin to write; what was posted meanwhile is booked now."""
        held = [meter.budget for meter in self.budgets.values()]
        self._ledger, self.awaits_ledger, self.budgets = ledger, False, {}
        self._begin(ledger.saved)
        self.hold(held)
        for entry in self._early.values():
            self._apply(*entry)
        self._early.clear()
        self.start()

    def _begin(self, saved: Saved) -> None:
        """Begin with what an earlier process left."""
        self.states, self.samples, self.meta = saved.states, saved.samples, saved.meta
        self._posted: dict[Account, int] = dict(saved.totals)
        self._rests: dict[Account, Fraction] = dict(saved.rests)  # less than one unit, waiting in its account
        self._shown: dict[Kind, dict[tuple[str, ...], int]] = {kind: {} for kind in Kind}
        self._by_engine: dict[tuple[Kind, str], int] = {}
        for account, amount in saved.totals.items():
            self._shown[account.kind][account.labels] = amount
            self._add_to_engine(account, amount)
        self._quarters = _quarters(saved)
        self._windows: dict[str, EngineWindows] = {}
        self._totals_waiting: dict[Account, int] = {}
        self._buckets_waiting: dict[tuple[Account, int], int] = {}
        self._uncommitted_spend = 0
        self.overrides = _overrides(saved.meta)  # the latest of each budget, whether it still counts or not

    async def post(self, entries: Iterable[Entry]) -> None:
        """Book entries, all or none.

        Raises:
            ValueError: an amount is negative; nothing has been booked.
        """
        entries = list(entries)
        if any(entry.amount < 0 for entry in entries):
            raise ValueError("expected amounts of 0 or more")
        for entry in entries:
            if self.awaits_ledger:
                amount = self._early[entry.account].amount if entry.account in self._early else 0
                self._early[entry.account] = entry._replace(amount=amount + entry.amount)
            else:
                self._apply(*entry)

    def _apply(self, account: Account, amount: Fraction | int, at: int) -> None:
        if not amount and account in self._posted:
            return
        owed = amount + self._rests.get(account, 0)
        whole = int(owed)
        self._rests[account] = Fraction(owed - whole).limit_denominator(_FINEST)
        self._posted[account] = self._posted.get(account, 0) + whole
        self._add_to_engine(account, whole)
        if account.kind in BY_QUARTER:
            self._quarters.setdefault(account, Quarters()).add(whole, at)
        for meter in self.budgets.values():
            meter.book(account, whole, at)
        if self._ledger is None:
            self._show(account, whole)
        else:
            self._wait(account, whole, at)

    def _wait(self, account: Account, amount: int, at: int) -> None:
        self._totals_waiting[account] = self._totals_waiting.get(account, 0) + amount
        if amount:
            bucket = account, at // NANO // QUARTER * QUARTER
            self._buckets_waiting[bucket] = self._buckets_waiting.get(bucket, 0) + amount
        self._uncommitted_spend += amount if account.kind is Kind.SPEND else 0

    def _show(self, account: Account, amount: int) -> None:
        shown = self._shown[account.kind]
        shown[account.labels] = shown.get(account.labels, 0) + amount

    def _add_to_engine(self, account: Account, amount: int) -> None:
        engine = _engine_of(account)
        if engine is not None:
            key = (account.kind, engine)
            self._by_engine[key] = self._by_engine.get(key, 0) + amount

    def flush(self, states: Mapping[str, bytes | None], samples: Sequence[Sample], meta: Mapping[str, str]) -> None:
        """Hand all that was posted since the last time to the ledger, together with what must agree with it."""
        if self._ledger is None:
            return
        totals, self._totals_waiting = self._totals_waiting, {}
        buckets, self._buckets_waiting = self._buckets_waiting, {}
        rests = {account: self._rests[account] for account in totals}
        change = Change(totals=totals, rests=rests, buckets=buckets, states=states, samples=samples, meta=meta)
        self._commit_seen.clear()
        self._ledger.submit(change)

    def start(self) -> None:
        """Begin to write, where there is a ledger."""
        if self._ledger is not None:
            loop = asyncio.get_running_loop()
            self._ledger.start(lambda change, number: _call_soon(loop, partial(self._committed, change, number)))

    async def settled(self, seconds: float) -> None:
        """Wait until what was flushed is on the disk, but no longer than this."""
        if self._ledger is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._commit_seen.wait()

    async def override(self, override: Override, patience_seconds: float) -> Fate:
        """Put an override in force once it is on the disk; says what became of it before patience ended.

        One that nobody waits for any more still comes in force when it can be written, if no newer one came instead.
        """
        if self.awaits_ledger:
            return Fate.NOT_WRITTEN
        meta = {_OVERRIDE + override.budget: msgspec.json.encode(override).decode()}
        if self._ledger is None:
            self.overrides |= _overrides(meta)
            return Fate.IN_FORCE
        number = self._ledger.submit(Change(meta=meta))
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_seconds):
                while self._committed_number < number:
                    self._commit_seen.clear()
                    await self._commit_seen.wait()
                return Fate.IN_FORCE if self.overrides.get(override.budget) == override else Fate.REPLACED
        return Fate.NOT_WRITTEN

    def _committed(self, change: Change, number: int) -> None:
        self._committed_number = number
        self._commit_seen.set()
        self.overrides |= _overrides(change.meta)
        for account, amount in change.totals.items():
            self._show(account, amount)
            self._uncommitted_spend -= amount if account.kind is Kind.SPEND else 0

    def ledger(self) -> LedgerView | None:
        """Say how writing goes, None without a ledger."""
        ledger = self._ledger
        if ledger is None:
            return None
        return LedgerView(
            uncommitted=self._uncommitted_spend,
            errors=ledger.errors,
            last_commit=ledger.last_commit,
            problem=ledger.problem,
            set_aside=str(ledger.set_aside) if ledger.set_aside else None,
        )

    def totals(self) -> Mapping[Kind, Mapping[tuple[str, ...], int]]:
        """Return a copy of all totals that may be shown, in each account's unit; none before the ledger is there."""
        if self.awaits_ledger:
            return {}
        return {kind: dict(totals) for kind, totals in self._shown.items()}

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

    def hold(self, budgets: Iterable[Budget]) -> None:
        """Hold these budgets from now on; one that holds the same accounts as before goes on."""
        held = {}
        for budget in budgets:
            before = self.budgets.get(budget.name)
            if before and before.budget.match == budget.match:
                before.adopt(budget)
                held[budget.name] = before
            else:
                held[budget.name] = self._meter(budget)
        self.budgets = held

    def _meter(self, budget: Budget) -> BudgetMeter:
        meter = BudgetMeter(budget)
        spent = merged(quarters for account, quarters in self._quarters.items() if meter.matches(account))
        unpriced = merged(quarters for account, quarters in self._quarters.items() if meter.lacks(account))
        return BudgetMeter(budget, spent=spent, unpriced=unpriced)

    def unobserved(self) -> Quarters:
        """Return the nanoseconds that nobody saw and nothing was booked for."""
        return self._quarters.get(_UNOBSERVED) or Quarters()


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop has ended, and with it whoever wants to know
        loop.call_soon_threadsafe(call)


def _overrides(meta: Mapping[str, str]) -> dict[str, Override]:
    found = {}
    for key, text in meta.items():
        if key.startswith(_OVERRIDE):
            with suppress(msgspec.DecodeError):  # of another version: it does not count
                found[key.removeprefix(_OVERRIDE)] = msgspec.json.decode(text, type=Override)
    return found


def _quarters(saved: Saved) -> dict[Account, Quarters]:
    amounts: dict[Account, dict[int, int]] = {}
    for (account, start), amount in saved.buckets.items():
        if account.kind in BY_QUARTER:
            amounts.setdefault(account, {})[start] = amount
    return {
        account: Quarters(amounts.get(account), total - sum(amounts.get(account, {}).values()))
        for account, total in saved.totals.items()
        if account.kind in BY_QUARTER
    }


def _engine_of(account: Account) -> str | None:
    if account.kind is Kind.SPEND:
        return account.labels[1]
    return account.labels[0] if account.kind in _ENGINE_FIRST else None
