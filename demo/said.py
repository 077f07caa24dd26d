"""What the demo says of itself: where everything is, and what of it is real."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import click

from demo.monitoring import HOW_TO_GET, Program
from demo.ports import HOST, Ports

_NAMES: Final = {"prometheus": "Prometheus", "alertmanager": "Alertmanager", "grafana": "Grafana"}


class Line(NamedTuple):
    """One line of the table; `is_` is real, replayed or synthetic."""

    what: str
    address: str
    is_: str
    note: str = ""


def everything(
    exporter: str, engines: Mapping[str, str], ports: Ports, programs: Sequence[Program], folder: Path
) -> None:
    """Print what runs; the table comes last."""
    running = {program.name for program in programs}
    if not {"prometheus", "alertmanager"} <= running:
        click.echo(f"Prometheus or Alertmanager is missing, so no alert goes out: {HOW_TO_GET}")
    if "grafana" not in running:
        click.echo("Grafana is not installed: https://grafana.com/docs/grafana/latest/setup-grafana/installation/")
    click.echo(f"Logs: {folder}. Each engine restarts every four minutes. Ctrl-C ends all.\n")
    click.echo("\n".join(table(_lines(exporter, engines, ports, programs))))


def table(lines: Sequence[Line]) -> list[str]:
    """Align lines in columns, under a head."""
    rows = [Line("what", "address", "is"), *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(Line._fields))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _lines(exporter: str, engines: Mapping[str, str], ports: Ports, programs: Sequence[Program]) -> list[Line]:
    recorded = "a recorded vLLM 0.32, at twice its speed"
    return [
        *(Line(f"engine {name}", f"http://{at}/metrics", "replayed", recorded) for name, at in engines.items()),
        Line("GPUs", f"http://{HOST}:{ports.gpus}/metrics", "synthetic", "they follow the engines' load"),
        Line("usage events", f"{exporter}/v1/usage", "synthetic", "the engines' work, dealt out to made-up features"),
        Line("budget checks", f"{exporter}/v1/budgets", "synthetic", "each second; limits and prices are made up"),
        Line("exporter", f"{exporter}/", "real"),
        *(Line(_NAMES[program.name], program.address, "real") for program in programs),
    ]
