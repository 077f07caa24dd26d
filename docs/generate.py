"""Writes docs/metrics.md from the table of metrics."""

from pathlib import Path

from exporter.metrics import PREFIX, ROWS

TARGET = Path(__file__).parent / "metrics.md"
HEAD = """# Metrics

This page is generated from `exporter/metrics/` by `make docs`.

Every label set that is known begins at 0. A gauge that is not known is absent, never 0. *Fleet* says how the values of
several exporters make one: `sum`, `max`, or `none` where neither a sum nor a mean would mean anything.

| metric | type | labels | fleet | meaning |
|---|---|---|---|---|
"""
TAIL = """
Beside these stand `process_*` and `python_info`, which describe the exporter's own process.
"""


def markdown() -> str:
    """Return the page."""
    lines = [
        f"| `{PREFIX}{row.name}` | {row.type} | {', '.join(row.labels) or '-'} | `{row.fleet}` | {row.help} |\n"
        for row in ROWS
    ]
    return HEAD + "".join(lines) + TAIL


if __name__ == "__main__":
    TARGET.write_text(markdown(), encoding="utf-8")
    print(f"wrote {TARGET.name}")
