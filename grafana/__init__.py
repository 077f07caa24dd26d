"""The dashboards, and the program that writes them: `make dashboards`."""

from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana import capacity, economics, health, spend
from grafana.board import dashboard_of

FOLDER: Final = Path(__file__).parent / "dashboards"
BOARDS: Final = (spend.BOARD, economics.BOARD, capacity.BOARD, health.BOARD)


def written() -> dict[str, str]:
    """Return what the files of all dashboards must hold, by name."""
    encoder = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)
    return {f"{board.uid}.json": encoder.encode(dashboard_of(board)) + "\n" for board in BOARDS}
