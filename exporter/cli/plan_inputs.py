"""Where `plan` takes its inputs from: a flag, else the config, else the ledger, else a default; and which it was."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import click

from exporter.cli.options import OneLine, ScalarType, UnusableError, load_or_exit
from exporter.clock import SystemClock
from exporter.config import units
from exporter.config.model import Config, Engine
from exporter.core import planning_measured
from exporter.core.money import NANO, Kind
from exporter.core.periods import QUARTER
from exporter.core.planning import Figure
from exporter.core.planning_measured import Measured, Stretch
from exporter.ledger import (
    ACCOUNTING_START,
    LAST_BEAT,
    LedgerError,
    Saved,
    Wanted,
    connect_read_only,
    in_words,
    moment,
    read,
)
from exporter.ledger.file import NAME
from exporter.ledger.rows import BUCKETS_KEPT_SECONDS

FLAG: Final = "flag"
CONFIG: Final = "config"
LEDGER: Final = "ledger"
DEFAULT: Final = "default"
_DAY: Final = 86_400
_FEW_HOURS: Final = 24
_MOST_DAYS: Final = BUCKETS_KEPT_SECONDS // _DAY
_FUTURE: Final = 10**12
_NOTHING: Final = Stretch(0, 0)

Command = TypeVar("Command", bound=Callable[..., Any])
Number = Decimal | Fraction | int | float

USD: Final = ScalarType(units.MONEY, "usd")
GPUS: Final = ScalarType(units.GPU_COUNT, "gpus")
AMOUNT: Final = ScalarType(units.AMOUNT, "number")
RATIO: Final = ScalarType(units.RATIO, "ratio")
POSITIVE: Final = ScalarType(units.POSITIVE, "number")
WHOLE: Final = ScalarType(units.WHOLE, "number")
WHOLE_POSITIVE: Final = ScalarType(units.WHOLE_POSITIVE, "number")


class OneLineGroup(OneLine, click.Group):
    """The same for a command with others below it."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command below, or end with one line."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise UnusableError(error.format_message()) from None


class Input(NamedTuple):
    """What went into a plan, and who said so."""

    value: Figure
    source: str


class Inputs:
    """Every input that was asked for, with its source; those that nobody told; and what a reader must know of them."""

    def __init__(self) -> None:
        self.used: dict[str, Input] = {}
        self.unknown: list[str] = []
        self.notes: list[str] = []

    def first(self, name: str, *told: tuple[str, Number | None], default: Number | None = None) -> Fraction | None:
        """Return the first value that is told, or else the default; remember both it and its source."""
        for source, value in (*told, (DEFAULT, default)):
            if value is not None:
                exact = Fraction(value)
                self.used[name] = Input(exact, source)
                return exact
        self.unknown.append(name)
        return None

    def needed(self, name: str, *told: tuple[str, Number | None]) -> Fraction:
        """Return the first value that is told, or end with one line where none is."""
        value = self.first(name, *told)
        return missing(f"--{name}") if value is None else value

    def say(self, name: str, value: str, source: str) -> None:
        """Remember an input that is no number."""
        self.used[name] = Input(value, source)

    def note(self, text: str) -> None:
        """Remember something for the reader."""
        self.notes.append(text)


def missing(what: str) -> NoReturn:
    """End with one line that says what is needed and not known."""
    raise UnusableError(f"expected {what}, found it in no flag, config or ledger")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What there is beside flags: the config, the engine in it, the ledger, and what it says of the engine."""

    config: Config | None = None
    engine: Engine | None = None
    saved: Saved | None = None
    stretch: Stretch = _NOTHING  # that the ledger tells of
    measured: Measured | None = None
    inputs: Inputs = field(default_factory=Inputs)

    @property
    def days(self) -> Fraction:
        """How long the ledger tells of, as far as it was observed."""
        return self.days_since(self.stretch.start)

    def late(self, kind: Kind, **labels: str) -> int | None:
        """Return since when there is any of a kind with these labels, if not since the first day of the ledger."""
        first = planning_measured.since(self.saved.buckets, kind, **labels) if self.saved else None
        return first if first is not None and first - self.stretch.start > _DAY else None

    def days_since(self, second: int) -> Fraction:
        """Return how long it tells of from a Unix second on, as far as it was observed."""
        buckets = self.saved.buckets if self.saved else {}
        return planning_measured.observed(buckets, Stretch(second, self.stretch.end)) / _DAY


def source_flags(command: Command) -> Command:
    """Add the flags that say where inputs come from, and how the answer looks."""
    config = click.option("--config.file", "config_file", type=click.Path(path_type=Path), help="Inputs from a config.")
    name = ScalarType(units.NAME, "name")
    engine = click.option("--engine", type=name, help="Which engine, where there are several.")
    return config(engine(ledger_flags(command)))


def ledger_flags(command: Command) -> Command:
    """Add those for inputs that no config has."""
    options = (
        click.option("--from-ledger", is_flag=True, help="Inputs from what really happened."),
        click.option("--storage.path", "storage_path", type=click.Path(path_type=Path), help="The ledger's folder."),
        click.option("--days", type=WHOLE_POSITIVE, help="The ledger's last days.  [default: 7]"),
        click.option("--format", "form", type=click.Choice(("table", "json")), default="table", show_default=True),
    )
    for option in reversed(options):
        command = option(command)
    return command


def sources(
    *,
    from_ledger: bool,
    storage_path: Path | None,
    days: int | None,
    config_file: Path | None = None,
    engine: str | None = None,
) -> Sources:
    """Read what the flags name."""
    if days is not None and days > _MOST_DAYS:
        raise UnusableError(f"--days: expected {_MOST_DAYS} or less, which is what a ledger keeps, found {days}")
    if from_ledger != (storage_path is not None):
        raise UnusableError("expected --from-ledger and --storage.path together, found one of them")
    if days is not None and not from_ledger:
        raise UnusableError("--days: expected it beside --from-ledger, found it alone")
    config = load_or_exit(config_file) if config_file else None
    own = _engine_of(config, engine) if config else None
    if storage_path is None:
        if engine and not config:
            raise UnusableError("--engine: expected --config.file or --from-ledger beside it, found neither")
        return Sources(config=config, engine=own)
    inputs = Inputs()
    saved, stretch = _ledger(storage_path, (days or 7) * _DAY, inputs)
    return Sources(
        config=config,
        engine=own,
        saved=saved,
        stretch=stretch,
        measured=_measured(saved, stretch, own.name if own else engine, inputs),
        inputs=inputs,
    )


def _engine_of(config: Config, name: str | None) -> Engine | None:
    """Return the engine that is meant; None where it is left open which."""
    names = [one.name for one in config.engines]
    if name is not None and name not in names:
        raise UnusableError(f"--engine: expected one of {', '.join(names)}, found {name!r}")
    return next((one for one in config.engines if name in (None, one.name) and (name or len(names) == 1)), None)


def expect_one_engine(found: Sources) -> None:
    """Raise UnusableError where there are several engines, and none is named."""
    if found.config and found.engine is None:
        _ask_for_engine([one.name for one in found.config.engines])
    if found.saved and found.measured is None:
        names = planning_measured.engines(found.saved.buckets)
        if not names:
            raise UnusableError("--from-ledger: expected an engine that money was spent on, found none in these days")
        _ask_for_engine(names)


def _ask_for_engine(names: Sequence[str]) -> NoReturn:
    if not names:
        raise UnusableError("--config.file: expected a config with an engine, found none")
    raise UnusableError(f"expected --engine, one of {', '.join(names)}, found several engines and none named")


def _ledger(folder: Path, seconds: int, inputs: Inputs) -> tuple[Saved, Stretch]:
    """Read the last seconds that the ledger knows, and return from when until when it knows them."""
    wanted = Wanted(kinds=planning_measured.KINDS, since=_FUTURE, back=max(seconds - QUARTER, 1))
    try:
        with in_words(folder / NAME), closing(connect_read_only(folder)) as connection:
            saved = read(connection, wanted)
    except LedgerError as error:
        raise UnusableError(str(error)) from None
    newest = max((start for _, start in saved.buckets), default=None)
    if newest is None:
        raise UnusableError(f"{folder / NAME}: expected something booked, found nothing")
    now = int(SystemClock().now().unix_seconds)
    end = min(_second(saved, LAST_BEAT, newest + QUARTER), max(now, newest + 1))
    start = max(_second(saved, ACCOUNTING_START, 0), newest + QUARTER - seconds)
    stretch = Stretch(start, max(end, start + 1))
    known = planning_measured.observed(saved.buckets, stretch)
    if known <= 0:
        raise UnusableError(f"{folder / NAME}: expected time that was observed, found none in these days")
    if now - end > _DAY:
        inputs.note(f"the ledger ends {(now - end) // _DAY} days ago: what is newer is not known")
    _note_if_short(inputs, "the ledger tells of", known, seconds)
    return saved, stretch


def _note_if_short(inputs: Inputs, what: str, seconds: Fraction, wanted: int) -> None:
    """Tell of a time that is less than wanted, and too short to stand for a day."""
    if seconds < min(wanted, _FEW_HOURS * 3600):
        inputs.note(f"{what} {float(seconds) / 3600:.1f} hours only: a day is taken to be like them")


def _second(saved: Saved, name: str, default: int) -> int:
    """Return a moment that the ledger remembers as a Unix second."""
    known = moment(saved.meta, name)
    return default if known is None else known // NANO


def _measured(saved: Saved, stretch: Stretch, engine: str | None, inputs: Inputs) -> Measured | None:
    names = planning_measured.engines(saved.buckets)
    if engine is None and len(names) != 1:
        return None
    name = engine or names[0]
    if name not in names:
        found = ", ".join(names) or "none"
        raise UnusableError(f"--engine: expected an engine that the ledger knows ({found}), found {name!r}")
    peaks = [values[0] for series, _, values in saved.samples if series == f"peak:{name}"]
    measured = planning_measured.measured(saved.buckets, name, stretch, peaks)
    if not measured.seconds:
        raise UnusableError(f"--from-ledger: expected a whole quarter of an hour of {name}, found parts of some")
    _note_if_short(inputs, f"{name} was there for", measured.seconds, stretch.end - stretch.start - QUARTER)
    return measured
