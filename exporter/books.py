"""The books: the one owner of every total and every window over it.

Whatever moves money or counts posts entries here. A post is applied whole, between two awaits of the event loop, so
no lock is needed. With a ledger behind them, what is posted waits for `flush`, which hands everything since the last
one over as one change; what the page shows is what the ledger has committed, so that no restart can make it fall,
while windows and budgets go by what is posted.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from fractions import Fraction
from functools import partial
from typing import Final

import msgspec

from exporter.config.model import Budget
from exporter.core.attribution import Slot
from exporter.core.budgets import BudgetMeter
from exporter.core.cap import Override
from exporter.core.money import NANO, Account, Entry, Kind
from exporter.core.periods import KEPT_QUARTERS, QUARTER, Quarters, merged
from exporter.core.snapshot import LedgerView
from exporter.core.windows import EngineTotals, EngineWindows
from exporter.ledger import LAST_BEAT, Batch, Change, Ledger, LedgerError, Sample, Saved, Verdict, moment
from exporter.showback import Showback

log = logging.getLogger(__name__)

_ENGINE_FIRST: Final = (Kind.UNPRICED_GPU, Kind.PROMPT_TOKENS, Kind.OUTPUT_TOKENS)
_UNOBSERVED: Final = Account(Kind.UNOBSERVED, ())
BY_QUARTER: Final = (Kind.SPEND, Kind.UNPRICED_GPU, Kind.UNPRICED_TOKENS, Kind.UNOBSERVED)  # what budgets look at
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
        self._now = 0  # Unix seconds, of the last beat
        self._settle_seconds: float | None = None  # None: another exporter does showback for us
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
        self._posted: dict[Account, int] = {}
        self._rests: dict[Account, Fraction] = dict(saved.rests)  # less than one unit, waiting in its account
        self._shown: dict[Kind, dict[tuple[str, ...], int]] = {kind: {} for kind in Kind}
        self._by_engine: dict[tuple[Kind, str], int] = {}
        for account, amount in saved.totals.items():
            self._shown[account.kind][account.labels] = amount
            self._count(account, amount)
        self._quarters = _quarters(saved)
        self._windows: dict[str, EngineWindows] = {}
        self._totals_waiting: dict[Account, int] = {}
        self._buckets_waiting: dict[tuple[Account, int], int] = {}
        self._uncommitted_spend = 0
        self.showback = Showback(saved, self._settle_seconds or 0, moment(saved.meta, LAST_BEAT))
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
        whole = self._whole(account, amount)
        self._count(account, whole)
        self._look(account, whole, at)
        if self._settle_seconds is not None:
            self.showback.pend(account, whole, at)
        if self._ledger is None:
            self._show(account, whole)
        else:
            self._wait(account, whole, at)

    def _whole(self, account: Account, amount: Fraction | int) -> int:
        """Return the whole units of an amount and of what waited in its account, where the rest waits."""
        if isinstance(amount, int) and account not in self._rests:
            return amount
        owed = amount + self._rests.get(account, 0)
        whole = int(owed)
        self._rests[account] = Fraction(owed - whole).limit_denominator(_FINEST)
        return whole

    def _count(self, account: Account, amount: int) -> None:
        self._posted[account] = self._posted.get(account, 0) + amount
        engine = _engine_of(account)
        if engine is not None:
            key = (account.kind, engine)
            self._by_engine[key] = self._by_engine.get(key, 0) + amount

    def _look(self, account: Account, amount: int, at: int) -> None:
        """Let budgets see what was booked at an instant (Unix nanoseconds)."""
        if account.kind in BY_QUARTER:
            self._quarters.setdefault(account, Quarters()).add(amount, at)
        for meter in self.budgets.values():
            meter.book(account, amount, at)

    def _wait(self, account: Account, amount: int, at: int) -> None:
        self._totals_waiting[account] = self._totals_waiting.get(account, 0) + amount
        if amount:
            bucket = account, at // NANO // QUARTER * QUARTER
            self._buckets_waiting[bucket] = self._buckets_waiting.get(bucket, 0) + amount
        self._uncommitted_spend += amount if account.kind is Kind.SPEND else 0

    def _show(self, account: Account, amount: int) -> None:
        shown = self._shown[account.kind]
        shown[account.labels] = shown.get(account.labels, 0) + amount
        if self._settle_seconds is not None:
            self.showback.show(account, amount)

    def flush(self, states: Mapping[str, bytes | None], samples: Sequence[Sample], meta: Mapping[str, str]) -> None:
        """Hand all that was posted since the last time to the ledger, together with what must agree with it."""
        if self._ledger is None:
            return
        totals, self._totals_waiting = self._totals_waiting, {}
        buckets, self._buckets_waiting = self._buckets_waiting, {}
        settling = self.showback.handed_over()
        change = Change(
            totals=totals,
            rests={account: self._rests[account] for account in totals if account in self._rests},
            buckets=buckets,
            pending=settling.pending,
            closed=settling.closed,
            states=states,
            samples=(*samples, *settling.samples),
            meta=meta,
        )
        self._commit_seen.clear()
        self._ledger.submit(change)

    def start(self) -> None:
        """Begin to write, where there is a ledger."""
        if self._ledger is not None:
            loop = asyncio.get_running_loop()
            self._ledger.start(lambda change, number: _call_soon(loop, partial(self._committed, change, number)))

    async def settle(self, now: int) -> None:
        """Close the slots that have waited long enough at a Unix second, and book what each feature pays."""
        self._now = now
        if self._settle_seconds is not None:
            await self.post(self.showback.close(now))

    async def deliver(self, batch: Batch, slots: Collection[Slot]) -> Verdict:
        """Write a batch, then book what of it is new; `slots` are those that it claims: they stay open meanwhile."""
        if self._ledger is None:
            return Verdict(problem="there is no ledger yet")
        loop = asyncio.get_running_loop()
        told: asyncio.Future[Verdict] = loop.create_future()
        self.showback.settling.hold(slots)
        self._ledger.deliver(batch, lambda verdict: _call_soon(loop, partial(self._delivered, verdict, slots, told)))
        return await told

    def _delivered(self, verdict: Verdict, slots: Collection[Slot], told: asyncio.Future[Verdict]) -> None:
        self.showback.settling.release(slots)
        self.showback.take(verdict.change)
        for account, amount in verdict.change.totals.items():
            self._count(account, amount)
            self._show(account, amount)
        for (account, start), amount in verdict.change.buckets.items():
            self._look(account, amount, start * NANO)
        if not told.done():  # nobody may wait any more
            told.set_result(verdict)

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
        if ledger is None or not ledger.is_durable:
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

    @property
    def has_beaten(self) -> bool:
        """Whether a beat has ended: engines and their models are known as far as they answer."""
        return self._now > 0

    def shown(self, kind: Kind) -> Mapping[tuple[str, ...], int]:
        """Return the totals of a kind that may be shown, by labels; they go on moving."""
        return self._shown[kind]

    def total(self, account: Account) -> int:
        """Return all that was posted to an account."""
        return self._posted.get(account, 0)

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

    def settle_by(self, seconds: float | None) -> None:
        """Wait so long for events of a slot from now on; None where showback is done elsewhere."""
        self._settle_seconds = seconds
        if seconds is not None:
            self.showback.settling.adopt(seconds)

    def seen_models(self) -> dict[str, set[str]]:
        """Return by engine the names of the models that its page has ever named."""
        seen: dict[str, set[str]] = {}
        for engine, model, _ in self._shown[Kind.OUTPUT_TOKENS].keys() | self._shown[Kind.PROMPT_TOKENS].keys():
            seen.setdefault(engine, set()).add(model)
        return seen

    def hold(self, budgets: Iterable[Budget]) -> None:
        """Hold these budgets from now on; one that holds the same accounts as before goes on."""
        held = {}
        for budget in budgets:
            before = self.budgets.get(budget.name)
            if before and before.is_known and before.budget.match == budget.match:
                before.adopt(budget)
                held[budget.name] = before
            else:
                held[budget.name] = self._meter(budget)
        self.budgets = held

    def _meter(self, budget: Budget) -> BudgetMeter:
        meter = BudgetMeter(budget)
        spent = merged(quarters for account, quarters in self._quarters.items() if meter.matches(account))
        unpriced = merged(quarters for account, quarters in self._quarters.items() if meter.lacks(account))
        if not meter.is_attributed:
            return BudgetMeter(budget, spent=spent, unpriced=unpriced)
        try:
            spent = merged(self._past([account for account in self._posted if meter.matches(account)]))
            lacking = [account for account in self._posted if account.kind not in BY_QUARTER and meter.lacks(account)]
            unpriced = merged([unpriced, *self._past(lacking)])
        except LedgerError as error:
            log.error("budget %s is unknown until the next reload: its past cannot be read: %s", budget.name, error)
            meter.is_known = False
            return meter
        return BudgetMeter(budget, spent=spent, unpriced=unpriced)

    def _past(self, accounts: Collection[Account]) -> Iterator[Quarters]:
        """Yield what was booked in accounts whose quarter-hours are not kept in memory.

        What the ledger does not have yet, or has and we were not told yet, belongs to the last moments.
        """
        found = self._ledger.past(accounts, KEPT_QUARTERS * QUARTER) if self._ledger else {}
        for account in accounts:
            total, amounts = found.get(account, (0, {}))
            quarters = Quarters(amounts, total - sum(amounts.values()))
            quarters.add(self._posted[account] - total, self._now * NANO)
            yield quarters

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
