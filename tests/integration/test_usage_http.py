"""Usage events over HTTP: what is taken, what is refused and how, and that nothing is ever taken by half.

The real desk, books and ledger behind a real server, as the exporter runs it; only time is moved by hand.
"""

import asyncio
import contextlib
import gc
import gzip
import http.client
import json
import logging
import random
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from exporter.books import Books
from exporter.config.model import Cascade, Engine, Limits, TokenFile, Usage
from exporter.config.nodes import ConfigError
from exporter.config.prices import ApiModel, ApiPrices
from exporter.core.api_prices import configured
from exporter.core.attribution import Claim, Slot
from exporter.core.directory import Directory
from exporter.core.money import Account, Entry, Kind
from exporter.core.snapshot import ConfigView, Snapshot
from exporter.core.usage import Room, Rules
from exporter.ledger import Batch, Ledger, Verdict, file
from exporter.web import bodies, usage
from exporter.web.bearer import UsageTokens
from exporter.web.board import Board
from exporter.web.usage import UsageDesk
from tests.fakes import FakeClock
from tests.ledgers import saved
from tests.unit.test_usage_fuzz import mutated

NOW = int(FakeClock().now().unix_seconds)
STATUSES = {202, 400, 401, 403, 408, 409, 413, 415, 421, 429, 503}


def event(id: str | None = "a", feature: str = "summary", model: str = "llama", **more: Any) -> dict[str, Any]:
    return {"id": id, "feature": feature, "model": model, "input_tokens": 10, "output_tokens": 5, **more}


def lines(*events: dict[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, events)).encode()


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


@dataclass
class Stage:
    """An exporter that takes usage events; `rules` may be changed while it does."""

    clock: FakeClock
    books: Books
    rules: Rules | None
    port: int
    session: aiohttp.ClientSession
    tokens: UsageTokens
    board: Board
    desk: UsageDesk

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/usage"

    async def post(self, body: Any, **headers: str) -> Reply:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        async with self.session.post(self.url, data=body, headers=named) as reply:
            return Reply(reply.status, dict(reply.headers), await reply.read())

    async def raw(self, *pieces: bytes) -> bytes:
        """Send bytes as they are, then hang up; returns what came back."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        answer = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                answer = await reader.read(10_000)
        writer.close()
        await writer.wait_closed()
        return answer

    def total(self, kind: Kind, *labels: str) -> int:
        return self.books.totals()[kind].get(labels, 0)

    async def results(self) -> dict[str, int]:
        """What is counted of events, once all is written."""
        self.books.flush({}, (), {})
        await self.books.settled(5)
        return {labels[0]: count for labels, count in self.books.totals()[Kind.USAGE_EVENTS].items() if count}

    def requests(self) -> int:
        return sum(self.books.totals()[Kind.FEATURE_REQUESTS].values())


@contextlib.asynccontextmanager
async def staged(folder: Path, *, keeper: Any = None, **limits: int) -> AsyncIterator[Stage]:
    clock = FakeClock()
    ledger = Ledger.open(folder, clock)
    books = Books(ledger)
    books.settle_by(300)
    books.start()
    config = ConfigView(successful=True, last_success=0.0)
    lone = Snapshot(at=0.0, version="0", role="lone", interval_seconds=5.0, accounting_start=None, config=config)
    board, tokens = Board(clock, lone, lambda: b""), UsageTokens()
    stage: Stage
    desk = UsageDesk(board, keeper(books) if keeper else books, clock, tokens, lambda: stage.rules)
    app = web.Application()
    app.add_routes(desk.routes())
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            stage = Stage(clock, books, rules(books, **limits), port, session, tokens, board, desk)
            yield stage
    finally:
        await runner.cleanup()
        await asyncio.to_thread(ledger.close, 10)


def rules(books: Books, **limits: int) -> Rules:
    chat = Engine(name="chat", url="http://chat:8000", models=("llama", "alias"), tier="fast")
    api = ApiModel(model="api-model", input_usd_per_million=Decimal("0.15"), output_usd_per_million=Decimal("0.60"))
    return Rules(
        directory=Directory([chat], {}, configured(ApiPrices(models=(api,)))),
        place=books.showback.settling.place,
        room=Room(known=set()),
        limits=Limits(**limits),
        features=frozenset({"summary"}),
        cascades=(Cascade(name="support", tiers=("fast", "best")),),
    )


# What is taken.


async def test_events_are_on_the_disk_before_they_are_acknowledged(tmp_path: Path):
    async with staged(tmp_path) as stage:
        reply = await stage.post(lines(event("a"), event("b", team="docs"), event("c", model="api-model", tier="best")))
        found = saved(tmp_path)
        assert (reply.status, reply.json) == (202, {"accepted": 3, "duplicates": 0})
        assert reply.headers["Content-Type"] == "application/json"
        assert found.totals[Account(Kind.FEATURE_REQUESTS, ("summary", "docs", "llama", "fast"))] == 1
        slot = Slot("chat", NOW // 300 * 300, 300)
        assert found.claims == {(slot, ("summary", "")): Claim(10, 0, 5), (slot, ("summary", "docs")): Claim(10, 0, 5)}
        cost = 10 * 150 + 5 * 600
        assert found.totals[Account(Kind.SPEND, ("api", "", "api-model", "best"))] == cost
        assert found.totals[Account(Kind.ATTRIBUTED, ("summary", "", "", "api-model", "best"))] == cost
        assert found.totals[Account(Kind.USAGE_EVENTS, ("accepted",))] == 3
        assert all(start == NOW // 900 * 900 for _, start in found.buckets)
        assert stage.requests() == 3


@pytest.mark.parametrize(
    "body", [lines(event()), json.dumps([event()]).encode(), json.dumps(event(), indent=2).encode()]
)
async def test_any_shape_is_taken_plain_and_compressed_told_and_chunked(tmp_path: Path, body: bytes):
    async def chunks(content: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(content), 7):
            yield content[start : start + 7]

    async with staged(tmp_path) as stage:
        assert (await stage.post(body)).json == {"accepted": 1, "duplicates": 0}
        for posted in (gzip.compress(body), chunks(gzip.compress(body))):
            assert (await stage.post(posted, Content_Encoding="GZIP")).json == {"accepted": 0, "duplicates": 1}
        assert (await stage.post(chunks(body), Content_Encoding="identity")).json == {"accepted": 0, "duplicates": 1}
        assert (await stage.post(body, Content_Type="application/x-www-form-urlencoded")).status == 202
        assert await stage.results() == {"accepted": 1, "duplicate": 4}


async def test_a_retry_counts_once_also_within_a_body_and_without_an_id_each_time(tmp_path: Path):
    async with staged(tmp_path) as stage:
        body = lines(event("a"), event("b"), event("a"), event(None), event(None))
        assert (await stage.post(body)).json == {"accepted": 4, "duplicates": 1}
        assert (await stage.post(body)).json == {"accepted": 2, "duplicates": 3}
        assert stage.requests() == 6
        assert await stage.results() == {"accepted": 6, "duplicate": 4}


async def test_a_conflict_refuses_the_whole_body_and_names_where(tmp_path: Path):
    async with staged(tmp_path) as stage:
        await stage.post(lines(event("a"), event("b")))
        changed = [event("new"), event("a", output_tokens=6), event("c"), event("b", feature="chat")]
        reply = await stage.post(b"\n\n" + lines(*changed))
        assert (reply.status, reply.json) == (409, {
            "error": "line 4 (and 1 more): id: expected what this id, model and tier stood for before, "
            "found another event: nothing is taken",
            "conflicts": [4, 6],
        })  # fmt: skip
        assert (await stage.post(json.dumps(changed))).json["conflicts"] == [2, 4]
        many = [event(str(number)) for number in range(50)]
        await stage.post(lines(*many))
        reply = await stage.post(lines(*(said | {"output_tokens": 0} for said in many)))
        assert reply.json["conflicts"] == list(range(1, 21))
        assert stage.requests() == 52
        assert await stage.results() == {"accepted": 52, "conflict": 54, "rejected": 4}


async def test_a_retry_without_a_time_is_the_same_event_later(tmp_path: Path):
    async with staged(tmp_path) as stage:
        await stage.post(lines(event()))
        stage.clock.advance(3600)
        assert (await stage.post(lines(event()))).json == {"accepted": 0, "duplicates": 1}


async def test_a_late_event_is_taken_and_counted_as_late(tmp_path: Path):
    async with staged(tmp_path) as stage:
        await stage.books.settle(NOW)
        reply = await stage.post(lines(event("a", at="2026-11-23T19:00:00Z"), event("b")))
        assert reply.json == {"accepted": 2, "duplicates": 0}
        assert await stage.results() == {"accepted": 1, "late": 1}


async def test_no_slot_closes_between_an_event_and_its_claim(tmp_path: Path):
    """A beat that comes while a large body is read closes the slot of its first events: they are late then."""
    async with staged(tmp_path) as stage:
        said = [event(str(number), at="2026-11-23T20:09:59Z") for number in range(3000)]
        posting = asyncio.create_task(stage.post(lines(*said)))
        while not stage.desk._gate.bodies:
            await asyncio.sleep(0)
        await stage.books.settle(NOW)
        now = NOW + 400
        while not posting.done():
            await asyncio.sleep(0)
            await stage.books.settle(now)
        assert (await posting).status == 202
        counted = await stage.results()
        claims = saved(tmp_path).claims
        late = Slot("chat", now // 300 * 300, 300)
        assert (counted, list(claims)) == ({"late": 3000}, [(late, ("summary", ""))])


# What is refused.


async def refused(stage: Stage, body: Any, **headers: str) -> tuple[int, str]:
    """Post what is refused; nothing of it is booked."""
    before = stage.requests()
    reply = await stage.post(body, **headers)
    assert reply.status in STATUSES
    assert stage.requests() == before
    return reply.status, reply.error


async def test_one_bad_event_refuses_the_whole_body(tmp_path: Path):
    async with staged(tmp_path) as stage:
        said = [*(event(str(number)) for number in range(700)), event("x", input_tokens="x"), event("y")]
        problem = 'expected an integer from 0 to 10000000, found "x"'
        assert await refused(stage, lines(*said)) == (400, f"line 701: input_tokens: {problem}")
        assert await refused(stage, json.dumps(said)) == (400, f"event 701: input_tokens: {problem}")
        assert await refused(stage, lines(event(engine="nobody"))) == (
            400, 'line 1: engine: expected one of chat, found "nobody"',
        )  # fmt: skip
        assert await refused(stage, b"") == (400, "expected at least one event, found none")
        assert await refused(stage, b"[" * 500_000) == (
            400, f"expected an array of events, found {'[' * 40}… (nested too deep)",
        )  # fmt: skip
        assert await stage.results() == {"rejected": 702 + 702 + 1 + 1 + 1}
        assert saved(tmp_path).claims == {}


async def test_a_body_that_is_too_large_is_read_no_further_than_the_limit(tmp_path: Path):
    async def chunks(size: int) -> AsyncIterator[bytes]:
        body = lines(event()).ljust(size)
        for start in range(0, size, 1000):
            yield body[start : start + 1000]

    async with staged(tmp_path, body_bytes=4096) as stage:
        too_large = (413, "expected at most 4096 bytes (limits.body_bytes), found more")
        assert (await stage.post(chunks(4096))).status == 202
        assert (await stage.post(lines(event("b")).ljust(4096))).status == 202
        assert await refused(stage, lines(event("c")).ljust(4097)) == too_large
        assert await refused(stage, chunks(4097)) == too_large
        assert await refused(stage, chunks(300_000)) == too_large
        assert (await stage.post(gzip.compress(lines(event("d")).ljust(4096)), Content_Encoding="gzip")).status == 202
        assert await refused(stage, gzip.compress(lines(event("e")).ljust(4097)), Content_Encoding="gzip") == too_large
        noise = gzip.compress(random.Random(1).randbytes(5000))
        assert await refused(stage, noise, Content_Encoding="gzip") == too_large


async def test_a_bomb_is_refused_without_being_inflated(tmp_path: Path):
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()
    assert len(bomb) < 2**20
    async with staged(tmp_path) as stage:
        tracemalloc.start()
        began = time.perf_counter()
        try:
            status, error = await refused(stage, bomb, Content_Encoding="gzip")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (status, error) == (413, "expected at most 1048576 bytes (limits.body_bytes), found more")
        assert time.perf_counter() - began < 2
        assert peak < 20 * 2**20


async def test_what_is_not_one_gzip_stream_is_refused(tmp_path: Path):
    packed = gzip.compress(lines(event()))
    async with staged(tmp_path) as stage:
        for body, problem in {
            lines(event()): "expected gzip, found something else",
            zlib.compress(lines(event())): "expected gzip, found something else",
            packed[:-1]: "expected one gzip stream, found a part of one",
            packed[:10]: "expected one gzip stream, found a part of one",
            b"": "expected one gzip stream, found a part of one",
            packed + packed: "expected one gzip stream, found more behind it",
            packed + b"\n": "expected one gzip stream, found more behind it",
            packed[:-8] + bytes(8): "expected gzip, found something else",
        }.items():
            assert await refused(stage, body, Content_Encoding="gzip") == (400, problem)


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "compress", "x" * 100])
async def test_another_encoding_is_415(tmp_path: Path, encoding: str):
    async with staged(tmp_path) as stage:
        reply = await stage.post(b"x", Content_Encoding=encoding)
        assert (reply.status, reply.headers["Accept-Encoding"]) == (415, "gzip")
        assert reply.error == f"expected a Content-Encoding of gzip or none, found {encoding[:40]!r}"


# Who may post.


def tokens(folder: Path, **teams: str | None) -> Usage:
    """Tokens in files, each the name of its file, and the team that it is bound to."""
    for name in teams:
        (folder / name).write_text(f"{name}\n")
    return Usage(tokens=tuple(TokenFile(file=str(folder / name), team=team) for name, team in teams.items()))


@pytest.mark.parametrize("header", ["Origin", "X-Forwarded-For", "Forwarded"])
async def test_without_a_token_only_this_machine_posts_and_for_itself_alone(tmp_path: Path, header: str):
    async with staged(tmp_path) as stage:
        text = "without usage.tokens only this machine may post usage events"
        assert await refused(stage, lines(event()), **{header: "10.0.0.7"}) == (403, text)
        assert (await stage.post(lines(event()))).status == 202


async def test_with_tokens_whoever_bears_one_posts_and_nobody_else(tmp_path: Path):
    async with staged(tmp_path / "ledger") as stage:
        stage.tokens.adopt(tokens(tmp_path, open=None, bound="docs"))
        for headers in (
            {},
            {"Authorization": "Bearer nope"},
            {"Authorization": "Basic open"},
            {"X-LLM-Cost-Token": ""},
        ):
            reply = await stage.post(lines(event()), **headers)
            assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert reply.error == "expected a token that usage.tokens names, found another or none"
        for headers in ({"Authorization": "Bearer open"}, {"X-LLM-Cost-Token": "open", "Authorization": "Basic eDp5"}):
            assert (await stage.post(lines(event()), X_Forwarded_For="10.0.0.7", **headers)).status == 202
        assert await stage.results() == {"accepted": 1, "duplicate": 1}


async def test_a_token_that_is_bound_to_a_team_says_whose_its_events_are(tmp_path: Path):
    async with staged(tmp_path / "ledger") as stage:
        stage.tokens.adopt(tokens(tmp_path, open=None, bound="docs"))
        bound = {"Authorization": "Bearer bound"}
        assert (await stage.post(lines(event("a"), event("b", team="docs")), **bound)).status == 202
        assert stage.total(Kind.FEATURE_REQUESTS, "summary", "docs", "llama", "fast") == 2
        text = 'line 2: team: expected "docs", the token\'s, found "web"'
        assert await refused(stage, lines(event("c"), event("d", team="web")), **bound) == (403, text)
        assert (await stage.post(lines(event("a", team="docs")), **bound)).json == {"accepted": 0, "duplicates": 1}
        other = await stage.post(lines(event("a")), Authorization="Bearer open")
        assert other.status == 409, "an event of another team is no retry"


def test_tokens_that_cannot_be_used_change_nothing(tmp_path: Path):
    found = UsageTokens()
    found.adopt(tokens(tmp_path, one=None))
    (tmp_path / "same").write_text("one")
    (tmp_path / "empty").write_text(" ")
    names = ("one", "same", "empty", "missing")
    with pytest.raises(ConfigError) as error:
        found.adopt(Usage(tokens=tuple(TokenFile(file=str(tmp_path / name)) for name in names)))
    assert error.value.lines == [
        "usage.tokens[1].file: expected a token that no other file has, found it again",
        "usage.tokens[2].file: expected a readable file with a token, found something else",
        "usage.tokens[3].file: expected a readable file with a token, found none: No such file or directory",
    ]
    assert found
    found.adopt(Usage())
    assert not found


@pytest.mark.parametrize(
    ("hub", "where"),
    [("http://hub:9409/", "hub: http://hub:9409/v1/usage"), (None, "hub (set hub_url to name it here)")],
)
async def test_a_sidecar_names_the_hub(tmp_path: Path, hub: str | None, where: str):
    async with staged(tmp_path) as stage:
        stage.board.publish(replace(stage.board.snapshot, role="sidecar", hub_url=hub))
        text = f"a sidecar takes no usage events; post usage to the {where}"
        assert await refused(stage, lines(event())) == (421, text)


# What cannot be taken now.


async def test_before_the_first_beat_it_is_not_ready(tmp_path: Path):
    async with staged(tmp_path) as stage:
        stage.rules = None
        reply = await stage.post(lines(event()))
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        assert "not ready" in reply.error


async def test_while_the_ledger_cannot_be_written_nothing_is_taken(tmp_path: Path):
    async with staged(tmp_path) as stage:
        ledger = tmp_path / file.NAME
        ledger.rename(tmp_path / "elsewhere")
        for _ in range(2):
            reply = await stage.post(lines(event()))
            assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
            assert reply.error == "the ledger cannot be written: nothing is taken"
        assert stage.requests() == 0
        assert not stage.rules or not stage.rules.room.known | {*stage.rules.room.asked}
        (tmp_path / "elsewhere").rename(ledger)
        assert await stage.results() == {}
        assert (await stage.post(lines(event()))).json == {"accepted": 1, "duplicates": 0}


@dataclass
class Slow:
    """Books that take long over a delivery."""

    books: Books
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def deliver(self, batch: Batch, slots: Collection[Slot]) -> Verdict:
        await self.go.wait()
        return await self.books.deliver(batch, slots)

    async def post(self, entries: Iterable[Entry]) -> None:
        await self.books.post(entries)


async def test_a_ledger_that_does_not_answer_is_not_waited_for_and_what_it_takes_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(usage, "_PATIENCE_SECONDS", 0.1)
    made: list[Slow] = []

    def slow(books: Books) -> Slow:
        made.append(Slow(books))
        return made[0]

    async with staged(tmp_path, keeper=slow, events_per_day=3) as stage:
        reply = await stage.post(lines(event("a"), event("b")))
        assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
        assert "what has an id may be posted again" in reply.error
        assert (await stage.post(lines(event("c"), event("d")))).status == 429, "what is in work counts for the day"
        assert stage.desk._gate.bodies == 1
        made[0].go.set()
        while stage.desk._deliveries:
            await asyncio.sleep(0.01)
        assert stage.requests() == 2
        assert (await stage.post(lines(event("a")))).json == {"accepted": 0, "duplicates": 1}
        assert await stage.results() == {"accepted": 2, "duplicate": 1}
        assert (stage.desk._gate.bodies, stage.desk._gate.size, stage.desk._today.waiting) == (0, 0, 0)


async def test_only_so_many_bodies_are_in_work_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bodies, "MOST_BODIES", 4)
    made: list[Slow] = []

    def slow(books: Books) -> Slow:
        made.append(Slow(books))
        return made[0]

    async with staged(tmp_path, keeper=slow) as stage:
        posting = [asyncio.create_task(stage.post(lines(event(str(number))))) for number in range(10)]
        while sum(task.done() for task in posting) < 6:
            await asyncio.sleep(0.01)
        assert stage.requests() == 0
        made[0].go.set()
        replies = await asyncio.gather(*posting)
        assert sorted(reply.status for reply in replies) == [202] * 4 + [503] * 6
        assert {reply.headers.get("Retry-After") for reply in replies} == {None, "1"}
        assert stage.requests() == 4
        assert (await stage.post(lines(event("x")))).status == 202


async def test_large_bodies_are_fewer_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bodies, "MOST_BYTES", 2 * 2**20)
    async with staged(tmp_path) as stage:
        head = b"POST /v1/usage HTTP/1.1\r\nHost: a\r\n"
        waiting = [await asyncio.open_connection("127.0.0.1", stage.port) for _ in range(2)]
        for _, writer in waiting:
            writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
        while stage.desk._gate.bodies < 2:
            await asyncio.sleep(0.01)
        assert (await stage.post(lines(event()))).status == 503
        for _, writer in waiting:
            writer.close()
        while stage.desk._gate.bodies:
            await asyncio.sleep(0.01)
        assert (await stage.post(lines(event()))).status == 202


async def test_boundary_no_more_events_a_day_than_the_limit(tmp_path: Path):
    async with staged(tmp_path, events_per_day=3) as stage:
        assert (await stage.post(lines(event("a"), event("b")))).status == 202
        reply = await stage.post(lines(event("c"), event("d")))
        assert (reply.status, int(reply.headers["Retry-After"])) == (429, 86_400 - NOW % 86_400)
        assert reply.error == "expected at most 3 events a day (limits.events_per_day), found more"
        assert (await stage.post(lines(event("a")))).json == {"accepted": 0, "duplicates": 1}
        assert (await stage.post(lines(event("c")))).json == {"accepted": 1, "duplicates": 0}
        assert (await stage.post(lines(event("d")))).status == 429
        stage.clock.advance(int(reply.headers["Retry-After"]) - 1)
        assert (await stage.post(lines(event("d")))).headers["Retry-After"] == "1"
        stage.clock.advance(1)
        assert (await stage.post(lines(event("d")))).status == 202
        stage.clock.step_wall(-3600)  # what was accepted tomorrow is not forgotten
        assert (await stage.post(lines(*(event(str(number)) for number in range(3))))).status == 429


# Connections that break off, and bodies that do not come.

HEAD = b"POST /v1/usage HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
GOOD = lines(event())


@pytest.mark.parametrize(
    "pieces",
    [
        (HEAD + b"Content-Length: 1000\r\n\r\n", GOOD),
        (CHUNKED, b"%x\r\n%b\r\n" % (len(GOOD), GOOD)),
        (CHUNKED, b"%x\r\n%b\r\n" % (len(GOOD), GOOD), b"zz\r\n"),
        (CHUNKED, b"ffffffffffffffffff\r\n", GOOD),
        (HEAD + b"Content-Length: -1\r\n\r\n", GOOD),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", GOOD),
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", GOOD),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 1000\r\n\r\n", gzip.compress(GOOD)),
        (HEAD,),
    ],
)
async def test_what_breaks_off_is_not_taken_and_hurts_nobody(
    tmp_path: Path, pieces: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
):
    async with staged(tmp_path) as stage:
        answer = await stage.raw(*pieces)
        assert not answer or answer.split()[1] in (b"400", b"413")
        while stage.desk._gate.bodies:
            await asyncio.sleep(0.01)
        assert stage.requests() == 0
        assert (await stage.post(GOOD)).json == {"accepted": 1, "duplicates": 0}
    ours = [record for record in caplog.records if record.levelno >= logging.ERROR and "_content" in caplog.text]
    assert not ours


async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bodies, "_READ_SECONDS", 0.05)
    async with staged(tmp_path) as stage:
        answer = await stage.raw(HEAD + b"Content-Length: 1000\r\n\r\n", GOOD)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert stage.desk._gate.bodies == 0
        assert await stage.results() == {"rejected": 1}


async def test_a_client_that_does_not_wait_for_the_answer_has_delivered(tmp_path: Path):
    async with staged(tmp_path) as stage:
        _, writer = await asyncio.open_connection("127.0.0.1", stage.port)
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(GOOD), GOOD))
        await writer.drain()
        writer.close()
        async with asyncio.timeout(5):
            while not stage.requests():
                await asyncio.sleep(0.01)


async def test_a_large_body_does_not_hold_the_event_loop_up(tmp_path: Path):
    """Measured at below 20 ms; a machine that does much else at once may take longer. The garbage is another matter:
    what its collector takes depends on all that a process holds."""
    small = json.dumps({"feature": "a", "model": "llama"}).encode()
    bodies = {
        "many events": b"\n".join([small] * (2**20 // (len(small) + 1))),
        "an array": b"[" + b",".join([small] * (2**20 // (len(small) + 1) - 1)) + b"]",
        "no events": b"[" + b"1," * (2**19 - 2) + b"1]",
        "empty lines": b"\n" * (2**20 - len(GOOD)) + GOOD,
    }
    async with staged(tmp_path) as stage:
        for name, body in bodies.items():
            assert len(body) <= 2**20
            gaps: list[float] = []

            async def tick(found: list[float] = gaps) -> None:
                last = time.perf_counter()
                while True:
                    await asyncio.sleep(0)
                    last, before = time.perf_counter(), last
                    found.append(last - before)

            ticking = asyncio.create_task(tick())
            gc.disable()
            await asyncio.to_thread(lambda body=body: _post_blocking(stage.port, body))  # type: ignore[misc]
            gc.enable()
            ticking.cancel()
            assert max(gaps) < 0.2, name


def _post_blocking(port: int, body: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/v1/usage", body)
    assert connection.getresponse().status in STATUSES
    connection.close()


# Anything at all.


async def test_whatever_is_posted_is_taken_whole_or_refused_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    chance = random.Random(20_261_123)
    accepted = 0
    async with staged(tmp_path, attribution_series=20) as stage:
        for number in range(400):
            body = mutated(chance)
            headers = {"Content_Encoding": "gzip"} if number % 4 == 0 else {}
            packed = gzip.compress(body, 1) if headers else body
            if number % 12 == 0:
                packed = packed[: chance.randrange(len(packed) + 1)]
            before = stage.requests()
            reply = await stage.post(packed, **headers)
            assert reply.status in STATUSES - {401, 403, 408, 421, 429, 503}, (reply.status, body)
            taken = reply.json["accepted"] if reply.status == 202 else 0
            assert stage.requests() - before == taken
            accepted += taken
        found = saved(tmp_path)
        assert accepted > 50
        sums = {kind: sum(found.totals[one] for one in found.totals if one.kind is kind) for kind in Kind}
        assert sums[Kind.FEATURE_REQUESTS] == accepted
        assert sums[Kind.SPEND] == sums[Kind.ATTRIBUTED]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
