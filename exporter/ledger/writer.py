"""The one writer of a ledger: takes changes from the event loop, and writes them in a thread of its own."""

import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import IO, Final, NamedTuple, TypeVar

from exporter.clock import NANOSECONDS, Clock
from exporter.core.money import Account
from exporter.ledger import file, keys, rows, schema
from exporter.ledger.change import BUCKET_SECONDS, Batch, Change, Pile, Saved, Verdict, Wanted
from exporter.ledger.errors import CorruptError, LedgerError, in_words, words

log = logging.getLogger(__name__)

_LEAST_PAUSE_SECONDS: Final = 1.0
_KEY_BYTES: Final = 40  # that a key takes in the file, with all around it
_TOO_MANY_KEYS: Final = "the ledger is full of the keys of two days' deliveries: it takes no more before midnight UTC"
_LONGEST_PAUSE_SECONDS: Final = 30.0


Result = TypeVar("Result")


class _Delivery(NamedTuple):
    batch: Batch
    told: Callable[[Verdict], None]


class _Work(NamedTuple):
    """What one transaction writes; `number` is that of the newest change in it, or of the last one written before."""

    change: Change | None
    number: int
    deliveries: Sequence[_Delivery]


class Ledger:
    """A ledger open for writing. What has no underscore may be read from any thread."""

    def __init__(
        self, connection: sqlite3.Connection, lock: IO[str] | None, path: Path, clock: Clock, saved: Saved
    ) -> None:
        self._connection, self._lock, self._path, self._clock = connection, lock, path, clock
        self._ids = rows.account_ids(connection)
        self._files = {name: file.identity(name) for name in file.watched(path)} if lock else {}
        self._using = threading.Lock()  # the connection, for a transaction
        self._changed = threading.Condition()  # guards the next five
        self._waiting: Pile | None = None
        self._deliveries: list[_Delivery] = []
        self._number = 1  # of the commit that will hold what waits
        self._closing = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._on_commit: Callable[[Change, int], None] = lambda *_: None
        self._failing_since: float | None = None
        self._forgot: int | None = None  # the quarter of an hour in which what is old was last forgotten
        self.saved = saved
        self.set_aside: Path | None = None  # where a damaged file was moved
        self.committed = 0  # number of the last commit
        self.errors = 0
        self.problem: str | None = None  # in words, while writing fails
        self.last_commit: float | None = None  # Unix seconds

    @classmethod
    def open(cls, folder: Path, clock: Clock, wanted: Wanted = rows.EVERYTHING) -> "Ledger":
        """Open the ledger of a folder; makes both when they are missing, and blocks while it reads.

        `saved` holds what was found, of the buckets those that are wanted.

        Raises:
            LedgerError: the folder or the file cannot be used, another exporter writes there, or a newer one did.
        """
        path, set_aside = folder / file.NAME, None
        opened = partial(_opened, path, wanted)
        with ExitStack() as held:
            lock = held.enter_context(file.lock(folder))
            try:
                connection, saved = opened()
            except CorruptError as error:
                set_aside = file.set_aside(path, clock)
                log.error("%s: it is kept as %s, and the ledger begins anew", error, set_aside)
                connection, saved = opened()
            held.enter_context(closing(connection))
            ledger = cls(connection, lock, path, clock, saved)
            held.pop_all()
        ledger.set_aside = set_aside
        return ledger

    @classmethod
    def in_memory(cls, clock: Clock) -> "Ledger":
        """Make a ledger that ends with us, for whoever names no folder."""
        return cls(file.in_memory(), None, Path("(memory)"), clock, Saved())

    @property
    def is_durable(self) -> bool:
        """Whether it outlives us."""
        return self._lock is not None

    def past(self, accounts: Collection[Account], back: int) -> dict[Account, tuple[int, dict[int, int]]]:
        """Return the total of accounts, and their buckets within `back` seconds of the newest; blocks while it reads.

        Raises:
            LedgerError: they cannot be read.
        """
        ids = {self._ids[account]: account for account in accounts if account in self._ids}
        with in_words(self._path), ExitStack() as held:
            if self.is_durable:
                connection = held.enter_context(closing(file.connect_read_only(self._path.parent)))
            else:
                held.enter_context(self._using)
                connection = self._connection
            return {ids[number]: found for number, found in rows.past(connection, ids, back).items()}

    def start(self, on_commit: Callable[[Change, int], None]) -> None:
        """Start to write.

        `on_commit` is called with all that a commit held and the number that it has come to, from the writer's thread.
        """
        self._on_commit = on_commit
        self._thread.start()

    def submit(self, change: Change) -> int:
        """Hand a change over without waiting; it is on the disk once `committed` has come to the number returned."""
        with self._changed:
            if self._waiting is None:
                self._waiting = Pile()
            self._waiting.add(change)
            self._changed.notify()
            return self._number

    def deliver(self, batch: Batch, told: Callable[[Verdict], None]) -> None:
        """Hand a batch over without waiting; `told` is called with what became of it, from the writer's thread.

        While the ledger cannot be written nothing is taken: whoever has the batch can deliver it again.
        """
        with self._changed:
            if self.problem is None:
                self._deliveries.append(_Delivery(batch, told))
                self._changed.notify()
                return
        told(Verdict(problem=self.problem))

    def close(self, timeout_seconds: float) -> bool:
        """Write what waits, if that can be done in time, and let go; returns whether all is written."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is None:
            self._let_go()
        else:
            self._thread.join(timeout_seconds)
        with self._changed:
            self._abandoned = True
            self._changed.notify()
            return self._waiting is None and self.committed == self._number - 1

    def _run(self) -> None:
        owed: Change | None = None  # taken from what waits, and not written yet
        pause = 0.0
        while (work := self._take(owed, pause)) is not None:
            verdicts = self._attempt(partial(self._write, work))
            if verdicts is not None:
                self._tell(work)
                owed, pause = None, 0.0
            else:
                verdicts = [Verdict(problem=self.problem)] * len(work.deliveries)
                owed, pause = work.change, min(max(2 * pause, _LEAST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
            for delivery, verdict in zip(work.deliveries, verdicts, strict=True):
                delivery.told(verdict)
            if not pause:
                self._forget_sometimes()
        self._let_go()

    def _take(self, owed: Change | None, pause: float) -> _Work | None:
        """Wait for something to write, or for the time to try again; None at the end."""
        with self._changed:
            if owed is not None:  # a full disk is not tried more often than this, however much comes in
                self._changed.wait_for(lambda: self._abandoned, _LEAST_PAUSE_SECONDS)
            self._changed.wait_for(
                lambda: self._waiting is not None or self._deliveries or self._closing, pause or None
            )
            if self._abandoned or (owed is None and self._waiting is None and not self._deliveries):
                return None
            newer, self._waiting = self._waiting, None
            deliveries, self._deliveries = self._deliveries, []
            self._number += newer is not None
            number = self._number - 1
        if newer is not None:
            owed = owed.merged(newer.change()) if owed else newer.change()
        return _Work(owed, number, deliveries)

    def _attempt(self, action: Callable[[], Result]) -> Result | None:
        """Do something to the file; returns None where that failed.

        What goes wrong is counted and told, and the writer lives on: it holds money.
        """
        try:
            return action()
        except LedgerError as error:
            self._failed(str(error))
        except (sqlite3.Error, OSError) as error:
            self._failed(f"{self._path}: {words(error)}")
        except Exception as error:
            log.exception("a bug while writing the ledger")
            self._failed(f"{self._path}: internal error ({type(error).__name__})")
        return None

    def _failed(self, problem: str) -> None:
        self.errors += 1
        if self.problem != problem:
            log.error("the ledger cannot be written, metering goes on: %s", problem)
        self.problem = problem
        self._failing_since = self._failing_since or self._clock.now().unix_seconds

    def _tell(self, work: _Work) -> None:
        now = self._clock.now().unix_seconds
        if self._failing_since is not None:
            log.info("%s: written again after %.0f s", self._path, now - self._failing_since)
        self.problem = self._failing_since = None
        self.last_commit, self.committed = now, work.number
        try:
            if work.change is not None:
                self._on_commit(work.change, work.number)
        except Exception:  # the change is on the disk: to try again would count it twice
            log.exception("a bug while a commit was told")

    def _let_go(self) -> None:
        self._connection.close()
        if self._lock is not None:
            self._lock.close()

    def _write(self, work: _Work) -> list[Verdict]:
        with self._using, self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            verdicts = self._judged(work.deliveries)
            change = (work.change or Change()).merged(*(verdict.change for verdict in verdicts))
            new = self._new_accounts(change)
            rows.open_accounts(connection, new)
            ids = self._ids | new if new else self._ids
            rows.write(connection, change, ids)
            self._expect_same_files()
        self._ids = ids
        return verdicts

    def _new_accounts(self, change: Change) -> dict[Account, int]:
        """Return the accounts of a change that have no row yet, each with the number that it gets."""
        named = (*change.totals, *change.rests, *(account for account, _ in change.buckets))
        new = [account for account in dict.fromkeys(named) if account not in self._ids]
        first = max(self._ids.values(), default=0) + 1 if new else 0
        return {account: number for number, account in enumerate(new, first)}

    @property
    def _most_pages(self) -> int:
        return schema.MAX_PAGES if self.is_durable else schema.MAX_PAGES_IN_MEMORY

    def _judged(self, deliveries: Sequence[_Delivery]) -> list[Verdict]:
        if not deliveries:
            return []
        day = keys.rotate(self._connection, self._clock.now().wall // NANOSECONDS)
        if keys.count(self._connection) > self._most_pages * schema.PAGE_BYTES * 6 // 10 // _KEY_BYTES:
            return [Verdict(problem=_TOO_MANY_KEYS)] * len(deliveries)
        return [keys.judge(self._connection, delivery.batch, day) for delivery in deliveries]

    def _expect_same_files(self) -> None:
        """Raise LedgerError when the files that were opened are no longer what their paths name."""
        for path, opened in self._files.items():
            found = file.identity(path)
            if found != opened:
                text = f"expected the file that was opened, found {'another' if found else 'none'}"
                raise LedgerError(f"{path}: {text}: put it back, or restart with what is there")

    def _forget_sometimes(self) -> None:
        now = self._clock.now().wall // NANOSECONDS
        quarter = now // BUCKET_SECONDS
        if quarter != self._forgot:
            self._forgot = quarter
            self._attempt(partial(self._forget, now))

    def _forget(self, now: int) -> None:
        used = schema.pragma(self._connection, "page_count") - schema.pragma(self._connection, "freelist_count")
        crowded = used > self._most_pages * 9 // 10
        if crowded:  # to end at the bound would be worse
            log.warning("%s: near its bound of %d MiB: its oldest half hour goes", self._path, schema.MAX_BYTES >> 20)
        with self._using:
            rows.forget(self._connection, now, crowded=crowded)


def _opened(path: Path, wanted: Wanted) -> tuple[sqlite3.Connection, Saved]:
    with ExitStack() as held, in_words(path):
        connection = held.enter_context(closing(file.open_for_writing(path)))
        saved = rows.read(connection, wanted)
        held.pop_all()
    return connection, saved
