"""What `doctor` reports: one line, and how good or bad it is."""

from typing import Final, NamedTuple


class Finding(NamedTuple):
    """One line of the report."""

    mark: str
    text: str


OK: Final = "ok     "
PROBLEM: Final = "PROBLEM"  # something that was asked for is missing: the command fails
WARNING: Final = "warning"
NOTE: Final = "       "
