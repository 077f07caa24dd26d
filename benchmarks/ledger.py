"""The ledger: what the commit of a beat takes, and what a year of data does to the file, a start and the memory."""

import asyncio
import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from benchmarks import gpus
from benchmarks.pages import RECORDING, SAME_SERIES
from benchmarks.process import Program, free_port
from exporter.beat import Beat
from exporter.books import Books
from exporter.clock import NANOSECONDS, SystemClock
from exporter.config.model import Config, Engine, Gpu, GpuSource
from exporter.config.prices import GpuPrice, Prices
from exporter.config.units import decimal
from exporter.core.money import Account, Kind
from exporter.core.periods import QUARTER
from exporter.ledger import Change, Sample
from exporter.ledger.rows import PEAKS_KEPT_SECONDS, SAMPLES_KEPT_SECONDS
from exporter.sources.http import new_session
from exporter.storage import open_ledger
from tests.fakes import served
from tests.processes import samples

COMMITS = 300
BARE_BYTES = 4096
ENGINES = (1, 8)  # of the ledgers with a year in them
ACCOUNTS = 14  # of an engine: as many have something in every quarter-hour, more than most engines do
RARE = ("abort", "error", "repetition", "compute_down", "compute_unobserved")  # labels that are none of theirs
GROWING = (
    Kind.SPEND,
    Kind.ATTRIBUTED,
    Kind.PROMPT_TOKENS,
    Kind.CACHED_PROMPT_TOKENS,
    Kind.OUTPUT_TOKENS,
    Kind.REQUESTS,
    Kind.PREFILL_TIME,
    Kind.DECODE_TIME,
)
AMOUNTS = {Kind.SPEND: 5_000_000_000, Kind.UNPRICED_GPU: QUARTER * NANOSECONDS}  # of one quarter-hour
OTHER_AMOUNT = 1_000_000
DAYS, QUARTERS_OF_A_DAY = 365, 86_400 // QUARTER
STARTS = 5
FIRST_BEAT_SECONDS = 0.5
SETTLING_SECONDS = 20
NAME = "engine-{}"


class Commit(NamedTuple):
    """From handing the change of a beat over until it is on the disk, and how long a bare fsync takes there.

    Of the changes: how many totals they add to, and how big all states in them are, both in the mean.
    """

    totals: float
    state_bytes: float
    median_seconds: float
    p99_seconds: float
    fsync_seconds: float


class Process(NamedTuple):
    ready_seconds: float
    rss_mib: float


class Year(NamedTuple):
    """A ledger with a year of so many engines, and the exporter on it, beside the same exporter on an empty one."""

    engines: int
    file_mb: float
    open_seconds: float
    full: Process
    empty: Process


class Measured(NamedTuple):
    commit: Commit
    years: list[Year]


def measure(library: Path) -> Measured:
    """Measure on the file system of the system's temporary files, while a library plays the GPUs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        changes = asyncio.run(_beats(folder / "beats", library))
        for engines in ENGINES:
            with _writing(folder / f"year-{engines}") as write:
                for change in _year(_growing(changes[0]), engines):
                    write(change)
        return Measured(_commit(folder / "beats", changes[1:]), _years(folder))


async def _beats(folder: Path, library: Path) -> list[Change]:
    """Return what beats of one engine with GPUs commit, the first one of a new ledger and those that follow."""
    pages, changes = iter(SAME_SERIES), list[Change]()
    ledger = open_ledger(folder, SystemClock())
    ledger.start(lambda change, _: changes.append(change))
    async with served(lambda: (200, next(pages))) as url, new_session() as session:
        engine = Engine(name=NAME.format(0), url=url, gpus=Fraction(gpus.COUNT))
        gpu = Gpu(source=GpuSource.NVML, nvml_library=str(library))
        config = Config(engines=(engine,), gpu=gpu, prices=Prices(gpu=GpuPrice(usd_per_hour=decimal("0.80"))))
        beat = Beat(config, SystemClock(), Books(ledger), session, lambda _: None)
        try:
            for _ in range(30):
                await beat.once()
        finally:
            beat.gpus.close()
            ledger.close(10)
    return changes


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[Callable[[Change], float]]:
    """Yield what commits one change and returns how many seconds that took."""
    told = SimpleQueue[float]()
    ledger = open_ledger(folder, SystemClock())
    ledger.start(lambda *_: told.put(time.perf_counter()))

    def write(change: Change) -> float:
        began = time.perf_counter()
        ledger.submit(change)
        return told.get(timeout=60) - began

    try:
        yield write
    finally:
        done = ledger.close(10)
    if not done:
        raise AssertionError(f"expected all to be written, found: {ledger.problem}")


def _commit(folder: Path, changes: Sequence[Change]) -> Commit:
    """Commit them again and again, and after each write a bare page: what the disk does then, it does to both."""
    commits, fsyncs = [], []
    with _writing(folder) as write, (folder / "bare").open("wb", buffering=0) as bare:
        write(changes[0])  # the first commit of a process is followed by another, which forgets what is old
        for change in itertools.islice(itertools.cycle(changes), COMMITS):
            commits.append(write(change))
            fsyncs.append(_write_bare(bare.fileno()))
    return Commit(
        totals=statistics.mean(len(change.totals) for change in changes),
        state_bytes=statistics.mean(sum(len(state or b"") for state in change.states.values()) for change in changes),
        median_seconds=statistics.median(commits),
        p99_seconds=sorted(commits)[COMMITS * 99 // 100],
        fsync_seconds=statistics.median(fsyncs),
    )


def _write_bare(file: int) -> float:
    began = time.perf_counter()
    os.pwrite(file, bytes(BARE_BYTES), 0)
    os.fsync(file)
    return time.perf_counter() - began


def _growing(first: Change) -> list[Account]:
    """Return the accounts of an engine that a year is made of, out of those that its first beat opens."""
    found = [account for account in first.totals if account.kind in GROWING and not set(RARE) & set(account.labels)]
    shared = [account.labels for account in found if account.kind is Kind.ATTRIBUTED]  # settled after the first beat
    found += [Account(kind, labels) for labels in shared for kind in (Kind.ATTRIBUTED_INPUT, Kind.ATTRIBUTED_OUTPUT)]
    if len(found) != ACCOUNTS:
        raise AssertionError(f"expected {ACCOUNTS} accounts of an engine, found {found}")
    return found


def _year(accounts: Sequence[Account], engines: int) -> Iterator[Change]:
    """Yield a year that ends now, a day at a time, and at last the samples that a ledger keeps."""
    names = [NAME.format(number) for number in range(engines)]
    amounts = {_of(name, account): AMOUNTS.get(account.kind, OTHER_AMOUNT) for name in names for account in accounts}
    end = int(time.time()) // QUARTER * QUARTER
    for day in range(-DAYS, 0):
        starts = [end + (day * QUARTERS_OF_A_DAY + number) * QUARTER for number in range(QUARTERS_OF_A_DAY)]
        yield Change(
            totals={account: amount * len(starts) for account, amount in amounts.items()},
            rests=dict.fromkeys(amounts, Fraction(1, 3)),
            buckets={(account, start): amount for start in starts for account, amount in amounts.items()},
        )
    yield Change(samples=[sample for name in names for sample in _samples(name, end)])


def _of(engine: str, account: Account) -> Account:
    """Return the same account of another engine."""
    return Account(account.kind, tuple(engine if label == NAME.format(0) else label for label in account.labels))


def _samples(engine: str, end: int) -> Iterator[Sample]:
    """Yield an engine's sums minute by minute, and its best rate of each five minutes."""
    for at in range(end - SAMPLES_KEPT_SECONDS, end, 60):
        tokens = OTHER_AMOUNT * DAYS * QUARTERS_OF_A_DAY - (end - at) * OTHER_AMOUNT // QUARTER
        yield f"engine:{engine}", at, (tokens * 25_000, 0, tokens, tokens)
    for at in range(end - PEAKS_KEPT_SECONDS, end, 300):
        yield f"peak:{engine}", at, (2 * OTHER_AMOUNT,)


def _years(folder: Path) -> list[Year]:
    folders = [folder / f"year-{engines}" for engines in ENGINES]
    sizes = [sum(path.stat().st_size for path in each.iterdir()) / 1e6 for each in folders]
    opened = [_open_seconds(each) for each in folders]
    # As an installed package has it, whatever the environment says about writing any.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
    port = free_port()
    replay = ("exporter", "replay", str(RECORDING), f"--listen-address=:{port}", "--skip=155s")
    with Program(replay, port, "/metrics", environment):
        kept = [*folders, *(folder / f"empty-{engines}" for engines in ENGINES)]
        found = _processes(
            [_exporter(each, engines, port, environment) for each, engines in zip(kept, ENGINES * 2, strict=True)]
        )
    full, empty = found[: len(ENGINES)], found[len(ENGINES) :]
    return [Year(*figures) for figures in zip(ENGINES, sizes, opened, full, empty, strict=True)]


def _open_seconds(folder: Path) -> float:
    """Open a ledger and let books take it, as a start does."""
    found = []
    for _ in range(STARTS):
        began = time.perf_counter()
        ledger = open_ledger(folder, SystemClock())
        Books(ledger)
        found.append(time.perf_counter() - began)
        ledger.close(10)
    return statistics.median(found)


def _exporter(folder: Path, engines: int, replayed: int, environment: Mapping[str, str]) -> Program:
    """Return the exporter on a ledger; all its engines are the one that is replayed, each by an address of its own."""
    config, port = folder.with_suffix(".yml"), free_port()
    listed = [
        f"{{name: {NAME.format(number)}, url: 'http://127.0.0.{number + 1}:{replayed}', gpus: {gpus.COUNT // engines}}}"
        for number in range(engines)
    ]
    config.write_text(
        f"engines: [{', '.join(listed)}]\nprices: {{gpu: {{usd_per_hour: 0.80}}}}\ngpu: {{source: nvml}}\n"
    )
    flags = (f"--config.file={config}", f"--storage.path={folder}", f"--web.listen-address=127.0.0.1:{port}")
    return Program(("exporter", "serve", *flags, "--log.level=error"), port, "/-/ready", environment)


def _processes(programs: Sequence[Program]) -> list[Process]:
    """Start each so many times, for one beat; then let all run beside each other."""
    for program in [*programs] * STARTS:
        with program:
            time.sleep(FIRST_BEAT_SECONDS)
    with contextlib.ExitStack() as stack:
        for program in programs:
            stack.enter_context(program)
        time.sleep(SETTLING_SECONDS)
        pages = [program.page() for program in programs]
        _expect_years(pages[: len(ENGINES)])
        # The first start of all writes the bytecode, and the first on a ledger leaves what the next ones resume from.
        return [Process(statistics.median(program.starts[1:]), program.rss_mib) for program in programs]


def _expect_years(pages: Iterable[str]) -> None:
    for count, page in zip(ENGINES, pages, strict=True):
        usd = sum(value for name, value in samples(page).items() if name.startswith("llmcost_spend_usd_total"))
        if usd < count * DAYS * QUARTERS_OF_A_DAY:
            raise AssertionError(f"expected a year of {count} engines on the page, found {usd} dollars")
