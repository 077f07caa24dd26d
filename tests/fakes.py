"""Parts that behave like the real ones where the real ones cannot be had in a test: time, and an engine's port."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

from exporter.clock import NANOSECONDS, Instant


class FakeClock:
    """Both clocks, moved by hand; `step_wall` moves the wall clock alone, as an NTP step does."""

    def __init__(self, unix_seconds: float = 1_795_464_804.0) -> None:
        self._now = Instant(round(unix_seconds * NANOSECONDS), 77 * NANOSECONDS)

    def now(self) -> Instant:
        return self._now

    def advance(self, seconds: float) -> None:
        nanoseconds = round(seconds * NANOSECONDS)
        self._now = Instant(self._now.wall + nanoseconds, self._now.monotonic + nanoseconds)

    def step_wall(self, seconds: float) -> None:
        self._now = Instant(self._now.wall + round(seconds * NANOSECONDS), self._now.monotonic)


Answer = Callable[[], tuple[int, str] | None]


@asynccontextmanager
async def served(answer: Answer) -> AsyncIterator[str]:
    """Serve whatever `answer` returns (status, body) as a metrics page; None hangs up without an answer."""

    async def handler(request: web.Request) -> web.Response:
        found = answer()
        if found is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=500)
        status, body = found
        return web.Response(status=status, text=body, content_type="text/plain")

    app = web.Application()
    app.router.add_get("/metrics", handler)
    server = TestServer(app)
    await server.start_server()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await server.close()
