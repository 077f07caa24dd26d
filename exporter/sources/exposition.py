"""Prometheus' text format, read for a few wanted families and quick about it.

A page of 600 lines changes in a few dozen values from one beat to the next. So the last page is remembered: while only
values differ, they are cut out of the lines that changed. Any other change has the page parsed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

_NAME: Final = "[a-zA-Z_][a-zA-Z0-9_]*"
_TEXT: Final = r'[^"\\]*(?:\\.[^"\\]*)*'
_LABEL: Final = re.compile(rf'({_NAME})\s*=\s*"({_TEXT})"')
_LABELS: Final = rf'(?:\s*{_NAME}\s*=\s*"{_TEXT}"\s*(?:,|(?=\}})))*'
_SAMPLE: Final = re.compile(rf"\s*([^\s{{]+)(?:\s*\{{({_LABELS})\s*\}}\s*|\s+)([^\s{{].*)")
_ESCAPES: Final = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
_LONGEST_SHOWN: Final = 80


class ExpositionError(ValueError):
    """A page that is not whole, or a wanted line that cannot be read; says which line."""


class Sample(NamedTuple):
    """One wanted line: its name, its labels in alphabetical order, its value."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Page:
    """Reads one server's pages, beat after beat. `wanted` says of a sample's name whether it is kept."""

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        self._wanted = wanted
        self._lines: list[str] = []
        self._samples: list[Sample] = []
        self._heads: dict[int, str] = {}  # of the lines that have changed: all but the value
        self._places: dict[int, int] = {}  # of the wanted lines: where their samples stand
        self._ends_with_values = False  # else a timestamp or an exemplar stands behind one

    def read(self, text: str) -> Sequence[Sample]:
        """Return the wanted samples of a page.

        Lines that are not wanted are never looked into. NaN and infinities are values like any other.

        Raises:
            ExpositionError: the page is cut off, or a wanted line is malformed.
        """
        lines = _whole(text).split("\n")
        samples = self._with_new_values(lines)
        if samples is None:
            samples = self._parsed(lines)
        self._lines, self._samples = lines, samples
        return samples

    def _with_new_values(self, lines: list[str]) -> list[Sample] | None:
        """Return the last samples with this page's values; None where more than values has changed."""
        if not self._ends_with_values or len(lines) != len(self._lines):
            return None
        samples, heads, places = self._samples.copy(), self._heads, self._places
        for index, (new, old) in enumerate(zip(lines, self._lines, strict=True)):
            if new == old:
                continue
            head, space, value = new.rpartition(" ")
            kept = heads.get(index)
            if kept is None:
                kept = heads[index] = _head(old)
            if not space or head != kept:
                return None
            if index in places:
                name, labels, _ = samples[places[index]]
                samples[places[index]] = Sample(name, labels, _value(value, index))
        return samples

    def _parsed(self, lines: list[str]) -> list[Sample]:
        samples: list[Sample] = []
        places: dict[int, int] = {}
        plain = True
        for index, line in enumerate(lines):
            words = line.partition("{")[0].split(None, 1)
            if words and words[0] != "#" and self._wanted(words[0]):
                name, labels, rest = _split(line, index)
                places[index] = len(samples)
                samples.append(Sample(name, labels, _value(rest[0], index)))
                plain &= len(rest) == 1 and line.endswith(f" {rest[0]}")
        self._ends_with_values, self._heads, self._places = plain, {}, places
        return samples


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
    match = _SAMPLE.fullmatch(line)
    if match is None:
        raise _malformed(line, index)
    name, labels, rest = match.groups()
    pairs = _LABEL.findall(labels) if labels else []
    if labels and "\\" in labels:
        pairs = [(label, _unescaped(value)) for label, value in pairs]
    return name, tuple(sorted(pairs)), rest.split()


def cut(line: str) -> tuple[str, str, str] | None:
    """Cut a sample line into what stands before its value, the value, and what follows; None when it is no sample."""
    match = _SAMPLE.fullmatch(line)
    if match is None:
        return None
    value, space, rest = match[3].partition(" ")
    return line[: match.start(3)], value, space + rest


def _head(line: str) -> str:
    """Return what stands before the value, or the line itself where nothing does."""
    return line.rpartition(" ")[0] or line


def _unescaped(text: str) -> str:
    return re.sub(r'\\[\\"n]', lambda match: _ESCAPES[match[0]], text)


def _value(text: str, index: int) -> float:
    try:
        return float(text.replace("_", "?"))  # Python reads 1_000, Prometheus does not
    except ValueError:
        shown = text.strip()[:_LONGEST_SHOWN]
        raise ExpositionError(f"line {index + 1}: expected a number, found {shown!r}") from None


def _malformed(line: str, index: int) -> ExpositionError:
    return ExpositionError(f"line {index + 1}: expected a sample, found {line[:_LONGEST_SHOWN]!r}")
