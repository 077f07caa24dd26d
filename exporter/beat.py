"""The beat, the only clock: read every source at once, charge, post to the books, publish one snapshot."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import aiohttp

from exporter import __version__
from exporter.books import Books
from exporter.clock import NANOSECONDS, Clock, Instant
from exporter.config.model import Config, Engine
from exporter.core.meter import EngineMeter, Terms, spend_account
from exporter.core.money import Account, Category, Entry, Kind
from exporter.core.prices import Interval, gpu_timeline
from exporter.core.readings import EngineReading, Failure
from exporter.core.snapshot import ConfigView, Snapshot, SourceView
from exporter.core.standing import charges, standing_costs
from exporter.core.view import EngineFacts, engine_view
from exporter.sources.engine import EngineSource
from exporter.sources.http import REASONS, SourceError

log = logging.getLogger(__name__)

MISSED_BEATS: Final = 3
_STEP_NS: Final = NANOSECONDS
_UNNAMED_GPU: Final = "any"


class Reads(Protocol):
    """A source of engine readings."""

    @property
    def source(self) -> str:
        """The kind of source, a label."""

    @property
    def target(self) -> str:
        """The engine's name, a label; never an address."""

    async def read(self) -> EngineReading:
        """Read once; raises SourceError."""


class Watched:
    """A source with the record of how reading it went; the one place where any error of a source is caught."""

    def __init__(self, reads: Reads) -> None:
        self.reads = reads
        self.errors: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self.last_success: float | None = None
        self.read_seconds = 0.0
        self.problem: str | None = None
        self._down_since: float | None = None

    async def read(self, clock: Clock) -> tuple[EngineReading | Failure, Instant]:
        """Read once; returns what came and when."""
        began = clock.now()
        outcome = await self._outcome()
        ended = clock.now()
        self.read_seconds = (ended.monotonic - began.monotonic) / NANOSECONDS
        if isinstance(outcome, Failure):
            self._failed(outcome, ended)
        else:
            self._succeeded(ended)
        return outcome, ended

    async def _outcome(self) -> EngineReading | Failure:
        try:
            return await self.reads.read()
        except SourceError as error:
            return Failure(reason=error.reason, detail=error.detail, loading=error.loading)
        except Exception as error:
            log.exception("a bug while reading %s %s", self.reads.source, self.reads.target)
            return Failure(reason="bug", detail=f"internal error ({type(error).__name__})")

    def _failed(self, failure: Failure, at: Instant) -> None:
        self.errors[failure.reason] += 1
        if self.problem != failure.detail:
            log.warning("%s %s: down: %s", self.reads.source, self.reads.target, failure.detail)
        self.problem = failure.detail
        self._down_since = self._down_since or at.unix_seconds

    def _succeeded(self, at: Instant) -> None:
        if self._down_since is not None:
            log.info("%s %s: up after %.0f s", self.reads.source, self.reads.target, at.unix_seconds - self._down_since)
        elif self.last_success is None:
            log.info("%s %s: up", self.reads.source, self.reads.target)
        self.last_success, self.problem, self._down_since = at.unix_seconds, None, None

    def view(self, interval_seconds: float) -> SourceView:
        """Return what the page shows of it."""
        return SourceView(
            source=self.reads.source,
            target=self.reads.target,
            up=self.problem is None and self.last_success is not None,
            last_success=self.last_success,
            read_seconds=self.read_seconds,
            interval_seconds=interval_seconds,
            errors=dict(self.errors),
            problem=self.problem,
        )


class Beat:
    """Reads, charges and publishes, one interval after the other, by the plan in force."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        books: Books,
        session: aiohttp.ClientSession,
        publish: Callable[[Snapshot], None],
    ) -> None:
        self.config_view = ConfigView(successful=True, last_success=clock.now().unix_seconds)
        self.last: Instant | None = None
        self._clock, self._books, self._session, self._publish = clock, books, session, publish
        self._accounting_start = clock.now()
        self._sources: dict[str, Watched] = {}
        self._meters: dict[str, EngineMeter] = {}
        self._terms: dict[str, Terms] = {}
        self._next: Config | None = None
        self._adopt(config)

    def plan(self, config: Config) -> None:
        """Put another config in force at the next beat, which still charges the time before it by the old one."""
        self._next = config

    async def _replace(self, config: Config) -> None:
        """Adopt another config; what an engine that is gone has pending is booked first."""
        kept = {engine.name: engine for engine in config.engines}
        for name, terms in list(self._terms.items()):
            if name not in kept or kept[name].url != terms.engine.url:
                await self._books.post(self._meters.pop(name).settle(terms))
            if name not in kept:
                del self._sources[name]
                self._books.forget_windows(name)
        self._adopt(config)

    def _adopt(self, config: Config) -> None:
        self.config = config
        self._standing = standing_costs(config)
        self._terms = {engine.name: terms_of(config, engine) for engine in config.engines}
        for engine in config.engines:
            reads = EngineSource(engine, config.interval, self._session)
            if engine.name in self._sources:
                self._sources[engine.name].reads = reads
            else:
                self._sources[engine.name] = Watched(reads)
            if engine.name not in self._meters:
                self._meters[engine.name] = EngineMeter(self._terms[engine.name], self._clock.now().unix_seconds)

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Beat for ever. A beat that takes too long is not made up for."""
        while True:
            began = self._clock.now().monotonic
            await self.once()
            spent = (self._clock.now().monotonic - began) / NANOSECONDS
            await sleep(max(self.config.interval - spent, 0.0))

    async def once(self) -> None:
        """Make one beat: by the plan that held since the last one, then adopt the next plan if there is one."""
        now = self._clock.now()
        interval = await self._charged(self._interval(now))
        names, standing_accounts = list(self._terms), self._standing_accounts()
        outcomes = await asyncio.gather(*(self._sources[name].read(self._clock) for name in names))
        for name, (outcome, at) in zip(names, outcomes, strict=True):
            entries = self._meters[name].beat(self._terms[name], interval, outcome, at.unix_seconds)
            await self._books.post(entries)
        if interval is not None:
            await self._books.post(charges(self._standing, interval, standing_accounts))
        if self._next is not None:
            await self._replace(self._next)
            self._next = None
        await self._books.post(Entry(account, 0, 0) for account in self._standing_accounts().values())
        for name in self._terms:
            await self._books.post(self._meters[name].opened(self._terms[name]))
            self._meters[name].remember(now.monotonic)
            self._books.windows(name).record(now.monotonic, self._books.engine_totals(name))
        self.last = now
        self._publish(self._snapshot(now))

    def _interval(self, now: Instant) -> Interval | None:
        if self.last is None:
            return None
        duration = now.monotonic - self.last.monotonic
        stepped = abs((now.wall - self.last.wall) - duration) > _STEP_NS
        if stepped:
            log.warning("the wall clock moved by %.1f s", (now.wall - self.last.wall - duration) / NANOSECONDS)
        return Interval(now.wall, duration, stepped)

    async def _charged(self, interval: Interval | None) -> Interval | None:
        """Leave out a gap that is too long to be booked, but count it."""
        if interval is None or interval.duration_ns <= self.config.max_gap * NANOSECONDS:
            return interval
        log.warning("not charged: a gap of %.0f s, longer than max_gap", interval.duration_ns / NANOSECONDS)
        await self._books.post([Entry(Account(Kind.UNOBSERVED, ()), interval.duration_ns, interval.start)])
        return None

    def _standing_accounts(self) -> dict[tuple[Category, str], Account]:
        return {
            (item.category, name): spend_account(item.category, self._terms[name].engine, self._meters[name].model)
            for item in self._standing
            for name in item.payers
        }

    def _snapshot(self, now: Instant) -> Snapshot:
        return Snapshot(
            at=now.unix_seconds,
            version=__version__,
            role=self.config.role,
            interval_seconds=self.config.interval,
            accounting_start=self._accounting_start.unix_seconds,
            hub_url=self.config.hub_url,
            config=self.config_view,
            engines=tuple(engine_view(self.config, self._standing, self._facts(name), now) for name in self._terms),
            sources=tuple(self._sources[name].view(self.config.interval) for name in self._terms),
            totals=self._books.totals(),
        )

    def _facts(self, name: str) -> EngineFacts:
        return EngineFacts(
            terms=self._terms[name],
            meter=self._meters[name],
            windows=self._books.windows(name),
            totals=self._books.engine_totals(name),
        )


def terms_of(config: Config, engine: Engine) -> Terms:
    """Return what the config says about one engine, with its prices resolved."""
    return Terms(
        engine=engine,
        gpu=config.gpu.name or _UNNAMED_GPU,
        gpu_prices=gpu_timeline(config.prices.gpu, config.gpu.name),
        away_ns=round(MISSED_BEATS * config.interval * NANOSECONDS),
    )
