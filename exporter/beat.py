"""The beat, the only clock: read every source at once, charge, post to the books, publish one snapshot."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import pairwise
from typing import Final

import aiohttp

from exporter import __version__
from exporter.books import Books
from exporter.clock import NANOSECONDS, Clock, Instant
from exporter.config.model import Config, Engine, Role
from exporter.core.alerting import thresholds
from exporter.core.api_prices import ApiPrice, Wanted
from exporter.core.attribution import showback_accounts, usage_accounts
from exporter.core.budgets import BudgetFacts, BudgetView, EngineCost
from exporter.core.cap import denial_accounts
from exporter.core.meter import EngineMeter, Terms, spend_account
from exporter.core.money import Account, Category, Entry, Kind
from exporter.core.periods import KEPT_QUARTERS, QUARTER, cuts
from exporter.core.prices import Interval
from exporter.core.readings import EngineReading
from exporter.core.scaling import min_replicas
from exporter.core.snapshot import MISSED_BEATS, ConfigView, ShowbackView, Snapshot, SourceView
from exporter.core.standing import by_category, charges, standing_costs
from exporter.core.view import EngineFacts, engine_view
from exporter.economics import Economics
from exporter.resume import Resume
from exporter.sources.engine import EngineSource
from exporter.sources.watched import Watched
from exporter.watch import UNNAMED_GPU, GpuWatch, Machine, NetworkWatch

log = logging.getLogger(__name__)

_STEP_NS: Final = NANOSECONDS
_SHARE_FOR_A_COMMIT: Final = 0.1  # of a beat: a page shows what is on the disk, but does not wait for a slow one
_LONGEST_FOR_A_COMMIT_SECONDS: Final = 0.05


class Beat:
    """Reads, charges and publishes, one interval after the other, by the plan in force."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        books: Books,
        session: aiohttp.ClientSession,
        publish: Callable[[Snapshot], None],
        machine: Machine | None = None,
    ) -> None:
        self.config_view = ConfigView(successful=True, last_success=clock.now().unix_seconds)
        self.last: Instant | None = None
        self._clock, self._books, self._session, self._publish = clock, books, session, publish
        self._resume = Resume(books, clock.now())
        self._sources: dict[str, Watched[EngineReading]] = {}
        self._meters: dict[str, EngineMeter] = {}
        self._terms: dict[str, Terms] = {}
        self._next: Config | None = None
        self._prices: Mapping[Wanted, ApiPrice] | None = None  # None while they are looked up
        self._economics = Economics(books, self._resume)
        machine = machine or Machine()
        self.gpus = GpuWatch(config, session, clock, machine.environ)
        self._network = NetworkWatch(clock, machine.interfaces)
        self._adopt(config)
        self._resume.budgets()
        self.gpus.restore(self._resume.gpus)

    def plan(self, config: Config, prices: Mapping[Wanted, ApiPrice] | None = None) -> None:
        """Put another config in force at the next beat, which still charges the time before it by the old one.

        `prices` are those of its API models, None while they are looked up.
        """
        self._next, self._prices = config, prices

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
        self.gpus.adopt(config)
        self._network.adopt(config.prices.network)
        self._books.settle_by(config.usage.settle if config.role is Role.LONE else None)
        self._books.hold(config.budgets)
        self._economics.adopt(config, self._prices)
        self._standing = standing_costs(config)
        self._terms = {engine.name: self.gpus.priced(terms_of(config, engine), None) for engine in config.engines}
        for engine in config.engines:
            reads = EngineSource(engine, config.interval, self._session)
            if engine.name in self._sources:
                self._sources[engine.name].reads = reads
            else:
                self._sources[engine.name] = Watched(reads)
            if engine.name not in self._meters:
                self._meters[engine.name] = EngineMeter(self._terms[engine.name], self._clock.now().unix_seconds)
                self._resume.engine(self._meters[engine.name], self._terms[engine.name])
            self._meters[engine.name].adopt(self._terms[engine.name])

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
        await self._charge(await self._charged(self._interval(now)))
        if self._next is not None:
            adopted, self._next = self._next, None
            await self._replace(adopted)
        await self._open_accounts()
        await self._close(now)
        tracked = self._economics.samples()
        self._resume.leave(now, self._meters, self._terms, self.gpus.state(now), tracked)
        await self._books.settled(min(self.config.interval * _SHARE_FOR_A_COMMIT, _LONGEST_FOR_A_COMMIT_SECONDS))
        self.last = now
        self._publish(self._snapshot(now))

    async def _charge(self, interval: Interval | None) -> None:
        """Read everything, and book what the interval since the last beat cost and what was done in it."""
        if self.last is None:
            await self._books.post(self._never_booked(interval))
        names, standing_accounts = list(self._terms), self._standing_accounts()
        network_accounts = self._network_accounts()
        reads = (self._sources[name].read(self._clock) for name in names)
        outcomes, _, _ = await asyncio.gather(asyncio.gather(*reads), self.gpus.read(), self._network.read())
        for name, (outcome, at) in zip(names, outcomes, strict=True):
            unbooked = interval if self.last or self._resume.charged(name) else None
            terms = self._terms[name] = self.gpus.priced(self._terms[name], unbooked)
            entries = self._meters[name].beat(terms, unbooked, outcome, at.unix_seconds)
            await self._books.post([*entries, *self._economics.follow(terms.engine, entries)])
        if interval is not None:
            await self._books.post(charges(self._standing, interval, standing_accounts))
            await self._books.post(self._network.charges(interval.start, network_accounts))

    async def _open_accounts(self) -> None:
        """Let all counters that are known to come begin at 0."""
        await self._books.post(Entry(account, 0, 0) for account in self._standing_accounts().values())
        await self._books.post(self._network.opened(self._network_accounts()))
        await self._books.post(Entry(account, 0, 0) for account in denial_accounts(self.config.budgets))
        await self._books.post(Entry(account, 0, 0) for account in usage_accounts(self.config))
        for name, terms in self._terms.items():
            meter = self._meters[name]
            await self._books.post(meter.opened(terms))
            if meter.answered and terms.engine.gpus_charged and self.config.role is Role.LONE:
                features = self.config.features.known
                accounts = showback_accounts(name, meter.model, terms.engine.tier or "", features)
                await self._books.post(Entry(account, 0, 0) for account in accounts)

    async def _close(self, now: Instant) -> None:
        """Settle what has waited long enough, and remember how everything stands for the windows to come."""
        await self._books.settle(now.wall // NANOSECONDS)
        await self._books.post(self._economics.due(now))
        self._economics.remember(now)
        for name in self._terms:
            self._meters[name].remember(now.monotonic)
            self._books.windows(name).record(now.monotonic, self._books.engine_totals(name))
        for meter in self._books.budgets.values():
            meter.record(now)

    def _interval(self, now: Instant) -> Interval | None:
        if self.last is None:
            return self._resume.standing(now)
        duration = now.monotonic - self.last.monotonic
        stepped = abs((now.wall - self.last.wall) - duration) > _STEP_NS
        if stepped:
            log.warning("the wall clock moved by %.1f s", (now.wall - self.last.wall - duration) / NANOSECONDS)
        return Interval(now.wall, duration, stepped)

    async def _charged(self, interval: Interval | None) -> Interval | None:
        """Leave out a gap that is too long to be booked, but count it."""
        if interval is None or interval.duration_ns <= self.config.max_gap * NANOSECONDS:
            return interval
        for meter in self._books.budgets.values():
            meter.forget_windows()
        for name in self._terms:
            self._books.windows(name).forget()
        log.warning("not charged: a gap of %.0f s, longer than max_gap", interval.duration_ns / NANOSECONDS)
        await self._books.post(_unobserved(interval))
        self._economics.forget()
        self._network.rebaseline()
        self.gpus.rebaseline()
        return None

    def _never_booked(self, interval: Interval | None) -> Iterator[Entry]:
        """Count the time that nobody pays: an earlier process charged engines that the config no longer has."""
        gone, owed = self._resume.gone(self._terms)
        if gone:
            log.warning("not charged since the last beat: %s, no longer in the config", ", ".join(gone))
            for one in (*owed, *([interval] if interval else [])):
                yield from _unobserved(one)

    def _standing_accounts(self) -> dict[tuple[Category, str], Account]:
        return {
            (item.category, name): spend_account(item.category, self._terms[name].engine, self._meters[name].model)
            for item in self._standing
            for name in item.payers
        }

    def _network_accounts(self) -> dict[str, Account]:
        if self.config.prices.network is None:
            return {}
        return {
            name: spend_account(Category.NETWORK, terms.engine, self._meters[name].model)
            for name, terms in self._terms.items()
        }

    def _snapshot(self, now: Instant) -> Snapshot:
        engines = tuple(engine_view(self.config, self._standing, self._facts(name), now) for name in self._terms)
        return Snapshot(
            at=now.unix_seconds,
            version=__version__,
            role=self.config.role,
            interval_seconds=self.config.interval,
            accounting_start=self._resume.accounting_start / NANOSECONDS,
            hub_url=self.config.hub_url,
            config=self.config_view,
            engines=engines,
            economics=self._economics.view(engines, now),
            gpus=self.gpus.view(now),
            sources=tuple(self._source_views()),
            totals=self._books.totals(),
            budgets=self._budgets(now),
            alert_thresholds={
                (alert, severity): value
                for alert, severity, value in thresholds(self.config.alerts)
                if value is not None
            },
            showback=self._showback(now),
            ledger=self._books.ledger(),
        )

    def _showback(self, now: Instant) -> ShowbackView:
        if self.config.role is not Role.LONE:
            return ShowbackView()
        showback = self._books.showback
        return ShowbackView(
            pending={
                engine: pending
                for engine, pending in {**dict.fromkeys(self._terms, 0), **showback.pending_nano_usd()}.items()
                if pending or engine in self._terms
            },
            coverage=showback.coverage(now.wall // NANOSECONDS),
            value_ratios={name: float(ratio) for name, ratio in self.config.features.value_ratio.items()},
        )

    def _budgets(self, now: Instant) -> tuple[BudgetView, ...]:
        if not self._books.budgets:
            return ()
        facts = BudgetFacts(
            accounting_start=self._resume.accounting_start,
            unobserved=self._books.unobserved(),
            engines=[self._cost(name, now) for name in self._terms],
        )
        return tuple(meter.view(now, facts) for meter in self._books.budgets.values())

    def _cost(self, name: str, now: Instant) -> EngineCost:
        terms = self._terms[name]
        return EngineCost(
            name=name,
            model=self._meters[name].model,
            tier=terms.engine.tier or "",
            compute=terms.nano_usd_per_hour(now.wall),
            standing=by_category(self._standing, name, now.wall),
            min_replicas=min_replicas(terms.engine),
        )

    def _source_views(self) -> Iterator[SourceView]:
        for name in self._terms:
            yield self._sources[name].view(self.config.interval)
        for view in (self.gpus.source(), self._network.source(self.config.interval)):
            if view is not None:
                yield view

    def _facts(self, name: str) -> EngineFacts:
        return EngineFacts(
            terms=self._terms[name],
            meter=self._meters[name],
            windows=self._books.windows(name),
            totals=self._books.engine_totals(name),
            gpu_utilization=self.gpus.utilization(name),
        )


def _unobserved(interval: Interval) -> Iterator[Entry]:
    """Yield a gap by quarter-hours, as far back as these are told apart: each period knows its own part of it."""
    told_apart = max(interval.start, interval.end - KEPT_QUARTERS * QUARTER * NANOSECONDS)
    for start, end in pairwise((interval.start, *cuts(told_apart, interval.end), interval.end)):
        yield Entry(Account(Kind.UNOBSERVED, ()), end - start, start)


def terms_of(config: Config, engine: Engine) -> Terms:
    """Return what the config says about one engine; its prices are resolved by what its GPUs say."""
    return Terms(
        engine=engine, gpu=UNNAMED_GPU, gpu_prices=(), away_ns=round(MISSED_BEATS * config.interval * NANOSECONDS)
    )
