"""The beat with GPUs and a network beside its engines: what they change of the page, the prices and the bill."""

import contextlib
import logging
import random
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp
import pytest

from exporter.beat import Beat
from exporter.books import Books
from exporter.clock import Instant
from exporter.config.model import Config, Engine, Gpu, GpuSelect, GpuShare, GpuSource
from exporter.config.prices import GpuPrice, NetworkPrice, OwnedPrice, Prices
from exporter.core.gpu_readings import GpusReading
from exporter.core.money import NANO, Kind
from exporter.core.snapshot import Snapshot
from exporter.ledger import Ledger, file
from exporter.metrics import ROWS
from exporter.page import PageWriter
from exporter.sources.http import SourceError, new_session
from exporter.watch import LostDriverError, Machine
from tests.fakes import FakeClock, served
from tests.ledgers import saved
from tests.processes import samples

BEGAN: Final = 1_795_464_804.0
H100, L4 = "NVIDIA H100 80GB HBM3", "NVIDIA L4"
A, B = "GPU-0a1b2c3d-0000-4000-8000-000000000001", "GPU-0a1b2c3d-0000-4000-8000-000000000002"
DCGM_PAGES: Final = Path(__file__).parents[1] / "fixtures" / "dcgm"
YEAR: Final = 365 * 86400.0
FIXED: Final = Fraction(NANO, 3600)  # nano-dollars a second, where a GPU costs a dollar an hour
NANO_USD_A_JOULE: Final = 100  # at 0.36 dollars a kWh

SPEND: Final = "llmcost_spend_usd_per_hour{engine=chat}"
SIGNAL: Final = "llmcost_scaling_signal{engine=chat,signal=gpu_utilization}"


def working(tokens: int = 0, running: int = 1) -> str:
    return f"""\
process_start_time_seconds {BEGAN - 1000}
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:prompt_tokens_total{{engine="0",model_name="m"}} {tokens}
vllm:generation_tokens_total{{engine="0",model_name="m"}} {tokens}
"""


class Seen(NamedTuple):
    """One GPU on the page of a dcgm-exporter, with what is known of it."""

    uuid: str = A
    percent: float | None = 50
    joules: float | None = None
    name: str = L4
    number: int = 0

    @property
    def lines(self) -> str:
        labels = f'gpu="{self.number}",UUID="{self.uuid}",modelName="{self.name}"'
        millijoules = None if self.joules is None else self.joules * 1000
        fields = {"GPU_UTIL": self.percent, "TOTAL_ENERGY_CONSUMPTION": millijoules}
        known = {field: value for field, value in fields.items() if value is not None}
        return "".join(f"DCGM_FI_DEV_{field}{{{labels}}} {value}\n" for field, value in known.items())


def dcgm(*gpus: Seen) -> str:
    return "".join(gpu.lines for gpu in gpus)


def two(percent: float = 50, joules: float | None = None, *, percent_b: float | None = None) -> str:
    return dcgm(Seen(A, percent, joules), Seen(B, percent if percent_b is None else percent_b, joules, number=1))


Page = dict[str, float]
Configure = Callable[[str, str], Config]  # by the addresses of the engine's page and of the GPUs' page


class Stage:
    """The real beat between two real servers, with time in our hands; None hangs up.

    With a folder it has a ledger, and one life of the exporter can follow another.
    """

    def __init__(self, path: Path | None, folder: Path | None) -> None:
        self.clock, self.folder = FakeClock(BEGAN), folder
        self.session: aiohttp.ClientSession
        self.snapshots: list[Snapshot] = []
        self.engine: str | None = working()
        self.gpus: str | None = None
        self.urls = ("", "")
        self.machine = Machine(environ={}, interfaces=path or Path("no such table"))
        self.ledger: Ledger | None = None
        self.books: Books
        self.beat: Beat

    def begin(self, configure: Configure) -> None:
        self.configure = configure
        self.ledger = Ledger.open(self.folder, self.clock) if self.folder else None
        self.books = Books(self.ledger)
        self.books.start()
        config = configure(*self.urls)
        self.beat = Beat(config, self.clock, self.books, self.session, self.snapshots.append, self.machine)

    def end(self) -> None:
        assert self.ledger is None or self.ledger.close(5)

    def restart(self, seconds: float = 5.0, configure: Configure | None = None) -> None:
        """Be another process, whose monotonic clock is another one, so many seconds after the last beat."""
        self.end()
        self.clock.advance(seconds)
        wall, self.clock = self.clock.now().wall, FakeClock()
        self.clock._now = Instant(wall, self.clock.now().monotonic)
        self.begin(configure or self.configure)

    async def after(self, seconds: float = 5.0) -> Page:
        """Return the page of a beat some seconds after the one before."""
        if self.beat.last is not None:
            self.clock.advance(seconds)
        await self.beat.once()
        return samples(PageWriter(ROWS).write(self.snapshots[-1]).body.decode())

    async def says(self, *pages: str | None, seconds: float = 5.0) -> Page:
        """Return the page of the last of some beats, each of which finds another page of GPUs."""
        page: Page = {}
        for self.gpus in pages:
            page = await self.after(seconds)
        return page

    def adopt(self, configure: Configure) -> None:
        self.beat.plan(configure(*self.urls))

    def booked(self) -> Fraction:
        """Return all nano-dollars so far, with what is smaller than one."""
        rests = (rest for account, rest in self.books._rests.items() if account.kind is Kind.SPEND)
        whole = (total for account, total in self.books._posted.items() if account.kind is Kind.SPEND)
        return sum(whole) + sum(rests, Fraction(0))

    def unpriced(self) -> float:
        """Return all GPU seconds so far that had no price."""
        posted = self.books._posted.items()
        return sum(total for account, total in posted if account.kind is Kind.UNPRICED_GPU) / NANO


@asynccontextmanager
async def staged(configure: Configure, path: Path | None = None, folder: Path | None = None) -> AsyncIterator[Stage]:
    stage = Stage(path, folder)
    async with (
        served(lambda: None if stage.engine is None else (200, stage.engine)) as url,
        served(lambda: None if stage.gpus is None else (200, stage.gpus)) as dcgm_url,
        new_session() as stage.session,
    ):
        stage.urls = (url, dcgm_url)
        stage.begin(configure)
        try:
            yield stage
        finally:
            stage.end()


Gpus = str | tuple[str | GpuShare, ...]


def configured(
    *gpus: Gpus, price: GpuPrice | None = None, select: GpuSelect = GpuSelect.OWN, name: str | None = None
) -> Configure:
    """Return a config of engines with such GPUs each; the first is `chat`, the next `other`."""

    def configure(url: str, dcgm_url: str) -> Config:
        engines = tuple(
            Engine(
                name=("chat", "other")[number],
                url=url if number == 0 else f"{url}/metrics",
                timeout=5.0,
                gpus=Fraction(wanted) if isinstance(wanted, str) else wanted,
            )
            for number, wanted in enumerate(gpus)
        )
        gpu = Gpu(source=GpuSource.DCGM, dcgm_url=dcgm_url, name=name, select=select)
        return Config(engines=engines, gpu=gpu, prices=Prices(gpu=price or GpuPrice(usd_per_hour=Decimal(1))))

    return configure


def spent(page: Page, engine: str = "chat") -> float:
    return sum(value for name, value in page.items() if "spend_usd_total" in name and f"engine={engine}," in name)


def of_gpu(family: str, uuid: str = A, number: int = 0) -> str:
    return f"llmcost_{family}{{gpu={number},uuid={uuid}}}"


# On the page -----------------------------------------------------------------------------------------------------


async def test_what_a_gpu_says_is_on_the_page_and_what_it_counts_begins_at_zero():
    async with staged(configured((A,))) as stage:
        first = await stage.says(dcgm(Seen(joules=9_000_000.5, percent=80)))
        second = await stage.says(dcgm(Seen(joules=9_000_350.5, percent=40)))
    assert [page[of_gpu("gpu_utilization_ratio")] for page in (first, second)] == [0.8, 0.4]
    assert [page[of_gpu("gpu_energy_joules_total")] for page in (first, second)] == [0, 350]
    assert [page[of_gpu("gpu_busy_seconds_total")] for page in (first, second)] == [0, 2]
    assert [page[of_gpu("gpu_up")] for page in (first, second)] == [1, 1]
    assert second[of_gpu("gpu_sample_age_seconds")] == 0
    assert second[f"llmcost_engine_gpu_info{{engine=chat,gpu=0,uuid={A}}}"] == 1
    assert second[f"llmcost_gpu_info{{architecture=,gpu=0,mig_mode=,name={L4},pci_bus_id=,uuid={A}}}"] == 1
    assert second["llmcost_gpu_source_info{reason=config,source=dcgm}"] == 1
    assert (second["llmcost_gpus_visible{}"], second["llmcost_gpus_expected{}"]) == (1, 1)
    assert second["llmcost_source_up{source=gpu,target=dcgm}"] == 1


async def test_a_page_that_is_gone_takes_the_gauges_and_leaves_the_counters():
    async with staged(configured((A,))) as stage:
        await stage.says(dcgm(Seen(joules=100)))
        before = await stage.says(dcgm(Seen(joules=200)))
        gone = await stage.says(None)
        back = await stage.says(dcgm(Seen(joules=900)))
    for counter in (of_gpu("gpu_energy_joules_total"), of_gpu("gpu_busy_seconds_total")):
        assert gone[counter] == before[counter] > 0
    assert gone[of_gpu("gpu_up")] == 0
    assert gone[of_gpu("gpu_sample_age_seconds")] == 5
    assert of_gpu("gpu_utilization_ratio") not in gone
    assert "llmcost_gpus_visible{}" not in gone
    assert gone["llmcost_source_up{source=gpu,target=dcgm}"] == 0
    assert gone["llmcost_source_errors_total{reason=truncated,source=gpu,target=dcgm}"] == 1
    assert f"llmcost_engine_gpu_info{{engine=chat,gpu=0,uuid={A}}}" in gone
    assert back[of_gpu("gpu_energy_joules_total")] == 800
    assert back[of_gpu("gpu_up")] == back["llmcost_source_up{source=gpu,target=dcgm}"] == 1


async def test_the_signal_is_the_mean_over_the_engines_gpus_of_the_last_minutes_busy_time():
    async with staged(configured("2", select=GpuSelect.ALL)) as stage:
        assert SIGNAL not in await stage.says(two(80, percent_b=40))
        page = await stage.says(two(80, percent_b=40))
        assert page[SIGNAL] == pytest.approx(0.6)
        assert page[SIGNAL.replace("signal{", "signal_ratio{")] == pytest.approx(0.75)
        for beat in range(1, 13):
            page = await stage.says(two(0))
            assert page[SIGNAL] == pytest.approx(0.6 / (beat + 1) if beat < 12 else 0)


async def test_an_engine_has_the_signal_of_its_own_gpus_alone():
    async with staged(configured((A,), (GpuShare(uuid=B, share=Decimal("0.5")),))) as stage:
        gpus = two(100, percent_b=20)
        page = await stage.says(gpus, gpus)
    assert page[SIGNAL] == 1.0
    assert page[SIGNAL.replace("chat", "other")] == pytest.approx(0.2)


async def test_the_signal_is_absent_while_one_of_the_engines_gpus_is_not_known():
    async with staged(configured((A, B))) as stage:
        for _ in range(2):
            assert SIGNAL not in await stage.says(dcgm(Seen(A)))
        assert SIGNAL not in await stage.says(two())
        assert (await stage.says(two()))[SIGNAL] == 0.5
        assert SIGNAL not in await stage.says(dcgm(Seen(A), Seen(B, percent=None)))
        assert SIGNAL not in await stage.says(dcgm(Seen(A)))


async def test_after_a_gap_of_the_page_the_signal_knows_only_what_came_after_it():
    async with staged(configured("1", select=GpuSelect.ALL)) as stage:
        busy = dcgm(Seen(percent=100))
        assert (await stage.says(busy, busy))[SIGNAL] == 1.0
        for _ in range(4):
            assert SIGNAL not in await stage.says(None)
        assert SIGNAL not in await stage.says(busy)
        assert (await stage.says(busy))[SIGNAL] == 1.0


async def test_what_is_charged_is_in_the_config_and_never_what_is_seen():
    eight = (DCGM_PAGES / "bare-metal-8.prom").read_text(encoding="utf-8")
    async with staged(configured("1", select=GpuSelect.ALL)) as stage:
        page = await stage.says(eight, eight)
    assert page["llmcost_gpus_charged{engine=chat}"] == 1
    assert page[SPEND] == 1
    assert spent(page) == pytest.approx(5 / 3600, abs=2e-9)
    assert (page["llmcost_gpus_visible{}"], page["llmcost_gpus_expected{}"]) == (8, 1)
    assert SIGNAL not in page
    assert not [name for name in page if "engine_gpu_info" in name]
    assert page["llmcost_gpu_price_usd_per_hour{gpu=any,source=usd_per_hour}"] == 1


# Prices by name --------------------------------------------------------------------------------------------------

BY_NAME: Final = GpuPrice(by_name={L4: Decimal("0.8"), H100: Decimal("3.2")})


async def test_a_price_is_found_by_the_name_on_the_page_and_holds_while_the_page_is_gone():
    async with staged(configured("1", price=BY_NAME, select=GpuSelect.ALL)) as stage:
        pages = [await stage.says(gpus) for gpus in (dcgm(Seen(name=H100)), dcgm(Seen(name=H100)), None)]
    for page in pages:
        assert page[f"llmcost_gpu_price_usd_per_hour{{gpu={H100},source=by_name}}"] == 3.2
        assert page[SPEND] == 3.2
        assert page[f"llmcost_unpriced_gpu_seconds_total{{gpu={H100}}}"] == 0
    assert spent(pages[-1]) == pytest.approx(10 * 3.2 / 3600, abs=2e-9)


@pytest.mark.parametrize(
    ("gpus", "label"),
    [
        (dcgm(Seen(name="NVIDIA T4")), "NVIDIA T4"),
        (dcgm(Seen(name="")), "any"),
        (dcgm(Seen(A), Seen(B)), "any"),
        (None, "any"),
    ],
    ids=["not listed", "nameless", "more than one", "no page"],
)
async def test_a_gpu_whose_price_is_not_known_is_never_free(gpus: str | None, label: str):
    async with staged(configured("1", price=BY_NAME, select=GpuSelect.ALL)) as stage:
        pages = [await stage.says(gpus) for _ in range(3)]
    assert [page[f"llmcost_unpriced_gpu_seconds_total{{gpu={label}}}"] for page in pages] == [0, 5, 10]
    for page in pages:
        assert spent(page) == 0
        assert SPEND not in page
        assert not [name for name in page if "gpu_price_usd_per_hour" in name]


async def test_several_kinds_of_gpu_cost_their_mean_by_how_much_of_each_there_is():
    gpus = dcgm(Seen(A, name=H100), Seen(B, name=L4, number=1))
    half = GpuShare(uuid=B, share=Decimal("0.5"))
    async with staged(configured((A, half), (half,), price=BY_NAME)) as stage:
        page = await stage.says(gpus, gpus)
    assert page[SPEND] == pytest.approx(3.2 + 0.4)
    assert page["llmcost_gpu_price_usd_per_hour{gpu=several,source=by_name}"] == pytest.approx(3.6 / 1.5)
    assert page[f"llmcost_gpu_price_usd_per_hour{{gpu={L4},source=by_name}}"] == 0.8
    assert spent(page) == pytest.approx(5 * 3.6 / 3600, abs=2e-9)
    assert spent(page, "other") == pytest.approx(5 * 0.4 / 3600, abs=2e-9)


async def test_a_name_in_the_config_stands_above_the_one_on_the_page():
    async with staged(configured("1", price=BY_NAME, select=GpuSelect.ALL, name=H100)) as stage:
        page = await stage.says(dcgm(Seen(name=L4)))
    assert page[f"llmcost_gpu_price_usd_per_hour{{gpu={H100},source=by_name}}"] == 3.2


# Energy ----------------------------------------------------------------------------------------------------------


def owned(watts: str | None = None) -> GpuPrice:
    """Return hardware that costs a dollar an hour, and its energy 100 nano-dollars a joule."""
    assumed = None if watts is None else Decimal(watts)
    return GpuPrice(
        owned=OwnedPrice(purchase_usd=Decimal(8760), lifetime=YEAR, usd_per_kwh=Decimal("0.36"), watts=assumed)
    )


PRICE: Final = f"llmcost_gpu_price_usd_per_hour{{gpu={L4},source=owned}}"


async def test_time_and_energy_make_the_bill_whatever_cannot_be_read():
    """Each beat: does the engine answer, the GPU's counter, and what of it belongs to the beat."""
    beats: list[tuple[bool, float | None, float]] = [
        (True, 1000, 0),
        (True, 1500, 500),
        (False, 1600, 100),
        (True, None, 0),
        (True, 2000, 400),
        (True, 30, 30),  # the driver was loaded anew
        (False, None, 0),
        (True, 47, 17),
    ]
    async with staged(configured("1", price=owned(), select=GpuSelect.ALL)) as stage:
        for number, (answers, joules, _) in enumerate(beats):
            stage.engine = working(number) if answers else None
            page = await stage.says(None if joules is None else dcgm(Seen(joules=joules)))
            if None in [joules for _, joules, _ in beats[: number + 1]]:  # for a minute: much energy comes at once
                assert SPEND not in page
                assert PRICE not in page
            elif number:  # the mean of the last minute, in which a counter's steps are even
                watts = sum(drawn for _, _, drawn in beats[1 : number + 1]) / (5 * number)
                assert page[PRICE] == page[SPEND] == pytest.approx(1 + watts / 1000 * 0.36)
    joules = sum(drawn for _, _, drawn in beats)
    expected = 7 * 5 * FIXED + round(joules) * NANO_USD_A_JOULE
    assert stage.booked() == expected
    totals = {labels[0]: total for labels, total in stage.books.totals()[Kind.SPEND].items() if total}
    assert totals == {"compute_busy": int(expected)}


async def test_energy_is_booked_with_the_beat_that_drew_it():
    """Five failed reads in a row: the first two beats are down when the engine answers again, with their energy."""
    drawn = (1, 20, 300, 4000, 50_000, 60_000)
    async with staged(configured("1", price=owned(), select=GpuSelect.ALL)) as stage:
        await stage.says(dcgm(Seen(joules=0)))
        for number in range(6):
            stage.engine = None if number < 5 else working()
            await stage.says(dcgm(Seen(joules=sum(drawn[: number + 1]))))
    totals = {labels[0]: total for labels, total in stage.books.totals()[Kind.SPEND].items() if total}
    assert totals == {
        "compute_down": int(2 * 5 * FIXED + 21 * NANO_USD_A_JOULE),
        "compute_busy": int(4 * 5 * FIXED + 114_300 * NANO_USD_A_JOULE),
    }


SHARED: Final = ((A, GpuShare(uuid=B, share=Decimal("0.5"))), (GpuShare(uuid=B, slices=3),))


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("seed", range(6))
async def test_two_engines_share_gpus_and_their_energy_to_the_last_fraction_of_a_nano_dollar(
    tmp_path: Path, seed: int, restarts: bool
):
    """Sixty beats of any length in which anything may fail, any counter begin anew, and any process be a new one."""
    chance = random.Random(seed)
    counters, moved, seen, time = {A: 10**6, B: 5}, {A: 0, B: 0}, {A: 10**6, B: 5}, Fraction(0)
    async with staged(configured(*SHARED, price=owned()), folder=tmp_path if restarts else None) as stage:
        await stage.says(dcgm(*(Seen(uuid, joules=joules) for uuid, joules in counters.items())))
        for beat in range(60):
            is_last = beat == 59
            for uuid, counter in counters.items():
                counters[uuid] = (0 if chance.random() < 0.1 else counter) + chance.randrange(5000)
            stage.engine = working(beat) if is_last or chance.random() < 0.6 else None
            if is_last or chance.random() < 0.7:
                gpus = [uuid for uuid in counters if is_last or chance.random() < 0.8]
                for uuid in gpus:
                    fallen = counters[uuid] < seen[uuid]
                    moved[uuid] += counters[uuid] - (0 if fallen else seen[uuid])
                    seen[uuid] = counters[uuid]
                page = dcgm(*(Seen(uuid, joules=counters[uuid]) for uuid in gpus))
            else:
                page = None
            seconds = chance.choice([5.0, 5.0, 4.875, 0.5, 14.0])
            time += Fraction(seconds)
            if restarts and chance.random() < 0.4:
                stage.restart(seconds)
            await stage.says(page, seconds=seconds)
    assert stage.unpriced() == 0
    charged = Fraction(3, 2) + Fraction(3, 7)
    energy = moved[A] + Fraction(1, 2) * moved[B] + Fraction(3, 7) * moved[B]
    assert stage.booked() == charged * time * FIXED + energy * NANO_USD_A_JOULE


@pytest.mark.parametrize(("watts", "assumed"), [(None, 0), ("500", 500)])
async def test_until_energy_was_first_measured_it_is_assumed_or_the_time_is_unpriced(watts: str | None, assumed: int):
    """The first reading is a baseline: two beats are over before anything is measured."""
    async with staged(configured("1", price=owned(watts), select=GpuSelect.ALL)) as stage:
        page = await stage.says(None, None, dcgm(Seen(joules=70_000)), dcgm(Seen(joules=70_900)))
    unpriced = sum(value for name, value in page.items() if "unpriced_gpu_seconds_total" in name)
    measured = 5 * FIXED + 900 * NANO_USD_A_JOULE
    assert unpriced == (0 if watts else 10)
    assert stage.booked() == measured + (10 * (FIXED + assumed * NANO_USD_A_JOULE) if watts else 0)


async def test_a_loss_right_after_the_first_reading_is_not_charged_twice():
    async with staged(configured("1", price=owned("500"), select=GpuSelect.ALL)) as stage:
        await stage.says(dcgm(Seen(joules=70_000)), None, dcgm(Seen(joules=70_900)))
    assert stage.booked() == 10 * FIXED + 900 * NANO_USD_A_JOULE


async def test_the_energy_of_a_gap_that_is_not_charged_is_not_charged_either():
    async with staged(configured("1", price=owned(), select=GpuSelect.ALL)) as stage:
        await stage.says(dcgm(Seen(joules=0)))
        page = await stage.says(dcgm(Seen(joules=10**7)), seconds=7 * 3600)
        assert page["llmcost_unobserved_seconds_total{}"] == 7 * 3600
        assert page[of_gpu("gpu_energy_joules_total")] == 10**7
        await stage.says(dcgm(Seen(joules=10**7 + 300)))
    assert stage.booked() == 5 * FIXED + 300 * NANO_USD_A_JOULE


async def test_energy_that_nobody_can_tell_whose_it_is_any_more_is_not_taken_for_none():
    """A second GPU appears beside the one that is charged."""
    async with staged(configured("1", price=owned(), select=GpuSelect.ALL)) as stage:
        one = await stage.says(dcgm(Seen(joules=0)), dcgm(Seen(joules=500)))
        both = [await stage.says(two(joules=joules)) for joules in (1000, 1500)]
    assert one[PRICE] == pytest.approx(1.036)
    for page in both:
        assert SPEND not in page
        assert not [name for name in page if "gpu_price" in name]
    assert both[-1]["llmcost_unpriced_gpu_seconds_total{gpu=any}"] == 10
    assert stage.booked() == 5 * FIXED + 500 * NANO_USD_A_JOULE


# After a restart -------------------------------------------------------------------------------------------------

ENERGY_TOTAL: Final = of_gpu("gpu_energy_joules_total")
BOTH_WAYS: Final[tuple[Gpus, ...]] = ("1", (A,))


@pytest.mark.parametrize("gpus", BOTH_WAYS)
@pytest.mark.parametrize("seconds", [5.0, 3600.0])
@pytest.mark.parametrize(("joules", "drawn"), [(1700, 1200), (500, 0), (30, 30)], ids=["moved", "stood", "fell"])
async def test_the_energy_between_two_lives_is_charged_in_the_interval_between(
    tmp_path: Path, gpus: Gpus, seconds: float, joules: float, drawn: float
):
    """The page begins at 0 all the same, and shows the power of the interval at once."""
    async with staged(configured(gpus, price=owned()), folder=tmp_path) as stage:
        await stage.says(dcgm(Seen(joules=0)), dcgm(Seen(joules=500)))
        stage.restart(seconds)
        page = await stage.says(dcgm(Seen(joules=joules)))
        assert stage.booked() == (5 + Fraction(seconds)) * FIXED + (500 + Fraction(drawn)) * NANO_USD_A_JOULE
        assert stage.unpriced() == 0
        assert page[ENERGY_TOTAL] == 0
        assert page[SPEND] == page[PRICE] == pytest.approx(1 + (500 + drawn) / (5 + seconds) / 1000 * 0.36)
        page = await stage.says(dcgm(Seen(joules=joules + 40)))
        assert page[ENERGY_TOTAL] == 40
        assert stage.booked() == (10 + Fraction(seconds)) * FIXED + (540 + Fraction(drawn)) * NANO_USD_A_JOULE


async def test_the_first_beat_of_a_life_leaves_a_baseline_for_the_next_life(tmp_path: Path):
    async with staged(configured("1", price=owned("500")), folder=tmp_path) as stage:
        for joules in (10**11, 10**11 + 70, 10**11 + 300):  # nanojoules beyond 64 bits
            await stage.says(dcgm(Seen(joules=joules)))
            stage.restart()
        assert stage.booked() == 10 * FIXED + 300 * NANO_USD_A_JOULE


@pytest.mark.parametrize(("seconds", "drawn"), [(5.0, 0), (600.0, 2_000_000)])
async def test_more_than_a_gpu_can_have_drawn_since_the_last_beat_of_an_earlier_life_is_not_charged(
    tmp_path: Path, seconds: float, drawn: int
):
    async with staged(configured("1", price=owned()), folder=tmp_path) as stage:
        await stage.says(dcgm(Seen(joules=0)), dcgm(Seen(joules=0)))
        stage.restart(seconds)
        await stage.says(dcgm(Seen(joules=2_000_000)))
        assert stage.booked() == (5 + Fraction(seconds)) * FIXED + drawn * NANO_USD_A_JOULE


@pytest.mark.parametrize("gpus", BOTH_WAYS)
async def test_a_source_that_is_silent_after_a_restart_makes_up_for_it_later(tmp_path: Path, gpus: Gpus):
    """And as after any loss no power is shown for a minute, also by the life that follows."""
    async with staged(configured(gpus, price=owned("500")), folder=tmp_path) as stage:
        await stage.says(dcgm(Seen(joules=0)), dcgm(Seen(joules=500)))
        stage.restart(60.0)
        page = await stage.says(None)
        assert SPEND not in page
        assert ENERGY_TOTAL not in page
        stage.restart()
        assert SPEND not in await stage.says(None, dcgm(Seen(joules=9500)))
        stage.restart()
        assert SPEND not in await stage.says(dcgm(Seen(joules=9500)))
        assert SPEND in await stage.says(dcgm(Seen(joules=9500)), seconds=60)
        assert stage.booked() == 140 * FIXED + 9500 * NANO_USD_A_JOULE
        assert stage.unpriced() == 0


async def test_energy_is_booked_with_the_beat_that_drew_it_also_by_a_later_life(tmp_path: Path):
    drawn = (1, 20, 300, 4000, 50_000, 60_000)
    async with staged(configured("1", price=owned(), select=GpuSelect.ALL), folder=tmp_path) as stage:
        await stage.says(dcgm(Seen(joules=0)))
        for number in range(6):
            stage.engine = None if number < 5 else working()
            stage.restart()
            await stage.says(dcgm(Seen(joules=sum(drawn[: number + 1]))))
        assert stage.unpriced() == 0
        posted = stage.books._posted.items()
        totals = {account.labels[0]: total for account, total in posted if account.kind is Kind.SPEND and total}
    assert totals == {
        "compute_down": int(2 * 5 * FIXED + 21 * NANO_USD_A_JOULE),
        "compute_busy": int(4 * 5 * FIXED + 114_300 * NANO_USD_A_JOULE),
    }


@pytest.mark.parametrize("restarts", [False, True])
async def test_the_energy_of_a_gap_that_is_not_charged_is_not_charged_when_the_source_is_back_either(
    tmp_path: Path, restarts: bool
):
    week = 7 * 86_400.0
    async with staged(configured("1", price=owned()), folder=tmp_path) as stage:
        await stage.says(dcgm(Seen(joules=0)), dcgm(Seen(joules=500)))
        if restarts:
            stage.restart(week)
        await stage.says(None, seconds=week)
        if restarts:
            stage.restart()
        await stage.says(dcgm(Seen(joules=10**8)), dcgm(Seen(joules=10**8 + 70)))
        assert stage.booked() == 15 * FIXED + 570 * NANO_USD_A_JOULE
        assert stage.unpriced() == 0


@pytest.mark.parametrize(
    ("gpus", "names", "price"),
    [
        (("1",), (H100,), "3.2"),
        (((A,),), (H100,), "3.2"),
        (("2",), (H100, L4), "4"),
        (((A,), "1"), (H100, L4), "4"),
        (((GpuShare(uuid=A, share=Decimal("0.5")), B),), (H100, L4), "2.4"),
    ],
)
async def test_gpus_that_do_not_answer_after_a_restart_cost_what_they_did(
    tmp_path: Path, gpus: tuple[Gpus, ...], names: tuple[str, ...], price: str
):
    there = dcgm(*(Seen((A, B)[number], name=name, number=number) for number, name in enumerate(names)))
    async with staged(configured(*gpus, price=BY_NAME, select=GpuSelect.ALL), folder=tmp_path) as stage:
        before = await stage.says(there, there)
        for _ in range(2):
            stage.restart(60.0)
            page = await stage.says(None, None)
            assert page[SPEND] == before[SPEND]
            assert not [name for name in page if "gpu_up" in name or "engine_gpu_info" in name]
        assert stage.unpriced() == 0
        assert stage.booked() == 135 * Fraction(price) * FIXED


async def test_what_the_source_says_after_a_restart_holds_and_not_what_was_remembered(tmp_path: Path):
    """The pod was moved: its GPU is another one, and so is what is remembered from then on."""
    async with staged(configured("1", price=BY_NAME, select=GpuSelect.ALL), folder=tmp_path) as stage:
        await stage.says(dcgm(Seen(A, name=H100)))
        stage.restart()
        assert (await stage.says(dcgm(Seen(B, name=L4))))[SPEND] == 0.8
        assert (await stage.says(None))[SPEND] == 0.8
        stage.restart()
        assert (await stage.says(None))[SPEND] == 0.8
        assert stage.booked() == 15 * Fraction("0.8") * FIXED


OTHER_GPUS: Final[list[tuple[tuple[Gpus, ...], tuple[Gpus, ...]]]] = [
    (("1",), ("2",)),
    (("2",), ("1",)),
    (("1",), ("1", "1")),
    (("1",), ((B,),)),
    (((A,),), ((B,),)),
    (((A,),), ("1",)),
    (((A,),), ((A, B),)),
]


@pytest.mark.parametrize(("before", "after"), OTHER_GPUS)
async def test_an_engine_that_gets_other_gpus_with_a_restart_has_no_price_until_these_answer(
    tmp_path: Path, before: tuple[Gpus, ...], after: tuple[Gpus, ...]
):
    there = two() if before == ("2",) else dcgm(Seen(A))
    async with staged(configured(*before, price=BY_NAME, select=GpuSelect.ALL), folder=tmp_path) as stage:
        await stage.says(there)
        stage.restart(60.0, configured(*after, price=BY_NAME, select=GpuSelect.ALL))
        page = await stage.says(None)
        assert SPEND not in page
        assert stage.booked() == 0
        assert stage.unpriced() == 60 * int(stage.beat.config.engines[0].gpus_charged)


async def test_gpus_that_are_looked_for_elsewhere_are_not_the_ones_that_are_remembered(tmp_path: Path):
    configure = configured("1", price=BY_NAME, select=GpuSelect.ALL)
    async with staged(configure, folder=tmp_path) as stage:
        await stage.says(dcgm(Seen(A)))
        stage.restart(60.0, lambda url, _: configure(url, "http://127.0.0.1:9"))
        assert SPEND not in await stage.says(None)
        assert stage.unpriced() == 60


async def test_an_engine_that_gets_a_gpu_that_was_seen_before_the_restart_is_charged_what_that_one_drew(tmp_path: Path):
    async with staged(configured((A,), price=owned(), select=GpuSelect.ALL), folder=tmp_path) as stage:
        await stage.says(two(joules=0))
        stage.restart(5.0, configured((B,), price=owned(), select=GpuSelect.ALL))
        await stage.says(dcgm(Seen(A, joules=7000), Seen(B, joules=300, number=1)))
        assert stage.booked() == 5 * FIXED + 300 * NANO_USD_A_JOULE


async def test_a_gpu_that_was_not_seen_before_the_restart_has_drawn_what_nobody_knows(tmp_path: Path):
    async with staged(configured((A,), price=owned()), folder=tmp_path) as stage:
        await stage.says(two(joules=0), two(joules=500))
        stage.restart(60.0, configured((A, B), price=owned()))
        await stage.says(two(joules=1000))
        assert stage.unpriced() == 2 * 60
        await stage.says(two(joules=1100))
        assert stage.booked() == 15 * FIXED + 700 * NANO_USD_A_JOULE


@pytest.mark.parametrize("state", [b"", b"{}", b"garbage", b"\xff\xfe", b"[]", b'{"asked":"x"}', "cut", "divided"])
async def test_what_another_version_remembered_of_gpus_is_not_used(tmp_path: Path, state: bytes | str):
    async with staged(configured("1", price=owned()), folder=tmp_path) as stage:
        await stage.says(dcgm(Seen(joules=0)), dcgm(Seen(joules=500)))
        stage.end()
        known = saved(tmp_path).states["gpus"]
        others = {"cut": known[:-3], "divided": known.replace(b'"500000000000"', b'"1/0"')}
        other = others[state] if isinstance(state, str) else state
        assert other != known
        with contextlib.closing(sqlite3.connect(tmp_path / file.NAME)) as connection, connection:
            connection.execute("UPDATE baselines SET state = ? WHERE name = 'gpus'", (other,))
        stage.restart()
        await stage.says(dcgm(Seen(joules=900)), dcgm(Seen(joules=1000)))
        assert stage.unpriced() == 5
        assert stage.booked() == 10 * FIXED + 600 * NANO_USD_A_JOULE


# The network -----------------------------------------------------------------------------------------------------

HEADER: Final = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n"
NETWORK: Final = NetworkPrice(usd_per_gb=Decimal("0.09"))
SENT: Final = "llmcost_network_sent_bytes_total{}"


def table(**sent: int) -> str:
    return HEADER + "".join(f"{name}: 1 1 {value} 1\n" for name, value in {"lo": 10**9, **sent}.items())


def networked(price: NetworkPrice | None, engines: int = 1) -> Configure:
    def configure(url: str, _: str) -> Config:
        addresses = (url, f"{url}/metrics")[:engines]
        chosen = tuple(
            Engine(name=("chat", "other")[number], url=address, timeout=5.0, gpus=Fraction(0))
            for number, address in enumerate(addresses)
        )
        return Config(engines=chosen, gpu=Gpu(source=GpuSource.NONE), prices=Prices(network=price))

    return configure


def network_spend(engine: str = "chat") -> str:
    return f"llmcost_spend_usd_total{{category=network,engine={engine},model=m,tier=}}"


async def test_bytes_sent_are_charged_to_all_engines_in_equal_parts_and_the_first_reading_is_a_baseline(tmp_path: Path):
    file = tmp_path / "dev"
    async with staged(networked(NETWORK, engines=2), file) as stage:
        pages = []
        for sent in (7 * 10**9, 8 * 10**9, 8 * 10**9 + 6):
            file.write_text(table(eth0=sent), encoding="ascii")
            pages.append(await stage.after())
    assert [page[SENT] for page in pages] == [0, 10**9, 10**9 + 6]
    for engine in ("chat", "other"):
        assert [page[network_spend(engine)] for page in pages] == [0, 0.045, 0.045]
    assert stage.booked() == (10**9 + 6) * Fraction("0.09")
    assert pages[-1]["llmcost_source_up{source=network,target=all}"] == 1


async def test_what_was_sent_while_the_table_could_not_be_read_comes_with_the_next_reading(tmp_path: Path):
    file = tmp_path / "dev"
    async with staged(networked(NETWORK), file) as stage:
        pages = []
        for text in (table(eth0=70), table(eth0=100), "what is this?\n", None, table(eth0=1100), table(eth0=40)):
            file.unlink(missing_ok=True)
            if text is not None:
                file.write_text(text, encoding="ascii")
            pages.append(await stage.after())
    assert [page[SENT] for page in pages] == [0, 30, 30, 30, 1030, 1070]
    up = "llmcost_source_up{source=network,target=all}"
    assert [page[up] for page in pages] == [1, 1, 0, 0, 1, 1]
    errors = "llmcost_source_errors_total{reason=REASON,source=network,target=all}"
    assert [pages[-1][errors.replace("REASON", reason)] for reason in ("malformed", "unreadable")] == [1, 1]


@pytest.mark.parametrize("is_readable", [True, False])
async def test_what_is_sent_in_a_gap_that_is_not_charged_is_not_charged_either(tmp_path: Path, is_readable: bool):
    file = tmp_path / "dev"
    async with staged(networked(NETWORK), file) as stage:
        file.write_text(table(eth0=100), encoding="ascii")
        await stage.after()
        file.write_text(table(eth0=10**12) if is_readable else "", encoding="ascii")
        page = await stage.after(7 * 3600)
        assert page["llmcost_unobserved_seconds_total{}"] == 7 * 3600
        for sent in (10**12, 10**12 + 25):
            file.write_text(table(eth0=sent), encoding="ascii")
            page = await stage.after()
    assert page[SENT] == 25


async def test_other_interfaces_begin_with_a_baseline_and_another_price_does_not(tmp_path: Path):
    file = tmp_path / "dev"
    dearer = NetworkPrice(usd_per_gb=Decimal(1))
    other = NetworkPrice(usd_per_gb=Decimal(1), interfaces=("eth1",))
    async with staged(networked(NETWORK), file) as stage:
        pages = []
        for sent, adopted in ((100, None), (10**9 + 100, dearer), (2 * 10**9 + 100, other), (3 * 10**9, None)):
            file.write_text(table(eth0=sent, eth1=10 * sent), encoding="ascii")
            if adopted is not None:
                stage.adopt(networked(adopted))
            pages.append(await stage.after())
        file.write_text(table(eth0=0, eth1=30 * 10**9 + 7), encoding="ascii")
        pages.append(await stage.after())
    assert [page[SENT] for page in pages] == [0, 11 * 10**9, 22 * 10**9, 22 * 10**9, 22 * 10**9 + 7]
    assert {page["llmcost_source_up{source=network,target=all}"] for page in pages} == {1}
    assert [page[network_spend()] for page in pages] == [0, 0.99, 11.99, 11.99, pytest.approx(11.990000007)]


async def test_without_a_price_nothing_is_read_and_there_is_no_source():
    async with staged(networked(None)) as stage:
        await stage.after()
        page = await stage.after()
    assert not [name for name in page if "network" in name]


async def test_a_price_that_is_taken_away_stops_the_reading_and_leaves_what_was_counted(tmp_path: Path):
    file = tmp_path / "dev"
    async with staged(networked(NETWORK), file) as stage:
        for sent in (100, 500):
            file.write_text(table(eth0=sent), encoding="ascii")
            await stage.after()
        stage.adopt(networked(None))
        await stage.after()
        file.write_text(table(eth0=900), encoding="ascii")
        page = await stage.after()
        assert page[SENT] == 400
        assert "llmcost_source_up{source=network,target=all}" not in page
        stage.adopt(networked(NETWORK))
        await stage.after()
        file.write_text(table(eth0=1000), encoding="ascii")
        assert (await stage.after())[SENT] == 400
        file.write_text(table(eth0=1003), encoding="ascii")
        assert (await stage.after())[SENT] == 403


# Sources ---------------------------------------------------------------------------------------------------------


def unasked(url: str, _: str) -> Config:
    engine = Engine(name="chat", url=url, timeout=5.0)
    return Config(
        engines=(engine,), gpu=Gpu(source=GpuSource.NONE), prices=Prices(gpu=GpuPrice(usd_per_hour=Decimal(1)))
    )


async def test_where_nobody_is_asked_there_is_no_source_and_the_page_says_why():
    async with staged(unasked) as stage:
        await stage.after()
        page = await stage.after()
    assert page["llmcost_gpu_source_info{reason=config,source=none}"] == 1
    assert not [name for name in page if "source=gpu" in name]
    assert "llmcost_gpus_visible{}" not in page  # nobody looked: that is not 0
    assert page["llmcost_gpus_expected{}"] == 1
    assert page[SPEND] == 1
    assert SIGNAL not in page


class Scripted:
    """A source of GPUs that does as it is told."""

    source, target, reasons = "gpu", "dcgm", ("refused",)

    def __init__(self, *outcomes: Exception | GpusReading) -> None:
        self.outcomes = list(outcomes)

    async def read(self) -> GpusReading:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def test_a_bug_in_a_source_of_gpus_is_its_failure_and_the_engine_is_metered_on(caplog: pytest.LogCaptureFixture):
    async with staged(configured("1")) as stage:
        stage.beat.gpus._watched.reads = Scripted(ZeroDivisionError("a bug"), KeyError("another"))
        await stage.after()
        stage.engine = working(700)
        page = await stage.after()
    assert page["llmcost_source_up{source=gpu,target=dcgm}"] == 0
    assert page["llmcost_source_errors_total{reason=bug,source=gpu,target=dcgm}"] == 2
    assert page["llmcost_output_tokens_total{engine=chat,model=m,tier=}"] == 700
    assert page["llmcost_spend_usd_total{category=compute_busy,engine=chat,model=m,tier=}"] == pytest.approx(5 / 3600)
    assert "ZeroDivisionError" in caplog.text


async def test_the_drivers_errors_stay_counted_while_it_cannot_be_read():
    failed = SourceError("refused", "the driver is not there")
    errors = {("nvmlDeviceGetPowerUsage", "unknown"): 3}
    async with staged(configured("1")) as stage:
        stage.beat.gpus._watched.reads = Scripted(GpusReading(gpus=(), errors=errors), failed)
        pages = [await stage.after(), await stage.after()]
    name = "llmcost_nvml_errors_total{call=nvmlDeviceGetPowerUsage,error=unknown}"
    assert [page[name] for page in pages] == [3, 3]


# Another config --------------------------------------------------------------------------------------------------


async def test_another_address_is_read_with_the_next_beat_and_totals_go_on():
    other = dcgm(Seen(joules=80, percent=20))
    async with served(lambda: (200, other)) as elsewhere, staged(configured((A,))) as stage:
        await stage.says(*(dcgm(Seen(joules=joules, percent=100)) for joules in (1000, 1400, 1500)))
        stage.urls = (stage.urls[0], elsewhere)
        stage.adopt(configured((A,)))
        adopted = await stage.says(None)  # by the old address
        pages = [await stage.after(), await stage.after()]
    up = "llmcost_source_up{source=gpu,target=dcgm}"
    errors = "llmcost_source_errors_total{reason=truncated,source=gpu,target=dcgm}"
    assert (adopted[up], adopted[errors]) == (0, 1)
    assert [(page[up], page[errors]) for page in pages] == [(1, 1), (1, 1)]
    energy, busy = of_gpu("gpu_energy_joules_total"), of_gpu("gpu_busy_seconds_total")
    assert [page[energy] for page in (adopted, *pages)] == [500, 580, 580]
    assert [page[busy] for page in (adopted, *pages)] == [10, 10, 11]
    assert [page.get(SIGNAL) for page in pages] == [None, pytest.approx(0.2)]


async def test_a_source_that_works_stays_up_on_the_page_of_the_reload():
    async with staged(configured((A,))) as stage:
        for _ in range(2):
            await stage.says(dcgm(Seen()))
        stage.adopt(configured((A,), select=GpuSelect.ALL))
        page = await stage.after()
    assert page["llmcost_source_up{source=gpu,target=dcgm}"] == 1
    assert page["llmcost_source_last_success_timestamp_seconds{source=gpu,target=dcgm}"] == BEGAN + 10


async def test_a_config_that_names_other_gpus_asks_for_those():
    async with staged(configured((A,))) as stage:
        await stage.says(two())
        stage.adopt(configured((B,)))
        pages = [await stage.says(two()), await stage.says(two())]
    shown = ([page.get(of_gpu("gpu_up")), page.get(of_gpu("gpu_up", B, 1))] for page in pages)
    assert list(shown) == [[None, None], [None, 1]]


async def test_a_config_that_says_the_same_of_gpus_does_not_ask_anew():
    """A source that is new has measured no time: its first reading adds nothing to the time busy."""
    async with staged(configured((A,))) as stage:
        for _ in range(2):
            await stage.says(dcgm(Seen(percent=100)))
        stage.adopt(configured((A,), price=GpuPrice(usd_per_hour=Decimal(2))))
        pages = [await stage.after(), await stage.after()]
    assert [page[of_gpu("gpu_busy_seconds_total")] for page in pages] == [10, 15]
    assert [page[SIGNAL] for page in pages] == [1.0, 1.0]
    assert [page[SPEND] for page in pages] == [2, 2]


async def test_an_engine_that_gets_other_gpus_has_their_price_and_their_signal_at_once():
    gpus = dcgm(Seen(A, 100, name=H100), Seen(B, 20, name=L4, number=1))
    async with staged(configured((A,), price=BY_NAME, select=GpuSelect.ALL)) as stage:
        page = await stage.says(gpus, gpus)
        assert (page[SPEND], page[SIGNAL]) == (3.2, 1.0)
        stage.adopt(configured((B,), (A,), price=BY_NAME, select=GpuSelect.ALL))
        page = await stage.after()
    assert (page[SPEND], page[SIGNAL]) == pytest.approx((0.8, 0.2))
    other = SPEND.replace("chat", "other"), SIGNAL.replace("chat", "other")
    assert (page[other[0]], page[other[1]]) == (3.2, 1.0)
    assert f"llmcost_engine_gpu_info{{engine=chat,gpu=1,uuid={B}}}" in page
    assert not [name for name in page if "gpu=any" in name]


async def test_an_engine_that_was_away_does_not_remember_what_its_gpus_drew_before():
    async with staged(configured((A,), (B,), price=owned(), select=GpuSelect.ALL)) as stage:
        for joules in (0, 500):
            page = await stage.says(two(joules=joules))
        stage.adopt(configured((A,), price=owned(), select=GpuSelect.ALL))
        await stage.says(two(joules=1000))
        stage.adopt(configured((A,), (B,), price=owned(), select=GpuSelect.ALL))
        page = await stage.says(two(joules=1500))
        assert page[SPEND] == pytest.approx(1.036)
        assert SPEND.replace("chat", "other") not in page
        page = await stage.says(two(joules=2000))
        assert page[SPEND.replace("chat", "other")] == pytest.approx(1.036)


async def test_nothing_is_asked_any_more_where_the_config_says_so(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    async with staged(configured("1", select=GpuSelect.ALL)) as stage:
        for joules in (0, 700):
            await stage.says(dcgm(Seen(joules=joules)))
        stage.adopt(unasked)
        await stage.after()
        page = await stage.after()
    assert page["llmcost_gpu_source_info{reason=config,source=none}"] == 1
    assert not [name for name in page if "source=gpu" in name]
    assert (page[of_gpu("gpu_up")], page[of_gpu("gpu_energy_joules_total")]) == (0, 700)
    assert SIGNAL not in page
    assert page[SPEND] == 1


async def test_a_driver_that_is_lost_for_good_ends_the_beat_where_the_config_says_so():
    """The rest of the way is NVML's: here stands only that the beat lets it through."""
    async with staged(configured("1")) as stage:

        async def lost() -> None:
            raise LostDriverError("the GPU driver is gone: unknown")

        stage.beat.gpus.read = lost  # type: ignore[method-assign]
        with pytest.raises(LostDriverError):
            await stage.after()
