"""What can be wrong with a ledger, in words for an operator."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from exporter.ledger.schema import MAX_BYTES

_UNREADABLE: Final = "Could not decode to UTF-8"  # the module's words: SQLite itself takes any bytes for a text
_FULL: Final = f"the disk is full, or the ledger has come to its bound of {MAX_BYTES >> 20} MiB"

_WORDS: Final = {
    sqlite3.SQLITE_BUSY: "another program has locked it",
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR_SHMSIZE: _FULL,
}


class LedgerError(Exception):
    """The ledger cannot be used; says where, what was expected and what was found."""


class CorruptError(LedgerError):
    """The file is damaged, or no database at all."""


def words(error: Exception) -> str:
    """Say what is wrong."""
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
        is_corrupt = _code(error) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or _UNREADABLE in str(error)
        kind = CorruptError if is_corrupt else LedgerError
        raise kind(f"{path}: expected a ledger that can be used, found: {words(error)}") from error
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise CorruptError(f"{path}: expected a ledger of this version, found in it: {error!r}") from error


def _code(error: Exception) -> int:
    """Return SQLite's extended error code, whose low byte is the kind of the error."""
    return getattr(error, "sqlite_errorcode", 0)
