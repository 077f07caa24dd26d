"""Our callback of a LiteLLM proxy, posting to a real desk: nothing is lost while nobody takes records, nothing waits.

LiteLLM itself is too large to be here (tests/real/test_peers.py has it): what stands for it are the two names that the
callback imports.
"""

import asyncio
import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from exporter.config.model import TokenFile, Usage
from exporter.core.litellm import Record, _Metadata
from tests.captured import litellm_records
from tests.integration.test_records_http import NOW, taking
from tests.integration.test_usage_http import Stage
from tests.promql import ROOT

FILE = ROOT / "deploy/litellm/llm_cost_callback.py"


class CustomLogger:
    """What a callback of LiteLLM is."""


@pytest.fixture
def callback(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    names = ("litellm", "litellm.integrations", "litellm.integrations.custom_logger", "litellm.litellm_core_utils",
             "litellm.litellm_core_utils.safe_json_dumps")  # fmt: skip
    modules = {name: ModuleType(name) for name in names}
    vars(modules[names[2]]).update(CustomLogger=CustomLogger)
    vars(modules[names[4]]).update(safe_dumps=json.dumps)
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
    assert {*callback.OF_A_CALL, "metadata"} == set(Record.__struct_fields__)
    assert set(callback.OF_ITS_METADATA) == set(_Metadata.__struct_fields__)
    lines = [callback._line(one) for one in answered()]
    assert not any(b"SECRET" in line or b"api_key_hash" in line for line in lines)
    assert max(map(len, lines)) < 4096


async def test_nothing_waits_and_nothing_is_lost_while_nobody_takes_records(
    tmp_path: Path, callback: ModuleType, caplog: pytest.LogCaptureFixture
):
    async with taking(tmp_path) as stage:
        before, stage.rules = stage.rules, None  # 503
        records = callback.Records(url(stage), None)
        for number in range(100):
            await tell(records, dict(answered()[0], litellm_call_id=str(number)))
        await until(lambda: "100 records wait, 0 are lost so far: 503 " in caplog.text)
        stage.rules = before
        await until(lambda: not records._waiting)
        assert await stage.results() == {"accepted": 100}
        stage.rules = None
    caplog.clear()
    await tell(records, answered()[0])  # nobody is there at all
    await until(lambda: "1 records wait, 0 are lost so far: " in caplog.text)
    records._posting.cancel()


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
        await until(lambda: "5 records wait, 2 are lost so far: 503" in caplog.text)
        stage.rules = before
        await until(lambda: not records._waiting)
        assert records._size == 0
        assert await stage.results() == {"accepted": 1, "duplicate": 4}
