"""The rows of a ledger: read at once, written change by change, forgotten when they are old."""

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from typing import Final

from exporter.core.attribution import Claim, Slot
from exporter.core.money import Account, Kind
from exporter.ledger.change import Change, Saved, Wanted

EVERYTHING: Final = Wanted()
BUCKETS_KEPT_SECONDS: Final = 400 * 86_400
SAMPLES_KEPT_SECONDS: Final = 25 * 3_600
_MOST: Final = 2**63 - 1
PEAKS_KEPT_SECONDS: Final = 7 * 86_400  # the series "peak:…"


def read(connection: sqlite3.Connection, wanted: Wanted = EVERYTHING) -> Saved:
    """Read a ledger as it stands at one moment.

    Raises:
        sqlite3.Error: it cannot be read.
        ValueError, LookupError, TypeError, ArithmeticError: it holds what no ledger of this version can hold.
    """
    with connection:
        connection.execute("BEGIN")
        accounts = {number: account for account, number in account_ids(connection).items()}
        amounts = connection.execute("SELECT id, amount, rest FROM accounts").fetchall()
        samples = connection.execute("SELECT series, at, amounts FROM samples ORDER BY at, series")
        return Saved(
            totals={accounts[number]: amount for number, amount, _ in amounts},
            rests={accounts[number]: Fraction(rest) for number, _, rest in amounts if rest != "0"},
            buckets={(accounts[number], start): amount for number, start, amount in _buckets(connection, wanted)},
            pending={
                (Slot(*slot), tuple(json.loads(item))): amount
                for *slot, item, amount in connection.execute("SELECT * FROM pending")
            },
            claims={
                (Slot(*row[:3]), (row[3], row[4])): Claim(*row[5:])
                for row in connection.execute("SELECT * FROM claims")
            },
            states=dict(connection.execute("SELECT name, state FROM baselines")),
            samples=tuple((series, at, tuple(json.loads(values))) for series, at, values in samples),
            meta=dict(connection.execute("SELECT name, text FROM meta WHERE name NOT GLOB 'ids_*'")),
        )


def past(connection: sqlite3.Connection, ids: Collection[int], back: int) -> dict[int, tuple[int, dict[int, int]]]:
    """Return by account its total, and its buckets that start within `back` seconds of the newest of all buckets.

    Raises:
        sqlite3.Error: they cannot be read.
    """
    wanted = json.dumps(list(ids))
    with connection:
        connection.execute("BEGIN")
        totals = connection.execute(
            "SELECT id, amount FROM accounts WHERE id IN (SELECT value FROM json_each(?))", (wanted,)
        )
        found: dict[int, tuple[int, dict[int, int]]] = {number: (amount, {}) for number, amount in totals}
        buckets = connection.execute(
            "SELECT account, start, amount FROM buckets WHERE start >= (SELECT max(start) FROM buckets) - ? "
            "AND account IN (SELECT value FROM json_each(?))",
            (back, wanted),
        )
        for number, start, amount in buckets:
            found[number][1][start] = amount
    return found


def _buckets(connection: sqlite3.Connection, wanted: Wanted) -> Iterator[tuple[int, int, int]]:
    """Yield (account, start, amount)."""
    yield from connection.execute(
        "SELECT account, start, amount FROM buckets "
        "WHERE start >= min(?, ifnull((SELECT max(start) FROM buckets) - nullif(?, 0), ?)) "
        "AND account IN (SELECT id FROM accounts WHERE kind IN (SELECT value FROM json_each(?)))",
        (wanted.since, wanted.back, wanted.since, json.dumps(list(wanted.kinds))),
    )


def account_ids(connection: sqlite3.Connection) -> dict[Account, int]:
    """Return the number of each account's row."""
    rows = connection.execute("SELECT id, kind, labels FROM accounts")
    return {Account(Kind(kind), tuple(json.loads(labels))): number for number, kind, labels in rows}


def open_accounts(connection: sqlite3.Connection, new: Mapping[Account, int]) -> None:
    """Make a row for each account, with its number."""
    connection.executemany(
        "INSERT INTO accounts (id, kind, labels, amount, rest) VALUES (?, ?, ?, 0, '0')",
        ((number, account.kind, json.dumps(account.labels)) for account, number in new.items()),
    )


def write(connection: sqlite3.Connection, change: Change, ids: Mapping[Account, int]) -> None:
    """Write a change whose accounts have rows, inside the caller's transaction.

    A sum beyond 64 bits stays at the most that can be kept, so that what counts such nonsense holds up nothing else.

    Raises:
        sqlite3.Error: it cannot be written.
    """
    connection.executemany(
        "UPDATE accounts SET amount = min(amount + ?, ?) WHERE id = ?",
        ((min(amount, _MOST), _MOST, ids[account]) for account, amount in change.totals.items() if amount),
    )
    connection.executemany(
        "UPDATE accounts SET rest = ? WHERE id = ?",
        ((str(rest), ids[account]) for account, rest in change.rests.items()),
    )
    connection.executemany(
        "INSERT INTO buckets (start, account, amount) VALUES (?, ?, ?) "
        "ON CONFLICT (start, account) DO UPDATE SET amount = min(amount + excluded.amount, ?)",
        (
            (start, ids[account], min(amount, _MOST), _MOST)
            for (account, start), amount in change.buckets.items()
            if amount
        ),
    )
    _write_slots(connection, change)
    _write_values(connection, change)


def _write_slots(connection: sqlite3.Connection, change: Change) -> None:
    connection.executemany("DELETE FROM pending WHERE (engine, start, seconds) = (?, ?, ?)", change.closed)
    connection.executemany("DELETE FROM claims WHERE (engine, start, seconds) = (?, ?, ?)", change.closed)
    connection.executemany(
        "INSERT INTO pending (engine, start, seconds, item, amount) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET amount = amount + excluded.amount",
        ((*slot, json.dumps(item), amount) for (slot, item), amount in change.pending.items()),
    )
    connection.executemany(
        "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
        "prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
        "cached_prompt_tokens = cached_prompt_tokens + excluded.cached_prompt_tokens, "
        "output_tokens = output_tokens + excluded.output_tokens",
        ((*slot, *claimant, *claim) for (slot, claimant), claim in change.claims.items()),
    )


def _write_values(connection: sqlite3.Connection, change: Change) -> None:
    gone = [(name,) for name, state in change.states.items() if state is None]
    kept = [(name, state) for name, state in change.states.items() if state is not None]
    samples = [(at, series, json.dumps(values)) for series, at, values in change.samples]
    connection.executemany("DELETE FROM baselines WHERE name = ?", gone)
    connection.executemany("INSERT OR REPLACE INTO baselines (name, state) VALUES (?, ?)", kept)
    connection.executemany("INSERT OR REPLACE INTO samples (at, series, amounts) VALUES (?, ?, ?)", samples)
    connection.executemany("INSERT OR REPLACE INTO meta (name, text) VALUES (?, ?)", change.meta.items())


def forget(connection: sqlite3.Connection, now: int, *, crowded: bool) -> None:
    """Delete what is too old at a Unix second, but of the buckets only the two oldest quarters of an hour.

    Called every quarter of an hour that keeps up, holds no commit up, and a clock that is years ahead for a while
    costs next to nothing. In a crowded ledger the oldest buckets go before their time.
    """
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "DELETE FROM buckets WHERE start IN "
            "(SELECT DISTINCT start FROM buckets WHERE start < ? ORDER BY start LIMIT 2)",
            (now if crowded else now - BUCKETS_KEPT_SECONDS,),
        )
        connection.execute(
            "DELETE FROM samples WHERE at < ? AND (at < ? OR series NOT GLOB 'peak:*')",
            (now - SAMPLES_KEPT_SECONDS, now - PEAKS_KEPT_SECONDS),
        )
