"""`record`: keep an engine's pages over time."""

import asyncio
import contextlib
import signal
import zlib
from pathlib import Path

import click

from exporter.cli.options import DURATION, URL, fail
from exporter.clock import NANOSECONDS, SystemClock
from exporter.sources.http import Request, SourceError, get, metrics_url, new_session
from exporter.sources.recording import Record, Writer


@click.command()
@click.argument("url", type=URL)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new file, NAME.jsonl.xz.")
@click.option("--interval", type=DURATION, default="5s", show_default=True, help="How often the page is read.")
@click.option("--duration", type=DURATION, help="How long; without it until Ctrl-C.")
@click.option("--token-file", type=click.Path(), help="A file with the bearer token that the engine wants.")
def record(url: str, out: Path, interval: float, duration: float | None, token_file: str | None) -> None:
    """Read the metrics page of URL again and again, and keep every answer."""
    request = Request(url=metrics_url(url), timeout_seconds=interval, token_file=token_file)
    try:
        with Writer(out) as writer:
            asyncio.run(_record(request, writer, interval, duration))
    except FileExistsError:
        raise SystemExit(fail([f"{out}: expected a new file, found one that exists"], 2)) from None
    except OSError as error:
        raise SystemExit(fail([f"{out}: cannot be written: {error.strerror}"], 2)) from None


async def _record(request: Request, writer: Writer, interval: float, duration: float | None) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    clock = SystemClock()
    began = clock.now().monotonic / NANOSECONDS
    pages = errors = 0
    async with new_session() as session:
        while not stop.is_set():
            at = clock.now()
            passed = at.monotonic / NANOSECONDS - began
            if duration is not None and passed >= duration:
                break
            try:
                response = await get(session, request)
                body = zlib.compress(response.body)
                found = Record(at.unix_seconds, response.status, response.content_type, body)
                pages += 1
            except SourceError as error:
                found = Record(at.unix_seconds, error=f"{error.reason}: {error.detail}")
                errors += 1
            writer.write(found)
            _progress(passed, pages, errors)
            due = began + (pages + errors) * interval
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(due - clock.now().monotonic / NANOSECONDS, 0.0))
    click.echo(f"\nrecorded {pages} pages and {errors} failed reads", err=True)


def _progress(passed: float, pages: int, errors: int) -> None:
    click.echo(f"\r{passed:.0f} s: {pages} pages, {errors} failed reads ", nl=False, err=True)
