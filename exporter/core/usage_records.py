"""Others' records of calls to models, in place of usage events: each good one is booked, each bad one is named.

Whoever sends them cannot mend them, and sends many at once: one that is bad may not take the others with it.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Final, Generic, TypeVar

from exporter.core.calls import Call, Found
from exporter.core.refused import TooManyError, shown
from exporter.core.usage_body import MOST_TOKENS, SLICE, Body, Checker, Event, Refusal, Usage

Item = TypeVar("Item")

_SLICE_SECONDS: Final = 0.01
MOST_RECORDS: Final = 10_000  # of one body
MOST_VALUES: Final = 500_000  # of one body in JSON, about: all would be in memory at once


class Records(Generic[Item]):
    """The records of one body, read in slices so that other work gets its turn in between."""

    is_whole = False

    def __init__(
        self,
        items: Iterable[tuple[int, Item]],
        call: Callable[[Item], Call | None],
        find: Callable[[Call], Found],
        checker: Checker,
        default_feature: str,
    ) -> None:
        """Begin to read.

        Args:
            items: the records, with their numbers.
            call: returns what a record says, or None where nothing was used; raises ValueError.
            find: returns what did the work.
            checker: checks names, tokens and times.
            default_feature: whose a call is that names none, or no possible one: callers write it, and must pay.
        """
        self._items, self._call, self._find, self._checker = items, call, find, checker
        self._default_feature = default_feature
        self.refused: list[Refusal] = []
        self.skipped = 0
        self.count = 0  # so far

    def where(self, number: int) -> str:
        """Say in words where a record stands."""
        return f"record {number}"

    def slices(self) -> Iterator[list[Usage]]:
        """Yield what the good ones say, some at a time: as many as are read in little time, since some take long."""
        found: list[Usage] = []
        until = perf_counter() + _SLICE_SECONDS
        for number, item in self._items:
            self.count += 1
            try:
                call = self._call(item)
                if call is None:
                    self.skipped += 1
                else:
                    found.append(self._checker.usage(number, self._event(call), call))
            except (ValueError, ArithmeticError, RecursionError) as error:
                self.refuse(number, error)
            if self.count % SLICE == 0 or perf_counter() > until:
                yield found
                found, until = [], perf_counter() + _SLICE_SECONDS
        yield found

    def refuse(self, number: int, error: Exception) -> None:
        """Leave a record out."""
        self.refused.append(Refusal(number, str(error)))

    def _event(self, call: Call) -> Event:
        found, can_be = self._find(call), self._checker.can_be
        return Event(
            id=call.id,
            feature=call.feature if can_be("feature", call.feature) else self._default_feature,
            team=call.team if call.team and can_be("team", call.team) else None,
            engine=found.engine,
            provider=found.provider,
            model=found.model,
            input_tokens=call.input_tokens,
            cached_input_tokens=call.cached_input_tokens,
            output_tokens=call.output_tokens,
            at=None if call.second is None else _iso(call.second),
        )


Reading = Body | Records[Any]  # a body that is read: of our own events, or of others' records


def expect_few(what: str, count: int, most: int) -> None:
    """Raise TooManyError where a body has more of something than is read of one."""
    if count > most:
        raise TooManyError(f"expected at most {most} {what} in a body, found more")


def tokens(what: str, count: object) -> int:
    """Return a count of tokens; raises ValueError."""
    whole = int(count) if isinstance(count, float) and count.is_integer() else count  # infinity is none
    if type(whole) is not int or not 0 <= whole <= MOST_TOKENS:
        raise ValueError(f"{what}: expected an integer from 0 to {MOST_TOKENS}, found {shown(count)}")
    return whole


def _iso(second: float) -> str:
    try:
        return datetime.fromtimestamp(second, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"end: expected Unix seconds, found {shown(second)}") from None
