"""Rows and a snapshot into Prometheus' text format 0.0.4. What stands before a value is made once and remembered."""

import gzip
import math
from collections.abc import Iterable
from functools import cached_property
from typing import Final

from exporter.core.readings import Buckets
from exporter.core.snapshot import Snapshot
from exporter.metrics import PREFIX, Row, Sample, Type

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_GZIP_LEVEL: Final = 1
_SPARE_HEADS: Final = 1000


class Page:
    """One page as it is sent; the compressed form is made when somebody first asks for it."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    @cached_property
    def compressed(self) -> bytes:
        """The body in gzip."""
        return gzip.compress(self.body, _GZIP_LEVEL)


class PageWriter:
    """Writes pages of the same rows again and again."""

    def __init__(self, rows: tuple[Row, ...]) -> None:
        self._rows = rows
        self._heads: dict[str, dict[tuple[str, ...], str]] = {row.name: {} for row in rows}

    def write(self, snapshot: Snapshot, own: bytes = b"", *, only_staying: bool = False) -> Page:
        """Write a page; `own` is the exporter's own instrumentation, `only_staying` leaves out what can grow old."""
        parts: list[str] = []
        for row in self._rows:
            if row.stays or not only_staying:
                lines = self._lines(row, row.samples(snapshot))
                if lines:
                    parts.append(f"# HELP {PREFIX}{row.name} {row.help}\n# TYPE {PREFIX}{row.name} {row.type}\n")
                    parts += lines
        return Page("".join(parts).encode() + own)

    def _lines(self, row: Row, samples: Iterable[Sample]) -> list[str]:
        if row.type is Type.HISTOGRAM:
            return [
                line
                for labels, buckets in samples
                if isinstance(buckets, Buckets)
                for line in self._histogram(row, labels, buckets)
            ]
        heads = self._heads[row.name]
        lines: list[str] = []
        for labels, value in samples:
            head = heads.get(labels)
            if head is None:
                head = heads[labels] = _head(row.name, row.labels, labels)
            lines.append(f"{head}{value!r}\n")
        if len(heads) > 2 * len(lines) + _SPARE_HEADS:
            heads.clear()
        return lines

    def _histogram(self, row: Row, labels: tuple[str, ...], buckets: Buckets) -> Iterable[str]:
        for bound, count in zip(buckets.bounds, buckets.counts, strict=True):
            head = _head(f"{row.name}_bucket", (*row.labels, "le"), (*labels, _bound(bound)))
            yield f"{head}{count}\n"
        yield f"{_head(row.name + '_sum', row.labels, labels)}{buckets.sum!r}\n"
        yield f"{_head(row.name + '_count', row.labels, labels)}{buckets.counts[-1]}\n"


def _head(name: str, names: tuple[str, ...], values: tuple[str, ...]) -> str:
    labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(names, values, strict=True))
    return f"{PREFIX}{name}{{{labels}}} " if labels else f"{PREFIX}{name} "


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _bound(bound: float) -> str:
    return "+Inf" if math.isinf(bound) else repr(bound)
