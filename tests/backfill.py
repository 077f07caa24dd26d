"""A history that Prometheus did not see: counters that rise evenly, written into its files by its own tool."""

import itertools
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from exporter.core.money import Category
from exporter.metrics import PREFIX, ROWS, Row
from tests.monitoring import program

HOUR = 3600
DAY = 24 * HOUR
LABELS = {
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
}
TARGET = 'cluster="c",namespace="n",job="llm-cost",instance="a:9409"'
PER_HOUR = 3600.0  # each series rises by 1 a second


def label_sets(row: Row) -> Iterator[str]:
    values = [[f'{label}="{value}"' for value in LABELS[label]] for label in row.labels]
    for combination in itertools.product(*values):
        yield ",".join((TARGET, *combination))


def series_of(name: str) -> list[str]:
    """The label sets that a counter of the exporter has in the history."""
    (row,) = [row for row in ROWS if f"{PREFIX}{row.name}" == name]
    return list(label_sets(row))


def open_metrics(names: Iterable[str], times: list[int]) -> Iterator[str]:
    for name in sorted(names):
        yield f"# TYPE {name.removesuffix('_total')} counter\n"
        for labels in series_of(name):
            for at in times:
                yield f"{name}{{{labels}}} {at - times[0]} {at}\n"
    yield "# EOF\n"


def times_until(end: int, days: int) -> list[int]:
    """Hourly at first, as long windows need no more; every five minutes in the last day."""
    fine = end - 26 * HOUR
    return [*range(end - days * DAY, fine, HOUR), *range(fine, end + 1, 300)]


def write_history(names: Iterable[str], folder: Path, end: int, days: int) -> None:
    """Write blocks of a TSDB in which the counters have been rising for so many days until `end`."""
    text = folder / "history.om"
    text.write_text("".join(open_metrics(names, times_until(end, days))), encoding="utf-8")
    command = [program("promtool"), "tsdb", "create-blocks-from", "--quiet", "openmetrics", text, folder / "tsdb"]
    subprocess.run(command, check=True, capture_output=True)
