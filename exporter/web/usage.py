"""Usage events over HTTP: a body is taken whole, and acknowledged once it is on the disk, or it is refused whole.

Who retries a body whose events have ids counts none of them twice. An event without an id counts as often as it comes.
"""

import asyncio
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from aiohttp import web

from exporter.clock import NANOSECONDS, Clock
from exporter.core.attribution import Slot
from exporter.core.money import Account, Entry, Kind
from exporter.core.usage import ForbiddenError, Rules, Sheet
from exporter.core.usage_body import Body, RefusedError, Usage
from exporter.ledger import Batch, Change, Key, Verdict
from exporter.web import budgets_json
from exporter.web.bearer import Sender, UsageTokens, is_local
from exporter.web.board import Board

_PATIENCE_SECONDS: Final = 10.0  # with the ledger
_READ_SECONDS: Final = 30.0  # in which a body must have come
_RETRY_SECONDS: Final = 10
_CROWDED_SECONDS: Final = 1
_MOST_BODIES: Final = 64
_MOST_BYTES: Final = 16 * 2**20  # of all bodies in work, which take some eight times that while they are
_DAY_SECONDS: Final = 86_400
_MOST_CONFLICTS: Final = 20
_GZIP: Final = 31  # zlib's word for a window of any size, in a gzip stream
_PLAIN: Final = ("", "identity")
_COMPRESSED: Final = ("gzip", "x-gzip")


class Keeper(Protocol):
    """Who keeps the books."""

    async def deliver(self, batch: Batch, slots: Collection[Slot]) -> Verdict:
        """Write a batch, and say what became of it; the slots stay open meanwhile, from before the first await."""

    async def post(self, entries: Iterable[Entry]) -> None:
        """Book entries."""


class _Refusal(Exception):  # noqa: N818 - an answer, and no error of ours
    """A body is refused; `events` is how many of it are counted as rejected."""

    def __init__(self, status: int, text: str, *, events: int = 0, **headers: object) -> None:
        super().__init__(text)
        self.status, self.text, self.events = status, text, events
        self.headers = {name.replace("_", "-").title(): str(value) for name, value in headers.items()}


@dataclass(slots=True)
class _Gate:
    """How much is in work at once: a body more is refused before it is read."""

    bodies: int = 0
    size: int = 0

    def enter(self, size: int) -> bool:
        """Begin with a body of at most so many bytes, if there is room; a large one is let in alone."""
        if self.bodies >= _MOST_BODIES or (self.bodies and self.size + size > _MOST_BYTES):
            return False
        self.bodies += 1
        self.size += size
        return True

    def leave(self, size: int) -> None:
        """End with a body."""
        self.bodies -= 1
        self.size -= size


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
        self._gate, self._today = _Gate(), _Day()
        self._deliveries: set[asyncio.Task[Verdict]] = set()  # held, or they would be collected

    def routes(self) -> list[web.RouteDef]:
        """Return what is answered here."""
        return [web.post("/v1/usage", self._take)]

    async def _take(self, request: web.Request) -> web.Response:
        try:
            verdict, body, sheet = await self._taken(request)
        except _Refusal as refusal:
            await self._post(rejected=refusal.events)
            return _json({"error": refusal.text}, refusal.status, refusal.headers)
        if verdict.conflicts:
            return _conflict(body, [sheet.numbers[position] for position in verdict.conflicts])
        return _json({"accepted": len(verdict.new), "duplicates": verdict.duplicates}, 202)

    async def _taken(self, request: web.Request) -> tuple[Verdict, Body, Sheet]:
        sender = self._sender(request)
        rules = self._rules()
        if rules is None:
            text = "not ready: the first beat, or a price that is looked up, is yet to come"
            raise _Refusal(503, text, retry_after=_CROWDED_SECONDS)
        size = _size(request, rules.limits.body_bytes)
        if not self._gate.enter(size):
            text = f"expected at most {_MOST_BODIES} bodies or {_MOST_BYTES >> 20} MiB at once, found more"
            raise _Refusal(503, text, retry_after=_CROWDED_SECONDS)
        with ExitStack() as held:
            held.callback(self._gate.leave, size)
            content = await _content(request, rules.limits.body_bytes)
            sheet = Sheet(rules, sender.team)
            held.callback(sheet.end)
            body = await self._fill(sheet, content, rules)
            self._count_in(len(sheet.keys), rules.limits.events_per_day, held)
            delivery = asyncio.create_task(self._deliver(sheet, held.pop_all()), name="usage")
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)
        return await self._told(delivery), body, sheet

    def _sender(self, request: web.Request) -> Sender:
        """Return who posts; whoever may not, or not here, is refused."""
        snapshot = self._board.snapshot
        if snapshot.role == "sidecar":
            hub = snapshot.hub_url
            where = f"hub: {hub.rstrip('/')}/v1/usage" if hub else "hub (set hub_url to name it here)"
            raise _Refusal(421, f"a sidecar takes no usage events; post usage to the {where}")
        if not self._tokens:
            if is_local(request):
                return Sender()
            raise _Refusal(403, "without usage.tokens only this machine may post usage events")
        sender = self._tokens.sender(request)
        if sender is None:
            text = "expected a token that usage.tokens names, found another or none"
            raise _Refusal(401, text, www_authenticate="Bearer")
        return sender

    async def _fill(self, sheet: Sheet, content: bytes, rules: Rules) -> Body:
        """Read a body into a sheet, slice by slice: whatever else there is to do comes in between."""
        body = None
        try:
            body = Body(content, rules.limits.name_length, self._clock.now().unix_seconds)
            for index, usages in enumerate(body.slices()):
                if index:
                    await asyncio.sleep(0)
                _add(sheet, usages, body)
        except RefusedError as error:
            status = 403 if isinstance(error, ForbiddenError) else 400
            raise _Refusal(status, str(error), events=body.count if body else 1) from None
        return body

    def _count_in(self, events: int, most: int, held: ExitStack) -> None:
        second = self._clock.now().wall // NANOSECONDS
        if not self._today.enter(events, most, second):
            text = f"expected at most {most} events a day (limits.events_per_day), found more"
            midnight = (self._today.number + 1) * _DAY_SECONDS
            raise _Refusal(429, text, retry_after=midnight - second)
        held.callback(self._today.leave, events)

    async def _deliver(self, sheet: Sheet, held: ExitStack) -> Verdict:
        """Hand a sheet over, and note what became of it, whether anybody still waits for that or not."""
        with held:
            slots = sheet.place()
            batch = Batch(keys=[Key(*key) for key in sheet.keys], effect=partial(_change, sheet))
            verdict = await self._books.deliver(batch, slots)
            sheet.keep(verdict.new)
            self._today.accepted += len(verdict.new)
            conflicts = len(verdict.conflicts)
            rejected = len(sheet.keys) - conflicts if conflicts else 0
            await self._post(duplicate=verdict.duplicates, conflict=conflicts, rejected=rejected)
            return verdict

    async def _told(self, delivery: asyncio.Task[Verdict]) -> Verdict:
        done, _ = await asyncio.wait({delivery}, timeout=_PATIENCE_SECONDS)
        if not done:
            text = f"the ledger has not answered within {_PATIENCE_SECONDS:g} s: what has an id may be posted again"
            raise _Refusal(503, text, retry_after=_RETRY_SECONDS)
        verdict = delivery.result()
        if verdict.problem is not None:
            raise _Refusal(503, "the ledger cannot be written: nothing is taken", retry_after=_RETRY_SECONDS)
        return verdict

    async def _post(self, **results: int) -> None:
        """Count events of which nothing else is booked."""
        now = self._clock.now().wall
        found = [Entry(Account(Kind.USAGE_EVENTS, (result,)), count, now) for result, count in results.items() if count]
        if found:
            await self._books.post(found)


def _add(sheet: Sheet, usages: list[Usage], body: Body) -> None:
    for usage in usages:
        try:
            sheet.add(usage)
        except RefusedError as error:
            raise type(error)(f"{body.where(usage.number)}: {error}") from None


def _change(sheet: Sheet, new: Sequence[int]) -> Change:
    totals, buckets, claims = sheet.effect(new)
    return Change(totals=totals, buckets=buckets, claims=claims)


def _size(request: web.Request, most: int) -> int:
    """Return how many bytes a body may come to."""
    encoding = _encoding(request)
    if encoding not in (*_PLAIN, *_COMPRESSED):
        text = f"expected a Content-Encoding of gzip or none, found {encoding[:40]!r}"
        raise _Refusal(415, text, events=1, accept_encoding="gzip")
    told = request.content_length
    if told is not None and told > most:
        raise _too_large(most)
    return most if told is None or encoding in _COMPRESSED else told


def _encoding(request: web.Request) -> str:
    return ", ".join(request.headers.getall("Content-Encoding", ())).strip().lower()


async def _content(request: web.Request, most: int) -> bytes:
    """Read a body to its end, but no more of it than it may have, and inflate it."""
    content = bytearray()
    try:
        async with asyncio.timeout(_READ_SECONDS):
            async for piece in request.content.iter_any():
                content += piece
                if len(content) > most:
                    raise _too_large(most)
    except TimeoutError:
        raise _Refusal(408, f"expected a whole body within {_READ_SECONDS:g} s, found a part", events=1) from None
    except (web.RequestPayloadError, ConnectionError):  # an answer that nobody may read is no error of ours
        raise _Refusal(400, "expected a whole body, found a part", events=1) from None
    return _inflated(bytes(content), most) if _encoding(request) in _COMPRESSED else bytes(content)


def _inflated(content: bytes, most: int) -> bytes:
    """Inflate one gzip stream, no further than it may go."""
    stream = zlib.decompressobj(_GZIP)
    try:
        inflated = stream.decompress(content, most + 1)
    except zlib.error:
        raise _Refusal(400, "expected gzip, found something else", events=1) from None
    if len(inflated) > most:
        raise _too_large(most)
    if not stream.eof or stream.unused_data:
        found = "more behind it" if stream.eof else "a part of one"
        raise _Refusal(400, f"expected one gzip stream, found {found}", events=1)
    return inflated


def _too_large(most: int) -> _Refusal:
    return _Refusal(413, f"expected at most {most} bytes (limits.body_bytes), found more", events=1)


def _conflict(body: Body, numbers: list[int]) -> web.Response:
    more = f" (and {len(numbers) - 1} more)" if len(numbers) > 1 else ""
    text = f"{body.where(numbers[0])}{more}: id: expected what this id, model and tier stood for before, found another"
    return _json({"error": f"{text} event: nothing is taken", "conflicts": numbers[:_MOST_CONFLICTS]}, 409)


def _json(content: Any, status: int, headers: dict[str, str] | None = None) -> web.Response:
    body = budgets_json.encode(content)
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")
