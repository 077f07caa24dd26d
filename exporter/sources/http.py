"""One GET of a metrics page: a deadline, a size limit, redirects within the same server, a token from a file."""

import asyncio
import os
import ssl
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from exporter.sources.names import Resolver

DEADLINE_SHARE: Final = 0.9  # of the beat, so that a slow server never delays the next one
LARGEST_PAGE_BYTES: Final = 32 * 2**20
_MOST_REDIRECTS: Final = 5
_LARGEST_ERROR_BYTES: Final = 4096
_ACCEPT: Final = "text/plain;version=0.0.4;q=1,*/*;q=0.1"
_HTTP_OK: Final = 200

REASONS: Final = (
    "refused",
    "unreachable",
    "timeout",
    "tls",
    "truncated",
    "protocol",
    "redirect",
    "too_large",
    "unauthorized",
    "loading",
    "http_status",
    "token_file",
    "not_text",
    "not_an_engine",
    "malformed",
)


class SourceError(Exception):
    """A source gave nothing this time: a reason for the label, the rest in words; `loading` where it says so."""

    def __init__(self, reason: str, detail: str, *, loading: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.loading = loading


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to ask, and within which bounds."""

    url: str
    timeout_seconds: float
    token_file: str | None = None
    ca_file: str | None = None
    limit_bytes: int = LARGEST_PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    status: int
    content_type: str
    body: bytes

    def text(self) -> str:
        """Return the page as text.

        Raises:
            SourceError: it is none.
        """
        try:
            return self.body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError("not_text", f"the page is not UTF-8 text (byte {error.start})") from error


def metrics_url(url: str) -> str:
    """Return the address of a server's metrics: `/metrics` where the config gives no path, else the path as it is."""
    parsed = URL(url)
    return str(parsed.with_path("/metrics")) if parsed.path in ("", "/") else url


def new_session() -> aiohttp.ClientSession:
    """Make a session that never keeps a connection: servers close idle ones just when the next beat wants them."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0, resolver=Resolver())
    return aiohttp.ClientSession(connector=connector, auto_decompress=True, raise_for_status=False, trust_env=False)


async def get(session: aiohttp.ClientSession, request: Request) -> Response:
    """Fetch a page.

    Raises:
        SourceError: nothing whole came in time, or the answer is not 200.
    """
    headers = {"Accept": _ACCEPT, "User-Agent": "llm-cost-exporter", **_authorization(request.token_file)}
    try:
        async with asyncio.timeout(request.timeout_seconds):
            return await _follow(session, request, headers)
    except TimeoutError as error:
        raise SourceError("timeout", f"no whole answer within {request.timeout_seconds:g} s") from error
    except aiohttp.ClientConnectorCertificateError as error:
        raise SourceError("tls", "the server's certificate is not trusted") from error
    except aiohttp.ClientSSLError as error:
        raise SourceError("tls", "the server does not speak TLS as it should") from error
    except aiohttp.ClientConnectorError as error:
        refused = isinstance(error.os_error, ConnectionRefusedError)
        raise SourceError("refused" if refused else "unreachable", _reason(error.os_error)) from error
    except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, ConnectionResetError) as error:
        raise SourceError("truncated", "the connection ended before the answer did") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise SourceError("protocol", f"no valid HTTP answer ({type(error).__name__})") from error


async def _follow(session: aiohttp.ClientSession, request: Request, headers: dict[str, str]) -> Response:
    url = URL(request.url)
    for _ in range(_MOST_REDIRECTS + 1):
        async with session.get(url, headers=headers, allow_redirects=False, ssl=_trust(request.ca_file)) as response:
            if response.status not in (301, 302, 303, 307, 308):
                return await _whole(response, request.limit_bytes)
            target = url.join(URL(response.headers.get("Location", "")))
            if (target.scheme, target.host, target.port) != (url.scheme, url.host, url.port):
                raise SourceError("redirect", f"redirected to another server, {target.host}:{target.port}")
            url = target
    raise SourceError("redirect", f"redirected more than {_MOST_REDIRECTS} times")


async def _whole(response: aiohttp.ClientResponse, limit: int) -> Response:
    if response.status != _HTTP_OK:
        raise _refusal(response.status, await _beginning(response))
    body = bytearray()
    async for chunk in response.content.iter_chunked(2**16):
        body += chunk
        if len(body) > limit:
            raise SourceError("too_large", f"the page is larger than {limit} bytes")
    return Response(response.status, response.headers.get("Content-Type", ""), bytes(body))


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """Return the start of an error's body, as far as it came: the status says enough without."""
    body = b""
    with suppress(aiohttp.ClientPayloadError):
        while len(body) < _LARGEST_ERROR_BYTES and (chunk := await response.content.read(_LARGEST_ERROR_BYTES)):
            body += chunk
    return body


def _refusal(status: int, body: bytes) -> SourceError:
    if status in (401, 403):
        return SourceError("unauthorized", f"HTTP {status}: the server wants a token; name it by token_file")
    if status == 503 and b"oading model" in body:  # noqa: PLR2004 - llama-server says so while it loads
        return SourceError("loading", "HTTP 503: the model is being loaded", loading=True)
    return SourceError("http_status", f"HTTP {status}")


def _authorization(token_file: str | None) -> dict[str, str]:
    if token_file is None:
        return {}
    try:
        token = Path(token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError("token_file", "cannot read the file that token_file names") from error
    if not token or not token.isprintable():
        raise SourceError("token_file", "the file that token_file names holds no token")
    return {"Authorization": f"Bearer {token}"}


def _trust(ca_file: str | None) -> ssl.SSLContext | bool:
    """Return whom to trust."""
    if ca_file is None:
        return True
    try:
        return _context(ca_file, Path(ca_file).stat().st_mtime_ns)
    except OSError as error:
        raise SourceError("tls", f"cannot read the certificates in {ca_file}") from error


@lru_cache(maxsize=16)
def _context(ca_file: str, _modified_ns: int) -> ssl.SSLContext:
    """Load a file of certificates, which takes milliseconds, once for each of its versions.

    An in-house CA often says nothing of its key's usage. From Python 3.13 on that alone would be refused.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or type(error).__name__
