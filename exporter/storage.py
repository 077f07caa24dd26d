"""The ledger's life within ours: opened before anything is booked, waited for where we may not end, then closed."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from exporter.books import BY_QUARTER, Books
from exporter.clock import NANOSECONDS, Clock
from exporter.core.periods import KEPT_QUARTERS, QUARTER
from exporter.core.snapshot import LedgerView
from exporter.ledger import Ledger, LedgerError, Saved, Wanted

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 2.0


class Storage:
    """Gives the books their ledger: of a folder or, where none is named, one that ends with us."""

    def __init__(self, folder: Path | None, books: Books, clock: Clock) -> None:
        self._folder, self._books, self._clock = folder, books, clock
        self._ledger: Ledger | None = None
        self._failures = 0
        self._problem: str | None = None
        self.is_open = asyncio.Event()  # what was stored is known, and can be gone on with
        books.await_ledger()

    def view(self) -> LedgerView | None:
        """Say how writing goes; None without a ledger."""
        if self._problem is None:
            return self._books.ledger()
        return LedgerView(errors=self._failures, problem=self._problem, is_open=False)

    async def open(self) -> list[str]:
        """Try to open the ledger; returns why that cannot be done."""
        try:
            if self._folder is None:
                self._ledger = Ledger.in_memory(self._clock)
            else:
                self._ledger = await asyncio.to_thread(open_ledger, self._folder, self._clock)
        except LedgerError as error:
            self._failures += 1
            self._problem = str(error)
            return [self._problem]
        self._ledger.errors, self._problem = self._failures, None
        self._books.go_on(self._ledger)
        self._ledger.saved = Saved()  # the books have it, and a fleet's months are tens of megabytes
        self.is_open.set()
        return []

    async def wait(self, tell: Callable[[], None]) -> None:
        """Try again until the ledger is open: another exporter may be about to end, or a disk to be mended.

        `tell` is called after each attempt.
        """
        told = None
        while not self.is_open.is_set():
            if self._problem != told:
                told = self._problem
                log.error("nothing is metered until the ledger can be opened: %s", told)
            tell()
            await asyncio.sleep(_RETRY_SECONDS)
            await self.open()
        if told is not None:
            log.info("the ledger is open, after %d attempts that failed", self._failures)

    async def close(self, seconds: float) -> None:
        """Write what waits, and let go."""
        ledger = self._ledger
        if ledger is not None and not await asyncio.to_thread(ledger.close, seconds) and ledger.is_durable:
            log.error("the ledger could not be written whole: %s", ledger.problem or "it took too long")


def open_ledger(folder: Path, clock: Clock) -> Ledger:
    """Open a ledger with as much of its past as books need; raises LedgerError."""
    back = KEPT_QUARTERS * QUARTER
    since = clock.now().wall // NANOSECONDS - back
    return Ledger.open(folder, clock, Wanted(kinds=BY_QUARTER, since=since, back=back))
