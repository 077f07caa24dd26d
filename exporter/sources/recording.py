"""An engine's pages over time in one `.jsonl.xz` file, and the same pages played back on another clock.

A line is `{"at": Unix seconds, "status": 200, "type": "text/plain", "body": "…"}`, or `{"at": …, "error": "…"}` where
nothing answered.
"""

import json
import lzma
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from exporter.sources.exposition import cut

_LINES_PER_STREAM: Final = 60  # a file that is cut off loses no more than these
_START_TIME: Final = "process_start_time_seconds"
_START_TIME_TOLERANCE_SECONDS: Final = 2.0
_USUAL_STEP_SECONDS: Final = 5.0
_LATEST: Final = 1e11  # Unix seconds


class RecordingError(ValueError):
    """A file that is not a recording; says where and what was expected."""


class Loop(StrEnum):
    """What follows the end: the engine restarts with the recording, goes on counting, or is gone."""

    RESTART = "restart"
    CONTINUE = "continue"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Record:
    """One read: the page (kept compressed) and its status, or why there was none."""

    at: float
    status: int = 0
    content_type: str = ""
    packed: bytes = b""
    error: str | None = None

    @property
    def body(self) -> str:
        """The page as it was read."""
        return zlib.decompress(self.packed).decode(errors="replace") if self.packed else ""


class Writer:
    """Appends records to a file, a compressed stream for each few minutes, so that a crash costs only the last ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = lzma.open(path, "xb")  # noqa: SIM115 - closed by close()
        self._lines = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, record: Record) -> None:
        """Append one record."""
        line: dict[str, object] = {"at": round(record.at, 3)}
        if record.error is None:
            line |= {"status": record.status, "type": record.content_type, "body": record.body}
        else:
            line |= {"error": record.error}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._lines += 1
        if self._lines % _LINES_PER_STREAM == 0:
            self._file.close()
            self._file = lzma.open(self._path, "ab")  # noqa: SIM115 - closed by close()


def read(path: Path) -> tuple[Record, ...]:
    """Read a recording; a last part that was cut off is left out.

    Raises:
        RecordingError: the file is no recording, or holds no page.
    """
    records = []
    try:
        with lzma.open(path, "rb") as file:
            for number, line in enumerate(_lines(file), start=1):
                records.append(_record(line, number, path))
    except (OSError, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or "not a file in xz format"
        raise RecordingError(f"{path}: expected a recording, found: {reason}") from error
    if not any(record.error is None for record in records):
        raise RecordingError(f"{path}: expected at least one page, found none")
    return tuple(sorted(records, key=lambda record: record.at))


def _lines(file: lzma.LZMAFile) -> Iterator[bytes]:
    try:
        yield from file
    except EOFError:
        return


def _record(line: bytes, number: int, path: Path) -> Record:
    try:
        found = json.loads(line)
        at = float(found["at"])
        if found.get("error"):
            record = Record(at, error=str(found["error"]))
        else:
            packed = zlib.compress(found["body"].encode())
            record = Record(at, int(found["status"]), str(found["type"]), packed)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _odd(number, path) from error
    is_whole = record.error is not None or record.status in range(200, 600)
    if not 0 <= at < _LATEST or not is_whole or not record.content_type.isprintable():
        raise _odd(number, path)
    return record


def _odd(number: int, path: Path) -> RecordingError:
    expected = 'a JSON object with "at" and "status", "type", "body", or "error"'
    return RecordingError(f"{path}: line {number}: expected {expected}, found something else")


class Life(NamedTuple):
    """Which process of the engine a page belongs to: its number in the recording, and its start, if it says so."""

    number: int
    start_time: float | None


class Cue(NamedTuple):
    """A record to be played, its place in the recording, and how many passes came before."""

    record: Record
    passes: int
    place: int


class Playback:
    """Plays a recording on another clock: `began` is the Unix time at which it starts, `speed` how fast time goes."""

    def __init__(
        self, records: tuple[Record, ...], *, loop: Loop, began: float, speed: float = 1.0, skip: float = 0.0
    ) -> None:
        """Prepare to play from `skip` seconds into the recording."""
        self._records = records
        self._loop, self._began, self._speed, self._skip = loop, began, speed, skip
        self._times = [record.at for record in records]
        step = (self._times[-1] - self._times[0]) / max(len(records) - 1, 1) or _USUAL_STEP_SECONDS
        self._first_page = next(index for index, record in enumerate(records) if record.error is None)
        # Going on means that no pass but the first has the time before the engine's first answer.
        self._again_from = self._times[self._first_page] if loop is Loop.CONTINUE else self._times[0]
        self._end = self._times[-1] + step

    def cue(self, now: float) -> Cue | None:
        """Return what the engine was like at a Unix time; None before the recording, and after it without a loop."""
        played = (now - self._began) * self._speed + self._skip
        first_length = self._end - self._times[0]
        if played < 0 or (played >= first_length and self._loop is Loop.OFF):
            return None
        passes, at = 0, self._times[0] + played
        if played >= first_length:
            again, rest = divmod(played - first_length, self._end - self._again_from)
            passes, at = int(again) + 1, self._again_from + rest
        index = max(bisect_right(self._times, at) - 1, 0)
        return Cue(self._records[index], passes, index)

    def page(self, cue: Cue) -> str:
        """Return a cue's page with its times on the new clock, and its counters gone on where the loop continues."""
        life = self._lives[cue.place]
        goes_on = self._loop is Loop.CONTINUE and cue.passes > 0 and life.number == 0
        offset = self._offset(cue.passes) if goes_on else {}
        passes = self._pass_of_start(cue.passes) if goes_on else cue.passes
        start = self._lives[-1].start_time if goes_on else life.start_time
        return _moved(cue.record.body, lambda recorded: self._on_new_clock(recorded, passes), start, offset)

    def _on_new_clock(self, recorded: float, passes: int) -> float:
        before = 0.0
        if passes:
            before = (
                (self._end - self._times[0])
                + (passes - 1) * (self._end - self._again_from)
                - (self._again_from - self._times[0])
            )
        return self._began + (before + recorded - self._times[0] - self._skip) / self._speed

    def _pass_of_start(self, passes: int) -> int:
        return 0 if self._lives[-1].number == 0 else passes - 1

    @cached_property
    def _lives(self) -> list[Life]:
        lives: list[Life] = []
        number, last_start = 0, None
        last: Mapping[str, float] = {}
        for record in self._records:
            if record.error is None:
                body = record.body
                start, counters = _start_time(body), _counters(body)
                moved = (
                    start is not None
                    and last_start is not None
                    and abs(start - last_start) > _START_TIME_TOLERANCE_SECONDS
                )
                fell = start is None and any(counters.get(head, value) < value for head, value in last.items())
                number += moved or fell
                last_start, last = start, counters
            lives.append(Life(number, last_start))
        return lives

    def _offset(self, passes: int) -> Mapping[str, float]:
        """Return what the passes before have counted beyond the recording's first page."""
        first, last = self._ends
        times = passes if self._lives[-1].number == 0 else 1
        return {head: times * value - times * first.get(head, 0.0) for head, value in last.items()}

    @cached_property
    def _ends(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        pages = [record for record in self._records if record.error is None]
        return _counters(pages[0].body), _counters(pages[-1].body)


class _Line(NamedTuple):
    """One line of a page; what is no sample, or has no number, has no value."""

    text: str
    head: str = ""
    value: float | None = None
    rest: str = ""
    counts: bool = False

    @property
    def name(self) -> str:
        return self.head.partition("{")[0].strip()

    def with_value(self, value: float) -> str:
        return f"{self.head}{value!r}{self.rest}"


def _start_time(body: str) -> float | None:
    return next((line.value for line in _read(body) if line.name == _START_TIME), None)


def _read(body: str) -> Iterator[_Line]:
    cumulative: set[str] = set()
    for text in body.split("\n"):
        words = text.split()
        if text.startswith("# TYPE ") and words[-1] in ("counter", "histogram", "summary"):
            suffixes = ("", "_total") if words[-1] == "counter" else ("_bucket", "_sum", "_count")
            cumulative.update(words[2] + suffix for suffix in suffixes)
        parts = None if text.startswith("#") else cut(text)
        value = _number(parts[1]) if parts else None
        if parts is None or value is None:
            yield _Line(text)
        else:
            line = _Line(text, parts[0], value, parts[2])
            yield line._replace(counts=line.name in cumulative)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _counters(body: str) -> Mapping[str, float]:
    return {line.head: line.value for line in _read(body) if line.counts and line.value is not None}


def _moved(body: str, on_new_clock: Callable[[float], float], start: float | None, offset: Mapping[str, float]) -> str:
    def moved(line: _Line) -> str:
        if line.value is None:
            return line.text
        if line.name == _START_TIME and start is not None:
            return line.with_value(on_new_clock(start))
        if line.name.endswith("_created"):
            return line.with_value(on_new_clock(line.value))
        if line.counts and offset.get(line.head):
            return line.with_value(line.value + offset[line.head])
        return line.text

    return "\n".join(moved(line) for line in _read(body))
