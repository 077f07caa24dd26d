"""How `plan` shows what it found: the same names and figures as tables for the eye, and as JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any, Final

import click
from rich import box
from rich.table import Table
from rich.text import Text

from exporter.cli.plan_inputs import Input, Inputs
from exporter.cli.tables import printed, take_any_script
from exporter.core.planning import HOURS, Figure
from exporter.core.right_sizing import percent

MONTH: Final = "A planned month has 30 days of 24 hours."
_PLACES: Final = 9
_DIGITS: Final = 3
_CENTS_FROM: Final = Decimal("0.1")


def show(form: str, document: Mapping[str, Any], tables: Sequence[str], lines: Iterable[str], inputs: Inputs) -> None:
    """Print a document as JSON, or the same as tables with lines of words below."""
    take_any_script()
    if form == "json":
        whole = {"hours_per_month": HOURS, **document, "inputs": _told(inputs.used)}
        whole |= {"unknown_inputs": inputs.unknown, "notes": inputs.notes}
        click.echo(json.dumps(_plain(whole), indent=2, ensure_ascii=False))
        return
    unknown = [f"Not known: {', '.join(inputs.unknown)}."] if inputs.unknown else []
    told = [*lines, MONTH, *unknown, *(f"note: {text}" for text in inputs.notes)]
    blocks = [*tables, _drawn_inputs(inputs.used), "\n".join(map(printable, told))]
    click.echo("\n\n".join(filter(None, blocks)))


def printable(text: str) -> str:
    """Return text that a terminal shows as it is."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


def _told(used: Mapping[str, Input]) -> dict[str, Any]:
    return {name: {"value": value, "source": source} for name, (value, source) in used.items()}


def _plain(value: Any) -> Any:
    """Return what JSON can hold; fractions with nine decimals."""
    if isinstance(value, Fraction):
        rounded = round(value, _PLACES)
        return int(rounded) if rounded.denominator == 1 and abs(rounded) < 2**53 else float(rounded)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def shown(name: str, value: Figure) -> str:
    """Return a figure for the eye, in the unit that its name says; nothing where it is not known."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return printable(value)
    if name.endswith(("_ratio", "_share")):
        return percent(Fraction(value))
    if "usd" in name:
        return _money(Fraction(value))
    return f"{value:,}" if isinstance(value, int) else f"{exact(round(value, 2)):,}"


def _money(usd: Fraction) -> str:
    """Return dollars and cents; of less than ten cents three digits, so that it does not look like nothing."""
    amount = exact(usd)
    if not amount or abs(amount) >= _CENTS_FROM:
        return f"{Decimal(round(usd * 100)) / 100:,.2f}"
    return f"{round(amount, _DIGITS - 1 - amount.adjusted()).normalize():f}"


def exact(value: Fraction) -> Decimal:
    """Return a number with at most nine decimals, or three digits where that would be nothing; without zeros behind."""
    if value and abs(value) < Fraction(1, 10**_PLACES):
        return (Decimal(value.numerator) / Decimal(value.denominator)).normalize(Context(prec=_DIGITS))
    whole, part = divmod(round(abs(value) * 10**_PLACES), 10**_PLACES)
    return Decimal(f"{'-' * (value < 0)}{whole}.{part:0{_PLACES}d}".rstrip("0").rstrip("."))


def drawn(title: str, columns: Mapping[str, Mapping[str, Figure]]) -> str:
    """Draw figures by their names, columns of them by their heads; a figure that no column knows is left out."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [[name, *(shown(name, column.get(name)) for column in columns.values())] for name in names]
    told = [row for row in rows if any(row[1:])]
    return _table([title, *columns], told) if told else ""


def _drawn_inputs(used: Mapping[str, Input]) -> str:
    rows = [[name, _input(value), source] for name, (value, source) in used.items()]
    return _table(["input", "", "from"], rows, texts=1)


def _input(value: Figure) -> str:
    return f"{exact(Fraction(value)):,}" if isinstance(value, Fraction | int) else printable(str(value))


def listed(heads: Sequence[str], rows: Sequence[Mapping[str, Figure]]) -> str:
    """Draw a list of things, each a row."""
    return _table(list(heads), [[shown(head, row.get(head)) for head in heads] for row in rows])


def _table(heads: list[str], rows: list[list[str]], texts: int = 0) -> str:
    """Draw a table as wide as it is; the first column and the last `texts` hold words."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(heads):
        is_text = place == 0 or place >= len(heads) - texts
        table.add_column(Text(head), justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return printed(table).strip("\n")
