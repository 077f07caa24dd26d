"""What commands print: tables that are never cut, and names in any script."""

import io
import sys
from typing import Final

from rich.console import Console
from rich.table import Table

_WIDEST: Final = 10_000


def printed(table: Table) -> str:
    """Return a table as wide as it is: an amount is never cut short."""
    console = Console(force_terminal=sys.stdout.isatty(), width=_WIDEST)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).rstrip("\n")


def take_any_script() -> None:
    """Let standard output show names that its encoding does not have."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
