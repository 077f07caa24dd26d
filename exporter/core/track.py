"""Some totals over the last day: how far they moved in a window."""

from collections.abc import Iterable

from exporter.clock import Instant
from exporter.core.money import NANO
from exporter.core.windows import HOUR, MINUTE, History

Values = tuple[int, ...]


class Track:
    """Totals as they stood at each beat, all of the same length."""

    def __init__(self) -> None:
        self._history = _no_history()

    def restore(self, samples: Iterable[tuple[int, Values]], now: Instant, last: Values) -> None:
        """Bring back what was recorded by Unix second before a restart of ours, if it can lead to `last`."""
        for second, values in sorted(samples):
            age = now.wall - second * NANO
            fits = len(values) == len(last) and all(value <= most for value, most in zip(values, last, strict=True))
            if age >= 0 and fits:
                self._history.append(now.monotonic - age, values)

    def record(self, at: int, values: Values) -> None:
        """Remember totals at a monotonic time."""
        self._history.append(at, values)

    def forget(self) -> None:
        """Begin anew, after a gap of which nothing is known."""
        self._history = _no_history()

    def moved(self, at: int, window: int) -> tuple[int, Values] | None:
        """Return the nanoseconds known of the window before a monotonic time, and what moved in them; None at first."""
        if not len(self._history):
            return None
        since, then = self._history.before(at - window)
        until, last = self._history.before(at)
        return until - since, tuple(new - old for new, old in zip(last, then, strict=True))


def _no_history() -> History[Values]:
    return History(fine=6 * MINUTE, keep=25 * HOUR)
