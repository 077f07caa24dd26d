"""Keys of what was delivered, kept for a day or two so that a retry counts once: a table for even days, one for odd."""

import sqlite3
from collections.abc import Sequence
from typing import Final

from exporter.ledger.change import Batch, Verdict

_DAY_SECONDS: Final = 86_400
_TABLES: Final = ("ids_even", "ids_odd")
_ASKED_AT_ONCE: Final = 500
_COUNT: Final = (  # of a table's keys, in meta by its name: to count them anew would take longer with every key
    "INSERT INTO meta (name, text) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET text = text + excluded.text"
)
_DAY: Final = "ids_day"  # in meta: the newest day with keys


def rotate(connection: sqlite3.Connection, now: int) -> int:
    """Forget the keys of the days before the newest one there was; returns the day that keys belong to now.

    After the clock (Unix seconds) was set back they belong to the newest day that there was. However far it is ahead,
    one look at it forgets no more than the older of the two tables.
    """
    found = connection.execute("SELECT text FROM meta WHERE name = ?", (_DAY,)).fetchone()
    today = now // _DAY_SECONDS
    newest = int(found[0]) if found else today
    if today > newest or not found:
        if found:
            connection.execute(f"DELETE FROM {_table(newest + 1)}")  # noqa: S608 - the names are ours
            connection.execute("DELETE FROM meta WHERE name = ?", (_table(newest + 1),))
        connection.execute("INSERT OR REPLACE INTO meta (name, text) VALUES (?, ?)", (_DAY, str(today)))
    return max(today, newest)


def count(connection: sqlite3.Connection) -> int:
    """Return how many keys are kept."""
    (total,) = connection.execute("SELECT sum(text) FROM meta WHERE name IN ('ids_even', 'ids_odd')").fetchone()
    return int(total or 0)


def judge(connection: sqlite3.Connection, batch: Batch, day: int) -> Verdict:
    """Tell what of a batch is new and remember its keys, inside the caller's transaction; a conflict changes nothing.

    Raises:
        sqlite3.Error: the keys cannot be read or written.
    """
    known = _known(connection, [key.key for key in batch.keys])
    new, conflicts = [], []
    for position, (key, body) in enumerate(batch.keys):
        if key not in known:
            known[key] = body
            new.append(position)
        elif known[key] != body:
            conflicts.append(position)
    if conflicts and not batch.is_partial:
        return Verdict(conflicts=conflicts)
    fresh = (batch.keys[position] for position in new)
    connection.executemany(f"INSERT INTO {_table(day)} (key, body) VALUES (?, ?)", fresh)  # noqa: S608 - the names are ours
    connection.execute(_COUNT, (_table(day), len(new)))
    duplicates = len(batch.keys) - len(new) - len(conflicts)
    return Verdict(new=new, duplicates=duplicates, conflicts=tuple(conflicts), change=batch.effect(new))


def _known(connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for first in range(0, len(keys), _ASKED_AT_ONCE):
        asked = keys[first : first + _ASKED_AT_ONCE]
        marks = ",".join("?" * len(asked))
        for table in _TABLES:
            query = f"SELECT key, body FROM {table} WHERE key IN ({marks})"  # noqa: S608 - the names are ours
            found.update(connection.execute(query, asked))
    return found


def _table(day: int) -> str:
    return _TABLES[day % 2]
