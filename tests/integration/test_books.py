"""The books with a ledger behind them."""

import asyncio
from pathlib import Path

from exporter.books import Books, Fate
from exporter.core.cap import Override
from exporter.ledger import Ledger
from tests.fakes import FakeClock


def override(amount: int) -> Override:
    return Override(budget="all", amount_nano_usd=amount, until_ns=2**62, at_ns=0, reason="")


async def test_of_overrides_at_once_the_last_counts_and_each_is_told_at_once(tmp_path: Path):
    ledger = Ledger.open(tmp_path, FakeClock())
    books = Books(ledger)
    books.start()
    fates = await asyncio.wait_for(asyncio.gather(*(books.override(override(amount), 60) for amount in range(1, 9))), 5)
    assert set(fates) <= {Fate.IN_FORCE, Fate.REPLACED}
    assert fates[-1] is Fate.IN_FORCE
    assert books.overrides == {"all": override(8)}
    assert await asyncio.to_thread(ledger.close, 10)


async def test_before_the_awaited_ledger_is_there_nothing_is_shown_and_no_override_counts():
    books = Books()
    books.await_ledger()
    assert await books.override(override(1), 60) is Fate.NOT_WRITTEN
    assert (books.overrides, books.totals()) == ({}, {})
