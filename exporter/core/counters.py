"""How far an engine's counters moved between two readings, through restarts, new series and gaps.

Every series is compared with its own last value before anything is summed: a sum would hide one rank's restart behind
another's work.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from exporter.core.readings import Buckets, EngineReading, HistogramSeries, Series

_START_TIME_TOLERANCE_SECONDS: Final = 2.0
_PROCESSES_REMEMBERED: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """What happened since the last reading.

    `started` is the Unix time at which a process that is new to us began, None where it is the known one or does not
    say; `restarted` is True where the process is another one than at the last reading.
    """

    restarted: bool
    started: float | None
    counters: Mapping[Series, int]
    ttft: Mapping[HistogramSeries, Buckets]


class Process(msgspec.Struct):
    """The last value of every series of one process of the engine."""

    start_time: float | None
    counters: dict[Series, int] = {}
    ttft: dict[HistogramSeries, Buckets] = {}

    def fell(self, reading: EngineReading) -> bool:
        """Tell whether any counter is lower than it was."""
        return any(value < self.counters.get(series, 0) for series, value in reading.counters.items())

    def is_of(self, reading: EngineReading) -> bool:
        """Tell whether a reading comes from this process; False where one of them does not say."""
        if reading.start_time is None or self.start_time is None:
            return False
        return abs(reading.start_time - self.start_time) <= _START_TIME_TOLERANCE_SECONDS


class Known(msgspec.Struct):
    """What a restart of ours must not forget: every series as it last stood, the process that was read last at the end.

    `watched_since` is the Unix time from which on nothing can have happened unseen: our own first look, later the
    last reading.
    """

    watched_since: float
    first_look: float
    processes: list[Process] = []


class Baselines:
    """Knows every series of one engine as it last stood."""

    def __init__(self, watched_since: float) -> None:
        self.known = Known(watched_since, watched_since)

    def advance(self, reading: EngineReading, at: float) -> Movement:
        """Compare a reading, made at Unix time `at`, with the last one and remember it.

        The first reading is a baseline, unless the process began while we watched: then its values count in full, as
        they do after a restart. A series that appears later counts in full. One that is missing keeps its baseline.
        """
        last = self.known.processes[-1] if self.known.processes else None
        process = self._known(reading)
        is_new = process is None
        process = process or Process(reading.start_time)
        began_meanwhile = self.known.watched_since < (reading.start_time or 0.0) <= at + _START_TIME_TOLERANCE_SECONDS
        counts_in_full = last is not None or began_meanwhile
        movement = Movement(
            restarted=is_new and last is not None and self._can_be_a_restart(reading, last),
            started=reading.start_time if is_new and counts_in_full else None,
            counters={
                series: _moved(process, series, value, counts_in_full) for series, value in reading.counters.items()
            },
            ttft={series: _observed(process, series, value, counts_in_full) for series, value in reading.ttft.items()},
        )
        process.counters.update(reading.counters)
        process.ttft.update(reading.ttft)
        process.start_time = reading.start_time or process.start_time
        others = [other for other in self.known.processes if other is not process]
        self.known.processes = [*others, process][-_PROCESSES_REMEMBERED:]
        self.known.watched_since = at
        return movement

    def _can_be_a_restart(self, reading: EngineReading, last: Process) -> bool:
        """Tell a restart from another replica that answers in turn and was there before we first looked."""
        return reading.start_time is None or reading.start_time > self.known.first_look or last.fell(reading)

    def _known(self, reading: EngineReading) -> Process | None:
        """Find the process that answered; None when it is a new one.

        An address may lead to several replicas in turn, so that an earlier process can answer again: it goes on from
        its own values.
        """
        if not self.known.processes:
            return None
        last = self.known.processes[-1]
        if reading.start_time is None or last.start_time is None:
            began_since = reading.start_time is not None and reading.start_time > self.known.watched_since
            return None if began_since or last.fell(reading) else last
        return next((process for process in reversed(self.known.processes) if process.is_of(reading)), None)


def _moved(process: Process, series: Series, value: int, counts_in_full: bool) -> int:  # noqa: FBT001 - by position
    last = process.counters.get(series, 0 if counts_in_full else value)
    return value - last if value >= last else value


def _observed(process: Process, series: HistogramSeries, value: Buckets, counts_in_full: bool) -> Buckets:  # noqa: FBT001
    empty = Buckets(value.bounds, (0,) * len(value.counts), 0.0)
    last = process.ttft.get(series, empty if counts_in_full else value)
    if last.bounds != value.bounds or any(new < old for new, old in zip(value.counts, last.counts, strict=True)):
        return value
    counts = tuple(new - old for new, old in zip(value.counts, last.counts, strict=True))
    return Buckets(value.bounds, counts, max(value.sum - last.sum, 0.0))


def added(total: Buckets | None, more: Buckets) -> Buckets:
    """Add observations to a histogram; where the bounds changed, the histogram begins anew."""
    if total is None or total.bounds != more.bounds:
        return more
    counts = tuple(old + new for old, new in zip(total.counts, more.counts, strict=True))
    return Buckets(total.bounds, counts, total.sum + more.sum)
