"""Bodies of requests: how much of them is in work at once, and their bytes, inflated, up to a limit."""

import asyncio
import zlib
from dataclasses import dataclass
from typing import Final, NamedTuple

from aiohttp import web

MOST_BODIES: Final = 64
MOST_BYTES: Final = 32 * 2**20  # of all bodies in work; one of ours takes up to eight times its size while it is
_READ_SECONDS: Final = 30.0  # in which a body must have come
_GZIP: Final = 31  # zlib's word for a window of any size, in a gzip stream
_PLAIN: Final = ("", "identity")
_COMPRESSED: Final = ("gzip", "x-gzip")
_MOST_INFLATED: Final = 1032  # bytes that one byte of deflate can become


class Limit(NamedTuple):
    """How many bytes a body may have, and the key of the config that says so."""

    size: int
    key: str


class Refusal(Exception):  # noqa: N818 - an answer, and no error of ours
    """A body is refused; `events` is how many of it are counted as rejected."""

    def __init__(self, status: int, text: str, *, events: int = 0, **headers: object) -> None:
        super().__init__(text)
        self.status, self.text, self.events = status, text, events
        self.headers = {name.replace("_", "-").title(): str(value) for name, value in headers.items()}


@dataclass(slots=True)
class Gate:
    """How much is in work at once: a body more is refused before it is read."""

    bodies: int = 0
    size: int = 0

    def enter(self, size: int) -> bool:
        """Begin with a body of at most so many bytes, if there is room; a large one is let in alone."""
        if self.bodies >= MOST_BODIES or (self.bodies and self.size + size > MOST_BYTES):
            return False
        self.bodies += 1
        self.size += size
        return True

    def leave(self, size: int) -> None:
        """End with a body."""
        self.bodies -= 1
        self.size -= size


def size(request: web.Request, limit: Limit) -> int:
    """Return how many bytes a body may come to, within the limit; raises Refusal."""
    encoding = _encoding(request)
    if encoding not in (*_PLAIN, *_COMPRESSED):
        text = f"expected a Content-Encoding of gzip or none, found {encoding[:40]!r}"
        raise Refusal(415, text, events=1, accept_encoding="gzip")
    told = request.content_length
    if told is not None and told > limit.size:
        raise _too_large(limit)
    if told is None:
        return limit.size
    return min(told * _MOST_INFLATED, limit.size) if encoding in _COMPRESSED else told


def _encoding(request: web.Request) -> str:
    return ", ".join(request.headers.getall("Content-Encoding", ())).strip().lower()


async def content(request: web.Request, limit: Limit) -> bytes:
    """Read a body to its end, but no more of it than it may have, and inflate it; raises Refusal."""
    read = bytearray()
    try:
        async with asyncio.timeout(_READ_SECONDS):
            async for piece in request.content.iter_any():
                read += piece
                if len(read) > limit.size:
                    raise _too_large(limit)
    except TimeoutError:
        raise Refusal(408, f"expected a whole body within {_READ_SECONDS:g} s, found a part", events=1) from None
    except (web.RequestPayloadError, ConnectionError):  # an answer that nobody may read is no error of ours
        raise Refusal(400, "expected a whole body, found a part", events=1) from None
    return _inflated(bytes(read), limit) if _encoding(request) in _COMPRESSED else bytes(read)


def _inflated(content: bytes, limit: Limit) -> bytes:
    """Inflate one gzip stream, no further than it may go."""
    stream = zlib.decompressobj(_GZIP)
    try:
        inflated = stream.decompress(content, limit.size + 1)
    except zlib.error:
        raise Refusal(400, "expected gzip, found something else", events=1) from None
    if len(inflated) > limit.size:
        raise _too_large(limit)
    if not stream.eof or stream.unused_data:
        found = "more behind it" if stream.eof else "a part of one"
        raise Refusal(400, f"expected one gzip stream, found {found}", events=1)
    return inflated


def _too_large(limit: Limit) -> Refusal:
    return Refusal(413, f"expected at most {limit.size} bytes ({limit.key}), found more", events=1)
