"""Coverage: how much of what an engine did events have claimed, over the last hours."""

from collections import deque
from typing import Final

from exporter.core.windows import HOUR, MINUTE

WINDOWS: Final = {"5m": 5 * MINUTE, "1h": HOUR, "24h": 24 * HOUR}
_KEPT_SECONDS: Final = 25 * 3600
_MOST_SLOTS: Final = 90_000  # of a second each
_SECOND: Final = 1_000_000_000


class Coverage:
    """Tokens claimed and counted in each settled slot of one engine."""

    def __init__(self) -> None:
        # Unix second of its end, tokens claimed, tokens counted
        self._slots: deque[tuple[int, int, int]] = deque(maxlen=_MOST_SLOTS)

    def add(self, end: int, claimed: int, counted: int) -> None:
        """Add a slot that ended at a Unix second."""
        self._slots.append((end, claimed, counted))
        while self._slots[0][0] < end - _KEPT_SECONDS:
            self._slots.popleft()

    def ratio(self, window: int, until: int) -> float | None:
        """Return tokens claimed ÷ tokens counted of slots that ended in a window (nanoseconds) until a Unix second.

        Above 1 where events claim more than the engine did; None where it counted nothing.
        """
        since = until - window // _SECOND
        found = [(claimed, counted) for end, claimed, counted in self._slots if since < end <= until]
        total = sum(counted for _, counted in found)
        return sum(claimed for claimed, _ in found) / total if total else None
