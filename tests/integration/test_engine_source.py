"""One engine read over real sockets: bad servers of every kind, redirects, tokens, certificates."""

import asyncio
import datetime
import gzip
import ipaddress
import re
import socket
import ssl
import struct
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from exporter.config.model import Disaggregation, Engine, Kind
from exporter.core.readings import Counted, EngineReading
from exporter.sources.dialects import recognise, translate, wanted_names
from exporter.sources.engine import EngineSource
from exporter.sources.exposition import Page
from exporter.sources.http import LARGEST_PAGE_BYTES, REASONS, SourceError, metrics_url, new_session

CAPTURES: Final = Path(__file__).parents[1] / "fixtures" / "captures"
PAGE: Final = b'vllm:num_requests_running{model_name="m"} 2\nvllm:generation_tokens_total{model_name="m"} 50\n'
PATIENT: Final = 10.0  # seconds; far more than any of these reads takes
SHORT: Final = 0.2
TOKEN: Final = "sk-very-secret"
MIB: Final = 2**20

Behaviour = Callable[["RawServer", asyncio.StreamWriter], Awaitable[None]]
Answer = bytes | Behaviour
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RawServer:
    """A server of bytes: reads the head of one request a connection, answers, hangs up. Its last answer repeats."""

    def __init__(self, answers: Iterable[Answer]) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.sent = 0
        self.over = asyncio.Event()
        self.port = 0
        self._open: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["RawServer"]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.over.set()
            await asyncio.gather(*self._open)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            if isinstance(answer, bytes):
                await self.send(writer, answer)
            else:
                await answer(self, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()
        self.sent += len(data)


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """Return an answer with a Content-Length, which may lie."""
    length = len(body) if length is None else length
    return "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {length}", *headers, "", "")).encode() + body


def chunked(body: bytes, *headers: str, end: bytes = b"0\r\n\r\n") -> bytes:
    head = "\r\n".join(("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", *headers, "", "")).encode()
    return head + b"%x\r\n%s\r\n" % (len(body), body) + end


async def hang(server: RawServer, _: asyncio.StreamWriter) -> None:
    await server.over.wait()


def then_hang(data: bytes) -> Behaviour:
    async def behave(server: RawServer, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, data)
        await server.over.wait()

    return behave


def trickle(data: bytes) -> Behaviour:
    """Send a byte every 20 ms: each one comes soon, all together never do."""

    async def behave(server: RawServer, writer: asyncio.StreamWriter) -> None:
        for byte in data:
            if server.over.is_set() or writer.is_closing():
                return
            await server.send(writer, bytes([byte]))
            with suppress(TimeoutError):
                await asyncio.wait_for(server.over.wait(), 0.02)

    return behave


def then_reset(data: bytes) -> Behaviour:
    """Send, then reset the connection instead of closing it."""

    async def behave(server: RawServer, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, data)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return behave


def in_two_parts(first: bytes, second: bytes) -> Behaviour:
    async def behave(server: RawServer, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, first)
        await asyncio.sleep(0.05)
        await server.send(writer, second)

    return behave


async def read(url: str, **options: Any) -> EngineReading:
    async with new_session() as session:
        return await EngineSource(Engine(url=url, **{"timeout": PATIENT, **options}), 5.0, session).read()


async def failure(url: str, **options: Any) -> SourceError:
    with pytest.raises(SourceError) as raised:
        await read(url, **options)
    assert raised.value.reason in REASONS
    assert str(raised.value) == raised.value.detail
    return raised.value


def output_tokens(reading: EngineReading) -> int:
    return sum(value for series, value in reading.counters.items() if series.counted is Counted.OUTPUT_TOKENS)


# Bad servers -----------------------------------------------------------------------------------------------------

HTML: Final = b"<!doctype html>\n<html><body>It works!</body></html>\n"
AN_ENGINE: Final = "expected the metrics page of an inference engine, found "
CUT: Final = "the connection ended before the answer did"
LATE: Final = "no whole answer within 0.2 s"
NO_HTTP: Final = "no valid HTTP answer (ClientResponseError)"
LOADING: Final = b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
RANDOM: Final = bytes(range(256)) * 4

BAD_SERVERS: Final[dict[str, tuple[Answer, str, str]]] = {
    # what it looks like
    "an empty body": (http(b""), "not_an_engine", AN_ENGINE + "an empty page"),
    "no content at all": (http(b"", status="204 No Content"), "http_status", "HTTP 204"),
    "html": (http(HTML, "Content-Type: text/html"), "not_an_engine", AN_ENGINE + "an HTML page"),
    "json": (
        http(b'{"status": "ok"}', "Content-Type: application/json"),
        "not_an_engine",
        AN_ENGINE + "something else",
    ),
    "binary": (http(RANDOM), "not_text", "the page is not UTF-8 text (byte 128)"),
    "nul bytes": (http(b"\0" * 100), "not_an_engine", AN_ENGINE + "something else"),
    "latin-1": (http(PAGE + b'x{y="\xfc"} 1\n'), "not_text", f"the page is not UTF-8 text (byte {len(PAGE) + 5})"),
    "utf-16": (http(PAGE.decode().encode("utf-16")), "not_text", "the page is not UTF-8 text (byte 0)"),
    "a wanted line that is malformed": (
        http(PAGE + b"process_start_time_seconds soon\n"),
        "malformed",
        "line 3: expected a number, found 'soon'",
    ),
    # cut off
    "a body shorter than its length": (http(PAGE, length=len(PAGE) + 1), "truncated", CUT),
    "a body cut in the first byte": (http(b"", length=len(PAGE)), "truncated", CUT),
    "chunks without an end": (chunked(PAGE, end=b""), "truncated", CUT),
    "chunks with half an end": (chunked(PAGE, end=b"0\r\n"), "truncated", CUT),
    "a chunk shorter than its length": (chunked(PAGE)[:-40], "truncated", CUT),
    "HTTP/1.0 cut in the middle of a line": (
        b"HTTP/1.0 200 OK\r\n\r\n" + PAGE[:-10],
        "malformed",
        """the page ends in the middle of line 2: 'vllm:generation_tokens_total{model_nam'""",
    ),
    "nothing but a hang-up": (b"", "truncated", CUT),
    "half a header": (b"HTTP/1.1 200 OK\r\nContent-Le", "truncated", CUT),
    "a reset at once": (then_reset(b""), "truncated", CUT),
    "a reset in the headers": (then_reset(b"HTTP/1.1 200 OK\r\nContent-Le"), "truncated", CUT),
    "a reset in the body": (then_reset(http(PAGE, length=1000)), "truncated", CUT),
    # no HTTP
    "ssh": (b"SSH-2.0-OpenSSH_9.2p1\r\n", "protocol", NO_HTTP),
    "random bytes": (RANDOM, "protocol", NO_HTTP),
    "a length that is no number": (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", "protocol", NO_HTTP),
    "a chunk's length that is no number": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        "protocol",
        NO_HTTP,
    ),
    "a header without an end": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "protocol", NO_HTTP),
    # statuses
    "401": (http(b"{}", status="401 Unauthorized"), "unauthorized", "HTTP 401: the server wants a token"),
    "403": (http(b"", status="403 Forbidden"), "unauthorized", "HTTP 403: the server wants a token"),
    "404": (http(b'{"detail":"Not Found"}', status="404 Not Found"), "http_status", "HTTP 404"),
    "500": (http(b"Internal Server Error", status="500 Internal Server Error"), "http_status", "HTTP 500"),
    "500 with a body that never comes": (http(b"", status="500 Oh", length=9), "http_status", "HTTP 500"),
    "503": (http(b"", status="503 Service Unavailable"), "http_status", "HTTP 503"),
    "503 with half a body": (http(b"no heal", status="503 Oh", length=99), "http_status", "HTTP 503"),
    "503 of a llama.cpp that loads": (
        http(LOADING, status="503 Service Unavailable"),
        "loading",
        "HTTP 503: the model is being loaded",
    ),
    "503 of a llama.cpp that loads, in two parts": (
        in_two_parts(http(LOADING[:35], status="503 Oh", length=len(LOADING)), LOADING[35:]),
        "loading",
        "HTTP 503: the model is being loaded",
    ),
    "a page with status 500": (http(PAGE, status="500 Oh"), "http_status", "HTTP 500"),
    # redirects
    "a redirect to itself for ever": (
        http(b"", "Location: /metrics", status="307 Temporary Redirect"),
        "redirect",
        "redirected more than 5 times",
    ),
    "a redirect to nowhere": (http(b"", status="302 Found"), "redirect", "redirected more than 5 times"),
    "a redirect to another host": (
        http(b"", "Location: http://elsewhere.invalid/metrics", status="302 Found"),
        "redirect",
        "redirected to another server, elsewhere.invalid:80",
    ),
    "a redirect to another scheme": (
        http(b"", "Location: https://127.0.0.1/metrics", status="301 Moved"),
        "redirect",
        "redirected to another server, 127.0.0.1:443",
    ),
    "a redirect to no address": (
        http(b"", "Location: http://[x", status="302 Found"),
        "protocol",
        "no valid HTTP answer (ValueError)",
    ),
    # encodings
    "gzip that is none": (http(PAGE, "Content-Encoding: gzip"), "truncated", CUT),
    "an encoding that nobody asked for": (http(PAGE, "Content-Encoding: br"), "protocol", NO_HTTP),
}


@pytest.mark.parametrize("what", BAD_SERVERS)
async def test_a_bad_server_gives_a_reason_and_words(what: str) -> None:
    answer, reason, words = BAD_SERVERS[what]
    async with RawServer([answer]).serving() as server:
        error = await failure(server.url)
    assert error.reason == reason
    assert error.detail.startswith(words)
    assert error.loading is (reason == "loading")


async def slow_body(server: RawServer, writer: asyncio.StreamWriter) -> None:
    await server.send(writer, http(b"", length=len(PAGE)))
    await trickle(PAGE)(server, writer)


SLOW_SERVERS: Final[dict[str, Answer]] = {
    "nothing": hang,
    "slow headers": trickle(http(PAGE)),
    "half a header": then_hang(b"HTTP/1.1 200 OK\r\nContent-"),
    "headers and no body": then_hang(http(b"", length=len(PAGE))),
    "half a body": then_hang(http(PAGE[:-9], length=len(PAGE))),
    "a slow body": slow_body,
    "a whole body and no last chunk": then_hang(chunked(PAGE, end=b"")),
    "a page of HTTP/1.0 and no hang-up": then_hang(b"HTTP/1.0 200 OK\r\n\r\n" + PAGE),
}


@pytest.mark.parametrize("what", SLOW_SERVERS)
async def test_a_slow_server_is_given_up_at_the_deadline_however_it_is_slow(what: str) -> None:
    loop = asyncio.get_running_loop()
    async with RawServer([SLOW_SERVERS[what]]).serving() as server:
        began = loop.time()
        error = await failure(server.url, timeout=SHORT)
        assert SHORT - 0.05 <= loop.time() - began < 2.0
    assert (error.reason, error.detail) == ("timeout", LATE)


async def test_the_deadline_is_nine_tenths_of_the_beat_unless_the_config_says_another() -> None:
    async with RawServer([hang]).serving() as server, new_session() as session:
        with pytest.raises(SourceError, match=re.escape("no whole answer within 0.18 s")):
            await EngineSource(Engine(url=server.url), 0.2, session).read()


async def test_every_redirect_spends_of_the_same_deadline() -> None:
    async def late(server: RawServer, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(SHORT * 0.4)
        await server.send(writer, http(b"", "Location: /metrics", status="307 Temporary Redirect"))

    async with RawServer([late]).serving() as server:
        assert (await failure(server.url, timeout=SHORT)).reason == "timeout"


@pytest.mark.parametrize("whole", [http(PAGE), chunked(PAGE)], ids=["with a length", "in chunks"])
async def test_a_page_that_is_cut_at_any_byte_is_refused_by_its_framing(whole: bytes) -> None:
    async with RawServer([whole]).serving() as server, new_session() as session:
        source = EngineSource(Engine(url=server.url, timeout=PATIENT), 5.0, session)
        for cut in range(len(whole)):
            server.answers = [whole[:cut]]
            with pytest.raises(SourceError) as raised:
                await source.read()
            assert (raised.value.reason, raised.value.detail) == ("truncated", CUT)
        server.answers = [whole]
        assert output_tokens(await source.read()) == 50


async def test_a_hang_up_before_the_answer_is_tried_once_more_and_no_more() -> None:
    async with RawServer([b"", http(PAGE)]).serving() as server:
        assert output_tokens(await read(server.url)) == 50
    async with RawServer([b""]).serving() as server:
        await failure(server.url)
        assert server.connections == 2


# Large pages -----------------------------------------------------------------------------------------------------


def gzipped(size: int) -> bytes:
    """Return so many spaces as gzip."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    blocks = [packer.compress(b" " * MIB) for _ in range(size // MIB)]
    return b"".join((*blocks, packer.flush()))


async def flood(server: RawServer, writer: asyncio.StreamWriter) -> None:
    block = b"# nothing\n" * (MIB // 10)
    await server.send(writer, http(b"", length=100 * len(block)))
    for _ in range(100):
        await server.send(writer, block)


async def flood_in_chunks(server: RawServer, writer: asyncio.StreamWriter) -> None:
    await server.send(writer, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100):
        await server.send(writer, b"%x\r\n%s\r\n" % (MIB, b"#" * MIB))


@pytest.mark.parametrize("answer", [flood, flood_in_chunks], ids=["with a length", "in chunks"])
async def test_a_page_of_100_mb_is_given_up_at_the_limit(answer: Behaviour) -> None:
    async with RawServer([answer]).serving() as server:
        tracemalloc.start()
        try:
            error = await failure(server.url)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (error.reason, error.detail) == ("too_large", f"the page is larger than {LARGEST_PAGE_BYTES} bytes")
    assert server.sent < LARGEST_PAGE_BYTES + 16 * MIB  # what sockets hold, no more
    assert peak < 2 * LARGEST_PAGE_BYTES


async def test_a_gzip_bomb_is_given_up_at_the_limit() -> None:
    bomb = gzipped(100 * MIB)
    assert len(bomb) < MIB
    async with RawServer([http(bomb, "Content-Encoding: gzip")]).serving() as server:
        tracemalloc.start()
        try:
            error = await failure(server.url)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert error.reason == "too_large"
    assert peak < 2 * LARGEST_PAGE_BYTES


async def test_an_error_page_of_100_mb_is_not_read_to_its_end() -> None:
    async def endless(server: RawServer, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, http(b"", status="500 Oh", length=100 * MIB))
        for _ in range(100):
            await server.send(writer, b" " * MIB)

    async with RawServer([endless]).serving() as server:
        assert (await failure(server.url)).detail == "HTTP 500"
        assert server.sent < 16 * MIB


# Good servers ----------------------------------------------------------------------------------------------------

GOOD_ANSWERS: Final[dict[str, Answer]] = {
    "with a length": http(PAGE),
    "in chunks": chunked(PAGE),
    "HTTP/1.0 to its end": b"HTTP/1.0 200 OK\r\n\r\n" + PAGE,
    "gzip": http(gzip.compress(PAGE), "Content-Encoding: gzip"),
    "gzip in chunks": chunked(gzip.compress(PAGE), "Content-Encoding: gzip"),
    "deflate": http(zlib.compress(PAGE), "Content-Encoding: deflate"),
    "windows line ends": http(PAGE.replace(b"\n", b"\r\n")),
    "as OpenMetrics": http(PAGE + b"# EOF\n", "Content-Type: application/openmetrics-text; version=1.0.0"),
    "as html": http(PAGE, "Content-Type: text/html; charset=latin-1"),
    "slowly": in_two_parts(http(PAGE[:20], length=len(PAGE)), PAGE[20:]),
    "and keeps the connection": then_hang(http(PAGE, "Keep-Alive: timeout=5, max=100")),
}


@pytest.mark.parametrize("how", GOOD_ANSWERS)
async def test_a_whole_page_is_read_however_it_is_sent(how: str) -> None:
    async with RawServer([GOOD_ANSWERS[how]]).serving() as server:
        reading = await read(server.url)
    assert (output_tokens(reading), reading.models["m"].running) == (50, 2)


def _as_sent(path: Path) -> list[Answer]:
    """Return a captured page as its server sent it, redirects first."""
    heads = path.with_suffix(".headers").read_bytes().replace(b"\r\n", b"\n").strip().split(b"\n\n")
    *before, last = [
        head.replace(b"\n", b"\r\n").replace(b"http://127.0.0.1:4000", b"") + b"\r\n\r\n" for head in heads
    ]
    body = path.read_bytes()
    if b"chunked" in last:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return [*before, last + body]


@pytest.mark.parametrize(
    "path",
    sorted(path for path in CAPTURES.rglob("*.prom") if path.with_suffix(".headers").exists()),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
async def test_a_captured_page_reads_over_http_as_it_does_from_the_file(path: Path) -> None:
    answers = _as_sent(path)
    async with RawServer(answers).serving() as server:
        if path.parent.name.startswith(("litellm", "vllm-router")) or path.stem == "disable-log-stats":
            assert (await failure(server.url)).reason == "not_an_engine"
        else:
            text = path.read_text(encoding="utf-8")
            dialect = recognise(text, Kind.AUTO)
            samples = Page(wanted_names(dialect).__contains__).read(text)
            assert await read(server.url) == translate(dialect, samples, Disaggregation.NONE)
        assert server.connections == (2 if path.parent.name.startswith("litellm") else 1)


async def test_litellms_own_refusal_asks_for_a_token() -> None:
    folder = CAPTURES / "litellm-1.86.0"
    head = (folder / "unauthorized.headers").read_bytes()
    async with RawServer([head + (folder / "unauthorized.body").read_bytes()]).serving() as server:
        error = await failure(server.url)
    assert error.reason == "unauthorized"
    assert error.detail == "HTTP 401: the server wants a token; name it by token_file"


async def test_no_connection_is_used_twice_though_the_server_would_keep_it() -> None:
    kept = then_hang(http(PAGE, "Connection: keep-alive", "Keep-Alive: timeout=5"))
    async with RawServer([kept]).serving() as server, new_session() as session:
        source = EngineSource(Engine(url=server.url, timeout=PATIENT), 5.0, session)
        for reads in range(1, 6):
            assert output_tokens(await source.read()) == 50
            assert server.connections == reads == len(server.requests)


async def test_a_source_reads_on_after_every_kind_of_failure() -> None:
    bad: list[Answer] = [
        http(b""),
        http(HTML),
        http(PAGE, length=999),
        b"SSH\r\n",
        then_reset(b""),
        http(b"", status="503 Oh"),
    ]
    async with RawServer([]).serving() as server, new_session() as session:
        source = EngineSource(Engine(url=server.url, timeout=PATIENT), 5.0, session)
        for answer in bad:
            server.answers = [answer]
            with pytest.raises(SourceError):
                await source.read()
            server.answers = [http(PAGE)]
            assert output_tokens(await source.read()) == 50


async def test_an_address_that_changes_from_one_kind_of_engine_to_another_is_learned_anew() -> None:
    llama = (CAPTURES / "llama.cpp-b11434" / "saturated.prom").read_bytes()
    async with RawServer([http(PAGE), http(llama), http(PAGE)]).serving() as server, new_session() as session:
        source = EngineSource(Engine(url=server.url, timeout=PATIENT), 5.0, session)
        readings = [await source.read() for _ in range(3)]
    assert [(reading.kind, output_tokens(reading)) for reading in readings] == [
        ("vllm", 50),
        ("llamacpp", 731),
        ("vllm", 50),
    ]


async def test_an_engine_of_another_kind_than_the_config_says_is_refused() -> None:
    async with RawServer([http(PAGE)]).serving() as server:
        error = await failure(server.url, kind=Kind.LLAMACPP)
    assert (error.reason, error.detail) == ("not_an_engine", "expected a page of llamacpp, found one of vllm")


@pytest.mark.parametrize(("part", "prompt"), [(Disaggregation.DECODE, 60), (Disaggregation.NONE, 100)])
async def test_the_part_of_a_disaggregated_engine_is_read_as_the_config_says(part: Disaggregation, prompt: int) -> None:
    told = (
        b'vllm:prompt_tokens_total{model_name="m"} 100\n'
        b'vllm:prompt_tokens_by_source_total{model_name="m",source="local_compute"} 60\n'
        b'vllm:prompt_tokens_by_source_total{model_name="m",source="external_kv_transfer"} 40\n'
    )
    async with RawServer([http(PAGE + told)]).serving() as server:
        counters = (await read(server.url, disaggregation=part)).counters
    assert sum(value for series, value in counters.items() if series.counted is Counted.PROMPT_TOKENS) == prompt


# Addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://engine:8000", "http://engine:8000/metrics"),
        ("http://engine:8000/", "http://engine:8000/metrics"),
        ("http://engine:8000/metrics", "http://engine:8000/metrics"),
        ("http://engine:8000/metrics/", "http://engine:8000/metrics/"),
        ("http://gateway/engines/one/metrics", "http://gateway/engines/one/metrics"),
        ("http://gateway/metrics?target=a%2Fb", "http://gateway/metrics?target=a%2Fb"),
        ("https://[::1]:8443", "https://[::1]:8443/metrics"),
    ],
)
def test_an_address_without_a_path_means_metrics_and_any_other_is_left_as_it_is(url: str, asked: str) -> None:
    assert metrics_url(url) == asked


@pytest.mark.parametrize(
    ("path", "asked"), [("", b"/metrics"), ("/", b"/metrics"), ("/metrics/", b"/metrics/"), ("/x/y?z=1", b"/x/y?z=1")]
)
async def test_the_server_is_asked_for_the_path_of_the_config(path: str, asked: bytes) -> None:
    async with RawServer([http(PAGE)]).serving() as server:
        await read(f"http://127.0.0.1:{server.port}{path}")
    assert [request.split(b"\r\n")[0] for request in server.requests] == [b"GET " + asked + b" HTTP/1.1"]


async def test_a_port_where_nobody_listens_refuses() -> None:
    with socket.socket() as taken:  # bound, and never listening
        taken.bind(("127.0.0.1", 0))
        error = await failure(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert (error.reason, error.detail) == ("refused", "Connection refused")


async def test_a_name_that_does_not_exist_is_unreachable() -> None:
    error = await failure("http://no-such-engine.invalid:8000")
    assert error.reason == "unreachable"
    assert re.search(r"name|resol|node|address", error.detail, re.IGNORECASE)


# Redirects -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(handler: Handler, ssl_context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve with aiohttp; gives the address without a path."""
    app = web.Application()
    app.router.add_get("/{any:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context).start()
    try:
        yield f"http{'s' if ssl_context else ''}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def page(_: web.Request) -> web.Response:
    return web.Response(body=PAGE)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("absolute", [True, False])
async def test_a_redirect_within_the_server_is_followed_with_the_token(
    tmp_path: Path, status: int, absolute: bool
) -> None:
    asked: list[tuple[str, str | None]] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append((request.path, request.headers.get("Authorization")))
        if request.path == "/metrics/":
            return await page(request)
        target = f"http://{request.host}/metrics/" if absolute else "/metrics/"
        return web.Response(status=status, headers={"Location": target})

    async with serving(handle) as url:
        reading = await read(url, token_file=token_file(tmp_path))
    assert output_tokens(reading) == 50
    assert asked == [("/metrics", f"Bearer {TOKEN}"), ("/metrics/", f"Bearer {TOKEN}")]


async def test_five_redirects_are_followed_and_six_are_not() -> None:
    left = 5

    async def handle(request: web.Request) -> web.Response:
        nonlocal left
        left -= 1
        return await page(request) if left < 0 else web.Response(status=307, headers={"Location": f"/hop{left}"})

    async with serving(handle) as url:
        assert output_tokens(await read(url)) == 50
        left = 6
        error = await failure(url)
    assert (error.reason, error.detail) == ("redirect", "redirected more than 5 times")


async def test_a_token_never_follows_a_redirect_to_another_server(tmp_path: Path) -> None:
    async with RawServer([http(PAGE)]).serving() as elsewhere:
        away = http(b"", f"Location: {elsewhere.url}", status="302 Found")
        async with RawServer([away]).serving() as server:
            error = await failure(server.url, token_file=token_file(tmp_path))
        assert (error.reason, error.detail) == ("redirect", f"redirected to another server, 127.0.0.1:{elsewhere.port}")
        assert f"Bearer {TOKEN}".encode() in server.requests[0]
        assert (elsewhere.connections, elsewhere.requests) == (0, [])


async def test_a_redirect_to_another_name_of_the_same_machine_is_another_server() -> None:
    async with RawServer([http(PAGE)]).serving() as server:
        away = http(b"", f"Location: http://localhost:{server.port}/metrics", status="302 Found")
        server.answers.insert(0, away)
        assert (await failure(server.url)).reason == "redirect"
        assert server.connections == 1


# Tokens ----------------------------------------------------------------------------------------------------------


def token_file(folder: Path, content: str | bytes = f"{TOKEN}\n") -> str:
    path = folder / "token"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


async def only_with_a_token(request: web.Request) -> web.Response:
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        return web.Response(status=401, text=f"wrong: {request.headers.get('Authorization')}")
    return await page(request)


@pytest.mark.parametrize("content", [TOKEN, f"{TOKEN}\n", f"  {TOKEN}\r\n\n"])
async def test_the_token_of_a_file_is_sent_without_the_space_around_it(tmp_path: Path, content: str) -> None:
    async with serving(only_with_a_token) as url:
        assert output_tokens(await read(url, token_file=token_file(tmp_path, content))) == 50


async def test_a_token_file_is_read_again_at_every_beat(tmp_path: Path) -> None:
    async with serving(only_with_a_token) as url, new_session() as session:
        engine = Engine(url=url, timeout=PATIENT, token_file=token_file(tmp_path, "old"))
        source = EngineSource(engine, 5.0, session)
        for content, reason in (("old", "unauthorized"), (TOKEN, None), ("", "token_file"), (TOKEN, None)):
            token_file(tmp_path, content)
            if reason is None:
                assert output_tokens(await source.read()) == 50
                continue
            with pytest.raises(SourceError) as raised:
                await source.read()
            assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read the file that token_file names"),
        (b"\xff\xfe" + TOKEN.encode(), "cannot read the file that token_file names"),
        (b"", "holds no token"),
        (b" \n\n", "holds no token"),
        (f"{TOKEN}\r\nX-Injected: 1".encode(), "holds no token"),
        (f"{TOKEN}\0".encode(), "holds no token"),
    ],
    ids=["missing", "not text", "empty", "blank", "two lines", "a control character"],
)
async def test_a_token_file_that_is_no_good_is_told_without_its_name_and_nothing_is_asked(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = str(tmp_path / "missing") if content is None else token_file(tmp_path, content)
    async with RawServer([http(PAGE)]).serving() as server:
        error = await failure(server.url, token_file=path)
        assert server.connections == 0
    assert error.reason == "token_file"
    assert words in error.detail
    assert path not in error.detail  # somebody may have written the token itself there
    assert TOKEN not in error.detail


@pytest.mark.parametrize(
    "answer",
    [
        http(b"", status=f"401 {TOKEN}"),
        http(TOKEN.encode(), status="500 Oh"),
        http(f"<{TOKEN}>".encode()),
        b"SSH\r\n",
        http(b"", length=9),
        then_reset(b""),
        http(b"", "Location: http://[x", status="302 Found"),
    ],
)
async def test_the_token_is_in_no_words_that_are_shown(tmp_path: Path, answer: Answer) -> None:
    async with RawServer([answer]).serving() as server:
        error = await failure(server.url, token_file=token_file(tmp_path))
    assert f"Bearer {TOKEN}".encode() in server.requests[0]
    assert TOKEN not in repr(error)
    assert TOKEN not in error.detail


# Certificates ----------------------------------------------------------------------------------------------------


class Certificates:
    """An authority, and servers' certificates that it signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority of this test")])
        authority = self._certificate(self._key, self._name, x509.BasicConstraints(ca=True, path_length=None))
        self.ca_file = self._written("ca.pem", authority.public_bytes(serialization.Encoding.PEM))

    def server(self, name: x509.GeneralName, *, days: int = 1) -> ssl.SSLContext:
        """Return what a server needs to prove that it is `name`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an engine")])
        certificate = self._certificate(key, subject, x509.SubjectAlternativeName([name]), days)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pem = certificate.public_bytes(serialization.Encoding.PEM) + private
        context.load_cert_chain(self._written("server.pem", pem))
        return context

    def _certificate(
        self, key: ec.EllipticCurvePrivateKey, subject: x509.Name, extension: x509.ExtensionType, days: int = 1
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=9))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(extension, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _written(self, name: str, content: bytes) -> str:
        path = self._folder / name
        path.write_bytes(content)
        return str(path)


LOCAL: Final = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))


async def test_a_server_is_trusted_by_the_ca_file_of_the_config(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with serving(page, certificates.server(LOCAL)) as url:
        assert output_tokens(await read(url, ca_file=certificates.ca_file)) == 50


async def test_a_server_of_an_unknown_authority_is_not_trusted(tmp_path: Path) -> None:
    async with serving(page, Certificates(tmp_path).server(LOCAL)) as url:
        error = await failure(url)
    assert (error.reason, error.detail) == ("tls", "the server's certificate is not trusted")


@pytest.mark.parametrize(("name", "days"), [(x509.DNSName("engine.invalid"), 1), (LOCAL, -1)], ids=["name", "expired"])
async def test_a_certificate_for_another_name_or_time_is_not_trusted(
    tmp_path: Path, name: x509.GeneralName, days: int
) -> None:
    certificates = Certificates(tmp_path)
    async with serving(page, certificates.server(name, days=days)) as url:
        error = await failure(url, ca_file=certificates.ca_file)
    assert (error.reason, error.detail) == ("tls", "the server's certificate is not trusted")


async def test_a_token_is_not_sent_to_a_server_that_is_not_trusted(tmp_path: Path) -> None:
    asked: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request)
        return await page(request)

    certificates = Certificates(tmp_path)
    async with serving(handle, certificates.server(LOCAL)) as url:
        await failure(url, token_file=token_file(tmp_path))
        assert asked == []
        await read(url, token_file=token_file(tmp_path), ca_file=certificates.ca_file)
        assert len(asked) == 1


async def test_a_server_that_speaks_no_tls_is_told_from_one_that_is_not_reached() -> None:
    async def at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(at_once, "127.0.0.1", 0)
    async with server:
        error = await failure(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert (error.reason, error.detail) == ("tls", "the server does not speak TLS as it should")


@pytest.mark.parametrize("content", [None, b"no certificate"], ids=["missing", "no certificate"])
async def test_a_ca_file_that_is_no_good_is_named_until_it_is(tmp_path: Path, content: bytes | None) -> None:
    ca_file = tmp_path / "later.pem"
    if content is not None:
        ca_file.write_bytes(content)
    certificates = Certificates(tmp_path)
    async with serving(page, certificates.server(LOCAL)) as url:
        error = await failure(url, ca_file=str(ca_file))
        assert (error.reason, error.detail) == ("tls", f"cannot read the certificates in {ca_file}")
        ca_file.write_bytes(Path(certificates.ca_file).read_bytes())
        assert output_tokens(await read(url, ca_file=str(ca_file))) == 50
