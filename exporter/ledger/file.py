"""The file of a ledger: made whole, opened by one writer and any number of readers, set aside when it is damaged.

It comes into being by a rename: one that is empty or cut short was not left so by us.
"""

import fcntl
import os
import sqlite3
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import IO, Final

from exporter.clock import Clock
from exporter.ledger import schema
from exporter.ledger.errors import CorruptError, LedgerError, in_words

NAME: Final = "ledger.sqlite"
_LOCK: Final = "ledger.lock"

_APPLICATION_ID: Final = 0x4C4C4D24  # "LLM$"
_BUSY_SECONDS: Final = 5.0
_CHECKED_WHOLE_BYTES: Final = 32 * 2**20  # in some 0.1 s; 1 GiB would take 4 s
_WAL_BYTES: Final = 16 * 2**20  # what is left of the write-ahead log after a long read has let it grow


def lock(folder: Path) -> IO[str]:
    """Become the only writer in a folder until the file returned is closed; makes the folder if its parent is there.

    Raises:
        LedgerError: the folder cannot be written, or another exporter writes there.
    """
    with ExitStack() as held:
        file = held.enter_context(_lock_file(folder))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = file.readline(20).strip() or "unknown"
            raise LedgerError(f"{folder}: expected to be the only writer, found another (process {other})") from error
        except OSError as error:
            raise LedgerError(f"{folder}: expected a file system with locks, found: {error.strerror}") from error
        with suppress(OSError):  # whose lock it is only helps a person
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        held.pop_all()
    return file


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open a ledger that has been locked; makes it when there is none, and brings it up to date.

    Raises:
        CorruptError: the file is damaged.
        LedgerError: the file cannot be used for another reason.
    """
    with in_words(path), ExitStack() as held:
        if not path.exists() and not beside(path, "-wal").exists():
            _create(path)
        if not path.exists() or path.stat().st_size == 0:
            raise CorruptError(f"{path}: expected a ledger, found it empty or gone")
        connection = held.enter_context(closing(_connect(path, "mode=rw")))
        _expect_ours(connection, path)
        _expect_whole(connection, path)
        if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise LedgerError(f"{path}: expected a local file system, found one without shared memory")
        for setting in (
            "synchronous = FULL",
            f"max_page_count = {schema.MAX_PAGES}",
            f"journal_size_limit = {_WAL_BYTES}",
        ):
            connection.execute(f"PRAGMA {setting}")
        schema.migrate(connection)
        held.pop_all()
    return connection


def in_memory() -> sqlite3.Connection:
    """Open a ledger that ends with us."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA max_page_count = {schema.MAX_PAGES_IN_MEMORY}")
    schema.migrate(connection)
    return connection


def connect_read_only(folder: Path) -> sqlite3.Connection:
    """Open the ledger of a folder for reading, also while an exporter writes it; the caller closes it.

    Raises:
        LedgerError: there is no ledger, or this version cannot read it.
    """
    path = folder / NAME
    with in_words(path), ExitStack() as held:
        if not path.exists():
            raise LedgerError(f"{path}: expected a ledger, found none")
        # Where nothing can be written, SQLite cannot keep its locks, and nobody can be writing either.
        is_frozen = not os.access(folder, os.W_OK) and not beside(path, "-wal").exists()
        query = "immutable=1" if is_frozen else "mode=ro"
        connection = held.enter_context(closing(_connect(path, query)))
        _expect_ours(connection, path)
        found, newest = schema.version(connection), len(schema.MIGRATIONS)
        if found < newest:
            raise LedgerError(f"{path}: expected schema {newest}, found {found}: `serve` brings it up to date")
        held.pop_all()
    return connection


def set_aside(path: Path, clock: Clock) -> Path:
    """Move a damaged ledger, with what lies beside it, to a name of its own, and return that.

    Raises:
        LedgerError: it cannot be moved.
    """
    moment = datetime.fromtimestamp(clock.now().unix_seconds, UTC)
    stem = f"{path.name}.corrupt-{moment:%Y%m%dT%H%M%SZ}"
    names = (path.with_name(stem if number == 1 else f"{stem}-{number}") for number in count(1))
    target = next(name for name in names if not name.exists() and not beside(name, "-wal").exists())
    with in_words(path):
        lost = [suffix for suffix in ("", "-wal", "-shm") if beside(path, suffix).exists()]
        moved = [beside(path, suffix).rename(beside(target, suffix)) for suffix in lost]
    return moved[0]


def beside(path: Path, suffix: str) -> Path:
    """Return the path of a file that SQLite keeps beside a database."""
    return path.with_name(path.name + suffix)


def watched(path: Path) -> tuple[Path, ...]:
    """Name the files that must stay in their place while a ledger is written; the lock, too: it keeps others away."""
    return path, beside(path, "-wal"), path.parent / _LOCK


def identity(path: Path) -> tuple[int, int] | None:
    """Say which file a path names; None when it names none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _lock_file(folder: Path) -> IO[str]:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        return os.fdopen(os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600), "r+")
    except OSError as error:
        raise LedgerError(f"{folder}: expected a folder that can be written, found: {error.strerror}") from error


def _create(path: Path) -> None:
    fresh = beside(path, ".new")
    fresh.unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # what SQLite adds has the same mode
    with closing(_connect(fresh, "mode=rw")) as connection:
        for setting in (
            "journal_mode = MEMORY",
            f"page_size = {schema.PAGE_BYTES}",
            f"application_id = {_APPLICATION_ID}",
        ):
            connection.execute(f"PRAGMA {setting}")
        schema.migrate(connection)
    fresh.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _connect(path: Path, query: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,  # transactions begin and end where the code says so
        check_same_thread=False,  # opened in one thread, used in another
    )


def _expect_whole(connection: sqlite3.Connection, path: Path) -> None:
    """Raise CorruptError when a table is damaged. The buckets of a big ledger tell only when they are read."""
    checks = ["1"]
    if path.stat().st_size > _CHECKED_WHOLE_BYTES:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'buckets'")
        checks = [name for (name,) in names]
    for check in checks:
        if connection.execute(f"PRAGMA quick_check({check})").fetchone() != ("ok",):
            raise CorruptError(f"{path}: expected a ledger, found a damaged one")


def _expect_ours(connection: sqlite3.Connection, path: Path) -> None:
    if schema.pragma(connection, "application_id") != _APPLICATION_ID:
        raise LedgerError(f"{path}: expected a ledger of this program, found another's database: move it away")
    found, newest = schema.version(connection), len(schema.MIGRATIONS)
    if found > newest:
        text = f"expected schema {newest} or older, found {found}"
        raise LedgerError(f"{path}: {text}: a newer version of this program wrote it")
