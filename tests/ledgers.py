"""Ledgers in tests: opened and closed, waited for, and written by a process that is killed."""

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from exporter.clock import Clock, SystemClock
from exporter.core.money import Account, Kind
from exporter.ledger import BUCKET_SECONDS, Change, Ledger, Saved, connect_read_only, read
from tests.fakes import FakeClock
from tests.processes import REPOSITORY

QUARTER = int(FakeClock().now().unix_seconds) // BUCKET_SECONDS * BUCKET_SECONDS  # it has begun on the fake clock

WRITER = """
import itertools, os, random, sys, time
from pathlib import Path
from exporter.clock import SystemClock
from exporter.core.money import Account, Kind
from exporter.ledger import Change, Ledger

chance = random.Random(int(sys.argv[2]))
ledger = Ledger.open(Path(sys.argv[1]), SystemClock())
ledger.start(lambda *_: os.write(1, f"committed {ledger.committed}\\n".encode()))
for serial in itertools.count(len(ledger.saved.samples)):
    account = Account(Kind.SPEND, ("compute_busy", chance.choice("abc"), "m", ""))
    amount = chance.randrange(10**6)
    sample = ("peak:chat", 4_000_000_000 + serial, (amount,))
    number = ledger.submit(Change(
        totals={account: amount}, buckets={(account, 3_999_999_600 + 900 * chance.randrange(4)): amount},
        states={"last": str(serial).encode()}, samples=[sample],
    ))
    os.write(1, f"submitted {number} {serial}\\n".encode())
    if chance.random() < 0.3:
        time.sleep(chance.random() * 0.01)
"""


def spend(engine: str = "chat", category: str = "compute_busy") -> Account:
    return Account(Kind.SPEND, (category, engine, "m", "fast"))


def spent(amount: int, account: Account | None = None, start: int = QUARTER) -> Change:
    account = account or spend()
    return Change(totals={account: amount}, buckets={(account, start): amount})


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds} s"
        time.sleep(0.005)


@contextlib.contextmanager
def writing(folder: Path, clock: Clock | None = None) -> Iterator[Ledger]:
    """A ledger at work; all that was submitted is written at the end, or the test fails."""
    ledger = Ledger.open(folder, clock or FakeClock())
    try:
        ledger.start(lambda *_: None)
        yield ledger
    finally:
        done = ledger.close(10)
    assert done, ledger.problem


def commit(ledger: Ledger, change: Change) -> None:
    number = ledger.submit(change)
    until(lambda: ledger.committed >= number)


def saved(folder: Path) -> Saved:
    with contextlib.closing(connect_read_only(folder)) as connection:
        return read(connection)


def kill_writers(folder: Path, rounds: int, seed: int) -> int:
    """Kill a writing process again and again, check the ledger each time; returns how many had committed something."""
    chance = random.Random(seed)
    told_something, output = 0, folder.parent / "writer.out"
    for number in range(rounds):
        with output.open("wb") as file, start_writer(folder, str(number), file) as process:
            if number % 4:  # the others are killed while they start
                until(lambda: output.stat().st_size > 0)
            time.sleep(chance.random() * 0.25)
            process.send_signal(signal.SIGKILL)
        told_something += _check(folder, output.read_text().splitlines())
    return told_something


@contextlib.contextmanager
def start_writer(folder: Path, seed: str, output: IO[bytes]) -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), seed], stdout=output, cwd=REPOSITORY)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _check(folder: Path, lines: list[str]) -> bool:
    """Check that all that was told is there, nothing twice, and that the sums agree; says whether anything was told."""
    words = [line.split() for line in lines if line.count(" ") == (2 if line.startswith("s") else 1)]
    told = max((int(number) for word, number, *_ in words if word == "committed"), default=0)
    serials = [int(word[2]) for word in words if word[0] == "submitted" and int(word[1]) <= told]
    ledger = Ledger.open(folder, SystemClock())
    ledger.close(1)
    found, of_buckets = ledger.saved, dict.fromkeys(ledger.saved.totals, 0)
    for (account, _), amount in found.buckets.items():
        of_buckets[account] += amount
    kept = [at - 4_000_000_000 for _, at, _ in found.samples]
    assert kept == list(range(len(kept))), "a change is missing"
    assert max(serials, default=-1) < len(kept), "a change that was told is not there"
    assert sum(found.totals.values()) == sum(amount for _, _, (amount,) in found.samples), "a change counts twice"
    assert found.totals == of_buckets
    assert not kept or found.states["last"] == str(kept[-1]).encode()
    assert ledger.set_aside is None
    return bool(serials)
