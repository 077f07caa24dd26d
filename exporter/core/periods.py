"""Calendar days and months of a time zone as exact stretches of time, and amounts that are summed over them."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Final
from zoneinfo import ZoneInfo

from exporter.core.money import NANO

QUARTER: Final = 900  # seconds: amounts are kept by quarter-hours of Unix time
KEPT_QUARTERS: Final = 45 * 86400 // QUARTER  # the longest month, the seven days before it, and some more


@dataclass(frozen=True, slots=True)
class Period:
    """Time from `start` to before `end`, both in Unix nanoseconds."""

    start: int
    end: int

    def __contains__(self, at: int) -> bool:
        return self.start <= at < self.end

    @property
    def length(self) -> int:
        """How long it is, in nanoseconds: a day may have 23 or 25 hours."""
        return self.end - self.start


def day(zone: ZoneInfo, at: int) -> Period:
    """Return the local day that holds an instant (Unix nanoseconds)."""
    return _holding(zone, at, _date(zone, at // NANO), lambda first: first + timedelta(days=1))


def month(zone: ZoneInfo, at: int) -> Period:
    """Return the local calendar month that holds an instant (Unix nanoseconds)."""
    first = _date(zone, at // NANO).replace(day=1)
    return _holding(zone, at, first, lambda first: (first + timedelta(days=31)).replace(day=1))


def whole_days(zone: ZoneInfo, until: int, count: int) -> list[Period]:
    """Return the last local days that were over at an instant (Unix nanoseconds), the oldest first."""
    days: list[Period] = []
    end = day(zone, until).start
    for _ in range(count):
        days.append(day(zone, end - 1))
        end = days[-1].start
    return days[::-1]


def _holding(zone: ZoneInfo, at: int, first: date, after: Callable[[date], date]) -> Period:
    """Return the period that holds an instant, which lies in the one of the date `first` or, rarely, in the next.

    In the next, where clocks are put back from after midnight to before it: the new date has begun by then, and what
    the clock shows once more is no return of the old one.
    """
    following = after(first)
    end = _begin(zone, following)
    return Period(_begin(zone, first), end) if at < end else _holding(zone, at, following, after)


@lru_cache(maxsize=512)
def _begin(zone: ZoneInfo, first: date) -> int:
    """Return the first instant (Unix nanoseconds) at which the local date is `first` or a later one.

    Where the clock is changed, midnight lies at two instants, one by the offset before the change and one by that
    after it (PEP 495). It came twice if the one by the old offset is the earlier, and that one counts. If it is the
    later, clocks skipped midnight: the date began with the change itself, which lies between the two.
    """
    by_old, by_new = (
        int(datetime(first.year, first.month, first.day, tzinfo=zone, fold=fold).timestamp()) for fold in (0, 1)
    )
    if by_old > by_new:
        by_old = by_new + bisect_left(range(by_new, by_old), first, key=lambda second: _date(zone, second))
    return by_old * NANO


def _date(zone: ZoneInfo, second: int) -> date:
    return datetime.fromtimestamp(second, zone).date()


def cuts(start: int, end: int) -> range:
    """Return where quarter-hours begin between two instants (all in Unix nanoseconds), to split what crosses them."""
    step = QUARTER * NANO
    return range((start // step + 1) * step, end, step)


class Quarters:
    """Amounts by quarter-hour, booked in any order: their sum over a period, and over all time.

    Only the newest `KEPT_QUARTERS` are told apart; the rest stays in the sum over all time.
    """

    def __init__(self, amounts: Mapping[int, int] | None = None, before: int = 0) -> None:
        """Begin with amounts by the Unix second at which their quarter begins, and a sum of all before them."""
        amounts = amounts or {}
        self._starts = sorted(amounts)
        self._sums = list(accumulate((amounts[start] for start in self._starts), initial=before))  # before each start
        self._forget()

    @property
    def total(self) -> int:
        """The sum over all time."""
        return self._sums[-1]

    def add(self, amount: int, at: int) -> None:
        """Book an amount at an instant (Unix nanoseconds)."""
        if not amount:
            return
        start = at // NANO // QUARTER * QUARTER
        index = bisect_left(self._starts, start)
        if index == len(self._starts) or self._starts[index] != start:
            self._starts.insert(index, start)
            self._sums.insert(index, self._sums[index])
        for later in range(index + 1, len(self._sums)):
            self._sums[later] += amount
        self._forget()

    def told_apart(self) -> tuple[dict[int, int], int]:
        """Return the amounts by the second at which their quarter begins, and the sum of all before them."""
        moved = (after - before for before, after in pairwise(self._sums))
        return dict(zip(self._starts, moved, strict=True)), self._sums[0]

    def within(self, period: Period) -> int:
        """Return the sum of the quarters that begin in a period."""
        first, end = (bisect_left(self._starts, -(-at // NANO)) for at in (period.start, period.end))
        return self._sums[end] - self._sums[first]

    def _forget(self) -> None:
        surplus = max(len(self._starts) - KEPT_QUARTERS, 0)
        del self._starts[:surplus], self._sums[:surplus]


def merged(several: Iterable[Quarters]) -> Quarters:
    """Return the sum of several."""
    amounts: Counter[int] = Counter()
    before = 0
    for quarters in several:
        newer, older = quarters.told_apart()
        amounts.update(newer)
        before += older
    return Quarters(amounts, before)
