"""`report --format focus`: the ledger as a FOCUS 1.2 file."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from zoneinfo import ZoneInfo

from exporter.cli.options import UnusableError
from exporter.core import focus
from exporter.core.focus import Cell, Row

_NAMES: Final = ("ResourceId", "x_Engine", "x_Model", "x_Tier", "x_Feature", "x_Team")  # as others gave them


def expect_alone(zone: ZoneInfo, flags: Mapping[str, Any]) -> None:
    """Raise UnusableError where a flag asks for what no FOCUS file has."""
    for flag, given in flags.items():
        if given:
            raise UnusableError(f"--{flag}: expected none with --format focus, whose columns are those of FOCUS")
    if zone.key != "UTC":
        raise UnusableError(f"--timezone: expected UTC with --format focus, whose hours are of UTC, found {zone.key}")


def as_csv(rows: Iterable[Row], harmless: Callable[[str], str]) -> str:
    """Return the file; names of others are made harmless where one stands alone in its column."""
    text = io.StringIO()
    head = focus.record(Row(cell=Cell(0, "other"), nano_usd=0))
    writer = csv.DictWriter(text, head, lineterminator="\r\n")  # as RFC 4180 has it: a name with either is quoted then
    writer.writeheader()
    for row in rows:
        record = focus.record(row)
        writer.writerow({**record, **{name: harmless(record[name]) for name in _NAMES}})
    return text.getvalue()
