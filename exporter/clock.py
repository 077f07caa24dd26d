"""The only module that asks what time it is."""

import time
from typing import NamedTuple, Protocol

NANOSECONDS = 1_000_000_000


class Instant(NamedTuple):
    """One moment on both clocks, in nanoseconds: `wall` since the Unix epoch, `monotonic` since an arbitrary start."""

    wall: int
    monotonic: int

    @property
    def unix_seconds(self) -> float:
        """The wall time as the page prints it."""
        return self.wall / NANOSECONDS


class Clock(Protocol):
    """Tells the time; tests pass one that they move by hand."""

    def now(self) -> Instant:
        """Return the present moment; `monotonic` never goes back."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> Instant:
        """Return the present moment."""
        return Instant(time.time_ns(), time.monotonic_ns())
