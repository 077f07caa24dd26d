"""The composition root: the only place that knows the config and the parts. Makes them, joins them, ends them."""

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import web

from exporter import __version__
from exporter.beat import Beat
from exporter.books import Books
from exporter.clock import Clock, SystemClock
from exporter.config.load import load, warnings
from exporter.config.model import Config, Engine, OnFatal, Role
from exporter.config.nodes import ConfigError
from exporter.config.prices import ApiPrices
from exporter.config.web import check_tls, load_tls, load_web
from exporter.core import cap
from exporter.core.api_prices import ApiPrice, Wanted
from exporter.core.snapshot import ConfigView, Snapshot
from exporter.intake import Intake
from exporter.sources.http import new_session
from exporter.sources.list_prices import api_prices
from exporter.sources.names import Resolver
from exporter.storage import Storage
from exporter.watch import LostDriverError
from exporter.web.bearer import Tokens, UsageTokens
from exporter.web.board import Board
from exporter.web.budgets import BudgetDesk
from exporter.web.server import Guard, make_app
from exporter.web.usage import UsageDesk

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)

_WATCH_SECONDS: Final = 2.0
_RETRY_SECONDS: Final = 2.0
_GOODBYE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line of `serve`: a config file, or a config made of flags."""

    config_file: Path | None
    config: Config | None
    listen: tuple[tuple[str | None, int], ...]
    web_config_file: Path | None
    on_fatal: OnFatal
    storage: Path | None = None


class UnusableError(Exception):
    """The exporter cannot start as it was asked to; `lines` says why."""

    def __init__(self, lines: list[str], exit_code: int) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.exit_code = exit_code


class App:
    """One exporter process."""

    def __init__(self, options: Options, clock: Clock | None = None) -> None:
        self._options = options
        self._clock = clock or SystemClock()
        self._guard = Guard(broken=options.web_config_file is not None)
        self._tls: ssl.SSLContext | None = None
        self._client_ca: bytes | None = None  # None: no TLS
        self._web_files: tuple[Path, ...] = ()
        self._tokens, self._usage_tokens = Tokens(), UsageTokens()
        self._token_files: tuple[Path, ...] = ()
        self._web_ready = asyncio.Event()
        self._config: Config | None = None
        self._view = ConfigView(successful=False, last_success=None)
        self._api = ApiPrices()  # what the next two were looked up for
        self._prices: Mapping[Wanted, ApiPrice] | None = None  # None: not looked up yet
        self._unpriced: tuple[str, ...] = ()
        self._prices_wanted = asyncio.Event()
        self._configured = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._seen = self._signature()
        self._beat: Beat | None = None
        self._books = Books()
        self._storage = Storage(options.storage, self._books, self._clock)
        self._board = Board(self._clock, self._empty_snapshot(), own_page)
        self._intake = Intake(self._books, self._board)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            UnusableError: the config or an address cannot be used, and `on_fatal` is `exit`.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        loop.add_signal_handler(signal.SIGUSR1, self._release_gpus)
        problems, about_storage = self._load_all(), await self._storage.open()
        if (problems or about_storage) and self._options.on_fatal is OnFatal.EXIT:
            raise UnusableError(problems + about_storage, exit_code=2)
        self._tell(problems)
        desk = BudgetDesk(self._board, self._books, self._clock, self._tokens, self._engines)
        usage = UsageDesk(self._board, self._books, self._clock, self._usage_tokens, self._intake.rules)
        routes = [*desk.routes(), *usage.routes()]
        app = make_app(self._board, self._guard, routes, desk.overrides, self.reload)
        runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=_GOODBYE_SECONDS)
        await runner.setup()
        try:
            await self._until(stop, runner)
        except* UnusableError as group:
            lines = [line for error in group.exceptions if isinstance(error, UnusableError) for line in error.lines]
            raise UnusableError(lines, exit_code=1) from None
        finally:
            await runner.cleanup()
            await self._storage.close(_GOODBYE_SECONDS)
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(name)
                signal.signal(name, signal.SIG_IGN)  # told twice, it ends no worse than told once

    def _engines(self) -> tuple[Engine, ...]:
        return self._config.engines if self._config else ()

    def _release_gpus(self) -> None:
        released = self._beat.gpus.release() if self._beat else None
        done = {True: "let go for gpu.release", False: "taken back", None: "not held"}[released]
        log.info("SIGUSR1: the GPU driver is %s", done)

    async def _until(self, stop: asyncio.Event, runner: web.AppRunner) -> None:
        """Run all tasks until the event is set; one that crashes ends them all."""
        async with asyncio.TaskGroup() as group:
            parts = [
                self._storage.wait(self._tell_of_no_beat),
                self._price(),
                self._beats(),
                self._watch(),
                *(self._listen(runner, *address) for address in self._options.listen),
            ]
            tasks = [group.create_task(part) for part in parts]
            await stop.wait()
            log.info("ending")
            for task in tasks:
                task.cancel()

    async def reload(self) -> list[str]:
        """Load the files again; returns their problems, nothing when they are in force with the next beat."""
        problems = self._load_all()
        self._tell(problems)
        if not problems:
            log.info("config reloaded")
        return problems

    def _tell(self, problems: list[str]) -> None:
        for line in problems:
            log.error("config: %s", line)
        for line in self._view.warnings:
            log.warning("config: %s", line)
        self._tell_of_no_beat()

    def _tell_of_no_beat(self) -> None:
        if self._beat is None:
            self._board.publish(self._empty_snapshot())

    def _load_all(self) -> list[str]:
        self._seen = self._signature()  # before anything is read: a change meanwhile is one more reload
        problems = [*self._load_web(), *self._load()]
        if problems:
            self._view = replace(self._view, successful=False, problems=tuple(problems))
        if self._beat is not None:
            self._beat.config_view = self._view
        return problems

    def _load(self) -> list[str]:
        """Load the config; returns its problems, and leaves the last good one in force."""
        try:
            config = self._options.config or load(self._options.config_file or Path())
            self._take_tokens(config)
        except ConfigError as error:
            return error.lines
        now = self._clock.now()
        if config.prices.api != self._api or self._prices is None:
            self._api, self._prices, self._unpriced = config.prices.api, None, ()
            self._prices_wanted.set()
        elif self._unpriced:  # the list may have failed, and answer now
            self._prices_wanted.set()
        found = (*warnings(config), *cap.warnings(config, now.wall), *self._unpriced)
        self._view = ConfigView(successful=True, last_success=now.unix_seconds, warnings=found)
        self._config = config
        self._intake.plan(config, self._prices)
        if self._beat is not None:
            self._beat.plan(config, self._prices)
        else:
            self._books.hold(config.budgets)  # a gateway may ask before the first beat
        self._configured.set()
        return []

    async def _price(self) -> None:
        """Look the prices of API models up whenever the config names others; a slow list delays nothing else."""
        while True:
            await self._prices_wanted.wait()
            self._prices_wanted.clear()
            wanted = self._api
            prices, problems = await api_prices(wanted)
            if wanted != self._api:
                continue
            self._prices, self._unpriced = prices, tuple(problems)
            self._view = replace(self._view, warnings=(*self._view.warnings, *problems))
            for line in problems:
                log.warning("config: %s", line)
            if self._config is not None:
                self._intake.plan(self._config, prices)
            if self._beat is not None and self._config is not None:
                self._beat.config_view = self._view
                self._beat.plan(self._config, prices)

    def _take_tokens(self, config: Config) -> None:
        """Read all tokens, and watch their files; raises ConfigError."""
        files = tuple(Path(name) for name in (*config.budget_api.files(), *(one.file for one in config.usage.tokens)))
        if files != self._token_files:
            self._token_files = files
            self._seen = self._signature()
        UsageTokens().adopt(config.usage)  # what cannot be read changes nothing of the others
        self._tokens.adopt(config.budget_api)
        self._usage_tokens.adopt(config.usage)

    def _load_web(self) -> list[str]:
        """Load the web config; while there has been no good one, nothing but the probes is open."""
        path = self._options.web_config_file
        if path is None:
            return []
        try:
            config = load_web(path)
            self._web_files = tuple(path.parent / name for name in config.files())
            self._seen = self._signature()
            tls = config.tls_server_config
            client_ca = check_tls(path, tls) if tls else None
            if not self._guard.broken and client_ca != self._client_ca:
                text = "expected no change of TLS or the clients' CA without a restart, found one"
                return [f"{path}: tls_server_config: {text}"]
            if tls is not None:
                self._tls = self._tls or ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                load_tls(self._tls, path, tls)
        except ConfigError as error:
            return error.lines
        self._client_ca = client_ca
        self._guard.adopt(config)
        self._web_ready.set()
        return []

    async def _listen(self, runner: web.AppRunner, host: str | None, port: int) -> None:
        """Listen on one address; what opened without TLS, for the probes alone, opens anew when TLS is known."""
        tls = self._tls
        sites = await self._open(runner, host, port, tls)
        if self._guard.broken:
            await self._web_ready.wait()
        if tls is not self._tls:
            for site in sites:
                await site.stop()
            await self._open(runner, host, port, self._tls)

    async def _open(
        self, runner: web.AppRunner, host: str | None, port: int, tls: ssl.SSLContext | None
    ) -> list[web.TCPSite]:
        while True:
            sites: list[web.TCPSite] = []
            try:
                for address in await _addresses(host, port):
                    sites.append(web.TCPSite(runner, address, port, ssl_context=tls))
                    await sites[-1].start()
            except OSError as error:
                for site in sites:
                    await site.stop()
                reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
                text = f"cannot listen on {host or ''}:{port}: {reason}"
                if self._options.on_fatal is OnFatal.EXIT:
                    raise UnusableError([text], exit_code=1) from error
                log.error("%s; trying again", text)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                log.info("listening on %s:%d%s", host or "", port, " with TLS" if tls else "")
                return sites

    async def _beats(self) -> None:
        await self._storage.is_open.wait()
        while self._config is None:
            await self._configured.wait()
        self._board.expects_beats = True
        async with new_session() as session:
            self._beat = Beat(self._config, self._clock, self._books, session, self._board.publish)
            self._beat.config_view = self._view
            self._beat.plan(self._config, self._prices)
            gc.collect()
            gc.freeze()  # what is there now stays, and no collection has to look at it again
            try:
                await self._beat.run()
            except LostDriverError as error:
                raise UnusableError([str(error)], exit_code=1) from error
            except Exception:
                if self._options.on_fatal is OnFatal.EXIT:
                    raise
                # The engine beside us must not suffer: the probe tells, and whoever watches it restarts us alone.
                log.exception("the beat has crashed")

    async def _watch(self) -> None:
        """Reload when a watched file changes, a symlink in its path included, or when a signal asks."""
        while True:
            try:
                async with asyncio.timeout(_WATCH_SECONDS):
                    await self._reload_wanted.wait()
            except TimeoutError:
                if self._signature() == self._seen:
                    continue
            self._reload_wanted.clear()
            await self.reload()

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        web_file = self._options.web_config_file
        files = [self._options.config_file, web_file, *self._web_files, *self._token_files]
        return tuple(_stat(path) for path in files if path is not None)

    def _empty_snapshot(self) -> Snapshot:
        role = self._config.role if self._config else Role.LONE
        return Snapshot(
            at=self._clock.now().unix_seconds,
            version=__version__,
            role=role,
            interval_seconds=0.0,
            accounting_start=None,
            hub_url=self._config.hub_url if self._config else None,
            config=self._view,
            totals=self._books.totals(),
            ledger=self._storage.view(),
        )


async def _addresses(host: str | None, port: int) -> list[str | None]:
    """Return the addresses of a host to listen on; none named means all of this machine."""
    if host is None:
        return [None]
    found = await Resolver().resolve(host, port, socket.AF_UNSPEC)
    return list(dict.fromkeys(entry["host"] for entry in found))


def own_page() -> bytes:
    """Write what prometheus_client says about this process; it is loaded with the first beat: the port opens sooner."""
    from prometheus_client import generate_latest  # noqa: PLC0415

    return generate_latest(_registry())


@cache
def _registry() -> "CollectorRegistry":
    from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector  # noqa: PLC0415

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
