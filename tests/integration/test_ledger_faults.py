"""The ledger and what happens to files: full and slow disks, folders that are read-only, damage, strangers, stops.

Real SQLite on a real file system; what is asked of each is that nothing is lost, nothing counts twice, nothing is
overwritten, and the operator reads what is wrong.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from exporter.ledger import Change, Ledger, LedgerError, Wanted, file, schema, writer
from tests.fakes import FakeClock
from tests.ledgers import QUARTER, commit, saved, spend, spent, start_writer, until, writing
from tests.processes import REPOSITORY

STAMP = "20261123T201324Z"  # the fake clock's moment


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_LEAST_PAUSE_SECONDS", 0.05)


def refused(folder: Path) -> str:
    """Why a ledger cannot be opened."""
    with pytest.raises(LedgerError) as error:
        Ledger.open(folder, FakeClock())
    return str(error.value)


def program(code: str, *arguments: object) -> Any:
    """Run a program that prints JSON."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- folders


def test_a_missing_parent_is_not_made(tmp_path: Path):
    folder = tmp_path / "not mounted" / "data"
    assert refused(folder) == f"{folder}: expected a folder that can be written, found: No such file or directory"
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder(tmp_path: Path):
    folder = tmp_path / "data"
    folder.write_text("mine")
    assert refused(folder) == f"{folder}: expected a folder that can be written, found: File exists"
    assert folder.read_text() == "mine"


def test_a_folder_in_place_of_the_file(tmp_path: Path):
    (tmp_path / file.NAME).mkdir()
    assert "expected a ledger that can be used, found: unable to open database file" in refused(tmp_path)


AS_SOMEBODY_ELSE = """
import json, os, sys
from pathlib import Path
from exporter.clock import SystemClock
from exporter.ledger import Ledger, LedgerError
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65532); os.setuid(65532)
try:
    Ledger.open(Path(sys.argv[1]), SystemClock())
except LedgerError as error:
    print(json.dumps(str(error)))
"""


def reachable(path: Path) -> Path:
    """Let others come to a folder of pytest's, which are for their owner alone."""
    for parent in (path, *path.parents):
        if parent.name.startswith(("pytest", "test_")):
            parent.chmod(0o755)
    return path


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    folder = reachable(tmp_path) / "data"
    folder.mkdir()
    folder.chmod(0o555)
    said = program(AS_SOMEBODY_ELSE, folder)
    assert said == f"{folder}: expected a folder that can be written, found: Permission denied"


def test_files_that_cannot_be_written(tmp_path: Path):
    with writing(reachable(tmp_path)):
        pass
    for path in tmp_path.iterdir():
        path.chmod(0o444)
    tmp_path.chmod(0o555)
    assert "expected a folder that can be written, found: Permission denied" in program(AS_SOMEBODY_ELSE, tmp_path)


# --- strangers


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path):
    path = tmp_path / file.NAME
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (a)")
    before = path.read_bytes()
    expected = "expected a ledger of this program, found another's database: move it away"
    assert refused(tmp_path) == f"{path}: {expected}"
    assert path.read_bytes() == before


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path):
    with writing(tmp_path) as ledger:
        commit(ledger, spent(7))
        expected = f"expected to be the only writer, found another (process {os.getpid()})"
        assert refused(tmp_path) == f"{tmp_path}: {expected}"
        assert saved(tmp_path).totals == {spend(): 7}
        commit(ledger, spent(1))
    with writing(tmp_path) as ledger:
        assert ledger.saved.totals == {spend(): 8}


# --- damage


def filled(folder: Path) -> Path:
    with writing(folder) as ledger:
        for quarter in range(300):
            ledger.submit(spent(1, start=QUARTER - 900 * quarter))
            ledger.submit(spent(1, spend("other"), start=QUARTER - 900 * quarter))
    path = folder / file.NAME
    assert path.stat().st_size > 7 * schema.PAGE_BYTES
    return path


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00garbage\xff" * 1000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_within_a_page(path: Path) -> None:
    os.truncate(path, schema.PAGE_BYTES // 2)


def page_overwritten(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.seek(path.stat().st_size // schema.PAGE_BYTES // 2 * schema.PAGE_BYTES)
        opened.write(b"\xa5" * schema.PAGE_BYTES)


def header_overwritten(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.write(b"\xa5" * 16)


def row_damaged(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


ROWS = (
    "UPDATE accounts SET kind = 'spent' WHERE id = 1",
    "UPDATE accounts SET kind = CAST(x'ff' AS TEXT) WHERE id = 1",
    "UPDATE accounts SET labels = '[' WHERE id = 1",
    "UPDATE accounts SET rest = '1/0' WHERE id = 1",
    "INSERT INTO samples VALUES (1, 'engine:chat', 'null')",
    "INSERT INTO pending VALUES ('chat', 0, 300, 'null', 1)",
    "INSERT INTO claims VALUES ('chat', 0, 300, CAST(x'ff' AS TEXT), '', 1, 1, 1)",
)

DAMAGES = (garbage, empty, cut_short, cut_within_a_page, page_overwritten, header_overwritten)
DAMAGED_ROWS = [pytest.param(partial(row_damaged, statement=statement), id=statement) for statement in ROWS]


@pytest.mark.parametrize("damage", [*DAMAGES, *DAMAGED_ROWS])
def test_a_damaged_file_is_set_aside_named_and_kept(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
):
    path = filled(tmp_path)
    damage(path)
    before = path.read_bytes()
    with writing(tmp_path) as ledger:
        aside = tmp_path / f"ledger.sqlite.corrupt-{STAMP}"
        assert ledger.set_aside == aside
        assert ledger.saved.totals == {}
        commit(ledger, spent(7))
    assert aside.read_bytes() == before
    assert saved(tmp_path).totals == {spend(): 7}
    (record,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert record.startswith(f"{path}: expected a ledger")
    assert record.endswith(f": it is kept as {aside}, and the ledger begins anew")


def test_a_big_ledger_is_checked_in_what_is_read_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A whole check would take seconds; damage among old buckets does not keep it from going on."""
    path = filled(tmp_path)
    whole, old, new = path.read_bytes(), QUARTER - 900 * 250, QUARTER
    pages = [whole[at : at + schema.PAGE_BYTES] for at in range(0, len(whole), schema.PAGE_BYTES)]
    old_page = next(page for page in pages if old.to_bytes(4) in page and new.to_bytes(4) not in page)
    path.write_bytes(whole.replace(old_page, b"\xa5" * schema.PAGE_BYTES))
    monkeypatch.setattr(file, "_CHECKED_WHOLE_BYTES", 0)
    ledger = Ledger.open(tmp_path, FakeClock(), Wanted(since=QUARTER))
    assert ledger.close(1)
    assert (ledger.set_aside, ledger.saved.totals) == (None, {spend(): 300, spend("other"): 300})
    with writing(tmp_path) as ledger:
        assert ledger.set_aside is not None


def test_damage_twice_in_a_second_overwrites_nothing(tmp_path: Path):
    names = [f"ledger.sqlite.corrupt-{STAMP}{suffix}" for suffix in ("", "-2", "-3")]
    for name in names:
        (tmp_path / file.NAME).write_text(name)
        with writing(tmp_path) as ledger:
            assert ledger.set_aside == tmp_path / name
    assert [(tmp_path / name).read_text() for name in names] == names


def test_a_log_without_its_database_is_set_aside_not_mixed_in(tmp_path: Path):
    """SQLite would play it into the new file."""
    with open_writer(tmp_path / "data"):
        pass
    log = tmp_path / "data/ledger.sqlite-wal"
    before = log.read_bytes()
    assert len(before) > 0
    (tmp_path / "data" / file.NAME).unlink()
    with writing(tmp_path / "data") as ledger:
        assert ledger.set_aside == tmp_path / f"data/ledger.sqlite.corrupt-{STAMP}-wal"
        assert ledger.set_aside.read_bytes() == before
        assert ledger.saved.totals == {}


# --- while it is written


@contextlib.contextmanager
def open_writer(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has written something, and is killed at the end."""
    with (folder.parent / "out").open("wb") as output, start_writer(folder, "1", output) as process:
        until(lambda: b"committed 3" in (folder.parent / "out").read_bytes())
        yield process


def test_what_a_killed_writer_left_in_the_log_is_there(tmp_path: Path):
    with open_writer(tmp_path / "data"):
        pass
    assert (tmp_path / "data/ledger.sqlite-wal").stat().st_size > 0
    left = saved(tmp_path / "data")
    assert len(left.samples) > 0
    with writing(tmp_path / "data") as ledger:
        assert ledger.saved == left


def test_a_stopped_writer_keeps_its_lock_lets_readers_read_and_goes_on(tmp_path: Path):
    folder = tmp_path / "data"
    with open_writer(folder) as process:
        process.send_signal(signal.SIGSTOP)
        ends = time.monotonic() + 2
        first = saved(folder)
        while time.monotonic() < ends:
            assert saved(folder) == first
            assert f"found another (process {process.pid})" in refused(folder)
            time.sleep(0.1)
        process.send_signal(signal.SIGCONT)
        until(lambda: len(saved(folder).samples) > len(first.samples))


def test_a_slow_commit_holds_nothing_up(tmp_path: Path):
    """Somebody else's lock stands for a disk that takes its time."""
    with writing(tmp_path) as ledger, closing(sqlite3.connect(tmp_path / file.NAME, isolation_level=None)) as other:
        commit(ledger, spent(1))
        other.execute("BEGIN IMMEDIATE")
        seconds = []
        ends = time.monotonic() + 2
        while time.monotonic() < ends:
            began = time.perf_counter()
            number = ledger.submit(spent(1))
            seconds.append(time.perf_counter() - began)
            time.sleep(0.002)
        assert ledger.committed == 1
        other.execute("COMMIT")
        until(lambda: ledger.committed == number)
        assert ledger.errors == 0
    assert sorted(seconds)[len(seconds) * 9 // 10] < 0.001
    assert saved(tmp_path).totals == {spend(): 1 + len(seconds)}


def test_a_lock_held_too_long_is_an_error_that_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file, "_BUSY_SECONDS", 0.05)
    with writing(tmp_path) as ledger, closing(sqlite3.connect(tmp_path / file.NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ledger.submit(Change(totals={spend(): 1}, states={"engine:chat": b"first"}))
        until(lambda: ledger.errors >= 3)
        number = ledger.submit(Change(states={"engine:chat": b"second"}))
        assert ledger.problem == f"{tmp_path / file.NAME}: another program has locked it"
        assert (ledger.committed, ledger.last_commit) == (0, None)
        other.execute("COMMIT")
        until(lambda: ledger.committed == number and ledger.problem is None)
    found = saved(tmp_path)
    assert (found.totals, found.states) == ({spend(): 1}, {"engine:chat": b"second"})


def test_a_flood_does_not_hammer_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "_LEAST_PAUSE_SECONDS", 0.2)
    path, away = tmp_path / file.NAME, tmp_path / "away"
    with writing(tmp_path) as ledger:
        path.rename(away)
        ends = time.monotonic() + 1
        while time.monotonic() < ends:
            number = ledger.submit(spent(1))
            time.sleep(0.001)
        assert 2 <= ledger.errors <= 6
        away.rename(path)
        until(lambda: ledger.committed == number)


def test_closing_waits_no_longer_than_it_may_and_says_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file, "_BUSY_SECONDS", 0.05)
    ledger = Ledger.open(tmp_path, FakeClock())
    ledger.start(lambda *_: None)
    with closing(sqlite3.connect(tmp_path / file.NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ledger.submit(spent(1))
        began = time.monotonic()
        assert ledger.close(0.3) is False
        assert time.monotonic() - began < 1
        until(lambda: not ledger._thread.is_alive())
    with writing(tmp_path) as ledger:
        assert ledger.saved.totals == {}


@pytest.mark.parametrize("name", ["ledger.sqlite", "ledger.sqlite-wal", "ledger.lock"])
@pytest.mark.parametrize("stranger", [None, b"not ours"])
def test_nothing_is_written_into_a_file_that_is_gone(tmp_path: Path, name: str, stranger: bytes | None):
    """Without its lock another exporter could be writing, too."""
    path, away = tmp_path / name, tmp_path / "away"
    with writing(tmp_path) as ledger:
        commit(ledger, spent(1))
        path.rename(away)
        if stranger is not None:
            path.write_bytes(stranger)
        number = ledger.submit(spent(2))
        until(lambda: ledger.errors > 0)
        found = "none" if stranger is None else "another"
        expected = f"expected the file that was opened, found {found}: put it back, or restart with what is there"
        assert ledger.problem == f"{path}: {expected}"
        assert (path.read_bytes() if path.exists() else None) == stranger
        away.rename(path)
        until(lambda: ledger.committed == number)
    assert saved(tmp_path).totals == {spend(): 3}


def test_a_stranger_in_our_place_is_not_touched_at_the_end_either(tmp_path: Path):
    path = tmp_path / file.NAME
    ledger = Ledger.open(tmp_path, FakeClock())
    ledger.start(lambda *_: None)
    commit(ledger, spent(1))
    path.unlink()
    path.write_bytes(b"not ours")
    ledger.submit(spent(2))
    assert ledger.close(0.3) is False
    until(lambda: not ledger._thread.is_alive())
    assert path.read_bytes() == b"not ours"


@pytest.mark.parametrize("amount", [2**63 - 1, 2**63, 10**30])
def test_a_sum_beyond_64_bits_holds_up_nothing_else(tmp_path: Path, amount: int):
    """It stays at the most that can be kept; what is beside it goes on."""
    with writing(tmp_path) as ledger:
        commit(ledger, spent(1))
        commit(ledger, spent(amount).merged(spent(7, spend("other"))))
        commit(ledger, spent(1).merged(spent(7, spend("other"))))
        assert ledger.errors == 0
    assert saved(tmp_path).totals == {spend(): 2**63 - 1, spend("other"): 14}
    assert saved(tmp_path).buckets == {(spend(), QUARTER): 2**63 - 1, (spend("other"), QUARTER): 14}


def test_a_bug_in_what_is_written_leaves_the_writer_alive(tmp_path: Path):
    ledger = Ledger.open(tmp_path, FakeClock())
    ledger.start(lambda *_: None)
    ledger.submit(Change(samples=[("engine:chat", 1, (object(),))]))  # type: ignore[list-item]
    until(lambda: ledger.errors > 1)
    assert ledger.problem == f"{tmp_path / file.NAME}: internal error (TypeError)"
    assert ledger._thread.is_alive()
    assert ledger.close(0.2) is False
    until(lambda: not ledger._thread.is_alive())


def test_a_bug_where_commits_are_told_counts_nothing_twice(tmp_path: Path):
    def broken(change: Change, _: int) -> None:
        raise RuntimeError(str(change))

    ledger = Ledger.open(tmp_path, FakeClock())
    ledger.start(broken)
    commit(ledger, spent(1))
    commit(ledger, spent(1))
    assert ledger.close(5)
    assert ledger.errors == 0
    assert saved(tmp_path).totals == {spend(): 2}


# --- full disks

WITH_A_LIMIT = """
import json, resource, sys, time
from pathlib import Path
from exporter.clock import SystemClock
from exporter.core.money import Account, Kind
from exporter.ledger import Change, Ledger, writer
writer._LEAST_PAUSE_SECONDS = 0.05
account = Account(Kind.SENT_BYTES, ())
ledger = Ledger.open(Path(sys.argv[1]), SystemClock())
ledger.start(lambda change, _: None)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
submitted = 0
while ledger.errors < 5:
    number = ledger.submit(Change(totals={account: 1}, states={"engine:chat": b"x" * 5000}))
    submitted += 1
    time.sleep(0.002)
problem, committed = ledger.problem, ledger.committed
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
ends = time.monotonic() + 20
while ledger.committed < number and time.monotonic() < ends:
    time.sleep(0.01)
said = {"problem": problem, "behind": number - committed, "after": ledger.problem, "submitted": submitted}
print(json.dumps({**said, "closed": ledger.close(5)}))
"""


def test_files_that_may_not_grow(tmp_path: Path):
    """Metering goes on, and all is written when it can be."""
    said = program(WITH_A_LIMIT, tmp_path)
    assert said["problem"] == f"{tmp_path / file.NAME}: disk I/O error (SQLITE_IOERR_WRITE)"
    assert said["behind"] > 0
    assert (said["after"], said["closed"]) == (None, True)
    assert list(saved(tmp_path).totals.values()) == [said["submitted"]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not mount or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("NOT TESTED: a full disk; this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as opened, contextlib.suppress(OSError):
        while True:
            opened.write(b"x" * 4096)
    return filler


def test_a_full_disk(small_disk: Path):
    submitted = 1
    with writing(small_disk) as ledger:
        commit(ledger, spent(1))
        filler = fill(small_disk)
        while ledger.errors < 5:
            ledger.submit(Change(totals={spend(): 1}, states={"engine:chat": b"x" * 5000}))
            submitted += 1
            time.sleep(0.002)
        assert ledger.problem is not None
        assert "the disk is full" in ledger.problem
        filler.unlink()
        until(lambda: ledger.problem is None)
    assert saved(small_disk).totals == {spend(): submitted}


def test_a_disk_that_is_full_at_the_start(small_disk: Path):
    filler = fill(small_disk)
    assert re.search(r"No space left on device|the disk is full", refused(small_disk))
    filler.unlink()
    with writing(small_disk) as ledger:
        assert ledger.set_aside is None
        commit(ledger, spent(7))
    filler = fill(small_disk)
    assert "the disk is full" in refused(small_disk)
    assert list(small_disk.glob("*corrupt*")) == []
    filler.unlink()
    assert saved(small_disk).totals == {spend(): 7}


def test_a_read_only_disk_can_be_read(small_disk: Path):
    """A backup, mounted to be looked at."""
    with writing(small_disk) as ledger:
        ledger.submit(spent(7))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert saved(small_disk).totals == {spend(): 7}
    assert "expected a folder that can be written, found: Read-only file system" in refused(small_disk)
