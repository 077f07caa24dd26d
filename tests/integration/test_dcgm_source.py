"""A dcgm-exporter asked over real sockets: where it is, what it says beat after beat, and what may go wrong."""

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from exporter.clock import NANOSECONDS
from exporter.config.model import Gpu, GpuSelect
from exporter.core.gpu_readings import GpusReading, Measure, Total
from exporter.sources.dcgm import DcgmSource, Owner, _filled
from exporter.sources.http import SourceError, new_session
from tests.fakes import FakeClock, served

PAGE: Final = (Path(__file__).parents[1] / "fixtures" / "dcgm" / "4.x-kubernetes.prom").read_text(encoding="utf-8")
OURS: Final = "GPU-0a1b2c3d-0000-4000-8000-000000000001"
CHAT: Final = Owner(pod="chat-0", namespace="llm", uuids=frozenset())
PATIENT: Final = 10.0  # seconds; far more than any of these reads takes


async def read(
    url: str | None, environ: Mapping[str, str] | None = None, timeout_seconds: float = PATIENT
) -> GpusReading:
    async with new_session() as session:
        return await DcgmSource(Gpu(dcgm_url=url), CHAT, session, FakeClock(), timeout_seconds, environ or {}).read()


async def failure(
    url: str | None, environ: Mapping[str, str] | None = None, timeout_seconds: float = PATIENT
) -> tuple[str, str]:
    with pytest.raises(SourceError) as raised:
        await read(url, environ, timeout_seconds)
    return raised.value.reason, raised.value.detail


def utilization(reading: GpusReading) -> float:
    (gpu,) = reading.gpus
    return gpu.gauges[Measure.UTILIZATION, ""]


# Where it is -----------------------------------------------------------------------------------------------------


async def test_the_metrics_of_the_address_are_read():
    async with served(lambda: (200, PAGE)) as url:
        for address in (url, f"{url}/", f"{url}/metrics"):
            (gpu,) = (await read(address)).gpus
            assert gpu.uuid == OURS


async def test_the_address_is_filled_in_at_every_read():
    environ: dict[str, str] = {}
    async with served(lambda: (200, PAGE)) as url, new_session() as session:
        gpu = Gpu(dcgm_url=url.replace("127.0.0.1", "${NODE_IP}"))
        source = DcgmSource(gpu, CHAT, session, FakeClock(), PATIENT, environ)
        with pytest.raises(SourceError) as raised:
            await source.read()
        assert raised.value.reason == "environment"
        assert raised.value.detail == "gpu.dcgm_url needs NODE_IP, which the environment does not have"
        environ["NODE_IP"] = "127.0.0.1"
        assert utilization(await source.read()) == 0.97
        environ["NODE_IP"] = ""
        with pytest.raises(SourceError, match="needs NODE_IP"):
            await source.read()


@pytest.mark.parametrize(
    ("template", "value", "url"),
    [
        ("http://${NODE_IP}:9400", "10.0.0.7", "http://10.0.0.7:9400/metrics"),
        ("http://${NODE_IP}:9400/", "gpu-node-1", "http://gpu-node-1:9400/metrics"),
        ("http://${NODE_IP}:9400/gpus", "10.0.0.7", "http://10.0.0.7:9400/gpus"),
        ("http://${NODE_IP}:9400", "fd00::1", "http://[fd00::1]:9400/metrics"),
        ("http://${NODE_IP}:9400", "::ffff:10.0.0.7", "http://[::ffff:a00:7]:9400/metrics"),
        ("http://${NODE_IP}", "10.0.0.7:9400", "http://10.0.0.7:9400/metrics"),
        ("http://dcgm.${NODE_IP}.${NODE_IP}:9400", "a", "http://dcgm.a.a:9400/metrics"),
    ],
)
def test_what_the_environment_says_makes_an_address(template: str, value: str, url: str) -> None:
    assert _filled(template, {"NODE_IP": value}) == url


@pytest.mark.parametrize("value", ["a b", "user:secret@host", "host/?q=1", "secret:port", "fe80::1%eth0", "a\nb"])
async def test_what_makes_no_address_is_told_without_showing_it(value: str) -> None:
    assert await failure("http://${NODE_IP}:9400", {"NODE_IP": value}) == (
        "environment",
        "gpu.dcgm_url is no address once it is filled in",
    )


async def test_no_address_is_told_too():
    assert await failure(None) == ("environment", "gpu.dcgm_url is no address once it is filled in")


# Beat after beat -------------------------------------------------------------------------------------------------


async def test_each_read_has_its_own_time_and_values_and_adds_to_the_time_busy():
    clock, percents = FakeClock(), iter((97, 20, 20, 60))
    page = PAGE.replace("} 97\n", "} {percent}\n")
    async with served(lambda: (200, page.replace("{percent}", str(next(percents))))) as url, new_session() as session:
        source = DcgmSource(Gpu(dcgm_url=url), CHAT, session, clock, PATIENT, {})
        found = []
        for seconds in (0, 5, 5, 1000):
            clock.advance(seconds)
            (gpu,) = (await source.read()).gpus
            assert gpu.sampled == clock.now().monotonic
            found.append((gpu.gauges[Measure.UTILIZATION, ""], gpu.totals[Total.BUSY, ""]))
    assert found == [(0.97, 0), (0.2, NANOSECONDS), (0.2, 2 * NANOSECONDS), (0.6, 0)]


@pytest.mark.parametrize(("timeout_seconds", "gap", "is_counted"), [(5, 60, True), (5, 61, False), (30, 90, True)])
async def test_a_gap_of_three_reads_is_none_where_reads_are_rare(
    timeout_seconds: float, gap: float, is_counted: bool
) -> None:
    clock = FakeClock()
    async with served(lambda: (200, PAGE)) as url, new_session() as session:
        source = DcgmSource(Gpu(dcgm_url=url), CHAT, session, clock, timeout_seconds, {})
        await source.read()
        clock.advance(gap)
        (gpu,) = (await source.read()).gpus
    assert (gpu.totals[Total.BUSY, ""] > 0) is is_counted


async def test_a_failed_read_is_got_over():
    answers: list[tuple[int, str] | None] = [(200, PAGE)]
    async with served(lambda: answers[-1]) as url, new_session() as session:
        source = DcgmSource(Gpu(dcgm_url=url), CHAT, session, FakeClock(), PATIENT, {})
        await source.read()
        for answer, reason in (((500, "oh"), "http_status"), (None, "truncated"), ((200, "<html>"), "not_dcgm")):
            answers.append(answer)
            with pytest.raises(SourceError) as raised:
                await source.read()
            assert raised.value.reason == reason
        answers.append((200, PAGE))
        assert utilization(await source.read()) == 0.97


# What may go wrong -----------------------------------------------------------------------------------------------


async def test_an_exporter_that_is_not_there_is_told():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert (await failure(f"http://127.0.0.1:{unused.getsockname()[1]}"))[0] == "refused"


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        (
            "<!doctype html><html></html>",
            "not_dcgm",
            "expected the metrics page of a dcgm-exporter, found an HTML page",
        ),
        (PAGE.replace("chat-0", "chat-1"), "not_ours", "the page shows 2 GPUs, and none belongs to pod chat-0"),
        ("", "not_ours", "the page shows no GPU"),
        (PAGE[:-10], "malformed", "the page ends in the middle of line 188"),
        (PAGE.replace('uuid="', 'x="').replace('UUID="', 'x="'), "not_dcgm", "expected samples with a label UUID"),
    ],
    ids=["html", "other pods", "empty", "cut", "no UUIDs"],
)
async def test_a_page_that_is_no_good_gives_a_reason_and_words(body: str, reason: str, words: str) -> None:
    async with served(lambda: (200, body)) as url:
        found, detail = await failure(url)
    assert (found, detail[: len(words)]) == (reason, words)


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\nDCGM_FI_\xff", "not_text", "the page is not UTF-8 text (byte 8)"),
        (b"", "timeout", "no whole answer within 0.2 s"),
    ],
    ids=["no text", "silence"],
)
async def test_an_answer_that_is_no_text_and_one_that_does_not_come_are_told(
    answer: bytes, reason: str, words: str
) -> None:
    over = asyncio.Event()

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        if not answer:
            await over.wait()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await failure(url, timeout_seconds=PATIENT if answer else 0.2) == (reason, words)
        over.set()


async def test_every_gpu_is_shown_where_the_config_says_so():
    async with served(lambda: (200, PAGE)) as url, new_session() as session:
        gpu = Gpu(dcgm_url=url, select=GpuSelect.ALL)
        reading = await DcgmSource(gpu, CHAT, session, FakeClock(), PATIENT, {}).read()
    assert len(reading.gpus) == 2
