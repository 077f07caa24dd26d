"""Name resolution: one name that hangs holds up nobody else."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from exporter.config.model import Engine
from exporter.sources.engine import EngineSource
from exporter.sources.http import SourceError, new_session
from exporter.sources.names import Resolver
from tests.fakes import served

PAGE = 'vllm:generation_tokens_total{engine="0",model_name="m"} 1\n'


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The system's resolver, which never answers for *.hang until the test is over; the names that it was asked."""
    asked: list[str] = []
    over, real = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: str, *rest: Any, **named: Any) -> Any:
        asked.append(host)
        if host.endswith(".hang"):
            over.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "gave up")
        return real(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield asked
    over.set()


@pytest.mark.usefixtures("hanging")
async def test_forty_dead_names_do_not_hold_up_a_living_one():
    async with served(lambda: (200, PAGE)) as url, new_session() as session:
        dead = [EngineSource(Engine(url=f"http://e{n}.hang:80", timeout=0.5), 5.0, session) for n in range(40)]
        alive = EngineSource(Engine(url=url.replace("127.0.0.1", "localhost"), timeout=5.0), 5.0, session)
        results = await asyncio.gather(alive.read(), *(source.read() for source in dead), return_exceptions=True)
        assert not isinstance(results[0], BaseException)
        assert {getattr(result, "reason", None) for result in results[1:]} == {"timeout"}


async def test_a_name_that_hangs_is_asked_for_once_however_often_it_is_read(hanging: list[str]):
    async with new_session() as session:
        source = EngineSource(Engine(url="http://one.hang:80", timeout=0.1), 5.0, session)
        for _ in range(5):
            with pytest.raises(SourceError, match="no whole answer"):
                await source.read()
    assert hanging.count("one.hang") == 1


async def test_a_name_is_resolved_as_the_system_does():
    resolver = Resolver()
    found = await resolver.resolve("localhost", 80, socket.AF_UNSPEC)
    assert {entry["host"] for entry in found} <= {"127.0.0.1", "::1"}
    assert {entry["port"] for entry in found} == {80}
    await resolver.close()


@pytest.mark.parametrize("host", ["nobody.invalid", "a" * 70 + ".example"])
async def test_a_name_that_is_none_is_an_error_of_the_network(host: str):
    with pytest.raises(OSError, match=r".+"):
        await Resolver().resolve(host, 80)
