"""What a beat watches beside its engines: GPUs and the network. Each joins a source, what is remembered, and prices."""

import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from exporter.clock import Clock, Instant
from exporter.config.model import Config, GpuSource, OnFatal
from exporter.config.prices import NetworkPrice
from exporter.core.energy import Draw, Draws, measured
from exporter.core.gpu_readings import GpusReading
from exporter.core.gpus import GpuMeter, GpusState, Shares, expected
from exporter.core.meter import Terms
from exporter.core.money import Account, Entry
from exporter.core.network import NetworkMeter, NetworkReading, charges
from exporter.core.prices import Interval, gpu_timeline, in_force
from exporter.core.readings import Failure
from exporter.core.snapshot import GpusView, SourceView
from exporter.core.windows import MINUTE
from exporter.sources.gpus import GpuSources
from exporter.sources.network import NetworkSource
from exporter.sources.watched import Watched

UNNAMED_GPU: Final = "any"
SEVERAL_GPUS: Final = "several"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the machine or pod around us says: our environment, and the kernel's table of our network interfaces."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    interfaces: Path = Path("/proc/net/dev")


class LostDriverError(Exception):
    """The GPU driver is gone for good, and the config says to end then."""


class WatchState(msgspec.Struct):
    """What a restart of ours must not forget of the GPUs, and of what engines drew whose time may not be booked yet."""

    asked: int
    seen: GpusState
    draws: dict[str, list[Draw]]
    unsteady: dict[str, int]  # Unix nanoseconds


class GpuWatch:
    """The GPUs from beat to beat: what they say, whose they are, and what that does to prices."""

    def __init__(
        self, config: Config, session: aiohttp.ClientSession, clock: Clock, environ: Mapping[str, str]
    ) -> None:
        self._session, self._clock, self._environ = session, clock, environ
        self._meter = GpuMeter()
        self._last: GpusReading | None = None
        self._errors: Mapping[tuple[str, str], int] = {}  # as they were last told, and of the sources before
        self._errors_before: Counter[tuple[str, str]] = Counter()
        self._shares: Mapping[str, Shares] = {}
        self._draws: dict[str, Draws] = {}
        self._unsteady: dict[str, int] = {}  # by engine: when one of its GPUs last did not answer
        self._config = config
        self._sources = self._opened(config)
        self._watched = Watched(self._sources)

    def _opened(self, config: Config) -> GpuSources:
        return GpuSources(config, self._session, self._clock, self._environ)

    def adopt(self, config: Config) -> None:
        """Go by another config from now on; whoever tells of GPUs is asked anew only where it says something else."""
        before, self._config = self._config, config
        names = {engine.name for engine in config.engines}
        self._draws = {name: draws for name, draws in self._draws.items() if name in names}
        if _asks(before) == _asks(config):
            self._sources.adopt(config)
            self._meter.forget(self._sources.is_wanted)
        else:
            self._sources.close()
            self._errors_before, self._errors = self._errors_before + Counter(self._errors), {}
            closed, self._sources = self._sources, self._opened(config)
            if (closed.target, closed.reasons) == (self._sources.target, self._sources.reasons):
                self._watched.reads = self._sources
            else:
                self._watched = Watched(self._sources)
        self._shares = self._meter.shares(config.engines)

    def state(self, now: Instant) -> bytes | None:
        """Return what must outlive us, None where no GPU is known.

        It is JSON, since the nanojoules of some months are beyond the integers of msgpack.
        """
        ahead, charged = now.wall - now.monotonic, {uuid for shares in self._shares.values() for uuid in shares}
        seen = self._meter.state(charged, ahead)
        if seen is None:
            return None
        draws = {engine: draws.to_book() for engine, draws in self._draws.items()}
        unsteady = {name: at + ahead for name, at in self._unsteady.items() if now.monotonic - at <= MINUTE}
        return msgspec.json.encode(WatchState(_looked_for(self._config), seen, draws, unsteady), enc_hook=str)

    def restore(self, left: bytes | None) -> None:
        """Go on where an earlier process stopped, with what its `state` returned; once a config is adopted."""
        state, now = _decoded(left), self._clock.now()
        if state is None:
            return
        ahead = now.wall - now.monotonic
        self._meter.restore(state.seen, ahead, is_same=state.asked == _looked_for(self._config))
        self._unsteady = {name: at - ahead for name, at in state.unsteady.items()}
        for engine in self._draws.keys() & state.draws.keys():
            for draw in state.draws[engine]:
                self._draws[engine].add(draw)

    def rebaseline(self) -> None:
        """Leave out what GPUs draw until the next reading."""
        self._meter.rebaseline()

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
        self._errors = self._last.errors if self._last else self._errors
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
        names = {gpu.name: Fraction(1)} if gpu.name else self._meter.names(shares)
        draws = self._drawn(name, shares, interval)
        timeline = gpu_timeline(self._config.prices.gpu, names)
        now = in_force(measured(timeline, draws.mean()), (interval.end if interval else self._clock.now().wall) - 1)
        by_energy = any(price.nano_usd_per_joule for price in timeline) and draws.to_book()
        is_known = not by_energy or self._is_steady(name, shares)
        return replace(
            terms,
            gpu=next(iter(names)) if len(names) == 1 else (SEVERAL_GPUS if names else UNNAMED_GPU),
            gpu_prices=measured(timeline, draws.to_book()),
            gpu_price_now=now if is_known else replace(now, nano_usd_per_hour=None),
        )

    def _is_steady(self, engine: str, shares: Shares) -> bool:
        """Tell whether all GPUs of an engine answered in the last minute: after a loss, much energy comes at once."""
        now = self._clock.now().monotonic
        if not self._meter.all_up(shares):
            self._unsteady[engine] = now
        return now - self._unsteady.get(engine, now - 2 * MINUTE) > MINUTE

    def _drawn(self, engine: str, shares: Shares, interval: Interval | None) -> Draws:
        drawn, draws = self._meter.drawn(shares), self._draws.setdefault(engine, Draws())
        if drawn is None:
            draws.clear()
        elif interval is not None and interval.duration_ns:
            draws.add(Draw(interval.start, interval.duration_ns, drawn))
        return draws

    def utilization(self, engine: str) -> float | None:
        """Return the mean busy time of an engine's GPUs over the last minute, 0 to 1; None where it is not known."""
        return self._meter.busy_ratio(self._shares.get(engine, {}))

    def view(self, now: Instant) -> GpusView:
        """Return what the page shows."""
        choice = self._sources.choice
        last = None if choice.source == GpuSource.NONE else self._last
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
            errors=self._errors_before + Counter(self._errors),
        )

    def source(self) -> SourceView | None:
        """Return how reading went; None where nobody is asked, and nobody had to be."""
        if self._sources.choice.source == GpuSource.NONE:
            return None
        return self._watched.view(self._config.interval)


def _asks(config: Config) -> object:
    """Return all that decides who is asked."""
    return config.gpu.source, config.gpu.nvml_library, config.gpu.dcgm_url


def _looked_for(config: Config) -> int:
    """Return what is another number once other GPUs are looked for, or are charged to engines in another way."""
    gpus = [engine.gpus for engine in config.engines if engine.gpus]
    return zlib.crc32(msgspec.json.encode((_asks(config), config.gpu.select, gpus), enc_hook=str))


def _decoded(state: bytes | None) -> WatchState | None:
    try:
        return None if state is None else msgspec.json.decode(state, type=WatchState, dec_hook=_fraction)
    except (ValueError, ArithmeticError):  # msgspec's errors, UnicodeDecodeError, and a fraction of 0
        return None  # of another version: the GPUs are read as new ones


def _fraction(_: type, text: str) -> Fraction:
    return Fraction(text)


class NetworkWatch:
    """Bytes sent, from beat to beat; nothing is read without a price."""

    def __init__(self, clock: Clock, interfaces: Path) -> None:
        self._clock, self._interfaces = clock, interfaces
        self._price: NetworkPrice | None = None
        self._watched: Watched[NetworkReading] | None = None
        self._meter = NetworkMeter()
        self._sent_bytes = 0

    def adopt(self, price: NetworkPrice | None) -> None:
        """Charge by another price from now on."""
        if price is None or self._price is None or price.interfaces != self._price.interfaces:
            self._meter.rebaseline()
        if price is None:
            self._watched = None
        elif self._watched is None:
            self._watched = Watched(NetworkSource(price, self._interfaces))
        else:
            self._watched.reads = NetworkSource(price, self._interfaces)
        self._price = price

    async def read(self) -> None:
        """Read all interfaces once."""
        self._sent_bytes = 0
        if self._watched is not None:
            outcome, _ = await self._watched.read(self._clock)
            if not isinstance(outcome, Failure):
                self._sent_bytes = self._meter.advance(outcome)

    def rebaseline(self) -> None:
        """Leave out what is sent until the next reading."""
        self._meter.rebaseline()

    def opened(self, accounts: Mapping[str, Account]) -> Iterator[Entry]:
        """Yield entries of 0 for all that is known to come."""
        if self._price is not None:
            yield from charges(self._price, 0, 0, accounts)

    def charges(self, at: int, accounts: Mapping[str, Account]) -> Iterator[Entry]:
        """Yield what was sent since the last reading costs; `at` is when that time began (Unix nanoseconds)."""
        if self._price is not None:
            yield from charges(self._price, self._sent_bytes, at, accounts)

    def source(self, interval_seconds: float) -> SourceView | None:
        """Return how reading went, None where nothing is read."""
        return self._watched.view(interval_seconds) if self._watched else None
