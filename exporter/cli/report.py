"""`report`: spend from the ledger, by whatever its books tell apart."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click
from rich import box
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from exporter.cli import report_focus
from exporter.cli.options import OneLine, ScalarType, UnusableError, fail, load_or_exit
from exporter.cli.tables import printed, take_any_script
from exporter.clock import SystemClock
from exporter.config import units
from exporter.config.model import Config
from exporter.core import focus, periods, reporting
from exporter.core.attribution import UNATTRIBUTED
from exporter.core.focus import dollars
from exporter.core.money import NANO, Kind, nano_usd
from exporter.core.periods import Period
from exporter.core.reporting import KEYS, PENDING, History, Missing, Question, Row, Value
from exporter.ledger import ACCOUNTING_START, LedgerError, Saved, Wanted, connect_read_only, moment, read
from exporter.ledger.errors import in_words
from exporter.ledger.file import NAME

_YEARS: Final = range(2000, 3000)
_FORMULA: Final = tuple("=+-@\t\r＝＋－＠")  # noqa: RUF001 - how a spreadsheet recognises one, in full width, too
_PLACES: Final = ((100 * NANO, 2), (NANO, 4), (NANO // 100, 6))  # of dollars, from a total on
_FINEST_PLACES: Final = 9
_NOTE_OF_VALUE: Final = (
    "A candidate has a tenth of what features cost or more, and at least twice its share of the value."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    """All that is printed; money is in nano-dollars."""

    question: Question
    history: History
    saved: Saved
    rows: list[Row]
    missing: Missing
    values: Mapping[str, Value] | None
    invoice: int | None

    @property
    def total(self) -> int:
        return sum(row.nano_usd for row in self.rows)

    def share(self, row: Row) -> Fraction | None:
        return Fraction(row.nano_usd, self.total) if self.total else None

    def value(self, row: Row) -> Value | None:
        return self.values.get(row.key[0]) if self.values is not None and not row.rest else None


def _date(text: str) -> date:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII) or int(text[:4]) not in _YEARS:
        raise ValueError(text)
    return date.fromisoformat(text)


def _zone(text: str) -> ZoneInfo:
    if text.startswith(("posix/", "right/")):  # a system's own; by the latter a day ends some leap seconds late
        raise ValueError(text)
    try:
        return ZoneInfo(text)
    except (ZoneInfoNotFoundError, OSError) as error:
        raise ValueError(text) from error


_DATE: Final = ScalarType(units.Scalar("a date like 2026-11-24", _date), "date")
_MONTH: Final = ScalarType(units.Scalar("a month like 2026-11", lambda text: _date(f"{text}-01")), "month")
_ZONE: Final = ScalarType(units.Scalar("an IANA time zone like Europe/Berlin", _zone), "zone")


@click.command(cls=OneLine)
@click.option(
    "--storage.path", "storage_path", type=click.Path(path_type=Path), required=True, help="The folder of the ledger."
)
@click.option("--by", type=click.Choice(KEYS), multiple=True, help="May be repeated.  [default: category]")
@click.option("--from", "first", type=_DATE, help="The first day.")
@click.option("--to", "end", type=_DATE, help="The day after the last.")
@click.option("--month", type=_MONTH, help="A calendar month.  [default: this month]")
@click.option("--day", type=_DATE, help="A single day.")
@click.option("--timezone", "zone", type=_ZONE, default="UTC", show_default=True, help="Whose midnight ends a day.")
@click.option(
    "--format", "form", type=click.Choice(("table", "csv", "json", "focus")), default="table", show_default=True
)
@click.option(
    "--config.file", "config_file", type=click.Path(path_type=Path), help="For --value, and for its min_tokens."
)
@click.option("--value", "with_value", is_flag=True, help="Hold the cost of each feature against its value_ratio.")
@click.option("--share-idle", is_flag=True, help="Share idle spend over features, as busy spend is.")
@click.option("--invoice-usd", type=ScalarType(units.LIMIT, "usd"), help="Compare with what was billed.")
def report(  # noqa: PLR0913 - the flags of the command
    *,
    storage_path: Path,
    by: tuple[str, ...],
    zone: ZoneInfo,
    form: str,
    config_file: Path | None,
    with_value: bool,
    share_idle: bool,
    invoice_usd: Decimal | None,
    **span: date | None,
) -> None:
    """Say what was spent, from the ledger of an exporter, which may be running."""
    now = SystemClock().now().wall
    period = _period(zone, now, **span)
    if form == "focus":
        flags = {"by": by, "config.file": config_file, "value": with_value, "share-idle": share_idle}
        report_focus.expect_alone(zone, {**flags, "invoice-usd": invoice_usd})
    config = load_or_exit(config_file) if config_file else Config(engines=())
    by = tuple(dict.fromkeys(by)) or (("feature",) if with_value or share_idle else ("category",))
    question = Question(by=by, period=period, zone=zone, share_idle=share_idle, min_tokens=config.min_tokens)
    _expect_answerable(question, config, with_value=with_value)
    try:
        saved, history = _read(storage_path, question, now, focus.KINDS if form == "focus" else ())
    except LedgerError as error:
        raise SystemExit(fail([str(error)], 2)) from None
    sums = reporting.by_day(question, saved.buckets)
    rows = reporting.answer(question, sums, saved.pending)
    found = _Report(
        question=question,
        history=history,
        saved=saved,
        rows=rows,
        missing=reporting.missing(period, sums, history),
        values=reporting.values(rows, config.features.value_ratio) if with_value else None,
        invoice=None if invoice_usd is None else round(nano_usd(invoice_usd)),
    )
    for line in reporting.cautions(period, history, found.missing, may_be_open=not any(span.values())):
        click.echo(f"warning: {line}", err=True)
    take_any_script()
    click.echo(_FORMS[form](found), nl=False)


def _period(zone: ZoneInfo, now: int, *, first: date | None, end: date | None, **one: date | None) -> Period:
    """Return the period that is asked for; of `one` there is a month or a day."""
    if (first is None) != (end is None):
        raise UnusableError("expected --from and --to together, found one of them")
    if sum(given is not None for given in (first, *one.values())) > 1:
        raise UnusableError("expected one of --from with --to, --month and --day, found several")
    if first is not None and end is not None:
        if end <= first:
            raise UnusableError(f"expected --to after --from, found {end} and {first}: the day of --to is not in it")
        return Period(reporting.first_instant(zone, first), reporting.first_instant(zone, end))
    if one["day"] is not None:
        return periods.day(zone, reporting.first_instant(zone, one["day"]))
    return periods.month(zone, now if one["month"] is None else reporting.first_instant(zone, one["month"]))


def _expect_answerable(question: Question, config: Config, *, with_value: bool) -> None:
    """Raise UnusableError where no answer can be given."""
    problem = reporting.objection(question.by)
    if problem:
        raise UnusableError(f"--by: {problem}")
    if question.share_idle and not question.of_showback:
        raise UnusableError("--share-idle: expected --by feature or --by team: idle spend is shared over features")
    if with_value and question.by != ("feature",):
        raise UnusableError("--value: expected --by feature alone: a value is known of features")
    if with_value and not config.features.value_ratio:
        raise UnusableError("--value: expected --config.file with features.value_ratio, found none")


def _read(folder: Path, question: Question, now: int, more: Sequence[Kind]) -> tuple[Saved, History]:
    """Read what an answer needs, and more kinds of accounts.

    Raises:
        LedgerError: it cannot be read.
    """
    since = -(-question.period.start // NANO)
    with in_words(folder / NAME), closing(connect_read_only(folder)) as connection:
        (oldest,) = connection.execute("SELECT min(start) FROM buckets").fetchone()
        saved = read(connection, Wanted(kinds={*question.kinds, *more}, since=since))
    total = sum(amount for account, amount in saved.totals.items() if account.kind is Kind.SPEND)
    found = sum(amount for (account, _), amount in saved.buckets.items() if account.kind is Kind.SPEND)
    history = History(
        now=now,
        accounting_start=moment(saved.meta, ACCOUNTING_START),
        oldest=None if oldest is None else oldest * NANO,
        forgot=oldest is not None and oldest > since and found != total,
    )
    return saved, history


def _record(found: _Report, row: Row) -> dict[str, Any]:
    """Return a row as csv and json have it."""
    share, price, value = found.share(row), row.nano_usd_per_million_output, found.value(row)
    record: dict[str, Any] = dict(zip(found.question.by, row.key, strict=True))
    if found.question.of_showback:
        record["not_attributed"] = row.rest or None
    record |= {
        "usd": dollars(row.nano_usd) if row.is_known else None,
        "share_ratio": None if share is None else round(float(share), 6),
        "requests": row.requests,
        "prompt_tokens": row.prompt_tokens,
        "output_tokens": row.output_tokens,
        "usd_per_million_output_tokens": None if price is None else dollars(round(price)),
    }
    if found.values is not None:
        ratio = None if value is None else value.value_ratio
        record["cost_ratio"] = None if value is None else round(float(value.cost_ratio), 6)
        record["value_ratio"] = None if ratio is None else float(ratio)
        record["right_sizing_candidate"] = None if value is None or ratio is None else value.is_candidate
    return record


def _as_json(found: _Report) -> str:
    period, zone = found.question.period, found.question.zone
    document: dict[str, Any] = {
        "from": datetime.fromtimestamp(period.start // NANO, zone).isoformat(),
        "to": datetime.fromtimestamp(period.end // NANO, zone).isoformat(),
        "timezone": zone.key,
        "currency": "USD",
        "by": found.question.by,
        "rows": [_record(found, row) for row in found.rows],
        "total_usd": dollars(found.total),
    }
    if found.invoice is not None:
        lacking, unexplained = found.missing, found.invoice - found.total
        before = lacking.before_history_ns
        document["invoice"] = {
            "invoice_usd": dollars(found.invoice),
            "ledger_usd": dollars(found.total),
            "unexplained_usd": dollars(unexplained),
            "unexplained_ratio": round(unexplained / found.invoice, 6),
            "unpriced_gpu_seconds": lacking.unpriced_gpu_ns / NANO,
            "unpriced_tokens": lacking.unpriced_tokens,
            "unobserved_seconds": lacking.unobserved_ns / NANO,
            "before_history_seconds": None if before is None else before / NANO,
        }
    return json.dumps(document, indent=2) + "\n"


def _as_csv(found: _Report) -> str:
    """Return the rows alone; what is said of an invoice goes to standard error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_record(found, Row(key=("",) * len(found.question.by), nano_usd=0)))
    names = len(found.question.by)
    for row in found.rows:
        told = list(_record(found, row).values())
        writer.writerow([*map(_harmless, told[:names]), *told[names:]])
    for line in _about_invoice(found):
        click.echo(line, err=True)
    return text.getvalue()


def _harmless(name: str) -> str:
    """Return a name that no spreadsheet takes for a formula."""
    return f"'{name}" if name.startswith(_FORMULA) else name


def _as_focus(found: _Report) -> str:
    rows = focus.rows(found.question.period, found.saved.buckets, found.saved.pending)
    return report_focus.as_csv(rows, _harmless)


def _as_table(found: _Report) -> str:
    period, zone = found.question.period, found.question.zone
    first, end = reporting.local_date(zone, period.start), reporting.local_date(zone, period.end)
    so_far = ", so far" if period.start < found.history.now < period.end else ""
    lines = [f"Spend from {first} to before {end}, {zone.key}{so_far}", _drawn(found)]
    lines += [_NOTE_OF_VALUE] if found.values is not None else []
    lines += _about_invoice(found)
    return "\n".join(lines) + "\n"


def _drawn(found: _Report) -> str:
    """Draw the table, without columns of which nothing is known, as wide as it is: an amount is never cut short."""
    names = len(found.question.by)
    columns = [one for place, one in enumerate(_columns(found)) if place < names or any(one.cells) or one.foot]
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    for place, (head, _, foot) in enumerate(columns):
        justify: JustifyMethod = "left" if place < names else "right"
        table.add_column(head, Text(foot), justify=justify, no_wrap=True)
    for cells in zip(*(one.cells for one in columns), strict=True):
        table.add_row(*map(Text, cells))
    return printed(table)


class _Column(NamedTuple):
    head: str
    cells: Sequence[str]
    foot: str = ""


def _columns(found: _Report) -> Iterator[_Column]:
    rows, total = found.rows, found.total
    places = next((places for least, places in _PLACES if abs(total) >= least or not rows), _FINEST_PLACES)
    for place, key in enumerate(found.question.by):
        yield _Column(key, [_name(found, row, place) for row in rows], "" if place else "total")
    amounts = [_rounded(row.nano_usd if row.is_known else None, places) for row in rows]
    yield _Column("usd", amounts, _rounded(total, places))
    yield _Column("share", [_percent(found.share(row)) for row in rows])
    yield _Column("requests", [_count(row.requests) for row in rows])
    yield _Column("prompt tokens", [_count(row.prompt_tokens) for row in rows])
    yield _Column("output tokens", [_count(row.output_tokens) for row in rows])
    yield _Column("usd / 1M output", [_rounded(row.nano_usd_per_million_output, 4) for row in rows])
    if found.values is not None:
        told = [found.value(row) for row in rows]
        yield _Column("of features", [_percent(value.cost_ratio if value else None) for value in told])
        yield _Column("value", [_percent(value.value_ratio if value else None) for value in told])
        yield _Column("right-sizing", ["candidate" if value and value.is_candidate else "" for value in told])


def _name(found: _Report, row: Row, place: int) -> str:
    """Return what a row is called by one of its keys; in place of a feature, what showback does not hold."""
    by = found.question.by
    if row.rest and place == by.index("feature" if "feature" in by else "team"):
        what = row.rest.removeprefix("compute_")
        if what in (PENDING, UNATTRIBUTED):
            return f"({what})"
        return f"(not attributed: {what})" if row.nano_usd >= 0 else f"(booked late: {what})"
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in row.key[place]) or "-"


def _rounded(nano: int | Fraction | None, places: int) -> str:
    """Return dollars for the eye: what is more than nothing does not look like nothing."""
    if nano is None:
        return ""
    text, least = f"{Decimal(round(nano)) / NANO:,.{places}f}", f"{Decimal(10) ** -places:f}"
    if nano and not Decimal(text.replace(",", "")):
        return f"<{least}" if nano > 0 else f">-{least}"
    return text


def _percent(ratio: Fraction | Decimal | None) -> str:
    return "" if ratio is None else f"{100 * float(ratio):.1f} %"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _about_invoice(found: _Report) -> list[str]:
    """Say how much of an invoice the ledger explains, and what it is known to lack."""
    if found.invoice is None:
        return []
    unexplained = found.invoice - found.total
    lines = [
        f"Invoice: {_rounded(found.invoice, 2)} USD",
        f"The ledger has: {_rounded(found.total, 2)} USD",
        f"Unexplained: {_rounded(unexplained, 2)} USD, {100 * unexplained / found.invoice:.2f} % of the invoice",
    ]
    lines += [f"Known to be missing: {amount} {what}" for amount, what in reporting.lacks(found.missing)]
    if found.missing.before_history_ns is None:
        lines.append("When the ledger began is not known")
    return lines


_FORMS: Final[Mapping[str, Callable[[_Report], str]]] = {
    "table": _as_table,
    "csv": _as_csv,
    "json": _as_json,
    "focus": _as_focus,
}
