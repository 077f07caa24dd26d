"""The rows of the exporter's own health: its sources, its config, its version."""

from collections.abc import Callable, Iterator
from typing import Final

from exporter.core.money import Kind
from exporter.core.snapshot import Snapshot, SourceView
from exporter.metrics.row import Fleet, Row, Sample, Type


def _source(name: str, text: str, value: Callable[[SourceView], float | None], fleet: Fleet) -> Row:
    def read(snapshot: Snapshot) -> Iterator[Sample]:
        for source in snapshot.sources:
            if (number := value(source)) is not None:
                yield (source.source, source.target), number

    return Row(name, Type.GAUGE, text, ("source", "target"), fleet, read, stays=True)


def _health(name: str, text: str, value: Callable[[Snapshot], float | None], fleet: Fleet) -> Row:
    def read(snapshot: Snapshot) -> Iterator[Sample]:
        if (number := value(snapshot)) is not None:
            yield (), number

    return Row(name, Type.GAUGE, text, (), fleet, read, stays=True)


def _unobserved(snapshot: Snapshot) -> Iterator[Sample]:
    if snapshot.ledger is None or snapshot.ledger.is_open:
        yield (), snapshot.totals.get(Kind.UNOBSERVED, {}).get((), 0)


def _source_errors(snapshot: Snapshot) -> Iterator[Sample]:
    for source in snapshot.sources:
        for reason, count in source.errors.items():
            yield (source.source, source.target, reason), count


def _build_info(snapshot: Snapshot) -> Iterator[Sample]:
    yield (snapshot.version, snapshot.role), 1


# fmt: off
HEALTH: Final[tuple[Row, ...]] = (
    _source("source_up",
        "1 where the last read of the source worked, else 0.", lambda source: float(source.up), Fleet.NONE),
    _source("source_last_success_timestamp_seconds",
        "When the source was last read.", lambda source: source.last_success, Fleet.NONE),
    _source("source_read_seconds", "How long the last read took.", lambda source: source.read_seconds, Fleet.NONE),
    _source("source_interval_seconds",
        "How often the source is read.", lambda source: source.interval_seconds, Fleet.MAX),
    Row("source_errors_total", Type.COUNTER,
        "Reads that failed, by reason.", ("source", "target", "reason"), Fleet.SUM, _source_errors, stays=True),
    _health("accounting_start_timestamp_seconds",
        "Since when the counters of money and tokens have been counting.",
        lambda snapshot: snapshot.accounting_start, Fleet.NONE),
    Row("unobserved_seconds_total", Type.COUNTER,
        "Time that was not charged because the exporter was away for longer than max_gap.",
        (), Fleet.SUM, _unobserved, stays=True, nano=True),
    _health("config_last_reload_successful",
        "1 where the last load of the config files worked, else 0: what could not be read stays as it was.",
        lambda snapshot: float(snapshot.config.successful), Fleet.NONE),
    _health("config_last_reload_success_timestamp_seconds",
        "When the config in force was loaded.", lambda snapshot: snapshot.config.last_success, Fleet.NONE),
    Row("build_info", Type.GAUGE,
        "The exporter's version and role; always 1.", ("version", "role"), Fleet.NONE, _build_info, stays=True),
)
# fmt: on
