"""The budgets' routes: what gateways are told by shape of request, who may override, what the ledger keeps of it.

The real beat, books, ledger and web server; only time is moved by hand. The GPU costs a dollar a second.
"""

import asyncio
import contextlib
import json
import logging
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from yarl import URL

from exporter.beat import Beat
from exporter.books import Books
from exporter.config.model import Budget, BudgetApi, Cap, CapMode, Config, Engine, Match, OnUnknown
from exporter.config.nodes import ConfigError
from exporter.config.prices import GpuPrice, Prices
from exporter.core.money import NANO, Kind
from exporter.core.snapshot import ConfigView, Snapshot
from exporter.ledger import Ledger, file
from exporter.sources.http import new_session
from exporter.web import budgets
from exporter.web.bearer import Tokens, is_local
from exporter.web.board import Board
from exporter.web.budgets import BudgetDesk
from exporter.web.server import Guard, make_app
from tests.fakes import FakeClock
from tests.ledgers import saved

CHECK = "/v1/budgets/check"
OVERRIDE = "/v1/budgets/inference/override"
ENFORCE = Cap(mode=CapMode.ENFORCE)


def budget(usd: str = "10", name: str = "inference", cap: Cap = ENFORCE, **match: str) -> Budget:
    return Budget(name=name, daily_usd=Decimal(usd), cap=cap, match=Match(**match))


@dataclass
class Stage:
    """An exporter whose beats are made by hand."""

    clock: FakeClock
    books: Books
    made: Beat
    desk: BudgetDesk
    server: TestServer
    session: aiohttp.ClientSession

    async def beat(self, seconds: float = 5) -> None:
        self.clock.advance(seconds)
        await self.made.once()

    async def ask(self, path: str = CHECK, method: str = "GET", json: Any = None, **headers: str) -> "Reply":
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        async with self.session.request(method, self.server.make_url(path), json=json, headers=named) as response:
            return Reply(response.status, dict(response.headers), await response.read())

    async def override(self, wanted: Any, **headers: str) -> "Reply":
        return await self.ask(OVERRIDE, "POST", wanted, **headers)

    async def status(self, path: str = CHECK, **headers: str) -> int:
        return (await self.ask(path, **headers)).status

    def denied(self) -> dict[tuple[str, ...], int]:
        return {labels: count for labels, count in self.books.totals()[Kind.BUDGET_DENIED].items() if count}


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body, parse_float=Decimal)


@contextlib.asynccontextmanager
async def staged(
    *held: Budget,
    folder: Path | None = None,
    clock: FakeClock | None = None,
    tokens: Tokens | None = None,
    models: tuple[str, ...] = ("m",),
) -> AsyncIterator[Stage]:
    clock = clock or FakeClock()
    ledger = Ledger.open(folder, clock) if folder else None
    books = Books(ledger)
    books.start()
    engine = Engine(name="chat", url="http://127.0.0.1:9", models=models)
    config = Config(engines=(engine,), prices=Prices(gpu=GpuPrice(usd_per_hour=Decimal(3600))), budgets=held)
    view = ConfigView(successful=True, last_success=0.0)
    now = clock.now().unix_seconds
    empty = Snapshot(at=now, version="0", role="lone", interval_seconds=0.0, accounting_start=None, config=view)
    board = Board(clock, empty, lambda: b"")
    desk = BudgetDesk(board, books, clock, tokens or Tokens(), lambda: config.engines)
    app = make_app(board, Guard(), desk.routes(), desk.overrides, never)
    try:
        async with new_session() as metering, aiohttp.ClientSession() as session, TestServer(app) as server:
            assert isinstance(server, TestServer)
            yield Stage(clock, books, Beat(config, clock, books, metering, board.publish), desk, server, session)
    finally:
        if ledger:
            await asyncio.to_thread(ledger.close, 10)


async def never() -> list[str]:
    raise AssertionError


async def spent(stage: Stage, *seconds: float) -> None:
    """Make a first beat and then others, each of so many seconds and dollars."""
    await stage.beat()
    for number in seconds:
        await stage.beat(number)


# The check


async def test_below_the_limit_it_allows_and_tells_how_it_stands():
    async with staged(budget()) as stage:
        await spent(stage, 5, 4.5)
        stage.clock.advance(2)
        reply = await stage.ask()
        assert reply.status == 200
        assert reply.json == {
            "allowed": True,
            "reason": "the day of budget inference has money left",
            "budget": "inference",
            "period": "day",
            "state": "warn",
            "spent_usd": Decimal("9.5"),
            "limit_usd": 10,
            "remaining_usd": Decimal("0.5"),
            "overshoot_bound_usd": reply.json["overshoot_bound_usd"],
            "max_affordable_replicas": {"chat": 1},
            "retry_after_seconds": None,
            "age_seconds": 2,
            "denied_by": [],
        }
        assert reply.headers["X-LLM-Budget"] == "inference"
        assert reply.headers["X-LLM-Budget-State"] == "warn"
        assert reply.headers["X-LLM-Budget-Remaining-USD"] == "0.5"
        assert reply.headers["Cache-Control"] == "no-store"
        assert reply.headers["Content-Type"] == "application/json"
        assert "Retry-After" not in reply.headers
        assert stage.denied() == {}


async def test_at_the_limit_it_denies_until_the_period_ends():
    async with staged(budget()) as stage:
        await spent(stage, 5, 5)
        left = 86400 - stage.clock.now().unix_seconds % 86400
        reply = await stage.ask()
        assert (reply.status, reply.json["allowed"], reply.json["state"]) == (402, False, "over")
        assert (reply.json["spent_usd"], reply.json["remaining_usd"]) == (10, 0)
        assert reply.json["overshoot_bound_usd"] == left
        assert reply.headers["Retry-After"] == str(reply.json["retry_after_seconds"]) == str(int(left))
        assert reply.json["denied_by"] == [{"budget": "inference", "mode": "enforce"}]
        assert stage.denied() == {("inference", "enforce"): 1}
        assert "allow" not in {name.lower() for name in reply.headers}


async def test_money_is_told_to_the_nano_dollar():
    async with staged(budget("10.000000001")) as stage:
        await spent(stage, 5, 5)
        reply = await stage.ask()
        assert b'"limit_usd":10.000000001' in reply.body
        assert reply.headers["X-LLM-Budget-Remaining-USD"] == "0.000000001"


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE", "QUERY"]
)
async def test_any_method_gets_the_same_answer(method: str):
    async with staged(budget()) as stage:
        await spent(stage)
        for tail in ("", "/", "/v1/chat/completions", "*"):
            reply = await stage.ask(CHECK + tail, method)
            assert (reply.status, reply.headers["X-LLM-Budget-State"]) == (200, "ok")
            assert bool(reply.body) == (method != "HEAD")
        await stage.beat(10)
        assert (await stage.ask(CHECK, method)).status == 402


async def test_a_status_of_a_denial_is_the_budgets_or_the_gateways():
    async with staged(budget("1", cap=Cap(mode=CapMode.ENFORCE, deny_status=429))) as stage:
        assert await stage.status(f"{CHECK}?deny_status=403") == 200
        await spent(stage, 5)
        assert await stage.status() == 429
        assert await stage.status(f"{CHECK}?deny_status=403") == 403
        assert await stage.status(f"{CHECK}?deny_status=403&deny_status=404") == 403


@pytest.mark.parametrize("status", ["200", "302", "500", "4030", "40", "", "4\u0661\u0661", "-403", "4e2", "none"])
async def test_a_status_that_is_no_refusal_is_told_to_who_wrote_it(status: str):
    async with staged() as stage:
        reply = await stage.ask(f"{CHECK}?deny_status={status}")
        assert reply.status == 400
        assert reply.json["error"] == f"deny_status: expected a status from 400 to 499, found {status!r}"


async def test_shadow_allows_and_counts_and_off_does_neither():
    shadow, off = (budget("1", mode.value, Cap(mode=mode)) for mode in (CapMode.SHADOW, CapMode.OFF))
    async with staged(shadow, off) as stage:
        await spent(stage, 5)
        reply = await stage.ask(f"{CHECK}?deny_status=403")
        assert (reply.status, reply.json["denied_by"]) == (200, [{"budget": "shadow", "mode": "shadow"}])
        assert reply.json["reason"].startswith("shadow mode: ")
        assert "Retry-After" not in reply.headers
        await stage.ask()
        assert stage.denied() == {("shadow", "shadow"): 2}


async def test_every_budget_that_denies_is_counted():
    async with staged(budget("1", "a"), budget("1", "b"), budget("1000", "c")) as stage:
        await spent(stage, 5)
        await stage.ask()
        assert stage.denied() == {("a", "enforce"): 1, ("b", "enforce"): 1}


async def test_denials_are_in_the_ledger_with_the_next_beat_and_go_on_after_a_restart(tmp_path: Path):
    clock = FakeClock()
    async with staged(budget("1"), folder=tmp_path, clock=clock) as stage:
        await spent(stage, 5)
        await stage.ask()
        await stage.ask()
        assert stage.denied() == {}  # none is on the disk yet
        await stage.beat()
    assert [n for account, n in saved(tmp_path).totals.items() if account.kind is Kind.BUDGET_DENIED] == [2]
    async with staged(budget("1"), folder=tmp_path, clock=clock) as stage:
        await stage.ask()
        await stage.beat()
        await stage.books.settled(5)
        assert stage.denied() == {("inference", "enforce"): 3}


# What a request says


async def test_a_budget_of_a_model_holds_for_who_names_it():
    async with staged(budget("1", model="m")) as stage:
        await spent(stage, 5)
        assert await stage.status() == 200
        assert await stage.status(f"{CHECK}?model=m") == 402
        assert await stage.status(x_llm_model="m") == 402
        assert await stage.status(X_LLM_Model="m") == 402
        assert await stage.status(f"{CHECK}?model=M") == 200
        assert (await stage.ask()).json["reason"] == "no budget applies"


async def test_no_alias_of_a_model_evades_its_budget():
    """Spend is booked under the first of an engine's names, whatever name a client asks for."""
    async with staged(budget("1", model="m"), models=("m", "lora", "caf\u00e9")) as stage:
        for name in ("m", "lora", "caf%C3%A9", "cafe%CC%81"):  # before the first beat as well
            assert (await stage.ask(f"{CHECK}?model={name}")).json["budget"] == "inference"
        await spent(stage, 5)
        for name in ("m", "lora", "caf%C3%A9", "cafe%CC%81"):
            assert await stage.status(f"{CHECK}?model={name}") == 402
        assert await stage.status(x_llm_model="lora") == 402
        for name in ("other", "LORA", ""):
            assert await stage.status(f"{CHECK}?model={name}") == 200
        assert len(stage.desk._answers) == 3  # m, its aliases, and what no budget knows


async def test_an_alias_shares_the_answer_of_whom_no_budget_knows_where_its_model_has_none():
    async with staged(budget("1", model="n"), models=("m", "lora")) as stage:
        await spent(stage, 5)
        for name in ("m", "lora", "other"):
            assert (await stage.ask(f"{CHECK}?model={name}")).json["reason"] == "no budget applies"
        assert len(stage.desk._answers) == 1


async def test_a_budget_of_an_alias_is_met_by_who_says_it():
    async with staged(budget("1", model="lora"), models=("m", "lora")) as stage:
        await spent(stage, 5)
        reply = await stage.ask(f"{CHECK}?model=lora")
        assert (reply.status, reply.json["spent_usd"]) == (200, 0)
        assert (await stage.ask(f"{CHECK}?model=m")).json["budget"] is None


async def test_a_long_query_is_read_to_its_end_and_not_remembered():
    """A gateway may append what its clients wrote."""
    async with staged(budget("1", model="m")) as stage:
        await spent(stage, 5)
        before = budgets._remembered.cache_info().currsize
        for number in range(20):
            tail = "&".join(f"{number}x{more}" for more in range(900))
            assert len(tail) > 4096
            assert await stage.status(f"{CHECK}?{tail}&model=m&deny_status=403") == 403
        assert budgets._remembered.cache_info().currsize == before
        assert await stage.status(f"{CHECK}?deny_status=403&model=m&x=1") == 403
        assert budgets._remembered.cache_info().currsize == before + 1
    assert budgets._said("x=1&feature=&y&team=t&deny_status=403&z=" + "a" * 900) == ({"feature": "", "team": "t"}, 403)


async def test_the_query_wins_and_its_first_value_counts():
    async with staged(budget("1", model="m")) as stage:
        await spent(stage, 5)
        assert await stage.status(f"{CHECK}?model=m", x_llm_model="n") == 402
        assert await stage.status(f"{CHECK}?model=n", x_llm_model="m") == 200
        assert await stage.status(f"{CHECK}?model=", x_llm_model="m") == 200
        assert await stage.status(f"{CHECK}?model=n&model=m") == 200
        assert await stage.status(f"{CHECK}?model=m&model=n") == 402
        assert await stage.status(f"{CHECK}?team=t", x_llm_model="m") == 402


async def test_the_query_behind_an_appended_path_is_the_clients():
    async with staged(budget("1", cap=Cap(mode=CapMode.ENFORCE, exempt_features=("vip",)))) as stage:
        await spent(stage, 5)
        assert await stage.status(f"{CHECK}?feature=vip") == 200
        assert await stage.status(f"{CHECK}/v1/chat/completions?feature=vip&deny_status=403") == 402
        assert await stage.status(f"{CHECK}/v1/chat/completions?deny_status=1") == 402
        assert await stage.status(f"{CHECK}/v1/chat/completions?feature=a", x_llm_feature="vip") == 200


async def test_a_name_is_compared_as_people_read_it():
    async with staged(budget("1", model="caf\u00e9")) as stage:
        await spent(stage, 5)
        for text in ("caf%C3%A9", "cafe%CC%81"):
            reply = await stage.ask(f"{CHECK}?model={text}")
            assert reply.status == 200  # the engine's model has another name, so nothing is spent of this budget
            assert reply.headers["X-LLM-Budget"] == "inference"
        assert (await stage.ask(x_llm_model="caf\u00e9")).headers["X-LLM-Budget"] == "inference"


@pytest.mark.parametrize("name", ["", "a" * 4000, "a\tb", "m\u00a0", "\u202em", "%", "m\u00e9\u00df"])
async def test_a_name_that_no_budget_can_have_equals_nothing(name: str):
    async with staged(budget("1", model="m")) as stage:
        await spent(stage, 5)
        for reply in (await stage.ask(x_llm_model=name), await stage.ask(f"{CHECK}?model={name}")):
            assert (reply.status, reply.json["reason"]) == (200, "no budget applies")


async def test_a_budgets_name_goes_into_a_header_whatever_it_is():
    async with staged(budget("1", "Büro, \u65e5\u672c")) as stage:
        await spent(stage, 5)
        assert (await stage.ask()).headers["X-LLM-Budget"] == "B%C3%BCro%2C%20%E6%97%A5%E6%9C%AC"


async def test_there_are_only_so_many_answers_whatever_clients_call_themselves():
    async with staged(budget("1", model="m")) as stage:
        await spent(stage, 5)
        for number in range(50):
            await stage.ask(f"{CHECK}?model=n{number}", x_llm_feature=f"f{number}", x_llm_team=f"t{number}")
        assert len(stage.desk._answers) == 1


# How old the figure is


async def test_an_answer_is_given_again_for_a_tenth_of_a_second_at_most():
    async with staged(budget()) as stage:
        await spent(stage)
        first = (await stage.ask()).json["age_seconds"]
        stage.clock.advance(0.1)
        second = (await stage.ask()).json["age_seconds"]
        assert second == first + Decimal("0.1")
        await stage.beat(0)
        assert (await stage.ask()).json["age_seconds"] == 0


@pytest.mark.parametrize(("on_unknown", "status"), [(OnUnknown.ALLOW, 200), (OnUnknown.DENY, 402)])
@pytest.mark.parametrize("usd", ["1", "1000"])
async def test_a_figure_that_is_too_old_is_not_known(on_unknown: OnUnknown, status: int, usd: str):
    async with staged(budget(usd, cap=Cap(mode=CapMode.ENFORCE, max_age=60, on_unknown=on_unknown))) as stage:
        await spent(stage, 5)
        stage.clock.advance(60)
        assert (await stage.ask()).json["state"] in ("over", "ok")
        stage.clock.advance(1)
        reply = await stage.ask()
        assert (reply.status, reply.json["state"], reply.json["age_seconds"]) == (status, "unknown", 61)
        assert status == 200 or reply.headers["Retry-After"] == "60"
        await stage.beat()
        assert (await stage.ask()).json["state"] != "unknown"


@pytest.mark.parametrize("step", [-3600, -30, 30, 600])
async def test_a_step_of_the_wall_clock_makes_no_figure_older_or_younger(step: float):
    async with staged(budget("1000", cap=Cap(mode=CapMode.ENFORCE, on_unknown=OnUnknown.DENY))) as stage:
        await spent(stage, 5)
        stage.clock.step_wall(step)
        stage.clock.advance(2)
        reply = await stage.ask()
        assert (reply.status, reply.json["age_seconds"], reply.json["state"]) == (200, 2, "ok")
        assert (await stage.ask("/v1/budgets")).json["age_seconds"] == 2
        stage.clock.advance(119)  # the beat is dead
        reply = await stage.ask()
        assert (reply.status, reply.json["age_seconds"], reply.json["state"]) == (402, 121, "unknown")


async def test_before_the_first_beat_a_wall_clock_that_was_set_back_makes_no_figure_younger_than_new(tmp_path: Path):
    clock = FakeClock()
    async with staged(budget("1"), folder=tmp_path, clock=clock) as stage:
        await spent(stage, 5)
    clock.step_wall(-30)
    async with staged(budget("1"), folder=tmp_path, clock=clock) as stage:
        assert (await stage.ask()).json["age_seconds"] == 0


async def test_without_a_budget_or_a_history_everything_is_allowed_from_the_start():
    async with staged() as stage:
        assert (await stage.ask()).json["reason"] == "no budget applies"
        assert await stage.status(f"{CHECK}/v1/chat/completions") == 200
    async with staged(budget("1")) as stage:
        reply = await stage.ask()
        assert (reply.status, reply.json["state"], reply.json["spent_usd"]) == (200, "ok", 0)


@pytest.mark.parametrize(("down", "status"), [(60, 402), (300, 200)])
async def test_before_the_first_beat_the_ledger_decides_while_it_is_young_enough(
    tmp_path: Path, down: float, status: int
):
    clock = FakeClock()
    async with staged(budget("1"), folder=tmp_path, clock=clock) as stage:
        await spent(stage, 5)
    clock.advance(down)
    async with staged(budget("1"), folder=tmp_path, clock=clock) as stage:
        reply = await stage.ask()
        assert (reply.status, reply.json["age_seconds"]) == (status, down)
        assert reply.json["overshoot_bound_usd"] is None
        (shown,) = (await stage.ask("/v1/budgets")).json["budgets"]
        assert shown["periods"]["day"]["spent_usd"] == 5


async def test_the_check_never_touches_the_disk(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("s3cret")
    tokens = Tokens()
    tokens.adopt(BudgetApi(token_file=str(token)))
    async with staged(budget("1"), folder=tmp_path, tokens=tokens) as stage:
        await spent(stage, 5)
        assert await stage.status() == 401
        with files_opened() as opened:
            for number in range(20):
                stage.clock.advance(0.05)
                asked = f"{CHECK}?feature=f{number}"
                assert await stage.status(asked, Authorization="Bearer s3cret") == 402
        assert opened == []


@contextlib.contextmanager
def files_opened() -> Iterator[list[str]]:
    """What this process opens; a hook cannot be taken away again, so it is told to look no more."""
    opened: list[str] = []
    looks = True

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if looks and event in ("open", "os.listdir", "os.scandir", "sqlite3.connect"):
            opened.append(str(arguments))

    sys.addaudithook(see)
    yield opened
    looks = False


# Who may ask


async def test_a_token_is_borne_in_either_header():
    async with staged(tokens=Tokens(check=b"s3cret")) as stage:
        assert await stage.status() == 401
        assert (await stage.ask()).headers["WWW-Authenticate"] == "Bearer"
        assert await stage.status(Authorization="Bearer s3cret") == 200
        assert await stage.status(Authorization="bearer  s3cret ") == 200
        assert await stage.status(X_LLM_Cost_Token="s3cret", Authorization="Basic YTpi") == 200
        for wrong in ("Bearer s3cre", "Bearer s3crets", "Basic s3cret", "s3cret", "Bearer", "", "Bearer é"):
            assert await stage.status(Authorization=wrong) == 401
        for wrong in ("Bearer s3cret", "s3cre", "s3crets", "", "é"):
            assert await stage.status(X_LLM_Cost_Token=wrong) == 401
        assert await stage.status("/v1/budgets") == 200


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "none: No such file or directory"),
        (b" \n", "something else"),
        (b"a\nb", "something else"),
        (b"\xff", "something else"),
    ],
)
def test_a_file_without_a_token_is_told_by_its_key_and_leaves_the_last_tokens(
    tmp_path: Path, content: bytes | None, found: str
):
    file = tmp_path / "s3cret"
    if content is not None:
        file.write_bytes(content)
    tokens = Tokens(check=b"a", override=b"b")
    with pytest.raises(ConfigError) as caught:
        tokens.adopt(BudgetApi(token_file=str(file), override_token_file=str(file)))
    assert caught.value.lines == [
        f"budget_api.{key}: expected a readable file with a token, found {found}"
        for key in ("token_file", "override_token_file")
    ]
    assert tokens == Tokens(check=b"a", override=b"b")
    tokens.adopt(BudgetApi())
    assert tokens == Tokens()


# The override


async def test_an_override_opens_a_cap_until_its_money_is_spent(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    async with staged(budget()) as stage:
        await spent(stage, 11)
        assert await stage.status() == 402
        reply = await stage.override({"amount_usd": "5.5", "for": "2h", "reason": "the demo"})
        assert reply.status == 200
        override = reply.json["override"]
        assert (override["amount_usd"], override["reason"]) == (Decimal("5.5"), "the demo")
        assert instant(override["until"]) - instant(override["at"]) == 2 * 3600
        reply = await stage.ask()
        assert (reply.status, reply.json["limit_usd"], reply.json["remaining_usd"]) == (200, 15.5, 4.5)
        await stage.beat(4)
        assert await stage.status() == 200
        await stage.beat(1)
        assert await stage.status() == 402
    (line,) = [record for record in caplog.records if "override" in record.getMessage()]
    assert line.levelno == logging.WARNING
    assert line.getMessage().startswith("budget inference, override asked for by 127.0.0.1: 5.5 USD more until 2026-")
    assert line.getMessage().endswith(": the demo")


def instant(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


async def test_an_override_opens_a_cap_whose_spend_is_not_known():
    async with staged(budget("1000", cap=Cap(mode=CapMode.ENFORCE, on_unknown=OnUnknown.DENY))) as stage:
        await spent(stage, 5)
        stage.clock.advance(200)
        assert await stage.status() == 402
        assert (await stage.override({"amount_usd": 500, "for": "1h"})).status == 200
        reply = await stage.ask()
        assert (reply.status, reply.json["state"], reply.json["denied_by"]) == (200, "unknown", [])
        stage.clock.advance(3600)
        assert await stage.status() == 402


async def test_an_override_ends_with_its_time():
    async with staged(budget("1")) as stage:
        await spent(stage, 5)
        until = datetime.fromtimestamp(stage.clock.now().unix_seconds + 60, UTC)
        assert (await stage.override({"amount_usd": 1000, "until": until.isoformat()})).status == 200
        assert len(stage.desk.overrides()) == 1
        stage.clock.advance(59)
        assert await stage.status() == 200
        stage.clock.advance(2)
        assert await stage.status() == 402
        assert stage.desk.overrides() == {}
        assert (await stage.ask("/v1/budgets")).json["budgets"][0]["override"] is None


async def test_a_later_override_replaces_and_one_of_nothing_ends():
    async with staged(budget("1"), budget("1", "other")) as stage:
        await spent(stage, 5)
        await stage.override({"amount_usd": 1000, "for": "1h"})
        assert await stage.status() == 402  # by the other budget
        await stage.ask("/v1/budgets/other/override", "POST", {"amount_usd": 1000, "for": "1h"})
        assert await stage.status() == 200
        await stage.override({"amount_usd": 1, "for": "1h"})
        assert (await stage.ask()).json["budget"] == "inference"
        await stage.override({"amount_usd": 1000, "for": "1h"})
        assert await stage.status() == 200
        reply = await stage.override({"amount_usd": 0, "reason": "the demo is over"})
        assert (reply.status, reply.json["override"]) == (200, None)
        assert await stage.status() == 402


async def test_the_page_and_the_list_show_budgets_and_overrides():
    async with staged(budget("10"), budget("1000", "<b>")) as stage:
        await spent(stage, 11)
        await stage.override({"amount_usd": 50, "for": "1h", "reason": "<i>"})
        page = (await stage.ask("/")).body.decode()
        for said in ("over the limit</span>", "$11.00 of $10.00", "$11.00 of $1,000.00", "50 USD more until 2026-"):
            assert said in page
        assert "&lt;i&gt;" in page
        assert "<b>" not in page
        shown = (await stage.ask("/v1/budgets")).json
        assert (shown["age_seconds"], [each["name"] for each in shown["budgets"]]) == (0, ["inference", "<b>"])
        first = shown["budgets"][0]
        assert (first["state"], first["timezone"], first["match"], first["warn_ratios"]) == (
            "over",
            "UTC",
            {},
            [Decimal("0.8")],
        )
        assert first["cap"] == {
            "mode": "enforce", "deny_status": 402, "max_age_seconds": 120, "on_unknown": "allow", "exempt_features": []
        }  # fmt: skip
        assert first["override"]["amount_usd"] == 50
        day = first["periods"]["day"]
        assert (day["spent_usd"], day["limit_usd"], day["capped"]) == (11, 10, True)
        assert instant(day["end"]) - instant(day["start"]) == 86400
        assert shown["budgets"][1]["override"] is None


NOTHING = "amount_usd: expected an amount in US dollars, 0 or from 1e-9 to 1000000000, found"
EITHER = "until: expected either until or for, found"
SOON = "expected an end within the next 31 days, found another"


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({}, f"{NOTHING} nothing"),
        ({"amount_usd": None, "for": "1h"}, f"{NOTHING} nothing"),
        ({"amount_usd": "-1", "for": "1h"}, f"{NOTHING} '-1'"),
        ({"amount_usd": -0.5, "for": "1h"}, f"{NOTHING} '-0.5'"),
        ({"amount_usd": True, "for": "1h"}, f"{NOTHING} 'true'"),
        ({"amount_usd": [1], "for": "1h"}, f"{NOTHING} a list"),
        ({"amount_usd": "1e10", "for": "1h"}, f"{NOTHING} '1e10'"),
        ({"amount_usd": "nan", "for": "1h"}, f"{NOTHING} 'nan'"),
        ({"amount_usd": 1e-10, "for": "1h"}, f"{NOTHING} '1e-10'"),
        ({"amount_usd": "0.000000000999", "for": "1h"}, f"{NOTHING} '0.000000000999'"),
        ({"amount_usd": "50 USD", "for": "1h"}, f"{NOTHING} '50 USD'"),
        ({"amount_usd": 1}, f"{EITHER} neither"),
        ({"amount_usd": 1, "for": "1h", "until": "2026-11-24"}, f"{EITHER} both"),
        ({"amount_usd": 1, "for": 3600}, "for: expected a duration like 30s, 500ms or 1h30m, found '3600'"),
        ({"amount_usd": 1, "for": "32d"}, f"for: {SOON}"),
        ({"amount_usd": 1, "until": "2026-11-01"}, f"until: {SOON}"),
        ({"amount_usd": 1, "until": "9999-12-31"}, f"until: {SOON}"),
        ({"amount_usd": 1, "until": "tomorrow"},
         "until: expected a date or time like 2026-11-01 or 2026-11-01T00:00:00Z, found 'tomorrow'"),
        ({"amount_usd": 1, "for": "1h", "reason": "a\nb"},
         "reason: expected one line of at most 200 printable characters, found 'a\\nb'"),
        ({"amount_usd": 1, "for": "1h", "reason": "a" * 201},
         f"reason: expected one line of at most 200 printable characters, found '{'a' * 40}…'"),
        ({"amount_usd": 1, "for": "1h", "unti": 1},
         "unti: expected a known key (did you mean until?), found an unknown one"),
        ({"amount_usd": -1, "for": 1},
         f"{NOTHING} '-1'; for: expected a duration like 30s, 500ms or 1h30m, found '1'"),
        ([], "(file): expected a mapping with amount_usd, until, for, reason, found a list"),
    ],
)  # fmt: skip
async def test_an_override_that_makes_no_sense_is_told_why(wanted: Any, error: str):
    async with staged(budget("1")) as stage:
        await spent(stage, 5)
        reply = await stage.override(wanted)
        assert (reply.status, reply.json["error"]) == (400, error)
        assert await stage.status() == 402


@pytest.mark.parametrize("body", [b"", b"{", b"amount_usd: 1", b"\xff", b"{'amount_usd': 1}", b"[" * 4000, b"null"])
async def test_an_override_that_is_no_json_is_refused(body: bytes):
    async with staged(budget("1")) as stage, stage.session.post(stage.server.make_url(OVERRIDE), data=body) as reply:
        assert reply.status == 400
        assert "expected" in (await reply.json())["error"]


async def test_an_override_needs_no_content_type_and_takes_any_text_as_reason():
    async with staged(budget("1")) as stage:
        await spent(stage, 5)
        body = b'{"amount_usd": 50.5, "for": "1h30m", "reason": "\\ud83d\\ude00 \\"50%: #1\\" {x}, \\u00e9"}'
        async with stage.session.post(stage.server.make_url(OVERRIDE), data=body) as reply:
            assert reply.status == 200
        override = stage.desk.overrides()["inference"]
        assert (override.reason, override.amount_nano_usd) == ('\U0001f600 "50%: #1" {x}, é', 50_500_000_000)
        assert override.until_ns - override.at_ns == 5400 * NANO


async def test_an_override_that_is_far_too_large_is_refused():
    async with staged(budget("1")) as stage:
        assert (await stage.override({"reason": "a" * 5000})).status == 413


@pytest.mark.parametrize(("size", "status"), [(4096, 200), (4097, 413), (2**20, 413)])
async def test_an_override_whose_length_is_not_told_is_read_no_further_than_the_limit(size: int, status: int):
    async def chunks() -> AsyncIterator[bytes]:
        body = b'{"amount_usd": 1e-9, "for": "1h"}'.ljust(size)
        for start in range(0, size, 1000):
            yield body[start : start + 1000]

    async with staged(budget("1")) as stage:
        async with stage.session.post(stage.server.make_url(OVERRIDE), data=chunks()) as reply:
            assert reply.status == status
        assert [one.amount_nano_usd for one in stage.desk.overrides().values()] == [1] * (status == 200)


async def test_a_budget_that_is_not_there_is_404_and_a_name_may_be_anything():
    names = ["a/b ü", "checkout", "check-in", "{x}", "a}b", "{name:[a]}", "%7B", "a*", ".a"]
    async with staged(*(budget("1", name) for name in names)) as stage:
        wanted = {"amount_usd": 1, "for": "1h"}
        assert (await stage.override(wanted)).status == 404
        for name in names:
            path = URL(f"{stage.server.make_url('/v1/budgets')}/{quote(name, safe='')}/override", encoded=True)
            async with stage.session.post(path, json=wanted) as response:
                assert response.status == 200
        assert list(stage.desk.overrides()) == names
        assert (await stage.ask("/v1/budgets/checkout")).status == 404
        assert (await stage.ask(OVERRIDE)).status == 405


@pytest.mark.parametrize("header", ["Origin", "X-Forwarded-For", "Forwarded"])
async def test_without_a_token_only_this_machine_overrides_and_for_itself_alone(header: str):
    async with staged(budget("1")) as stage:
        wanted = {"amount_usd": 1, "for": "1h"}
        reply = await stage.override(wanted, **{header: "10.0.0.7"})
        assert reply.status == 403
        assert "budget_api.override_token_file" in reply.json["error"]
        assert stage.desk.overrides() == {}
        assert (await stage.override(wanted)).status == 200


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", False),
     ("fe80::1%eth0", False), ("::ffff:10.0.0.1", False), ("", False), ("/run/socket", False), ("0.0.0.0", False)],
)  # fmt: skip
def test_a_loopback_address_is_this_machine(address: str, local: bool):
    @dataclass
    class Asking:
        remote: str
        headers: dict[str, str]

    assert is_local(Asking(address, {})) == local  # type: ignore[arg-type]


async def test_with_a_token_who_bears_it_overrides_from_anywhere_and_nobody_else():
    async with staged(budget("1"), tokens=Tokens(check=b"gateway", override=b"s3cret")) as stage:
        wanted = {"amount_usd": 1, "for": "1h"}
        assert (await stage.override(wanted)).status == 401
        assert (await stage.override(wanted, Authorization="Bearer gateway")).status == 401
        bearer = {"Authorization": "Bearer s3cret", "X-Forwarded-For": "10.0.0.7"}
        assert (await stage.override(wanted, **bearer)).status == 200
        assert await stage.status(Authorization="Bearer s3cret") == 401


async def test_an_override_is_on_the_disk_before_it_is_acknowledged_and_comes_back(tmp_path: Path):
    clock = FakeClock()
    async with staged(budget("1"), folder=tmp_path, clock=clock) as stage:
        await spent(stage, 5)
        assert (await stage.override({"amount_usd": 1000, "for": "1h", "reason": "a"})).status == 200
        kept = json.loads(saved(tmp_path).meta["override:inference"])
        assert (kept["budget"], kept["amount_nano_usd"], kept["reason"]) == ("inference", 1000 * NANO, "a")
    async with staged(budget("1"), folder=tmp_path, clock=clock) as stage:
        assert await stage.status() == 200  # before the first beat
        await stage.beat()
        assert await stage.status() == 200
        assert stage.desk.overrides()["inference"].reason == "a"
        clock.advance(3600)
    async with staged(budget("1"), folder=tmp_path, clock=clock) as stage:
        await stage.beat()
        assert stage.desk.overrides() == {}
        assert await stage.status() == 402


async def test_an_override_of_another_version_does_not_count(tmp_path: Path):
    async with staged(budget("1"), folder=tmp_path) as stage:
        assert (await stage.override({"amount_usd": 1, "for": "1h"})).status == 200
    with contextlib.closing(sqlite3.connect(tmp_path / file.NAME)) as connection, connection:
        connection.execute("UPDATE meta SET text = '{\"until\": 3}' WHERE name = 'override:inference'")
    async with staged(budget("1"), folder=tmp_path) as stage:
        assert stage.desk.overrides() == {}


async def test_an_override_that_cannot_be_written_is_not_in_force_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(budgets, "_PATIENCE_SECONDS", 0.2)
    async with staged(budget("1"), folder=tmp_path) as stage:
        await spent(stage, 5)
        ledger = tmp_path / file.NAME
        ledger.rename(tmp_path / "elsewhere")
        reply = await stage.override({"amount_usd": 1000, "for": "1h"})
        assert (reply.status, reply.headers["Retry-After"]) == (503, "10")
        assert await stage.status() == 402
        (tmp_path / "elsewhere").rename(ledger)
        for _ in range(300):
            if stage.desk.overrides():
                break
            await asyncio.sleep(0.05)
        stage.clock.advance(0.1)
        assert await stage.status() == 200


async def test_two_at_once_leave_the_last_in_force(tmp_path: Path):
    async with staged(budget("1"), folder=tmp_path) as stage:
        await spent(stage, 5)
        replies = await asyncio.gather(*(stage.override({"amount_usd": usd, "for": "1h"}) for usd in (1, 1000)))
        assert 200 in [reply.status for reply in replies]
        kept = json.loads(saved(tmp_path).meta["override:inference"])
        assert stage.desk.overrides()["inference"].amount_nano_usd == kept["amount_nano_usd"]


# The shapes of requests, byte by byte


async def answered(stage: Stage, request: bytes) -> bytes:
    """Send bytes, and return the head of the answer; the connection then stays as it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.server.port)
    writer.write(request)
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return head


ENVOY = (  # as Envoy 1.40 sent them, in front of this project's check
    b"POST /v1/budgets/check/v1/chat/completions?feature=vip HTTP/1.1\r\nhost: 127.0.0.1:9801\r\ncontent-length: 0\r\n"
    b"authorization: Bearer sk-user\r\nx-llm-feature: chat\r\nx-llm-team: docs\r\nx-envoy-internal: true\r\n"
    b"x-envoy-expected-rq-timeout-ms: 250\r\n\r\n",
    b"PURGE /v1/budgets/check/a/../../x/override HTTP/1.1\r\nhost: 127.0.0.1:9801\r\ncontent-length: 0\r\n"
    b"x-llm-team: docs\r\nx-envoy-internal: true\r\nx-envoy-expected-rq-timeout-ms: 250\r\n\r\n",
)
TRAEFIK = (  # as net/http of Go writes what forwardAuth asks
    b"GET /v1/budgets/check?team=docs HTTP/1.1\r\nHost: 127.0.0.1:9409\r\nUser-Agent: curl/8.11\r\n"
    b"Content-Type: application/json\r\nX-Forwarded-For: 10.1.2.3\r\nX-Forwarded-Host: api.example.com\r\n"
    b"X-Forwarded-Method: POST\r\nX-Forwarded-Port: 443\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Server: traefik\r\n"
    b"X-Forwarded-Uri: /v1/chat/completions?feature=vip\r\nX-Llm-Feature: chat\r\nX-Real-Ip: 10.1.2.3\r\n"
    b"Accept-Encoding: gzip\r\n\r\n",
)
NGINX = (  # as nginx 1.22 sends an auth_request that nobody has trimmed: by GET, with the length of a body not sent
    b"GET /v1/budgets/check?deny_status=403 HTTP/1.0\r\nHost: exporter\r\nConnection: close\r\n"
    b"Content-Length: 100000\r\nUser-Agent: curl/8.11\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer sk-user\r\n\r\n",
)
HEAD = b"/v1/budgets/check HTTP/1.1\r\nHost: a\r\n"
ODD = (
    b"POST " + HEAD + b"Content-Length: 1000\r\n\r\n",  # a body that does not come
    b"POST " + HEAD + b"Content-Length: 99999999999\r\n\r\nabc",
    b"POST " + HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
    b"POST " + HEAD + b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n",
    b"POST " + HEAD + b"Expect: the unexpected\r\nContent-Length: 0\r\n\r\n",
    b"POST " + HEAD + b"Content-Encoding: gzip\r\nContent-Type: \xff;;\r\nContent-Length: 3\r\n\r\nabc",
    b"GET " + HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n",
    b"GET " + HEAD + b"Authorization: \xff\r\nCookie: =;\xff\r\nx-llm-feature: \xff\xfe\xc3\xa9\r\n\r\n",
    b"GET " + HEAD + b"x-llm-feature: " + b"a" * 8000 + b"\r\n\r\n",
    b"OPTIONS /v1/budgets/check* HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v1/budgets/check/%0a/%00/%ff/%zz?%zz HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v1/budgets/check?%ff=%zz&&=&a HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://elsewhere/v1/budgets/check HTTP/1.1\r\nHost: a\r\n\r\n",
)  # fmt: skip


@pytest.mark.parametrize("request_bytes", [*ENVOY, *TRAEFIK, *NGINX, *ODD])
async def test_whatever_a_gateway_passes_on_the_answer_comes_at_once(request_bytes: bytes):
    async with staged(budget("10", cap=Cap(mode=CapMode.ENFORCE, exempt_features=("vip",)))) as stage:
        await spent(stage)
        assert b" 200 OK\r\n" in await answered(stage, request_bytes)
        await stage.beat(10)
        status = b" 403 " if b"deny_status" in request_bytes else b" 402 "
        assert status in (await answered(stage, request_bytes)).split(b"\r\n")[0] + b" "


@pytest.mark.parametrize(
    "path", [b"/../inference/override", b"/%2e%2e/inference/override", b"/x/../../inference/override"]
)
async def test_no_client_of_a_gateway_overrides_a_budget_by_its_path(path: bytes):
    """Envoy appends the path as the client wrote it, with the client's method."""
    async with staged(budget("1")) as stage:
        await spent(stage, 5)
        body = b'{"amount_usd": 1000, "for": "1h"}'
        head = b"POST /v1/budgets/check%b HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (path, len(body))
        assert b" 402 " in await answered(stage, head + body)
        assert stage.desk.overrides() == {}


async def test_a_large_body_is_not_waited_for_and_hurts_nobody():
    async with staged(budget("10")) as stage:
        await spent(stage)
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.server.port)
        writer.write(b"POST " + HEAD + b"Content-Length: 9999999999\r\n\r\n")
        assert b" 200 " in await reader.readuntil(b"\r\n")
        for _ in range(100):
            writer.write(b"x" * 2**20)
            await writer.drain()
            assert await stage.status() == 200
        writer.close()


async def test_a_kept_connection_is_asked_again_and_again():
    async with staged(budget("10")) as stage:
        await spent(stage)
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.server.port)
        for body in (b"", b"{}", b"x" * 1000):
            writer.write(b"POST " + HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert b" 200 " in await reader.readuntil(b"\r\n")
            await reader.readuntil(b'"denied_by":[]}')
        writer.close()


async def test_the_guard_stands_before_these_routes_as_well():
    clock = FakeClock()
    view = ConfigView(successful=True, last_success=0.0)
    empty = Snapshot(at=0.0, version="0", role="lone", interval_seconds=0.0, accounting_start=None, config=view)
    board = Board(clock, empty, lambda: b"")
    desk = BudgetDesk(board, Books(), clock, Tokens())
    app = make_app(board, Guard(broken=True), desk.routes(), desk.overrides, never)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        for method, path in (("GET", CHECK), ("POST", CHECK + "/x"), ("GET", "/v1/budgets"), ("POST", OVERRIDE)):
            async with session.request(method, server.make_url(path)) as reply:
                assert reply.status == 503
