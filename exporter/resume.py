"""What outlives a restart beside the totals: where each engine's counters stood, and the samples of every window.

All of it is written in one commit with the money that it agrees with, so that no crash can count anything twice.
"""

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

import msgspec

from exporter.books import Books
from exporter.clock import NANOSECONDS, Instant
from exporter.config.model import Budget
from exporter.core.meter import EngineMeter, MeterState, Terms
from exporter.core.prices import Interval
from exporter.core.track import Track, Values
from exporter.core.windows import EngineTotals
from exporter.ledger import ACCOUNTING_START, LAST_BEAT, Sample, moment

_ENGINE, _PEAK, _BUDGET, _GPUS = "engine:", "peak:", "budget:", "gpus"
_LATE: Final = "api:"  # series that may be asked for later: their price is looked up
_MINUTE: Final = 60
_PEAK_SECONDS: Final = 300
_MILLI: Final = 1000


class Resume:
    """Brings back what an earlier process left in the books' ledger, and leaves the same for the next one."""

    def __init__(self, books: Books, now: Instant) -> None:
        self._books = books
        self._now = now
        self.accounting_start = moment(books.meta, ACCOUNTING_START) or now.wall
        self._last_beat = moment(books.meta, LAST_BEAT)
        self._states = dict(books.states)
        self._series: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
        samples, books.samples = books.samples, ()
        for series, second, values in samples:
            self._series.setdefault(series, []).append((second, values))
        self._sampled = max((second // _MINUTE for _, second, _ in samples), default=None)
        self._written = set(books.states)

    def engine(self, meter: EngineMeter, terms: Terms) -> None:
        """Let a meter that is new to us go on, if the engine was in the earlier process's last config."""
        name = terms.engine.name
        if not self.charged(name):
            return
        state = _decoded(self._states[_ENGINE + name])
        if state is not None:
            meter.restore(state, terms)
        self._books.windows(name).restore(
            ((at, EngineTotals(*values)) for at, values in self._past(_ENGINE + name)),
            ((at, values[0] / _MILLI) for at, values in self._past(_PEAK + name)),
        )

    def budgets(self) -> None:
        """Give the windows of budgets back what was recorded; once, when they are first held."""
        for meter in self._books.budgets.values():
            samples = self._series.pop(_budget_series(meter.budget), [])
            meter.restore(((second, values[0]) for second, values in samples), self._now)

    def track(self, series: str, last: Values) -> Track:
        """Return the totals of a series over the last day, which stand at `last` now."""
        track = Track()
        track.restore(self._series.pop(series, []), self._now, last)
        return track

    def _past(self, series: str) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield (monotonic nanoseconds of now, values) of a series, in order; what lies in the future is left out."""
        for second, values in sorted(self._series.pop(series, [])):
            age = self._now.wall - second * NANOSECONDS
            if age >= 0:
                yield self._now.monotonic - age, values

    def standing(self, now: Instant) -> Interval | None:
        """Return the time since the last beat of an earlier process, for the first beat of this one."""
        return _since(self._last_beat, now)

    def charged(self, engine: str) -> bool:
        """Tell whether an earlier process charged an engine until its last beat; for the first beat of this one."""
        return _ENGINE + engine in self._states

    def gone(self, engines: Collection[str]) -> tuple[list[str], list[Interval]]:
        """Return the engines that an earlier process charged and that are no more, and what it still had to book.

        Several may have waited at once: of their intervals those of the one that waited longest.
        """
        charged = {key.removeprefix(_ENGINE): state for key, state in self._states.items() if key.startswith(_ENGINE)}
        gone = {name: _decoded(state) for name, state in charged.items() if name not in engines}
        waited = [state.pending for state in gone.values() if state]
        return list(gone), max(waited, key=lambda stretch: sum(one.duration_ns for one in stretch), default=[])

    @property
    def gpus(self) -> bytes | None:
        """What an earlier process left of its GPUs; until this one's first beat."""
        return self._states.get(_GPUS)

    def leave(
        self,
        now: Instant,
        meters: Mapping[str, EngineMeter],
        terms: Mapping[str, Terms],
        gpus: bytes | None,
        tracked: Iterable[tuple[str, Values]],
    ) -> None:
        """Hand everything to the ledger: what was posted, and what must agree with it; totals that are tracked too."""
        states: dict[str, bytes | None] = {_ENGINE + name: meter.state(terms[name]) for name, meter in meters.items()}
        states |= {} if gpus is None else {_GPUS: gpus}
        self._states.clear()  # an engine that comes back later has been away
        self._series = {name: past for name, past in self._series.items() if name.startswith(_LATE)}
        gone = self._written - states.keys()
        self._written = set(states)
        meta = {LAST_BEAT: str(now.wall), ACCOUNTING_START: str(self.accounting_start)}
        self._books.flush(states | dict.fromkeys(gone), tuple(self._samples(now, meters, tracked)), meta)

    def _samples(
        self, now: Instant, meters: Mapping[str, EngineMeter], tracked: Iterable[tuple[str, Values]]
    ) -> Iterator[Sample]:
        """Yield a row a minute for all that has windows, and the best rate of each five minutes of each engine."""
        second = now.wall // NANOSECONDS
        if second // _MINUTE == self._sampled:
            return
        self._sampled = second // _MINUTE
        slot = second // _PEAK_SECONDS * _PEAK_SECONDS
        slot_began = now.monotonic - (now.wall - slot * NANOSECONDS)
        for name in meters:
            yield _ENGINE + name, second, tuple(self._books.engine_totals(name))
            peak = self._books.windows(name).peak_since(slot_began)
            if peak is not None:
                yield _PEAK + name, slot, (round(peak * _MILLI),)
        for meter in self._books.budgets.values():
            yield _budget_series(meter.budget), second, (meter.total,)
        for series, values in tracked:
            yield series, second, values


def _budget_series(budget: Budget) -> str:
    """Name a budget's samples by what it matches, too: under another match its total is another sum."""
    return f"{_BUDGET}{budget.name}:{zlib.crc32(msgspec.json.encode(budget.match)):08x}"


def _decoded(state: bytes | None) -> MeterState | None:
    try:
        return None if state is None else msgspec.msgpack.decode(state, type=MeterState)
    except ValueError:  # msgspec's errors, and UnicodeDecodeError
        return None  # of another version: the engine is read as a new one


def _since(wall: int | None, now: Instant) -> Interval | None:
    return None if wall is None or now.wall <= wall else Interval(now.wall, now.wall - wall)
