"""Our callback of a LiteLLM proxy, posting to a real desk: nothing is lost while nobody takes records, nothing waits.

LiteLLM itself is too large to be here (tests/real/test_peers.py has it): what stands for it is the one name that the
callback imports.
"""

import asyncio
import importlib.util
import json
import logging
import math
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web

from exporter.config.model import LitellmUsage, TokenFile, Usage
from exporter.core.litellm import Record, _Metadata, call_of
from tests.captured import litellm_records
from tests.integration.test_records_http import NOW, taking
from tests.integration.test_usage_http import Stage
from tests.promql import ROOT

FILE = ROOT / "deploy/litellm/llm_cost_callback.py"


class CustomLogger:
    """What a callback of LiteLLM is."""


@pytest.fixture
def callback(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    names = ("litellm", "litellm.integrations", "litellm.integrations.custom_logger")
    modules = {name: ModuleType(name) for name in names}
    vars(modules[names[2]]).update(CustomLogger=CustomLogger)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("llm_cost_callback", FILE)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    for name in ("_PAUSE_SECONDS", "_GATHERING_SECONDS"):
        monkeypatch.setattr(loaded, name, 0.01)
    return loaded


def url(stage: Stage) -> str:
    return f"{stage.url}/litellm"


async def tell(records: Any, *said: dict[str, Any] | None) -> None:
    """Call it as LiteLLM does."""
    for one in said:
        named = {"kwargs": {"standard_logging_object": one}, "response_obj": {}, "start_time": None, "end_time": None}
        await asyncio.wait_for(records.async_log_success_event(**named), 1)


async def until(found: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not found():
            await asyncio.sleep(0.01)


async def ended(records: Any) -> None:
    """End the posting, and let what it had open close; one whose time is up just now takes that for its reason."""
    while not records._posting.done():
        records._posting.cancel()
        await asyncio.wait({records._posting}, timeout=0.1)
    for _ in range(10):
        await asyncio.get_running_loop().run_in_executor(None, str)


def answered() -> list[dict[str, Any]]:
    """Records of calls that were answered: LiteLLM tells no other to this callback."""
    return [dict(one, messages=[{"content": "SECRET"}]) for one in litellm_records(NOW) if one["status"] == "success"]


async def test_what_it_posts_is_booked_as_litellms_own_post_is(tmp_path: Path, callback: ModuleType):
    async with taking(tmp_path / "whole") as stage:
        whole = await stage.session.post(url(stage), data=json.dumps(answered()))
        said = json.loads(await whole.read())
        totals = stage.books.totals()
    async with taking(tmp_path / "ours") as stage:
        records = callback.Records(url(stage), None)
        await tell(records, None, *answered())
        await until(lambda: not records._waiting)
        assert stage.requests() == said["accepted"] == 8
        assert stage.books.totals() == totals


def test_it_tells_what_is_read_and_nothing_else(callback: ModuleType):
    """Prompts, answers and keys stay where they are; what the exporter learns to read must be told."""
    told = json.loads(callback._line(answered()[0]))
    assert set(told) == set(Record.__struct_fields__)
    assert set(told["metadata"]) == set(_Metadata.__struct_fields__)
    lines = [callback._line(one) for one in answered()]
    assert not any(b"SECRET" in line or b"api_key_hash" in line for line in lines)
    assert max(map(len, lines)) < 2048


def test_of_what_a_caller_wrote_only_short_texts_are_told(callback: ModuleType):
    """What else it may have written took its call off the books, or prompts with it."""
    odd: list[Any] = ["x" * 300, 7, math.nan, {"a": 1}, ["x"], None, object(), "half \ud800"]
    metadata: dict[Any, Any] = {
        **{str(key): value for key, value in enumerate(odd)},
        9: "x",
        "x" * 300: "x",
        "feature": "search",
    }
    record = dict(
        answered()[0], request_tags=[*odd, "feature:search", *(str(number) for number in range(100))],
        metadata={"requester_metadata": metadata, "spend_logs_metadata": "no mapping", "usage_object": odd},
        end_user="half \udfff",
    )  # fmt: skip
    line = callback._line(record)
    call = call_of(line, LitellmUsage(feature=("metadata:feature",), team=("tag:feature:",)))
    assert call
    assert (call.feature, call.team, call.cached_input_tokens) == ("search", "search", 0)
    told = json.loads(line)
    assert told["metadata"]["requester_metadata"] == {"7": "half ?", "feature": "search"}
    assert len(told["request_tags"]) == 50
    assert len(callback._line(dict(record, end_user="x" * 10**6))) < 10**4
    for said in ("text", 7, ["x"]):
        assert call_of(callback._line(dict(record, metadata=said, request_tags=said)), LitellmUsage())


async def test_nothing_waits_and_nothing_is_lost_while_nobody_takes_records(
    tmp_path: Path, callback: ModuleType, caplog: pytest.LogCaptureFixture
):
    async with taking(tmp_path) as stage:
        before, stage.rules = stage.rules, None  # 503
        records = callback.Records(url(stage), None)
        for number in range(100):
            await tell(records, dict(answered()[0], litellm_call_id=str(number)))
        await until(lambda: "llm-cost-exporter: 100 records wait, 0 are lost so far: 503 " in caplog.text)
        stage.rules = before
        await until(lambda: not records._waiting)
        assert await stage.results() == {"accepted": 100}
        stage.rules = None
    caplog.clear()
    await tell(records, answered()[0])  # nobody is there at all
    await until(lambda: "1 records wait, 0 are lost so far: no answer: " in caplog.text)
    await ended(records)


async def test_a_token_may_be_another_one_tomorrow(tmp_path: Path, callback: ModuleType):
    token = tmp_path / "token"
    async with taking(tmp_path / "data") as stage:
        token.write_text("the-right-one")
        stage.tokens.adopt(Usage(tokens=(TokenFile(file=str(token)),)))
        told = tmp_path / "told"
        told.write_text("yesterdays\n")
        records = callback.Records(url(stage), str(told))
        await tell(records, answered()[0])
        await asyncio.sleep(0.1)
        assert len(records._waiting) == 1
        told.write_text("the-right-one\n")
        await until(lambda: not records._waiting)
        assert stage.requests() == 1


async def test_what_is_refused_is_lost_and_told_and_the_next_are_posted(
    tmp_path: Path, callback: ModuleType, caplog: pytest.LogCaptureFixture
):
    async with taking(tmp_path) as stage:
        records = callback.Records(url(stage), None)
        await tell(records, dict(answered()[0], prompt_tokens=-1))
        await until(lambda: not records._waiting)
        assert "1 records are lost, 1 so far: 400 {" in caplog.text
        await tell(records, answered()[0])
        await until(lambda: stage.requests() == 1)
    assert [one.levelno for one in caplog.records if one.name == "llm_cost"] == [logging.ERROR]


async def test_posts_and_what_waits_have_a_limit(
    tmp_path: Path, callback: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    size = len(callback._line(answered()[0]))
    monkeypatch.setattr(callback, "_MOST_WAITING_BYTES", 5 * size)
    monkeypatch.setattr(callback, "_MOST_POSTED_BYTES", 2 * size)
    async with taking(tmp_path) as stage:
        before, stage.rules = stage.rules, None
        records = callback.Records(url(stage), None)
        for _ in range(7):
            await tell(records, answered()[0])
        assert [len(records._batch()), len(records._waiting)] == [2, 5]
        await until(lambda: "2 records are lost, 2 so far: too many wait" in caplog.text)
        await until(lambda: "5 records wait, 2 are lost so far: 503" in caplog.text)
        stage.rules = before
        await until(lambda: not records._waiting)
        assert records._size == 0
        assert await stage.results() == {"accepted": 1, "duplicate": 4}


@asynccontextmanager
async def answering(*answers: web.Response) -> AsyncIterator[tuple[str, list[str]]]:
    """Somebody who answers so, the last one from then on; yields where, and the paths that were asked."""
    left, asked = list(answers), []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        found = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(status=found.status, headers=found.headers)

    app = web.Application()
    app.add_routes([web.post("/{path:.*}", answer)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/asked", asked
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "headers", "is_lost"),
    [
        (HTTPStatus.OK, {}, False),  # of somebody else: the exporter says 202
        (HTTPStatus.TEMPORARY_REDIRECT, {"Location": "/elsewhere"}, False),  # to where no token may go
        (HTTPStatus.TOO_MANY_REQUESTS, {}, False),  # of somebody between
        (HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": "5"}, False),
        (HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": "40000"}, True),
        (HTTPStatus.NOT_FOUND, {}, False),
        (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {}, True),
    ],
)
async def test_only_what_the_exporter_has_taken_or_never_will_is_let_go(
    callback: ModuleType, status: int, headers: dict[str, str], is_lost: bool
):
    async with answering(web.Response(status=status, headers=headers), web.Response(status=202)) as (where, asked):
        records = callback.Records(where, None)
        await tell(records, answered()[0])
        await until(lambda: not records._waiting)
        assert asked == (["/asked"] if is_lost else ["/asked", "/asked"])
        assert records._lost == is_lost


async def test_a_post_that_nobody_answers_is_tried_again_later_and_later(
    callback: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(callback, "_TIMEOUT", callback.aiohttp.ClientTimeout(total=0.01))
    slept: list[float] = []
    asleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asleep(0)

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(deaf, "127.0.0.1", 0)
    async with server:
        records = callback.Records(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", None)
        monkeypatch.setattr(callback.asyncio, "sleep", sleep)
        await tell(records, answered()[0])
        async with asyncio.timeout(10):
            while len(slept) < 8:
                await asleep(0.01)
        await ended(records)
    assert slept[1:8:2] == [0.01, 0.02, 0.04, 0.08]
