"""What `doctor` reports: lines, each with how good or bad it is."""

from typing import Final

Finding = tuple[str, str]  # the mark, and the line

OK: Final = "ok     "
PROBLEM: Final = "PROBLEM"  # something that was asked for is missing: the command fails
WARNING: Final = "warning"
NOTE: Final = "       "
