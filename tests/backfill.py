"""A history that Prometheus did not see: counters that rise evenly, gauges at 1, written by its own tool."""

import itertools
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from exporter.core.money import Category
from exporter.metrics import PREFIX, ROWS, Row, Type
from tests.programs import program

HOUR = 3600
DAY = 24 * HOUR
LABELS: dict[str, list[str]] = {
    "category": list(Category),
    "engine": ["chat", "batch"],
    "model": ["llama"],
    "tier": ["fast"],
    "feature": ["summaries", "unattributed"],
    "team": ["docs"],
    "cascade": ["support"],
    "from_tier": ["fast"],
    "to_tier": ["big"],
    "gpu": ["0"],
    "api_model": ["openai/gpt"],
    "outcome": ["stop"],
    "budget": ["inference"],
    "period": ["day", "month"],
}
TARGET = 'cluster="c",namespace="n",job="llm-cost",instance="a:9409"'


def label_sets(row: Row) -> Iterator[str]:
    values = [[f'{label}="{value}"' for value in LABELS[label]] for label in row.labels]
    for combination in itertools.product(*values):
        yield ",".join((TARGET, *combination))


def series_of(name: str) -> list[str]:
    """The label sets that a family of the exporter has in the history."""
    return list(label_sets(row_of(name)))


def row_of(name: str) -> Row:
    (row,) = [row for row in ROWS if f"{PREFIX}{row.name}" == name]
    return row


def open_metrics(names: Iterable[str], times: list[int]) -> Iterator[str]:
    for name in sorted(names):
        rises = row_of(name).type is Type.COUNTER
        yield f"# TYPE {name.removesuffix('_total')} {'counter' if rises else 'gauge'}\n"
        for labels in series_of(name):
            for at in times:
                yield f"{name}{{{labels}}} {at - times[0] if rises else 1} {at}\n"
    yield "# EOF\n"


def times_until(end: int, days: int) -> list[int]:
    """Hourly at first, as long windows need no more; every five minutes in the last day."""
    fine = end - 26 * HOUR
    return [*range(end - days * DAY, fine, HOUR), *range(fine, end + 1, 300)]


def write_history(names: Iterable[str], folder: Path, end: int, days: int) -> None:
    """Write blocks of a TSDB in which the families have been there for so many days until `end`."""
    text = folder / "history.om"
    text.write_text("".join(open_metrics(names, times_until(end, days))), encoding="utf-8")
    command = [
        program("promtool"),
        "tsdb",
        "create-blocks-from",
        "--quiet",
        "openmetrics",
        str(text),
        str(folder / "tsdb"),
    ]
    subprocess.run(command, check=True, capture_output=True)
