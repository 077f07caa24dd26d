"""THE table: every family that the page can have, one row each, by topic."""

from typing import Final

from exporter.metrics.budgets import BUDGETS
from exporter.metrics.economics import ECONOMICS
from exporter.metrics.engines import ENGINES
from exporter.metrics.gpus import GPUS
from exporter.metrics.health import HEALTH
from exporter.metrics.row import PREFIX, Fleet, Row, Sample, Type
from exporter.metrics.usage import USAGE

ROWS: Final[tuple[Row, ...]] = (*ENGINES, *USAGE, *ECONOMICS, *BUDGETS, *GPUS, *HEALTH)

__all__ = ["PREFIX", "ROWS", "Fleet", "Row", "Sample", "Type"]
