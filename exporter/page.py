"""Rows and a snapshot into Prometheus' text format 0.0.4. What stands before a value is made once and remembered."""

import gzip
import math
from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from typing import Any, Final

from exporter.core.money import NANO
from exporter.core.readings import Buckets
from exporter.core.snapshot import Snapshot
from exporter.metrics import PREFIX, Row, Sample, Type

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_GZIP_LEVEL: Final = 1


class Page:
    """One page as it is sent; the compressed form is made when somebody first asks for it."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    @cached_property
    def compressed(self) -> bytes:
        """The body in gzip."""
        return gzip.compress(self.body, _GZIP_LEVEL)


class PageWriter:
    """Writes pages of the same rows again and again.

    From one page to the next it is mostly the values that change. So the text around the values of a row is kept as
    one format string, and is made anew only when the row's label sets are other ones.
    """

    def __init__(self, rows: tuple[Row, ...]) -> None:
        self._rows = rows
        self._formats: dict[str, tuple[tuple[tuple[str, ...], ...], str]] = {}

    def write(self, snapshot: Snapshot, own: bytes = b"", *, only_staying: bool = False) -> Page:
        """Write a page; `own` is the exporter's own instrumentation, `only_staying` leaves out what can grow old."""
        families = [self._family(row, snapshot) for row in self._rows if row.stays or not only_staying]
        return Page(b"".join([*families, own]))

    def _family(self, row: Row, snapshot: Snapshot) -> bytes:
        samples = list(row.samples(snapshot))
        if not samples:
            return b""
        if row.type is Type.HISTOGRAM:
            return (_title(row) + "".join(_histograms(row, samples))).encode()
        text = self._format(row, tuple([labels for labels, _ in samples]))
        values: list[Any] = [value for _, value in samples]
        if row.nano:  # whole units and the nine digits behind the point, in turn
            values = list(chain.from_iterable([divmod(value, NANO) for value in values]))
        return (text % tuple(values)).encode()

    def _format(self, row: Row, label_sets: tuple[tuple[str, ...], ...]) -> str:
        kept = self._formats.get(row.name)
        if kept is None or kept[0] != label_sets:
            value = "%d.%09d\n" if row.nano else "%r\n"
            heads = [_head(row.name, row.labels, labels).replace("%", "%%") + value for labels in label_sets]
            kept = self._formats[row.name] = (label_sets, _title(row).replace("%", "%%") + "".join(heads))
        return kept[1]


def _title(row: Row) -> str:
    return f"# HELP {PREFIX}{row.name} {row.help}\n# TYPE {PREFIX}{row.name} {row.type}\n"


def _histograms(row: Row, samples: Iterable[Sample]) -> Iterable[str]:
    for labels, buckets in samples:
        if not isinstance(buckets, Buckets):
            raise TypeError(f"{row.name}: expected buckets, found a number")
        for bound, count in zip(buckets.bounds, buckets.counts, strict=True):
            yield f"{_head(f'{row.name}_bucket', (*row.labels, 'le'), (*labels, _bound(bound)))}{count}\n"
        yield f"{_head(f'{row.name}_sum', row.labels, labels)}{buckets.sum!r}\n"
        yield f"{_head(f'{row.name}_count', row.labels, labels)}{buckets.counts[-1]}\n"


def _head(name: str, names: tuple[str, ...], values: tuple[str, ...]) -> str:
    labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(names, values, strict=True))
    return f"{PREFIX}{name}{{{labels}}} " if labels else f"{PREFIX}{name} "


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _bound(bound: float) -> str:
    return "+Inf" if math.isinf(bound) else repr(bound)
