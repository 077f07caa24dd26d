"""The board: the one place where the latest snapshot hangs, with its page."""

from collections.abc import Callable
from typing import Final

from exporter.clock import NANOSECONDS, Clock
from exporter.core.snapshot import MISSED_BEATS, Snapshot
from exporter.metrics import ROWS
from exporter.page import Page, PageWriter

_DEAD_SECONDS: Final = 60.0


class Board:
    """Holds what was published last. A request reads it whole: no I/O, no lock, no half-updated numbers."""

    def __init__(self, clock: Clock, first: Snapshot, own: Callable[[], bytes]) -> None:
        """Begin with a snapshot that no beat has made; `own` writes the exporter's own page part beside a beat's."""
        self._clock, self._own = clock, own
        self._writer = PageWriter(ROWS)
        self.expects_beats = False
        self._published = clock.now().monotonic
        self.snapshot = first
        self._page = self._writer.write(first)
        self._old_page: Page | None = None

    def publish(self, snapshot: Snapshot) -> None:
        """Replace the snapshot; one that holds engines is a beat's."""
        self._published = self._clock.now().monotonic
        self.snapshot = snapshot
        self._page = self._writer.write(snapshot, self._own() if snapshot.engines else b"")
        self._old_page = None

    def page(self) -> Page:
        """Return the page; after three missed beats only its counters and health families."""
        if not self._has_missed_beats():
            return self._page
        if self._old_page is None:
            self._old_page = self._writer.write(self.snapshot, self._own(), only_staying=True)
        return self._old_page

    def stands_seconds(self) -> float | None:
        """Say how long ago the last beat was, where three were missed; None while it goes on or has yet to begin."""
        return self.age_seconds() if self.snapshot.interval_seconds and self._has_missed_beats() else None

    def _has_missed_beats(self) -> bool:
        return self.expects_beats and self.age_seconds() > MISSED_BEATS * self.snapshot.interval_seconds

    def is_alive(self) -> bool:
        """Tell whether the beat has shown life in the last minute, or has never had to."""
        return not self.expects_beats or self.age_seconds() <= max(
            _DEAD_SECONDS, MISSED_BEATS * self.snapshot.interval_seconds
        )

    def age_seconds(self) -> float:
        """Say how long ago the snapshot was published, whatever the wall clock has done since."""
        return (self._clock.now().monotonic - self._published) / NANOSECONDS
