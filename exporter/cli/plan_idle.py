"""`plan scale-to-zero`: what idling costs by type of workload, and who would wait at zero."""

from collections.abc import Mapping
from dataclasses import asdict
from fractions import Fraction
from typing import Any, Final

import click

from exporter.cli.options import DURATION, OneLine, ScalarType, UnusableError
from exporter.cli.plan_inputs import FLAG, GPUS, LEDGER, USD, Sources, expect_one_engine, missing, source_flags, sources
from exporter.cli.plan_prices import gpu
from exporter.cli.plan_show import drawn, listed, show
from exporter.config import units
from exporter.core import scale_to_zero as core
from exporter.core.planning import Figure
from exporter.core.scale_to_zero import Idleness

_DAY_HOURS: Final = 24
_HOUR: Final = 3600
_SOURCES: Final = ("config_file", "engine", "from_ledger", "storage_path", "days")
_COLUMNS: Final = (
    "workload",
    "min_replicas",
    "idle_usd_per_month",
    "advised_usd_per_month",
    "cold_starts_per_day",
    "waiting_seconds_per_day",
    "cooldown_seconds",
)


def _hours(text: str) -> Any:
    value = units.AMOUNT.parse(text)
    if value > _DAY_HOURS:
        raise ValueError(text)
    return value


HOURS_A_DAY: Final = ScalarType(units.Scalar("hours of a day, 0 to 24", _hours), "hours")


@click.command("scale-to-zero", cls=OneLine)
@click.option("--gpu.usd-per-hour", "gpu_usd_per_hour", type=USD, help="The price of one GPU for an hour.")
@click.option("--gpu.count", "gpu_count", type=GPUS, help="GPUs of one replica.  [default: 1]")
@click.option("--idle-hours-per-day", "idle_hours", type=HOURS_A_DAY, help="Hours of a day in which it idles.")
@click.option("--idle-gap", "idle_gaps", type=DURATION, multiple=True, help="Or each idle gap of a day; repeated.")
@click.option("--cold-start", "cold_start", type=DURATION, help="From the start of a replica to its first answer.")
@source_flags
def scale_to_zero(*, form: str, **flags: Any) -> None:
    """Say by type of workload how few replicas will do, what idling costs, who would wait, and the cooldown."""
    found = sources(**{name: flags[name] for name in _SOURCES})
    expect_one_engine(found)
    usd, gpus = gpu(found, flags)
    idleness = _idleness(found, flags, usd * gpus)
    zero = core.at_zero(idleness)
    rows: list[dict[str, Figure]] = [asdict(row) for row in core.advice(idleness, found.engine)]
    words = [f"{row['workload']}: {row['advice']}." for row in rows]
    at_zero: Mapping[str, Figure] = asdict(zero) if zero else {}
    document = {"workloads": rows, "at_zero": dict(at_zero) or None, "cooldown": core.ADDS_UP}
    tables = [listed(_COLUMNS, rows), drawn("one replica, at zero in its gaps", {"": at_zero})]
    show(form, document, tables, [*words, core.ADDS_UP], found.inputs)


def _idleness(found: Sources, flags: Mapping[str, Any], usd_per_hour: Fraction) -> Idleness:
    """Return how one replica idles: by the gaps of a day, by hours alone, or as it was measured."""
    inputs, measured = found.inputs, found.measured
    cold_start = inputs.first(
        "cold-start-seconds", (FLAG, flags["cold_start"]), (LEDGER, measured.cold_start_seconds if measured else None)
    )
    if cold_start is None:
        inputs.note("without --cold-start nothing says how long somebody would wait, nor when going to zero pays")
    if flags["idle_gaps"] and flags["idle_hours"] is not None:
        raise UnusableError("expected --idle-gap or --idle-hours-per-day, found both")
    if flags["idle_gaps"] or flags["idle_hours"] is not None or measured is None:
        idle, gaps, days = _of_flags(found, flags)
    else:
        idle, gaps, days = measured.idle_seconds, measured.gaps, measured.days
        inputs.note("idle gaps are whole quarter-hours without work: shorter ones are not seen")
        inputs.first("idle-hours-per-day", (LEDGER, None if idle is None else idle / _HOUR / days))
        inputs.say("idle-gap", _lengths(gaps), LEDGER)
    if idle is None:
        missing("--idle-hours-per-day or --idle-gap")
    return Idleness(usd_per_hour=usd_per_hour, idle_seconds=idle, days=days, cold_start_seconds=cold_start, gaps=gaps)


def _of_flags(
    found: Sources, flags: Mapping[str, Any]
) -> tuple[Fraction | None, tuple[Fraction, ...] | None, Fraction]:
    gaps = tuple(map(Fraction, flags["idle_gaps"]))
    if gaps:
        if sum(gaps) > _DAY_HOURS * _HOUR:
            raise UnusableError("--idle-gap: expected gaps of one day, found more than 24 hours of them")
        found.inputs.say("idle-gap", _lengths(gaps), FLAG)
        return sum(gaps, Fraction(0)), gaps, Fraction(1)
    hours = found.inputs.first("idle-hours-per-day", (FLAG, flags["idle_hours"]))
    return (None if hours is None else hours * _HOUR), None, Fraction(1)


def _lengths(gaps: tuple[Fraction, ...]) -> str:
    """Say how many gaps there are, and how long."""
    if not gaps:
        return "none seen"
    many = f"{len(gaps)} gap{'s' * (len(gaps) > 1)}"
    shortest, longest = (f"{float(length) / 60:g}" for length in (min(gaps), max(gaps)))
    return f"{many}, {shortest}{f' to {longest}' if longest != shortest else ''} minutes"
