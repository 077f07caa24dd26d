"""Reading and writing pages, and a beat that does both."""

import asyncio
import itertools
import json
import lzma
import statistics
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client.parser import text_string_to_metric_families

from exporter.app import own_page
from exporter.beat import Beat
from exporter.books import Books
from exporter.clock import SystemClock
from exporter.config.model import Config, Disaggregation, Engine, Gpu
from exporter.config.model import Kind as EngineKind
from exporter.config.prices import GpuPrice, Prices
from exporter.config.units import decimal
from exporter.core.money import Kind
from exporter.core.snapshot import ConfigView, Snapshot
from exporter.metrics import ROWS
from exporter.page import PageWriter
from exporter.sources.dialects import recognise, translate, wanted_names
from exporter.sources.exposition import Page
from exporter.sources.http import new_session

RECORDING = Path(__file__).parent.parent / "tests/fixtures/recordings/vllm-0.32.0.jsonl.xz"


def _pages() -> list[str]:
    with lzma.open(RECORDING, "rt") as file:
        return [line["body"] for line in map(json.loads, file) if "body" in line]


PAGES = _pages()
SAME_SERIES = [page for page in PAGES if page.count("\n") == PAGES[40].count("\n")]
VLLM_PAGE = SAME_SERIES[0]


def reference_parse(page: str = VLLM_PAGE) -> None:
    for family in text_string_to_metric_families(page):
        for _ in family.samples:
            pass


def steady_reading() -> Callable[[], object]:
    """Read pages of the same series with new values, one after the other, as a beat does: text to frozen reading."""
    dialect = recognise(VLLM_PAGE, EngineKind.AUTO)
    page = Page(wanted_names(dialect).__contains__)
    pages = iter(SAME_SERIES * 100)
    return lambda: translate(dialect, page.read(next(pages)), Disaggregation.NONE)


def first_reading() -> object:
    dialect = recognise(VLLM_PAGE, EngineKind.AUTO)
    return translate(dialect, Page(wanted_names(dialect).__contains__).read(VLLM_PAGE), Disaggregation.NONE)


def writing(series: int) -> Callable[[], object]:
    """Write a page of so many series, each time with other values."""
    writer = PageWriter(ROWS)
    labels: list[tuple[str, ...]] = [("compute_busy", f"engine-{number}", "model", "tier") for number in range(series)]
    view = ConfigView(successful=True, last_success=0.0)
    snapshots = itertools.cycle(
        Snapshot(
            at=0.0,
            version="0",
            role="lone",
            interval_seconds=5.0,
            accounting_start=0.0,
            config=view,
            totals={Kind.SPEND: {label: 123_456_789 * step + number for number, label in enumerate(labels)}},
        )
        for step in range(1, 5)
    )
    return lambda: writer.write(next(snapshots))


class Beaten(NamedTuple):
    seconds: float
    last: Snapshot


def beats(gpu: Gpu, gpus: int, wait_seconds: float = 0) -> Beaten:
    """Beat against a served page, and with the GPUs that the config finds; the median, and what came out.

    Args:
        gpu: who is asked about GPUs.
        gpus: how many the engine has.
        wait_seconds: how long to wait after the first beat for what GPUs tell only later.
    """

    async def run() -> Beaten:
        pages = iter(SAME_SERIES * 100)
        app = web.Application()

        async def handler(_: web.Request) -> web.Response:
            return web.Response(text=next(pages), content_type="text/plain")

        app.router.add_get("/metrics", handler)
        writer, found, snapshots = PageWriter(ROWS), [], []

        def publish(snapshot: Snapshot) -> None:
            writer.write(snapshot, own_page())
            snapshots.append(snapshot)

        async with TestServer(app) as server, new_session() as session:
            engine = Engine(url=f"http://127.0.0.1:{server.port}", gpus=Fraction(gpus))
            config = Config(engines=(engine,), gpu=gpu, prices=Prices(gpu=GpuPrice(usd_per_hour=decimal("0.80"))))
            beat = Beat(config, SystemClock(), Books(), session, publish)
            try:
                await beat.once()
                await asyncio.sleep(wait_seconds)
                for _ in range(50):
                    began = perf_counter()
                    await beat.once()
                    found.append(perf_counter() - began)
            finally:
                beat.gpus.close()
        return Beaten(statistics.median(found), snapshots[-1])

    return asyncio.run(run())


def whole_page(snapshot: Snapshot) -> Callable[[], bytes]:
    """Write a beat's page again and again, the exporter's own part with it."""
    writer = PageWriter(ROWS)
    return lambda: writer.write(snapshot, own_page()).body


def series(page: bytes | str, having: str = "") -> int:
    """Count the series of a page, or those of them that have this in their labels."""
    lines = (page.decode() if isinstance(page, bytes) else page).splitlines()
    return sum(1 for line in lines if line and not line.startswith("#") and having in line)
