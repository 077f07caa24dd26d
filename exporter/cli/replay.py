"""`replay`: serve a recording as if it were the engine."""

import asyncio
import signal
from pathlib import Path
from typing import Final

import click
from aiohttp import web

from exporter.cli.options import DURATION, Address, ScalarType, fail
from exporter.clock import Clock, SystemClock
from exporter.config.units import POSITIVE
from exporter.sources.recording import Loop, Playback, RecordingError, read

_LOOK_SECONDS: Final = 0.05
_HANG_UP_SECONDS: Final = 0.1  # for a client that keeps its connection; 0 would mean for ever


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--listen-address", "listen", type=Address(), default="127.0.0.1:8000", show_default=True)
@click.option(
    "--loop",
    type=click.Choice([loop.value for loop in Loop]),
    default="restart",
    show_default=True,
    help="After the end: the engine restarts, goes on counting, or is gone.",
)
@click.option(
    "--speed", type=ScalarType(POSITIVE, "factor"), default="1", show_default=True, help="How fast time goes."
)
@click.option("--skip", type=DURATION, help="Begin that far into the recording.")
def replay(file: Path, listen: tuple[str | None, int], loop: str, speed: float, skip: float | None) -> None:
    """Serve FILE, made by `record`, as an engine's /metrics; where nothing answered, nothing answers."""
    clock = SystemClock()
    try:
        records = read(file)
        playback = Playback(
            records, loop=Loop(loop), began=clock.now().unix_seconds, speed=float(speed), skip=skip or 0.0
        )
        if playback.cue(clock.now().unix_seconds) is None:
            raise RecordingError(f"{file}: expected --skip within the recording, found one beyond its end")  # noqa: TRY301
        asyncio.run(_serve(playback, clock, listen))
    except RecordingError as error:
        raise SystemExit(fail([str(error)], 2)) from None
    except OSError as error:
        raise SystemExit(fail([f"cannot listen on {listen[0] or ''}:{listen[1]}: {error.strerror}"], 1)) from None


async def _serve(playback: Playback, clock: Clock, listen: tuple[str | None, int]) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    replayed = ReplayedEngine(playback, clock, listen)
    task = asyncio.create_task(replayed.run())
    ended = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    ended.cancel()
    await replayed.close()
    if task in done:
        task.result()


class ReplayedEngine:
    """Listens while the recorded engine answered, and refuses connections while it did not."""

    def __init__(self, playback: Playback, clock: Clock, listen: tuple[str | None, int]) -> None:
        self._playback, self._clock, self._listen = playback, clock, listen
        self._server = web.Server(self._answer, access_log=None)
        self._listener: asyncio.Server | None = None

    async def run(self) -> None:
        """Open and close the port as the recording says; returns when it is over."""
        while (cue := self._playback.cue(self._clock.now().unix_seconds)) is not None:
            is_there = cue.record.error is None or "refused" not in cue.record.error
            if is_there and self._listener is None:
                await self._open()
            elif not is_there and self._listener is not None:
                await self.close()
            await asyncio.sleep(_LOOK_SECONDS)

    async def close(self) -> None:
        """Stop listening and hang up."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self._server.shutdown(timeout=_HANG_UP_SECONDS)

    async def _open(self) -> None:
        host, port = self._listen
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._server, host, port, reuse_address=True)
        click.echo(f"the replayed engine answers on http://{host or '127.0.0.1'}:{port}/metrics", err=True)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        cue = self._playback.cue(self._clock.now().unix_seconds)
        if request.path != "/metrics":
            return web.Response(status=404)
        if cue is None or cue.record.error is not None:
            if request.transport is not None:
                request.transport.abort()  # there was no answer then, so there is none now
            return web.Response(status=503)
        headers = {"Content-Type": cue.record.content_type}
        return web.Response(status=cue.record.status, body=self._playback.page(cue).encode(), headers=headers)
