"""Totals as they stood some time ago, and what moved since: the ground of every rate, ratio and percentile."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from exporter.core.money import NANO

Value = TypeVar("Value")

MINUTE: Final = 60 * NANO
HOUR: Final = 60 * MINUTE
WINDOWS: Final = {"5m": 5 * MINUTE, "1h": HOUR, "24h": 24 * HOUR}
_FIVE_MINUTES: Final = 5 * MINUTE
_PEAK_MEMORY: Final = 7 * 24 * HOUR


class History(Generic[Value]):
    """Values over monotonic time: all of the last `fine` nanoseconds, then one for each `coarse`, up to `keep`."""

    def __init__(self, *, fine: int, coarse: int = MINUTE, keep: int) -> None:
        self._fine, self._coarse, self._keep = fine, coarse, keep
        self._times: list[int] = []
        self._values: list[Value] = []
        self._thinned = 0  # how many of the oldest are already one for each `coarse`

    def append(self, at: int, value: Value) -> None:
        """Add the newest value; time must not go back."""
        self._times.append(at)
        self._values.append(value)
        while self._times[self._thinned] < at - self._fine:
            first_of_its_step = self._thinned == 0 or (
                self._times[self._thinned] // self._coarse > self._times[self._thinned - 1] // self._coarse
            )
            if first_of_its_step:
                self._thinned += 1
            else:
                del self._times[self._thinned], self._values[self._thinned]
        while self._thinned > 1 and self._times[1] <= at - self._keep:
            del self._times[0], self._values[0]
            self._thinned -= 1

    def __len__(self) -> int:
        return len(self._times)

    def before(self, at: int) -> tuple[int, Value]:
        """Return the newest (time, value) at or before a time, or the oldest there is; LookupError when empty."""
        if not self._times:
            raise LookupError("nothing has been recorded yet")
        index = max(bisect_right(self._times, at) - 1, 0)
        return self._times[index], self._values[index]


class EngineTotals(NamedTuple):
    """What an engine has cost (nano-dollars, all but API), what had no price, and what it did, since the start."""

    spend: int
    unpriced_gpu_ns: int
    prompt_tokens: int
    output_tokens: int


class Moved(NamedTuple):
    """What an engine cost and did in a window; `duration_ns` is what of the window is known."""

    duration_ns: int
    spend: int
    unpriced_gpu_ns: int
    prompt_tokens: int
    output_tokens: int


class EngineWindows:
    """The windows of one engine over money and tokens, and its best five minutes of the last seven days."""

    def __init__(self) -> None:
        self._history = _no_history()
        self._peaks: dict[int, float] = {}  # by five minutes: the best rate seen in them

    def record(self, at: int, totals: EngineTotals) -> None:
        """Remember the totals at a monotonic time."""
        self._history.append(at, totals)
        last = self.moved(at, _FIVE_MINUTES, totals)
        if last.duration_ns >= _FIVE_MINUTES:
            slot = at // _FIVE_MINUTES
            rate = last.output_tokens * NANO / last.duration_ns
            if slot not in self._peaks:
                oldest = slot - _PEAK_MEMORY // _FIVE_MINUTES
                self._peaks = {at_slot: peak for at_slot, peak in self._peaks.items() if at_slot > oldest}
            self._peaks[slot] = max(rate, self._peaks.get(slot, 0.0))

    def restore(self, totals: Iterable[tuple[int, EngineTotals]], peaks: Iterable[tuple[int, float]]) -> None:
        """Bring back what was recorded before a restart of ours, by monotonic times of now; before anything else."""
        for at, then in totals:
            self._history.append(at, then)
        for at, rate in peaks:
            slot = at // _FIVE_MINUTES
            self._peaks[slot] = max(rate, self._peaks.get(slot, 0.0))

    def forget(self) -> None:
        """Begin the windows anew, after a gap that nothing was booked for."""
        self._history = _no_history()

    def peak_since(self, at: int) -> float | None:
        """Return the best rate seen since the beginning of the five minutes that hold a monotonic time."""
        return max((rate for slot, rate in self._peaks.items() if slot >= at // _FIVE_MINUTES), default=None)

    def moved(self, at: int, window: int, now: EngineTotals) -> Moved:
        """Return what moved in the window (nanoseconds) before a monotonic time; a young history is shorter than it."""
        since, then = self._history.before(at - window)
        return Moved(at - since, *(new - old for new, old in zip(now, then, strict=True)))

    def peak_output_tokens_per_second(self) -> float | None:
        """Return the best five minutes of the last seven days; None before the first five are over."""
        return max(self._peaks.values(), default=None)


def _no_history() -> History[EngineTotals]:
    return History(fine=6 * MINUTE, keep=25 * HOUR)


def quantile(q: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """Return the q-quantile of a cumulative histogram as PromQL's `histogram_quantile` does; None when it is empty.

    Linear inside the bucket that holds it; in the +Inf bucket the highest finite bound; the first bucket begins at 0.
    """
    total = counts[-1] if counts else 0
    if total <= 0:
        return None
    rank = q * total
    index = next(i for i, count in enumerate(counts) if count >= rank)
    if index == len(counts) - 1:
        return bounds[-2] if len(bounds) > 1 else None
    lower, below = (bounds[index - 1], counts[index - 1]) if index else (min(0.0, bounds[0]), 0)
    inside = counts[index] - below
    return lower + (bounds[index] - lower) * ((rank - below) / inside) if inside else bounds[index]
