"""Whole lives of an exporter: an engine that does as it is told, and one process after the other on a ledger."""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp

from exporter.beat import Beat
from exporter.books import Books
from exporter.config.model import Config, Engine, Gpu, GpuSource
from exporter.config.prices import GpuPrice, Prices
from exporter.core.money import Account
from exporter.core.snapshot import Snapshot
from exporter.ledger import file
from exporter.metrics import ROWS
from exporter.page import PageWriter
from exporter.sources.http import new_session
from exporter.storage import open_ledger
from exporter.watch import Machine
from tests.fakes import FakeClock, served
from tests.processes import samples

PAGE = """\
process_start_time_seconds {start}
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m"}} 0
vllm:prompt_tokens_total{{engine="0",model_name="m"}} {prompt}
vllm:prompt_tokens_cached_total{{engine="0",model_name="m"}} {cached}
vllm:generation_tokens_total{{engine="0",model_name="m"}} {tokens}
vllm:request_success_total{{engine="0",finished_reason="stop",model_name="m"}} {requests}
vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.5",model_name="m"}} {requests}
vllm:time_to_first_token_seconds_bucket{{engine="0",le="+Inf",model_name="m"}} {requests}
vllm:time_to_first_token_seconds_count{{engine="0",model_name="m"}} {requests}
vllm:time_to_first_token_seconds_sum{{engine="0",model_name="m"}} {requests}
http_requests_total{{handler="/v1/completions",method="POST",status="2xx"}} {replies}
"""


class Vllm:
    """An engine that works, ends, hangs and begins again when it is told to."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.answers = self.says_its_start = True
        self.loads = False
        self.begin()
        self.start -= 1000

    @property
    def age(self) -> float:
        return self._clock.now().unix_seconds - self.start

    def begin(self) -> None:
        """Be another process."""
        self.start = self._clock.now().unix_seconds
        self.tokens = self.requests = self.replies = self.running = 0

    def work(self, tokens: int, *, hung_up: int = 0) -> None:
        self.tokens += tokens
        self.requests += 1
        self.replies += 1 + hung_up

    def answer(self) -> tuple[int, str] | None:
        values = {name: value for name, value in vars(self).items() if isinstance(value, int | float)}
        page = PAGE.format(**values, prompt=2 * self.tokens, cached=self.tokens // 2)
        if self.loads:
            return 503, "Loading model"
        if not self.answers:
            return None
        return 200, page if self.says_its_start else page.partition("\n")[2]


class Stage:
    """One exporter after the other on the same ledger, watched as a scraper would: no counter falls or vanishes."""

    def __init__(self, root: Path, clock: FakeClock, session: aiohttp.ClientSession, config: Config) -> None:
        self.clock, self.config = clock, config
        self._root, self._session, self._lives = root, session, 0
        self._writer = PageWriter(ROWS)
        self._seen: dict[Account, int] = {}
        self.folder = root / "0"
        root.mkdir(exist_ok=True)

    def begin(self) -> None:
        self.ledger = open_ledger(self.folder, self.clock)
        self.books = Books(self.ledger)
        self.books.start()
        self.live = Beat(self.config, self.clock, self.books, self._session, self._published, Machine(environ={}))

    def _published(self, snapshot: Snapshot) -> None:
        now = {
            Account(kind, labels): total for kind, totals in snapshot.totals.items() for labels, total in totals.items()
        }
        assert [account for account, total in self._seen.items() if now.get(account, -1) < total] == []
        self._seen = now

    async def beat(self, seconds: float = 5.0) -> None:
        """Beat, and wait until it is on the disk."""
        self.clock.advance(seconds)
        await self.live.once()
        await self.written()

    def shown(self) -> dict[Account, int]:
        """What the next page will show."""
        found = self.books.totals()
        return {Account(kind, labels): total for kind, totals in found.items() for labels, total in totals.items()}

    async def written(self) -> None:
        async with asyncio.timeout(20):
            while self.shown() != self.books._posted:
                await asyncio.sleep(0.0005)

    def page(self) -> dict[str, float]:
        """The page as it is once everything is on the disk."""
        return samples(self._writer.write(self.live._snapshot(self.clock.now())).body.decode())

    def end(self) -> None:
        """End as SIGTERM ends it."""
        assert self.ledger.close(5)

    def kill(self) -> None:
        """End as SIGKILL ends it: the next life finds the files as they are now, log and all."""
        self._lives += 1
        killed, self.folder = self.folder, self._root / str(self._lives)
        shutil.copytree(killed, self.folder, ignore=shutil.ignore_patterns("*-shm"))
        self.ledger.close(0)

    @contextlib.contextmanager
    def no_commits(self) -> Iterator[None]:
        """Let nothing be written meanwhile."""
        with contextlib.closing(sqlite3.connect(self.folder / file.NAME, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")


@contextlib.asynccontextmanager
async def staged(
    root: Path, clock: FakeClock | None = None, *, capacity: Decimal | None = None, **settings: Any
) -> AsyncIterator[tuple[Stage, Vllm]]:
    clock = clock or FakeClock()
    vllm = Vllm(clock)
    async with served(vllm.answer) as url, new_session() as session:
        chat = Engine(name="chat", url=url, timeout=5.0, max_output_tokens_per_second=capacity)
        stage = Stage(root, clock, session, config(chat, **settings))
        stage.begin()
        try:
            yield stage, vllm
        finally:
            stage.ledger.close(5)


def config(*engines: Engine, price: str = "0.80", **settings: Any) -> Config:
    usual: dict[str, Any] = {
        "prices": Prices(gpu=GpuPrice(usd_per_hour=Decimal(price))),
        "gpu": Gpu(source=GpuSource.NONE),
    }
    return Config(engines=engines, **(usual | settings))
