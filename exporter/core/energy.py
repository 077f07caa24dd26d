"""Energy as money: what a GPU drew, measured beat by beat or assumed, becomes a part of its price for an hour."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from exporter.core.money import NANO
from exporter.core.prices import HourlyPrice, in_force

_SECONDS_AN_HOUR: Final = 3600
_MINUTE: Final = 60 * NANO
_STILL_TO_BOOK: Final = 5  # beats: more than a meter keeps pending


@dataclass(frozen=True, slots=True)
class Draw:
    """The energy that one average GPU of an engine drew in one beat, which began at `start` (Unix nanoseconds).

    To be booked exactly it has the start and the length of the interval that the beat charges.
    """

    start: int
    duration_ns: int
    nanojoules: Fraction

    def covers(self, at: int) -> bool:
        """Say whether an instant (Unix nanoseconds) lies in it; its end does not."""
        return self.start <= at < self.start + self.duration_ns

    @property
    def watts(self) -> Fraction:
        """Its mean power: nanojoules a nanosecond."""
        return self.nanojoules / self.duration_ns


class Draws:
    """What an engine's average GPU drew, beat by beat: what may still be booked, and the last minute."""

    def __init__(self) -> None:
        self._draws: deque[Draw] = deque()

    def add(self, draw: Draw) -> None:
        """Add the newest."""
        self._draws.append(draw)
        while len(self._draws) > _STILL_TO_BOOK and self._draws[0].start < draw.start - _MINUTE:
            self._draws.popleft()

    def clear(self) -> None:
        """Forget all: nobody can tell any more, which is not a draw of 0."""
        self._draws.clear()

    def to_book(self) -> list[Draw]:
        """Return those whose time may not be booked yet, in the order of the beats."""
        return list(self._draws)[-_STILL_TO_BOOK:]

    def mean(self) -> list[Draw]:
        """Return the last minute as one draw, so that a counter that moves in steps shows as a steady power."""
        if not self._draws:
            return []
        duration = sum(draw.duration_ns for draw in self._draws)
        end = self._draws[-1].start + self._draws[-1].duration_ns
        return [Draw(end - duration, duration, sum((draw.nanojoules for draw in self._draws), Fraction(0)))]


def measured(timeline: tuple[HourlyPrice, ...], draws: Sequence[Draw]) -> tuple[HourlyPrice, ...]:
    """Turn prices with energy terms into plain ones: power × price of energy is added to what an hour costs.

    Within a draw the power is the draw's own, outside of all draws it is 0: a counter of energy that could not be read
    for a beat gives that beat's part with the next draw. Where nothing was ever measured the power is the assumed one,
    and without it the price is not known.

    After the wall clock was set back, draws overlap: the later one holds, so that the beat of the moment is booked
    exactly, and one that still waits for a reading is booked by the later draw's power as far as both cover it.

    Args:
        timeline: prices of one GPU.
        draws: of the last beats, in the order of the beats, with all that is still to be booked; empty as long as no
            energy was ever measured.
    """
    if not any(price.nano_usd_per_joule for price in timeline):
        return timeline
    edges = {edge for draw in draws for edge in (draw.start, draw.start + draw.duration_ns)}
    starts = sorted(edges | {price.start for price in timeline})
    return tuple(_plain(in_force(timeline, start), draws, start) for start in starts)


def _plain(price: HourlyPrice, draws: Sequence[Draw], at: int) -> HourlyPrice:
    if price.nano_usd_per_hour is None or not price.nano_usd_per_joule:
        return replace(price, start=at)
    watts = _watts(draws, at) if draws else price.assumed_watts
    energy = None if watts is None else watts * _SECONDS_AN_HOUR * price.nano_usd_per_joule
    return HourlyPrice(at, None if energy is None else price.nano_usd_per_hour + energy, price.source)


def _watts(draws: Sequence[Draw], at: int) -> Fraction:
    return next((draw.watts for draw in reversed(draws) if draw.covers(at)), Fraction(0))
