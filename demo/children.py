"""The programs that the demo runs: started, watched and ended together."""

import asyncio
import contextlib
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp
import click

_END_SECONDS: Final = 5.0
_READY_SECONDS: Final = 30.0
_TAIL_LINES: Final = 15


class Child(NamedTuple):
    """A running program and its log."""

    name: str
    process: asyncio.subprocess.Process
    log: Path


class Children:
    """All programs of a demo; each logs to a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[Child] = []
        self._watches: list[asyncio.Task[None]] = []
        self._told: set[Child] = set()  # to end

    async def start(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> Child:
        """Start a program, out of reach of the terminal's Ctrl-C: it ends when all do."""
        log = self._folder / f"{name}.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file, env=env, start_new_session=True
            )
        child = Child(name, process, log)
        self._children.append(child)
        self._watches.append(asyncio.create_task(self._watch(child)))
        return child

    async def _watch(self, child: Child) -> None:
        """Wait until a program ends, and say so where it was not told to."""
        status = await child.process.wait()
        if child not in self._told:
            click.echo(f"{child.name} ended with {status}; the end of its log:\n{tail(child.log)}", err=True)

    async def end(self) -> None:
        """End all: ask first, and kill what is left after five seconds."""
        self._send(signal.SIGTERM)
        if self._watches:
            await asyncio.wait(self._watches, timeout=_END_SECONDS)
        for child in self._send(signal.SIGKILL):
            click.echo(f"{child.name} did not end within {_END_SECONDS:g} s, and is killed", err=True)
        await asyncio.gather(*self._watches)

    def _send(self, name: signal.Signals) -> list[Child]:
        """Send a signal to what runs, and return that."""
        running = [child for child in self._children if child.process.returncode is None]
        for child in running:
            self._told.add(child)
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(name)
        return running


async def answers(session: aiohttp.ClientSession, url: str, child: Child) -> bool:
    """Wait until a program answers with 200 at an address, and say whether it ever does."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_READY_SECONDS):
            while child.process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(url) as response:
                        if response.status == 200:
                            return True
                await asyncio.sleep(0.1)
    return False


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join(f"  {line}" for line in lines)
