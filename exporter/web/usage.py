"""Usage over HTTP: events, LiteLLM's records and OpenTelemetry's spans, acknowledged once they are on the disk.

Who retries a body whose events have ids counts none of them twice. An event without an id counts as often as it comes.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from aiohttp import web

from exporter.clock import NANOSECONDS, Clock
from exporter.core.attribution import Slot
from exporter.core.money import Account, Entry, Kind
from exporter.core.refused import RefusedError, TooManyError
from exporter.core.usage import ForbiddenError, Rules, Sheet
from exporter.core.usage_records import Reading
from exporter.ledger import Batch, Change, Key, Verdict
from exporter.web import bodies
from exporter.web.bearer import Sender, UsageTokens, is_local
from exporter.web.board import Board
from exporter.web.bodies import Gate, Refusal
from exporter.web.forms import FORMS, Form, Outcome

_PATIENCE_SECONDS: Final = 10.0  # with the ledger
_RETRY_SECONDS: Final = 2  # an SDK of OpenTelemetry that is told to wait longer gives up
_CROWDED_SECONDS: Final = 1
_DAY_SECONDS: Final = 86_400
_LARGE_BYTES: Final = 2**16  # a body that is read apart from the event loop
_SAID_OTHERWISE: Final = "id: expected what this id, model and tier stood for before, found another call"


class Keeper(Protocol):
    """Who keeps the books."""

    async def deliver(self, batch: Batch, slots: Collection[Slot]) -> Verdict:
        """Write a batch, and say what became of it; the slots stay open meanwhile, from before the first await."""

    async def post(self, entries: Iterable[Entry]) -> None:
        """Book entries."""


@dataclass(slots=True)
class _Day:
    """How many events were accepted on the newest day (UTC) so far, and how many are in work."""

    number: int = 0
    accepted: int = 0
    waiting: int = 0

    def enter(self, events: int, most: int, second: int) -> bool:
        """Begin with events at a Unix second, if there may be so many that day."""
        if second // _DAY_SECONDS > self.number:
            self.number, self.accepted = second // _DAY_SECONDS, 0
        if self.accepted + self.waiting + events > most:
            return False
        self.waiting += events
        return True

    def leave(self, events: int) -> None:
        """End with events; those that are accepted are counted apart."""
        self.waiting -= events


class UsageDesk:
    """Takes usage events."""

    def __init__(
        self, board: Board, books: Keeper, clock: Clock, tokens: UsageTokens, rules: Callable[[], Rules | None]
    ) -> None:
        """Take events into the books by the rules in force; there are none before the first beat."""
        self._board, self._books, self._clock, self._tokens, self._rules = board, books, clock, tokens, rules
        self._gate, self._today, self._reading_apart = Gate(), _Day(), asyncio.Lock()
        self._deliveries: set[asyncio.Task[Verdict]] = set()  # held, or they would be collected

    def routes(self) -> list[web.RouteDef]:
        """Return what is answered here."""
        return [web.post(form.path, partial(self._take, form)) for form in FORMS]

    async def _take(self, form: Form, request: web.Request) -> web.Response:
        try:
            return form.taken(request, await self._taken(form, request))
        except Refusal as refusal:
            await self._post(rejected=refusal.events)
            return form.refused(request, refusal)

    async def _taken(self, form: Form, request: web.Request) -> Outcome:
        sender = self._sender(form, request)
        rules = self._rules()
        if rules is None:
            text = "not ready: the first beat, or a price that is looked up, is yet to come"
            raise Refusal(503, text, retry_after=_CROWDED_SECONDS)
        limit = form.limit(request, rules.limits)
        size = bodies.size(request, limit)
        if not self._gate.enter(size):
            text = f"expected at most {bodies.MOST_BODIES} bodies or {bodies.MOST_BYTES >> 20} MiB at once, found more"
            raise Refusal(503, text, retry_after=_CROWDED_SECONDS)
        with ExitStack() as held:
            held.callback(self._gate.leave, size)
            content = await bodies.content(request, limit)
            sheet = Sheet(rules, sender.team)
            held.callback(sheet.end)
            reading = await self._fill(sheet, form, request, content, rules)
            self._count_in(sheet, reading, rules.limits.events_per_day, held)
            delivery = asyncio.create_task(self._deliver(sheet, reading, held.pop_all()), name="usage")
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)
        return Outcome(await self._told(delivery), reading, sheet)

    def _sender(self, form: Form, request: web.Request) -> Sender:
        """Return who posts; whoever may not, or not here, is refused."""
        snapshot = self._board.snapshot
        if snapshot.role == "sidecar":
            hub = snapshot.hub_url
            where = f"hub: {hub.rstrip('/')}{form.path}" if hub else "hub (set hub_url to name it here)"
            raise Refusal(421, f"a sidecar takes no usage events; post usage to the {where}")
        if not self._tokens:
            if is_local(request):
                return Sender()
            raise Refusal(403, "without usage.tokens only this machine may post usage events")
        sender = self._tokens.sender(request)
        if sender is None:
            text = "expected a token that usage.tokens names, found another or none"
            raise Refusal(401, text, www_authenticate="Bearer")
        return sender

    async def _fill(self, sheet: Sheet, form: Form, request: web.Request, content: bytes, rules: Rules) -> Reading:
        """Read a body into a sheet, slice by slice: whatever else there is to do comes in between."""
        reading = None
        try:
            read = partial(form.read, request, content, rules, self._clock.now().unix_seconds)
            reading = read() if len(content) <= _LARGE_BYTES else await self._apart(read)
            for index, usages in enumerate(reading.slices()):
                if index:
                    await asyncio.sleep(0)
                for usage in usages:
                    try:
                        sheet.add(usage)
                    except RefusedError as error:
                        reading.refuse(usage.number, error)
        except RefusedError as error:
            status = {ForbiddenError: 403, TooManyError: 413}.get(type(error), 400)
            raise Refusal(status, str(error), events=reading.count if reading else 1) from None
        return reading

    async def _apart(self, read: Callable[[], Reading]) -> Reading:
        """Begin to read a large body beside the event loop, one after the other: each may take much memory."""
        async with self._reading_apart:
            return await asyncio.to_thread(read)

    def _count_in(self, sheet: Sheet, reading: Reading, most: int, held: ExitStack) -> None:
        events, second = len(sheet.keys), self._clock.now().wall // NANOSECONDS
        if not self._today.enter(events, most, second):
            text = f"expected at most {most} events a day (limits.events_per_day), found more"
            midnight = (self._today.number + 1) * _DAY_SECONDS
            lost = 0 if reading.is_whole else events + len(reading.refused)  # nobody keeps records until midnight
            raise Refusal(429, text, events=lost, retry_after=midnight - second)
        held.callback(self._today.leave, events)

    async def _deliver(self, sheet: Sheet, reading: Reading, held: ExitStack) -> Verdict:
        """Hand a sheet over, and note what became of it, whether anybody still waits for that or not."""
        with held:
            slots = sheet.place()
            batch = Batch(
                keys=[Key(*key) for key in sheet.keys], effect=partial(_change, sheet), is_partial=not reading.is_whole
            )
            verdict = await self._books.deliver(batch, slots)
            sheet.keep(verdict.new)
            self._today.accepted += len(verdict.new)
            conflicts, rejected = len(verdict.conflicts), len(reading.refused)
            if reading.is_whole:
                rejected = len(sheet.keys) - conflicts if conflicts else 0
            else:
                for position in verdict.conflicts:
                    reading.refuse(sheet.numbers[position], RefusedError(_SAID_OTHERWISE))
            await self._post(
                duplicate=verdict.duplicates, conflict=conflicts, rejected=rejected, skipped=reading.skipped
            )
            return verdict

    async def _told(self, delivery: asyncio.Task[Verdict]) -> Verdict:
        done, _ = await asyncio.wait({delivery}, timeout=_PATIENCE_SECONDS)
        if not done:
            text = f"the ledger has not answered within {_PATIENCE_SECONDS:g} s: what has an id may be posted again"
            raise Refusal(503, text, retry_after=_RETRY_SECONDS)
        verdict = delivery.result()
        if verdict.problem is not None:
            raise Refusal(503, "the ledger cannot be written: nothing is taken", retry_after=_RETRY_SECONDS)
        return verdict

    async def _post(self, **results: int) -> None:
        """Count events of which nothing else is booked."""
        now = self._clock.now().wall
        found = [Entry(Account(Kind.USAGE_EVENTS, (result,)), count, now) for result, count in results.items() if count]
        if found:
            await self._books.post(found)


def _change(sheet: Sheet, new: Sequence[int]) -> Change:
    totals, buckets, claims = sheet.effect(new)
    return Change(totals=totals, buckets=buckets, claims=claims)
