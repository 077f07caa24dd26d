"""What can be wrong with a ledger, in words for an operator."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from exporter.ledger.schema import MAX_BYTES

_BEYOND_64_BITS: Final = "a total is beyond 64 bits"
_FULL: Final = f"the disk is full, or the ledger has come to its bound of {MAX_BYTES >> 20} MiB"

_WORDS: Final = {
    sqlite3.SQLITE_BUSY: "another program has locked it",
    sqlite3.SQLITE_CONSTRAINT: _BEYOND_64_BITS,  # the only constraint that well-formed changes can meet
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR_SHMSIZE: _FULL,
}


class LedgerError(Exception):
    """The ledger cannot be used; says where, what was expected and what was found."""


class CorruptError(LedgerError):
    """The file is damaged, or no database at all."""


def words(error: Exception) -> str:
    """Say what is wrong."""
    if isinstance(error, OverflowError):
        return _BEYOND_64_BITS
    if isinstance(error, sqlite3.Error):
        text = _WORDS.get(_code(error)) or _WORDS.get(_code(error) & 0xFF)
        return text or f"{error} ({getattr(error, 'sqlite_errorname', 'in the module')})"
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turn every error of opening and reading a ledger into LedgerError; CorruptError when the file is damaged."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        is_corrupt = _code(error) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        kind = CorruptError if is_corrupt else LedgerError
        raise kind(f"{path}: expected a ledger that can be used, found: {words(error)}") from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise LedgerError(f"{path}: expected a ledger of this version, found in it: {error}") from error


def _code(error: Exception) -> int:
    """Return SQLite's extended error code, whose low byte is the kind of the error."""
    return getattr(error, "sqlite_errorcode", 0)
