"""The tables of a ledger, version by version."""

import logging
import sqlite3
from typing import Final

log = logging.getLogger(__name__)

PAGE_BYTES: Final = 4096
MAX_BYTES: Final = 2**30
MAX_PAGES: Final = MAX_BYTES // PAGE_BYTES
MAX_PAGES_IN_MEMORY: Final = 2**26 // PAGE_BYTES

# One item a version, each from the one before it. What was released is never edited, only added to.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE accounts (
            id INTEGER PRIMARY KEY, kind TEXT NOT NULL, labels TEXT NOT NULL,
            amount INTEGER NOT NULL CHECK (typeof(amount) = 'integer'), rest TEXT NOT NULL, UNIQUE (kind, labels)
        )""",
        """CREATE TABLE buckets (
            start INTEGER NOT NULL, account INTEGER NOT NULL,
            amount INTEGER NOT NULL CHECK (typeof(amount) = 'integer'), PRIMARY KEY (start, account)
        ) WITHOUT ROWID""",
        """CREATE TABLE samples (
            at INTEGER NOT NULL, series TEXT NOT NULL, amounts TEXT NOT NULL, PRIMARY KEY (at, series)
        ) WITHOUT ROWID""",
        "CREATE TABLE baselines (name TEXT PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE meta (name TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID",
    ),
    (
        """CREATE TABLE pending (
            engine TEXT NOT NULL, start INTEGER NOT NULL, seconds INTEGER NOT NULL, item TEXT NOT NULL,
            amount INTEGER NOT NULL CHECK (typeof(amount) = 'integer'), PRIMARY KEY (engine, start, seconds, item)
        ) WITHOUT ROWID""",
        """CREATE TABLE claims (
            engine TEXT NOT NULL, start INTEGER NOT NULL, seconds INTEGER NOT NULL,
            feature TEXT NOT NULL, team TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
            cached_prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
            PRIMARY KEY (engine, start, seconds, feature, team)
        ) WITHOUT ROWID""",
        "CREATE TABLE ids_even (key BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE ids_odd (key BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
    ),
)


def version(connection: sqlite3.Connection) -> int:
    """Return the version of a database's schema; 0 before the first migration."""
    return pragma(connection, "user_version")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database to the newest version, one transaction a version."""
    found = version(connection)
    for number, statements in enumerate(MIGRATIONS[found:], start=found + 1):
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        if found:
            log.info("the ledger's schema is now version %d", number)


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """Return a setting or a figure of a database."""
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
