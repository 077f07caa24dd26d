"""The demo as a whole: what starts when, and how it ends."""

import asyncio
import contextlib
import random
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import click
import yaml
from aiohttp import web

from demo import monitoring, said
from demo.children import Child, Children, answers
from demo.engines import Engine
from demo.gpus import Node
from demo.notifications import Receiver
from demo.ports import HOST, Ports
from demo.traffic import Application, Event, Traffic

RECORDING: Final = monitoring.REPOSITORY / "tests/fixtures/recordings/vllm-0.32.0.jsonl.xz"
_LOOK_SECONDS: Final = 1.0
_SPEED: Final = "2"
# Where in the recording each engine begins: in the middle of a rush, and just before a start, to show a cold one.
_SKIPPED: Final = {"chat-small": "170s", "chat-large": "8s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What all parts of the demo share."""

    folder: Path
    ports: Ports
    children: Children
    session: aiohttp.ClientSession
    node: Node

    @property
    def exporter(self) -> str:
        """The exporter's address."""
        return f"http://{HOST}:{self.ports.exporter}"

    @property
    def config(self) -> Path:
        """The exporter's config."""
        return self.folder / "config.yml"

    @property
    def engines(self) -> dict[str, str]:
        """Where the replayed engines listen."""
        return {"chat-small": f"{HOST}:{self.ports.chat_small}", "chat-large": f"{HOST}:{self.ports.chat_large}"}

    async def command(self, name: str, *arguments: str) -> Child:
        """Start a command of llm-cost-exporter."""
        return await self.children.start(name, sys.executable, "-m", "exporter", *arguments)


async def run(folder: Path, ports: Ports) -> int:
    """Run until a signal comes, and return the exit status: 1 where the exporter ended by itself."""
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with _staged(folder, ports) as stage:
        performed, stopped = asyncio.create_task(_perform(stage)), asyncio.create_task(stop.wait())
        await asyncio.wait({performed, stopped}, return_when=asyncio.FIRST_COMPLETED)
        performed.cancel()
        stopped.cancel()
        await asyncio.wait({performed, stopped})
        if not performed.cancelled():
            performed.result()  # raises what went wrong
    return 0 if stop.is_set() else 1


@contextlib.asynccontextmanager
async def _staged(folder: Path, ports: Ports) -> AsyncIterator[Stage]:
    """Yield a stage with the parts that run in this process; in the end, end whatever runs."""
    node, children, receiver = Node(), Children(folder), Receiver(folder / "notifications.log")
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            _served(web.get("/metrics", node.answer), ports.gpus),
            _served(web.post("/{receiver}", receiver.take), ports.notifications),
        ):
            yield Stage(folder=folder, ports=ports, children=children, session=session, node=node)
    finally:
        await children.end()  # when nobody here talks to them any more


@contextlib.asynccontextmanager
async def _served(route: web.RouteDef, port: int) -> AsyncIterator[None]:
    app = web.Application()
    app.add_routes([route])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        yield
    finally:
        await runner.cleanup()


async def _perform(stage: Stage) -> None:
    """Start one thing after the other, say what there is, and go on until the exporter ends."""
    exporter = await _start_exporter(stage)
    if exporter is None:
        return
    for name, address in stage.engines.items():
        skip = f"--skip={_SKIPPED[name]}"
        flags = (f"--listen-address={address}", "--loop=continue", f"--speed={_SPEED}", skip)
        await stage.command(name, "replay", str(RECORDING), *flags)
    async with asyncio.TaskGroup() as group:
        simulation = group.create_task(_simulate(stage))
        programs = [program for program in monitoring.found(stage.folder, stage.ports) if await _start(stage, program)]
        said.everything(stage.exporter, stage.engines, stage.ports, programs, stage.folder)
        await exporter.process.wait()
        simulation.cancel()


async def _start_exporter(stage: Stage) -> Child | None:
    """Start the exporter, with a day in its ledger if that is new; None if it does not come up."""
    config, ledger = (monitoring.REPOSITORY / "demo/config.yml").read_text(encoding="utf-8"), stage.folder / "ledger"
    whole, is_new = stage.ports.written(config), not ledger.exists()
    stage.config.write_text(_without_budgets(whole) if is_new else whole, encoding="utf-8")
    flags = (f"--config.file={stage.config}", f"--storage.path={ledger}")
    child = await stage.command("exporter", "serve", *flags, f"--web.listen-address={HOST}:{stage.ports.exporter}")
    if not await answers(stage.session, f"{stage.exporter}/-/ready", child):
        click.echo(f"the exporter does not answer: see {child.log}", err=True)
        return None
    if is_new:
        # Budgets come after that day, so that it is no sudden spend to them.
        await Application(stage.exporter, stage.session).post(Traffic(random.Random()).opening())
        stage.config.write_text(whole, encoding="utf-8")
        async with stage.session.post(f"{stage.exporter}/-/reload") as response:
            response.raise_for_status()
    return child


def _without_budgets(config: str) -> str:
    return yaml.safe_dump({key: value for key, value in yaml.safe_load(config).items() if key != "budgets"})


async def _start(stage: Stage, program: monitoring.Program) -> bool:
    child = await stage.children.start(program.name, *program.command, env=program.env)
    is_ready = await answers(stage.session, f"{program.address}{program.ready}", child)
    if not is_ready:
        click.echo(f"{program.name} does not answer: see {child.log}", err=True)
    return is_ready


async def _simulate(stage: Stage) -> None:
    """Look at the engines again and again; GPUs and traffic follow what they do."""
    engines = [Engine(name, f"http://{address}/metrics", stage.session) for name, address in stage.engines.items()]
    traffic, application = Traffic(random.Random()), Application(stage.exporter, stage.session)
    loop, waiting = asyncio.get_running_loop(), list[Event]()
    last = loop.time()
    while True:
        found = await asyncio.gather(*(engine.look() for engine in engines))
        looks = {engine.name: look for engine, look in zip(engines, found, strict=True)}
        last, seconds = loop.time(), loop.time() - last
        stage.node.follow(looks, seconds)
        waiting += traffic.events(looks)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            await application.post(waiting)
            waiting = []
        await application.ask()
        await asyncio.sleep(_LOOK_SECONDS)
