"""The ledger: every total, kept in one SQLite file, so that a restart loses nothing.

The event loop hands changes over and never waits; one thread writes all that waits in one transaction. What cannot be
written now waits in memory, where changes add up, and is written when it can be. A commit is on the disk before it is
told, and is never made twice.
"""

from exporter.ledger.change import (
    ACCOUNTING_START,
    BUCKET_SECONDS,
    LAST_BEAT,
    Batch,
    Change,
    Key,
    Sample,
    Saved,
    Verdict,
    Wanted,
    moment,
)
from exporter.ledger.errors import LedgerError, in_words
from exporter.ledger.file import connect_read_only
from exporter.ledger.rows import read
from exporter.ledger.writer import Ledger

__all__ = [
    "ACCOUNTING_START",
    "BUCKET_SECONDS",
    "LAST_BEAT",
    "Batch",
    "Change",
    "Key",
    "Ledger",
    "LedgerError",
    "Sample",
    "Saved",
    "Verdict",
    "Wanted",
    "connect_read_only",
    "in_words",
    "moment",
    "read",
]
