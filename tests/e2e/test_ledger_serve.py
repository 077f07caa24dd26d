"""`serve` with a ledger as its users run it: killed, stopped, ended, and on folders and disks that will not do."""

import contextlib
import http.client
import random
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from exporter.clock import NANOSECONDS, SystemClock
from exporter.core.meter import MeterState
from exporter.core.money import Account, Kind
from exporter.ledger import Change, Ledger, Wanted, file
from tests.ledgers import saved
from tests.processes import RECORDING, REPOSITORY, Exporter, free_port, replayed, running

NOBODY = "http://127.0.0.1:9"
USD_PER_HOUR = 3.6  # a thousandth of a dollar a second
OUTPUT = "llmcost_output_tokens_total{engine=default,model=tiny-llama,tier=}"
PROMPT = "llmcost_prompt_tokens_total{engine=default,model=tiny-llama,tier=}"
UP = "llmcost_source_up{source=engine,target=default}"
WAITS = "llmcost_ledger_uncommitted_usd{}"
ERRORS = "llmcost_ledger_write_errors_total{}"

# Read off the recording: the last pages of the engine's two lives, and when its first life did no more.
OUTPUT_TOKENS = 83470 + 30877
PROMPT_TOKENS = 140666 + 51349
IN_FIRST_LIFE, AT_ITS_END, IN_SECOND_LIFE = 320.0, 378.0, 440.0  # seconds into the recording


def flags(url: str, folder: Path, interval: str = "200ms") -> tuple[str, ...]:
    price = f"--gpu.usd-per-hour={USD_PER_HOUR}"
    return f"--engine.url={url}", price, f"--interval={interval}", f"--storage.path={folder}", "--log.level=warn"


def serve_once(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "exporter", "serve", f"--web.listen-address=127.0.0.1:{free_port()}", *arguments]
    return subprocess.run(command, capture_output=True, cwd=REPOSITORY, timeout=30, check=False, text=True)


def counters(page: Mapping[str, float]) -> dict[str, float]:
    """What must go on from one process to the next."""
    ours = ("llmcost_source_", "llmcost_ledger_", "llmcost_ttft_", "process_", "python_")
    return {name: value for name, value in page.items() if "_total{" in name and not name.startswith(ours)}


def compute(page: Mapping[str, float]) -> float:
    return sum(value for name, value in page.items() if name.startswith("llmcost_spend_usd_total{category=compute_"))


def told(done: "subprocess.CompletedProcess[str]") -> str:
    """The one line beside the log that says why it ended."""
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("ts=")]
    return line


# --- killed


class Watcher:
    """Scrapes an address all the time, whoever answers there: no counter may fall or vanish."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.last: dict[str, float] = {}
        self.wrong: list[str] = []
        self.pages = 0

    def _run(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._take(counters(self._exporter.metrics()))
            time.sleep(0.02)

    def _take(self, now: dict[str, float]) -> None:
        self.pages += 1
        fell = {name: (value, now.get(name)) for name, value in self.last.items() if now.get(name, -1) < value}
        if fell:
            self.wrong.append(f"page {self.pages}: {fell}")
        self.last |= now

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


class Killed:
    """Exporters on one ledger and one address, killed at random moments of a replayed day, again and again."""

    SPEED, SKIP = 16.0, 20.0

    def __init__(self, root: Path, seed: int) -> None:
        self._root, self._chance = root, random.Random(seed)
        self._ports = free_port(), free_port()
        self.folder = root / "data"
        self.days = self.kills = self.pages = 0

    def day(self, kills: int) -> None:
        """Live through the recording once; at its end all that it says is on the page, of all days so far."""
        replay_port, port = self._ports
        replay = ("replay", str(RECORDING), f"--listen-address=127.0.0.1:{replay_port}", "--loop=off")
        serve = ("serve", *flags(f"http://127.0.0.1:{replay_port}", self.folder))
        with running(self._root, *replay, f"--speed={self.SPEED}", f"--skip={self.SKIP}s"):
            began = time.monotonic()

            def recorded() -> float:
                return (time.monotonic() - began) * self.SPEED + self.SKIP

            with running(self._root, *serve, port=port) as first, Watcher(first) as watcher:
                first.until("the engine", lambda page: page.get(UP) == 1)
                first.end(signal.SIGKILL)
                for _ in range(kills - 1):
                    with running(self._root, *serve, port=port, wait=False) as killed:
                        time.sleep(self._chance.uniform(0.05, 1.5))
                        if IN_FIRST_LIFE < recorded() < AT_ITS_END:  # what was not read before an engine ends is lost
                            time.sleep((AT_ITS_END - recorded()) / self.SPEED)
                        assert killed.process.poll() is None, killed.log.read_text()
                assert recorded() < IN_SECOND_LIFE, "this machine is too slow for this many kills"
                with running(self._root, *serve, port=port) as last:
                    page = last.until("the end", lambda page: page.get(UP) == 0 and recorded() > 520, seconds=40)
                    assert last.end() == 0
        self.days, self.kills, self.pages = self.days + 1, self.kills + kills, self.pages + watcher.pages
        assert watcher.wrong == []
        assert watcher.pages > 100
        assert (page[OUTPUT], page[PROMPT]) == (self.days * OUTPUT_TOKENS, self.days * PROMPT_TOKENS)
        self._check_money(page)

    def _check_money(self, page: Mapping[str, float]) -> None:
        """Every second since the first beat has been paid for once, except what is still pending."""
        found = saved(self.folder)
        pending = [
            interval.duration_ns
            for state in found.states.values()
            for interval in msgspec.msgpack.decode(state, type=MeterState).pending
        ]
        lived = int(found.meta["last_beat"]) - int(found.meta["accounting_start"]) - sum(pending)
        spend = sum(total for account, total in found.totals.items() if account.kind is Kind.SPEND)
        assert spend / NANOSECONDS == pytest.approx(lived / NANOSECONDS / 1000, abs=50e-6)
        assert compute(page) <= (spend + 1) / NANOSECONDS
        of_buckets = dict.fromkeys(found.totals, 0)
        for (account, _), amount in found.buckets.items():
            of_buckets[account] += amount
        assert of_buckets == found.totals


@pytest.mark.timeout(150)
def test_killed_at_any_moment_it_loses_nothing_and_counts_nothing_twice(tmp_path: Path):
    seed = time.time_ns() % 10**6
    print(f"seed {seed}")
    Killed(tmp_path, seed).day(kills=20)


# --- ended, and begun again


def test_sigterm_writes_everything(tmp_path: Path):
    folder = tmp_path / "data"
    with replayed(tmp_path, "--skip=165s", "--speed=20") as url:
        with running(tmp_path, "serve", *flags(url, folder)) as exporter:
            exporter.until("tokens", lambda page: page.get(OUTPUT, 0) > 3000)
            last = exporter.metrics()
            assert exporter.end() == 0
        on_disk = saved(folder).totals
        assert on_disk[Account(Kind.OUTPUT_TOKENS, ("default", "tiny-llama", ""))] >= last[OUTPUT]
        with running(tmp_path, "serve", *flags(url, folder)) as exporter:
            first = exporter.metrics()
            assert exporter.end() == 0
    assert {name: first.get(name) for name in counters(last) if first.get(name, -1) < last[name]} == {}
    assert not (folder / "ledger.sqlite-wal").exists()


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """An engine that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_counters_are_there_before_the_first_beat(tmp_path: Path):
    folder = tmp_path / "data"
    with (
        replayed(tmp_path, "--skip=165s", "--speed=20") as url,
        running(tmp_path, "serve", *flags(url, folder)) as exporter,
    ):
        exporter.until("tokens", lambda page: page.get(OUTPUT, 0) > 3000)
        assert exporter.end() == 0
    with silent() as url, running(tmp_path, "serve", *flags(url, folder, "20s")) as exporter:
        page = exporter.metrics()
        assert UP not in page
        assert page[OUTPUT] > 3000
        assert compute(page) > 0
        config = tmp_path / "config.yml"
    config.write_text("engines: []")
    broken = (f"--config.file={config}", f"--storage.path={folder}", "--on-fatal=degrade")
    with running(tmp_path, "serve", *broken) as exporter:
        assert exporter.metrics()[OUTPUT] == page[OUTPUT]


def test_a_stop_of_half_a_minute_is_time_that_nobody_saw(tmp_path: Path):
    unobserved = "llmcost_spend_usd_total{category=compute_unobserved,engine=default,model=tiny-llama,tier=}"
    folder = tmp_path / "data"
    with (
        replayed(tmp_path, "--skip=165s", "--loop=continue") as url,
        running(tmp_path, "serve", *flags(url, folder)) as exporter,
    ):
        exporter.until("the engine", lambda page: page.get(UP) == 1 and compute(page) > 0)
        exporter.process.send_signal(signal.SIGSTOP)
        time.sleep(30)
        exporter.process.send_signal(signal.SIGCONT)
        page = exporter.until("unobserved time", lambda page: page.get(unobserved, 0) > 0)
        assert 29.9 < page[unobserved] * 1000 < 31.5
        assert exporter.ask("/-/healthy").status == 200
        assert exporter.end() == 0
        assert "Traceback" not in exporter.log.read_text()


# --- folders and files that will not do


def test_a_second_exporter_on_the_same_folder_ends_with_one_line(tmp_path: Path):
    folder = tmp_path / "data"
    with running(tmp_path, "serve", *flags(NOBODY, folder)) as exporter:
        line = told(serve_once(*flags(NOBODY, folder)))
        assert line == f"{folder}: expected to be the only writer, found another (process {exporter.process.pid})"
        exporter.until("beats", lambda page: compute(page) > 0)
        assert exporter.end() == 0
    assert saved(folder).totals


@pytest.mark.parametrize("what", ["missing", "file", "strange", "newer"])
def test_a_folder_that_will_not_do_ends_with_one_line(tmp_path: Path, what: str):
    folder = tmp_path / "data"
    if what == "missing":
        folder = tmp_path / "not mounted" / "data"
        expected = f"{folder}: expected a folder that can be written, found: No such file or directory"
    elif what == "file":
        folder.write_text("mine")
        expected = f"{folder}: expected a folder that can be written, found: File exists"
    else:
        folder.mkdir()
        with contextlib.closing(sqlite3.connect(folder / file.NAME)) as connection:
            connection.execute("CREATE TABLE theirs (a)")
            if what == "newer":
                connection.execute(f"PRAGMA application_id = {file._APPLICATION_ID}")
                connection.execute("PRAGMA user_version = 99")
        expected = {"strange": "another's database: move it away", "newer": "a newer version of this program wrote it"}[
            what
        ]
    assert told(serve_once(*flags(NOBODY, folder))).endswith(expected)


AS_SOMEBODY_ELSE = """
import encodings.idna, os, sys  # what is loaded late is not theirs to read
from exporter.cli.serve import serve
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65532); os.setuid(65532)
serve.main(sys.argv[1:])
"""


def test_a_folder_that_cannot_be_written_ends_with_one_line(tmp_path: Path):
    for parent in (tmp_path, *tmp_path.parents):
        if parent.name.startswith(("pytest", "test_")):
            parent.chmod(0o755)
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o555)
    command = [sys.executable, "-c", AS_SOMEBODY_ELSE, *flags(NOBODY, folder)]
    done = subprocess.run(command, capture_output=True, cwd=REPOSITORY, timeout=30, check=False, text=True)
    assert told(done) == f"{folder}: expected a folder that can be written, found: Permission denied"


BUDGETS = """\
interval: 200ms
engines: [{{url: "{url}"}}]
prices: {{gpu: {{usd_per_hour: 3.6}}}}
budgets:
  - {{name: all, monthly_usd: 600, cap: {{mode: enforce, on_unknown: deny}}}}
budget_api: {{}}
"""


def test_no_harm_without_a_folder_it_waits_and_says_so(tmp_path: Path):
    """Health routes answer, nothing is metered, and no budget is known, until the disk is there."""
    folder, config = tmp_path / "not mounted" / "data", tmp_path / "config.yml"
    with replayed(tmp_path, "--skip=165s", "--speed=20") as url:
        config.write_text(BUDGETS.format(url=url))
        serve = (f"--config.file={config}", f"--storage.path={folder}", "--on-fatal=degrade", "--log.level=warn")
        with running(tmp_path, "serve", *serve) as exporter:
            page = exporter.until("a second attempt", lambda page: page.get(ERRORS, 0) > 1)
            assert not counters(page)
            problem = f"the ledger can be opened: {folder}: expected a folder that can be written, found: No such file"
            assert problem in exporter.ask("/").text
            assert exporter.log.read_text().count(problem) == 1
            assert [exporter.ask(path).status for path in ("/-/healthy", "/-/ready")] == [200, 200]
            denied = exporter.ask("/v1/budgets/check")
            assert (denied.status, msgspec.json.decode(denied.body)["state"]) == (402, "unknown")
            override = exporter.ask("/v1/budgets/all/override", "POST", body=b'{"amount_usd": "5", "for": "1h"}')
            assert override.status == 503
            folder.parent.mkdir()
            denials = "llmcost_budget_denied_total{budget=all,mode=enforce}"
            page = exporter.until("tokens", lambda page: page.get(OUTPUT, 0) > 1000 and compute(page) > 0)
            assert page[denials] >= 1
            assert exporter.ask("/v1/budgets/check").status == 200
            assert problem not in exporter.ask("/").text
            assert exporter.end() == 0
    assert saved(folder).totals[Account(Kind.BUDGET_DENIED, ("all", "enforce"))] == page[denials]


def old_start(page: Mapping[str, float]) -> float:
    return page["llmcost_accounting_start_timestamp_seconds{}"]


def test_a_rolling_update_waits_for_the_ledger_and_goes_on(tmp_path: Path):
    """The new process begins while the old one still writes; each second is charged once."""
    folder = tmp_path / "data"
    (tmp_path / "new").mkdir()
    with (
        replayed(tmp_path, "--skip=165s", "--speed=20", "--loop=continue") as url,
        running(tmp_path, "serve", *flags(url, folder)) as old,
        running(tmp_path / "new", "serve", *flags(url, folder), "--on-fatal=degrade") as new,
    ):
        last = old.until("tokens", lambda page: page.get(OUTPUT, 0) > 1000)
        page = new.until("an attempt", lambda page: page.get(ERRORS, 0) > 0)
        assert not counters(page)
        assert f"found another (process {old.process.pid})" in new.ask("/").text
        assert old.end() == 0
        began = old_start(page := new.until("a beat", lambda page: page.get(UP) == 1))
        fell = {name: value for name, value in counters(last).items() if page[name] < value}
        assert not fell
        page = new.until("all time is charged", lambda page: compute(page) * 1000 > time.time() - began - 2)
        assert compute(page) * 1000 < time.time() - began + 0.5
        assert new.end() == 0


def test_a_damaged_ledger_is_set_aside_named_and_metering_goes_on(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    damaged = b"\x00garbage\xff" * 1000
    (folder / file.NAME).write_bytes(damaged)
    with (
        replayed(tmp_path, "--skip=165s", "--speed=20") as url,
        running(tmp_path, "serve", *flags(url, folder)) as exporter,
    ):
        exporter.until("tokens", lambda page: page.get(OUTPUT, 0) > 1000 and compute(page) > 0)
        (aside,) = folder.glob("*corrupt*")
        assert aside.read_bytes() == damaged
        assert str(aside) in exporter.log.read_text()
        assert str(aside) in exporter.ask("/").text
        assert exporter.ask("/-/reload", "POST").status == 200
        time.sleep(0.5)
        assert str(aside) in exporter.ask("/").text
        assert exporter.end() == 0
    assert saved(folder).totals[Account(Kind.OUTPUT_TOKENS, ("default", "tiny-llama", ""))] > 1000


# --- disks that are full


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """A file system of 1 MiB, and how to fill it for a while."""
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not mount or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("NOT TESTED: a full disk; this user may not mount a tmpfs")

    @contextlib.contextmanager
    def full() -> Iterator[None]:
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as opened, contextlib.suppress(OSError):
            while True:
                opened.write(b"x" * 4096)
        yield
        filler.unlink()

    try:
        yield full
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def goes_on_without_commits(exporter: Exporter, full: contextlib.AbstractContextManager[None], folder: Path) -> None:
    exporter.until("tokens", lambda page: page.get(OUTPUT, 0) > 0 and compute(page) > 0)
    with full:
        page = exporter.until("errors", lambda page: page[ERRORS] >= 1 and page[WAITS] > 0, seconds=30)
        later = exporter.until("more that waits", lambda later: later[WAITS] > page[WAITS] + 0.0003)
        assert counters(later) == counters(page)
        assert later[UP] == 1
        assert "the ledger cannot be written, metering goes on" in exporter.log.read_text()
        assert exporter.ask("/-/healthy").status == 200
    last = exporter.until("everything written", lambda page: page[WAITS] < 0.0003, seconds=30)
    assert compute(last) >= compute(later) + later[WAITS] - 1e-9
    assert exporter.end() == 0
    found = saved(folder)
    assert found.totals[Account(Kind.OUTPUT_TOKENS, ("default", "tiny-llama", ""))] >= last[OUTPUT]
    lived = int(found.meta["last_beat"]) - int(found.meta["accounting_start"])
    spend = sum(total for account, total in found.totals.items() if account.kind is Kind.SPEND)
    assert spend == pytest.approx(lived / 1000, abs=250_000)  # a quarter of a second between two readings of the clock


def test_a_full_disk_stops_no_metering_and_everything_is_written_later(tmp_path: Path):
    folder = tmp_path / "data"
    with (
        small_disk(folder) as full,
        replayed(tmp_path, "--skip=165s", "--loop=continue") as url,
        running(tmp_path, "serve", *flags(url, folder)) as exporter,
    ):
        goes_on_without_commits(exporter, full(), folder)


def test_files_that_may_not_grow_stop_no_metering_either(tmp_path: Path):
    folder = tmp_path / "data"

    @contextlib.contextmanager
    def limited(process: int) -> Iterator[None]:
        least = 100_000  # the log of the process must go on
        limit = max(least, (folder / "ledger.sqlite-wal").stat().st_size)
        before = resource.prlimit(process, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        yield
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)

    with (
        replayed(tmp_path, "--skip=165s", "--loop=continue") as url,
        running(tmp_path, "serve", *flags(url, folder, "100ms")) as exporter,
    ):
        exporter.until("a log", lambda _: (folder / "ledger.sqlite-wal").stat().st_size > 100_000)
        goes_on_without_commits(exporter, limited(exporter.process.pid), folder)


# --- what it costs


def a_year(folder: Path, engines: int) -> None:
    """Write a ledger as it is after a year, whose exporter ended a minute ago."""
    now = time.time_ns() // NANOSECONDS
    names = [f"engine-{number}" for number in range(engines)]
    spend = [
        Account(Kind.SPEND, (category, name, "tiny-llama", ""))
        for name in names
        for category in ("compute_busy", "compute_idle", "storage")
    ]
    tokens = [
        Account(kind, (name, "tiny-llama", ""))
        for name in names
        for kind in (Kind.PROMPT_TOKENS, Kind.CACHED_PROMPT_TOKENS, Kind.OUTPUT_TOKENS)
    ]
    starts = range((now - 365 * 86_400) // 900 * 900, now, 900)
    samples_of = {f"{kind}:{name}": 25 * 60 for name in names for kind in ("engine",)}
    ledger = Ledger.open(folder, SystemClock(), Wanted(since=now))
    ledger.start(lambda *_: None)
    for first in range(0, len(starts), 1000):
        some = starts[first : first + 1000]
        buckets = {(account, start): 123_456_789 for account in (*spend, *tokens) for start in some}
        totals = dict.fromkeys((*spend, *tokens), 123_456_789 * len(some))
        ledger.submit(Change(totals=totals, buckets=buckets))
    for name in samples_of:
        minutes = [(name, now - 60 * age, (0, 0, 0, 0)) for age in range(1, 25 * 60)]
        peaks = [(name.replace("engine", "peak", 1), now - 300 * age, (123_456,)) for age in range(1, 7 * 288)]
        ledger.submit(Change(samples=(*minutes, *peaks)))
    meta = {"last_beat": str((now - 60) * NANOSECONDS), "accounting_start": str(starts[0] * NANOSECONDS)}
    ledger.submit(Change(meta=meta))
    assert ledger.close(60)


A_YEAR = """\
interval: 200ms
engines:
{engines}
prices: {{gpu: {{usd_per_hour: 3.6}}}}
budgets: [{{name: all, daily_usd: 100, monthly_usd: 1000}}]
"""


@pytest.mark.parametrize("engines", [1, pytest.param(8, marks=pytest.mark.soak)])
def test_a_year_of_data_is_opened_in_a_moment(tmp_path: Path, engines: int):
    folder = tmp_path / "data"
    a_year(folder, engines)
    config = tmp_path / "config.yml"
    engine_lines = "".join(f"  - {{name: engine-{number}, url: '{NOBODY}/{number}'}}\n" for number in range(engines))
    config.write_text(A_YEAR.format(engines=engine_lines))
    seconds = {}
    for where in ("none", "year"):
        storage = [f"--storage.path={folder}"] if where == "year" else []
        began = time.monotonic()
        with running(tmp_path, "serve", f"--config.file={config}", *storage) as exporter:
            seconds[where] = time.monotonic() - began
            exporter.until("beats", lambda page: compute(page) > 0)
            time.sleep(1)
            resident = exporter.metrics()["process_resident_memory_bytes{}"] / 2**20
            print(f"{engines} engines, {where}: {seconds[where]:.2f} s to ready, {resident:.1f} MiB resident")
            assert exporter.end() == 0
    size = (folder / file.NAME).stat().st_size / 2**20
    print(f"{size:.1f} MiB on disk")
    assert seconds["year"] < seconds["none"] + 10


def test_memory_with_an_open_ledger(tmp_path: Path):
    folder = tmp_path / "data"
    with (
        replayed(tmp_path, "--skip=165s", "--speed=20") as url,
        running(tmp_path, "serve", *flags(url, folder)) as exporter,
    ):
        exporter.until("tokens", lambda page: page.get(OUTPUT, 0) > 3000)
        resident = exporter.metrics()["process_resident_memory_bytes{}"] / 2**20
        print(f"{resident:.1f} MiB resident")
        assert resident < 60
