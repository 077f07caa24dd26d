"""Prometheus' text format, read for a few wanted families and quick about it.

A page of 600 lines changes only in its values from one beat to the next. So the heads of all lines (all but the
value) are remembered: while they are the same, the wanted values are cut out by position. Only a page with other
heads is parsed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

_LABEL: Final = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|(?=\}))')
_LABELS_END: Final = re.compile(r"\s*\}")
_ESCAPES: Final = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
_LONGEST_SHOWN: Final = 80


class ExpositionError(ValueError):
    """A page that is not whole, or a wanted line that cannot be read; says which line."""


class Sample(NamedTuple):
    """One wanted line: its name, its labels in alphabetical order, its value."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the wanted values of a page stand."""

    heads: list[str]
    lines: tuple[int, ...]
    series: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


class Page:
    """Reads one server's pages, beat after beat. `wanted` says of a sample's name whether it is kept."""

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        self._wanted = wanted
        self._plan: _Plan | None = None

    def read(self, text: str) -> Sequence[Sample]:
        """Return the wanted samples of a page.

        Lines that are not wanted are never looked into. NaN and infinities are values like any other.

        Raises:
            ExpositionError: the page is cut off, or a wanted line is malformed.
        """
        text = _whole(text)
        lines = text.split("\n")
        heads = [line.rpartition(" ")[0] or line for line in lines]
        plan = self._plan
        if plan is None or plan.heads != heads:
            return self._parse(lines, heads)
        return [
            Sample(name, labels, _value(lines[index][len(heads[index]) :], index))
            for index, (name, labels) in zip(plan.lines, plan.series, strict=True)
        ]

    def _parse(self, lines: list[str], heads: list[str]) -> list[Sample]:
        known = (
            dict(zip((self._plan.heads[i] for i in self._plan.lines), self._plan.series, strict=True))
            if self._plan
            else {}
        )
        found: list[Sample] = []
        places: list[int] = []
        plain = True
        for index, line in enumerate(lines):
            if not line or line[0] == "#" or not self._is_wanted(line):
                continue
            series = known.get(heads[index])
            if series is None or not plain:
                name, labels, rest = _split(line, index)
                plain &= len(rest) == 1 and line == f"{heads[index]} {rest[0]}"
                found.append(Sample(name, labels, _value(rest[0], index)))
            else:
                found.append(Sample(*series, _value(line[len(heads[index]) :], index)))
            places.append(index)
        series_of = tuple((sample.name, sample.labels) for sample in found)
        # A line with a timestamp or an exemplar does not end with its value: such a page is parsed each time.
        self._plan = _Plan(heads, tuple(places), series_of) if plain else None
        return found

    def _is_wanted(self, line: str) -> bool:
        words = line.partition("{")[0].split(None, 1)
        return bool(words) and self._wanted(words[0])


def by_name(samples: Sequence[Sample]) -> Mapping[str, list[Sample]]:
    """Group samples by their name."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.name, []).append(sample)
    return groups


def _whole(text: str) -> str:
    """Return the text with plain line ends, and make sure that it was not cut: every line of a whole page ends."""
    text = text.replace("\r\n", "\n") if "\r" in text else text
    if not text.endswith(("\n", "\n# EOF")):
        last = text.rpartition("\n")[2]
        raise ExpositionError(
            f"the page ends in the middle of line {text.count(chr(10)) + 1}: {last[:_LONGEST_SHOWN]!r}"
        )
    return text


def _split(line: str, index: int) -> tuple[str, tuple[tuple[str, str], ...], list[str]]:
    """Split a sample line into name, labels and the rest: value, then perhaps a timestamp and an exemplar."""
    before, brace, _ = line.partition("{")
    name, *rest = before.split()
    labels: list[tuple[str, str]] = []
    if brace and not rest:  # else the brace is an exemplar's
        at = len(before) + 1
        while label := _LABEL.match(line, at):
            labels.append((label[1], _unescaped(label[2])))
            at = label.end()
        end = _LABELS_END.match(line, at)
        if end is None:
            raise _malformed(line, index)
        rest = line[end.end() :].split()
    if not rest:
        raise _malformed(line, index)
    return name, tuple(sorted(labels)), rest


def _unescaped(text: str) -> str:
    return re.sub(r'\\[\\"n]', lambda match: _ESCAPES[match[0]], text) if "\\" in text else text


def _value(text: str, index: int) -> float:
    try:
        return float(text.replace("_", "?"))  # Python reads 1_000, Prometheus does not
    except ValueError:
        shown = text.strip()[:_LONGEST_SHOWN]
        raise ExpositionError(f"line {index + 1}: expected a number, found {shown!r}") from None


def _malformed(line: str, index: int) -> ExpositionError:
    return ExpositionError(f"line {index + 1}: expected a sample, found {line[:_LONGEST_SHOWN]!r}")
