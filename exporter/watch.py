"""What a beat watches beside its engines: GPUs and the network. Each joins a source, what is remembered, and prices."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Final

import aiohttp

from exporter.clock import Clock, Instant
from exporter.config.model import Config, GpuSource, OnFatal
from exporter.config.prices import NetworkPrice
from exporter.core.energy import Draw, measured
from exporter.core.gpu_readings import GpusReading
from exporter.core.gpus import GpuMeter, Shares, expected
from exporter.core.meter import PENDING_BEATS, Terms
from exporter.core.money import Account, Entry
from exporter.core.network import NetworkMeter, NetworkReading, charges
from exporter.core.prices import Interval, gpu_timeline
from exporter.core.readings import Failure
from exporter.core.snapshot import GpusView, SourceView
from exporter.sources.gpus import GpuSources, named_uuids
from exporter.sources.network import NetworkSource
from exporter.sources.watched import Watched

UNNAMED_GPU: Final = "any"
SEVERAL_GPUS: Final = "several"
_DRAWS: Final = PENDING_BEATS + 2  # of energy: as many as there can be intervals that are not booked yet


class LostDriverError(Exception):
    """The GPU driver is gone for good, and the config says to end then."""


class GpuWatch:
    """The GPUs from beat to beat: what they say, whose they are, and what that does to prices."""

    def __init__(
        self, config: Config, session: aiohttp.ClientSession, clock: Clock, environ: Mapping[str, str]
    ) -> None:
        self._session, self._clock, self._environ = session, clock, environ
        self._meter = GpuMeter()
        self._last: GpusReading | None = None
        self._shares: Mapping[str, Shares] = {}
        self._draws: dict[str, deque[Draw]] = {}
        self._open(config)

    def _open(self, config: Config) -> None:
        self._config = config
        self._sources = GpuSources(config, self._session, self._clock, self._environ)
        self._watched = Watched(self._sources)

    def adopt(self, config: Config) -> None:
        """Go by another config from now on; whoever tells of GPUs is asked anew only where it says something else."""
        before, self._config = self._config, config
        if _asks(before) != _asks(config):
            self._sources.close()
            self._open(config)

    def close(self) -> None:
        """Let go of the driver."""
        self._sources.close()

    def release(self) -> bool | None:
        """Let go of the driver for a while, or take it back; returns whether it is let go, None without one."""
        return self._sources.release(self._config.gpu.release)

    async def read(self) -> None:
        """Read all GPUs once.

        Raises:
            LostDriverError: they are gone for good, and the config says to end then.
        """
        outcome, _ = await self._watched.read(self._clock)
        self._last = None if isinstance(outcome, Failure) else outcome
        self._meter.advance(self._last)
        self._shares = self._meter.shares(self._config.engines)
        if self._sources.is_lost_for_good and self._config.gpu.on_fatal is OnFatal.EXIT:
            raise LostDriverError(f"the GPU driver is gone: {self._watched.problem}")

    def priced(self, terms: Terms, interval: Interval | None) -> Terms:
        """Return an engine's terms with the prices that its GPUs have: by their names, and with the energy they drew.

        Args:
            terms: what the config says.
            interval: what is to be charged; the energy since the last reading was drawn in it.
        """
        name, gpu = terms.engine.name, self._config.gpu
        shares = self._shares.get(name, {})
        drawn = self._meter.drawn(shares)
        draws = self._draws.setdefault(name, deque(maxlen=_DRAWS))
        if drawn is not None and interval is not None and interval.duration_ns:
            draws.append(Draw(interval.start, interval.duration_ns, drawn))
        names = {gpu.name: Fraction(1)} if gpu.name else self._meter.names(shares)
        label = next(iter(names)) if len(names) == 1 else (SEVERAL_GPUS if names else UNNAMED_GPU)
        timeline = gpu_timeline(self._config.prices.gpu, names)
        prices = measured(timeline, draws)
        current = prices is timeline or not draws or self._meter.all_up(shares)
        return replace(terms, gpu=label, gpu_prices=prices, price_is_current=current)

    def utilization(self, engine: str) -> float | None:
        """Return the mean busy time of an engine's GPUs over the last minute, 0 to 1; None where it is not known."""
        return self._meter.busy_ratio(self._shares.get(engine, {}))

    def view(self, now: Instant) -> GpusView:
        """Return what the page shows."""
        choice, last = self._sources.choice, self._last
        engines = [
            (engine, *identity)
            for engine, shares in self._shares.items()
            for identity in self._meter.identities(shares)
        ]
        return GpusView(
            source=choice.source,
            reason=choice.reason,
            detail=choice.detail,
            driver=last.driver if last else None,
            visible=self._sources.visible if self._sources.visible is not None else len(last.gpus) if last else None,
            expected=expected(self._config.engines),
            gpus=self._meter.views(now.monotonic),
            engines=tuple(engines),
            errors=last.errors if last else {},
        )

    def source(self) -> SourceView | None:
        """Return how reading went; None where nobody is asked, and nobody had to be."""
        if self._sources.choice.source == GpuSource.NONE:
            return None
        return self._watched.view(self._config.interval)


def _asks(config: Config) -> object:
    """Return all that decides who is asked, and for what."""
    return config.gpu, named_uuids(config), config.interval


class NetworkWatch:
    """Bytes sent, from beat to beat; nothing is read without a price."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._price: NetworkPrice | None = None
        self._watched: Watched[NetworkReading] | None = None
        self._meter = NetworkMeter()
        self._sent_bytes = 0

    def adopt(self, price: NetworkPrice | None) -> None:
        """Charge by another price from now on."""
        if price is None or self._price is None or price.interfaces != self._price.interfaces:
            self._meter.rebaseline()
            self._watched = None if price is None else Watched(NetworkSource(price))
        self._price = price

    async def read(self) -> None:
        """Read all interfaces once."""
        self._sent_bytes = 0
        if self._watched is not None:
            outcome, _ = await self._watched.read(self._clock)
            if not isinstance(outcome, Failure):
                self._sent_bytes = self._meter.advance(outcome)

    def charges(self, at: int, accounts: Mapping[str, Account]) -> Iterator[Entry]:
        """Yield what was sent since the last reading costs; `at` is when that time began (Unix nanoseconds)."""
        if self._price is not None:
            yield from charges(self._price, self._sent_bytes, at, accounts)

    def source(self, interval_seconds: float) -> SourceView | None:
        """Return how reading went, None where nothing is read."""
        return self._watched.view(interval_seconds) if self._watched else None
