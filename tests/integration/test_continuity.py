"""What outlives a restart: the same history comes to the same sums, however it is split into beats, lives and gaps.

The real beat, books and ledger on a real file; only time and the engine's page are moved by hand.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from exporter import resume
from exporter.config.model import Budget, Engine, Gpu, GpuSelect, GpuSource, Match
from exporter.config.prices import DatedPrice, GpuPrice, OtherPrice, OwnedPrice, Prices, StoragePrice
from exporter.core.money import NANO, Account, Kind
from exporter.core.periods import KEPT_QUARTERS
from exporter.ledger import Saved, file, writer
from tests.fakes import FakeClock, served
from tests.ledgers import saved
from tests.stage import Stage, Vllm, config, staged

DCGM = """\
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-0a1b2c3d-0000-4000-8000-000000000001",modelName="NVIDIA L4"} 50
"""
# --- any split of the same history

HOUR = 3600 * NANO
LATE = 1_796_082_300.0  # 2026-11-30 23:45 UTC, the last quarter-hour of a day and a month
MONTH_ENDS = round(LATE + 900) * NANO
DEARER = MONTH_ENDS + round(1234.5 * NANO)  # within a quarter-hour
MAX_GAP = 3600.0
SPLIT: dict[str, Any] = {
    "max_gap": MAX_GAP,
    "prices": Prices(
        gpu=GpuPrice(
            usd_per_hour=Decimal("0.7"), timeline=(DatedPrice(from_=DEARER, usd_per_hour=Decimal("1.234567891")),)
        ),
        storage=StoragePrice(weights_gb=Decimal(14), usd_per_gb_month=Decimal("0.023")),
    ),
    "budgets": (Budget(name="all", daily_usd=Decimal(25), monthly_usd=Decimal(600)),),
}


def bought(start: int, end: int) -> Fraction:
    """What time costs under SPLIT in nano-dollars, by plain arithmetic."""
    total = Fraction(0)
    cuts = sorted({start, end, *(cut for cut in (MONTH_ENDS, DEARER) if start < cut < end)})
    for early, late in pairwise(cuts):
        gpu = Fraction("0.7") if early < DEARER else Fraction("1.234567891")
        storage = 14 * Fraction("0.023") / ((30 if early < MONTH_ENDS else 31) * 24)
        total += (gpu + storage) * NANO * (late - early) / HOUR
    return total


@dataclass(frozen=True)
class Step:
    """What happens before one beat: to the engine, and to the exporter."""

    seconds: float
    tokens: int
    engine: str  # "", works, begins, fails, answers
    exporter: str  # "", ends, killed, lost: killed after beats that nobody wrote down


steps = st.builds(
    Step,
    seconds=st.sampled_from((0.2, 1.0, 4.9, 5.0, 5.0, 5.0, 15.0, 15.1, 61.0, 700.3, 3590.0, 3600.0, 3600.5, 40_000.0)),
    tokens=st.integers(0, 10**6),
    engine=st.sampled_from(("", "", "works", "works", "begins", "fails", "answers")),
    exporter=st.sampled_from(("", "", "", "ends", "killed", "lost")),
)
histories = st.lists(steps, min_size=5, max_size=25)
unshrunk = settings(deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))


def happen(step: Step, vllm: Vllm) -> None:
    vllm.running = step.tokens % 2
    if step.engine == "begins" and vllm.age > 3:  # two starts within two seconds look like one
        vllm.begin()
    elif step.engine in ("fails", "answers"):
        vllm.answers = step.engine == "answers"
    if step.engine in ("works", "begins"):
        vllm.work(step.tokens, hung_up=step.tokens % 3)


async def play(root: Path, history: list[Step], *, restarts: bool) -> Saved:
    async with staged(root, FakeClock(LATE), **SPLIT) as (stage, vllm):
        await stage.beat()
        for step in history:
            happen(step, vllm)
            if restarts and step.exporter:
                stage.end() if step.exporter == "ends" else stage.kill()
                stage.begin()
            await stage.beat(step.seconds)
    return saved(stage.folder)


@settings(unshrunk, max_examples=25)
@given(histories)
def test_restarts_between_the_same_beats_change_nothing(tmp_path_factory: pytest.TempPathFactory, history: list[Step]):
    once = asyncio.run(play(tmp_path_factory.mktemp("once"), history, restarts=False))
    often = asyncio.run(play(tmp_path_factory.mktemp("often"), history, restarts=True))
    assert once.totals == often.totals
    assert once.rests == often.rests
    assert once.buckets == often.buckets
    assert [sample for sample in once.samples if sample[0].startswith("budget:")] == [
        sample for sample in often.samples if sample[0].startswith("budget:")
    ]


class Truth:
    """What must be on the books, by plain arithmetic over the beats that were written down."""

    def __init__(self, stage: Stage, vllm: Vllm) -> None:
        self._stage, self._vllm = stage, vllm
        self._last = stage.clock.now().wall
        self._baseline = vllm.tokens
        self._lives: dict[float, int] = {}
        self.stretches: list[tuple[int, int]] = []
        self.unobserved = 0

    @property
    def tokens(self) -> int:
        return sum(self._lives.values()) - self._baseline

    def note(self) -> None:
        """Take a beat down."""
        now = self._stage.clock.now().wall
        if now - self._last > MAX_GAP * NANO:
            self.unobserved += now - self._last
        else:
            self.stretches.append((self._last, now))
        self._last = now
        if self._vllm.answers:
            self._lives[self._vllm.start] = self._vllm.tokens

    def check(self, found: Saved) -> None:
        spent = {account: total for account, total in found.totals.items() if account.kind is Kind.SPEND}
        rests = sum((found.rests.get(account, Fraction(0)) for account in spent), Fraction(0))
        assert sum(spent.values()) + rests == sum((bought(*stretch) for stretch in self.stretches), Fraction(0))
        assert all(0 <= rest < 1 for rest in found.rests.values())
        assert found.totals.get(Account(Kind.UNOBSERVED, ()), 0) == self.unobserved
        assert found.totals[Account(Kind.OUTPUT_TOKENS, ("chat", "m", ""))] == self.tokens
        assert found.totals[Account(Kind.PROMPT_TOKENS, ("chat", "m", ""))] == 2 * self.tokens
        busy = sum(amount for account, amount in spent.items() if account.labels[0] == "compute_busy")
        shown = sum(amount for account, amount in found.totals.items() if account.kind is Kind.ATTRIBUTED)
        assert busy == shown + sum(amount for (_, item), amount in found.pending.items() if item[0] == "nano_usd")
        of_buckets = dict.fromkeys(found.totals, 0)
        for (account, _), amount in found.buckets.items():
            of_buckets[account] += amount
        assert of_buckets == found.totals
        for start in range(round(LATE) // 900 * 900, self._last // NANO, 900):
            booked = sum(found.buckets.get((account, start), 0) for account in spent)
            quarter = start * NANO, (start + 900) * NANO
            parts = [(max(a, quarter[0]), min(b, quarter[1])) for a, b in self.stretches]
            exact = sum((bought(a, b) for a, b in parts if a < b), Fraction(0))
            assert -len(spent) < booked - exact < len(spent)


async def walk(root: Path, history: list[Step]) -> None:
    async with staged(root, FakeClock(LATE), **SPLIT) as (stage, vllm):
        vllm.tokens = 7
        await stage.beat()
        truth = Truth(stage, vllm)
        truth.note()
        for step in history:
            happen(step, vllm)
            if step.exporter == "lost":
                with stage.no_commits():
                    for _ in range(2):
                        vllm.work(step.tokens)
                        stage.clock.advance(step.seconds)
                        await stage.live.once()
                    stage.kill()
            elif step.exporter:
                stage.end() if step.exporter == "ends" else stage.kill()
            if step.exporter:
                stage.begin()
            await stage.beat(step.seconds)
            truth.note()
        vllm.answers = True
        await stage.beat()
        truth.note()
        (view,) = stage.live._snapshot(stage.clock.now()).budgets
    found = saved(stage.folder)
    truth.check(found)
    for period in view.periods.values():
        entries = [
            amount
            for (account, start), amount in found.buckets.items()
            if account.kind is Kind.SPEND and start * NANO in period.period
        ]
        assert period.spent == sum(entries)


@settings(unshrunk, max_examples=25)
@given(histories)
def test_any_split_into_beats_restarts_kills_and_gaps_comes_to_the_same_sums(
    tmp_path_factory: pytest.TempPathFactory, history: list[Step]
):
    asyncio.run(walk(tmp_path_factory.mktemp("walk"), history))


# --- what a scraper sees

SPENT = "llmcost_spend_usd_total{{category=compute_{},engine=chat,model=m,tier=}}"
OUTPUT = "llmcost_output_tokens_total{engine=chat,model=m,tier=}"
UNOBSERVED = "llmcost_unobserved_seconds_total{}"


def spent(page: Mapping[str, float], category: str) -> float:
    return page[SPENT.format(category)]


def compute(page: Mapping[str, float]) -> float:
    return sum(value for name, value in page.items() if name.startswith("llmcost_spend_usd_total{category=compute_"))


def counters(page: Mapping[str, float]) -> dict[str, float]:
    """What must go on through a restart; how often we failed to read is our own process's business."""
    ours = ("llmcost_source_", "llmcost_ledger_", "llmcost_ttft_", "llmcost_gpu_")
    return {name: value for name, value in page.items() if "_total{" in name and not name.startswith(ours)}


async def test_the_first_page_after_a_restart_shows_every_counter_where_it_stood(tmp_path: Path):
    other = (OtherPrice(name="server", usd_per_hour=Decimal("0.36")),)
    prices = Prices(gpu=GpuPrice(usd_per_hour=Decimal("3.6")), other=other)
    async with staged(tmp_path, prices=prices) as (stage, vllm):
        await stage.beat()
        vllm.work(1000, hung_up=2)
        await stage.beat()
        before = counters(stage.page())
        assert before[OUTPUT] == 1000
        assert before["llmcost_requests_total{engine=chat,model=m,outcome=abandoned}"] == 2
        for leave in (stage.end, stage.kill):
            leave()
            stage.begin()
            vllm.answers = False
            await stage.beat(1e-9)
            assert counters(stage.page()) == before
        vllm.answers = True
        await stage.beat()
        after = counters(stage.page())
        assert after.keys() == before.keys()
        assert all(after[name] >= value for name, value in before.items())


async def test_what_the_page_shows_is_what_a_kill_leaves(tmp_path: Path):
    """No page may show more than the next process knows."""
    async with staged(tmp_path, price="3.6") as (stage, vllm):
        await stage.beat()
        shown = stage.shown()
        with stage.no_commits():
            for _ in range(3):
                vllm.work(100)
                stage.clock.advance(5)
                await stage.live.once()
                assert stage.shown() == shown
            stage.kill()
        stage.begin()
        assert stage.shown() == shown
        await stage.beat()
        page = stage.page()
        assert page[OUTPUT] == 300
        assert compute(page) == 0.020


async def test_an_engine_that_left_the_config_keeps_its_counters_and_returns_as_a_new_one(tmp_path: Path):
    async with staged(tmp_path, price="3.6") as (stage, vllm):
        await stage.beat()
        vllm.work(1000)
        await stage.beat()
        before, with_chat = counters(stage.page()), stage.config
        stage.end()
        stage.config = config(Engine(name="other", url="http://127.0.0.1:9", gpus=Fraction(0)))
        stage.begin()
        for _ in range(3):
            await stage.beat()
        page = stage.page()
        assert {name: page.get(name) for name in before} == before | {UNOBSERVED: 5}  # until the new config was known
        gauges = [name for name in page if "engine=chat" in name and "_total{" not in name]
        assert gauges == ["llmcost_attribution_pending_usd{engine=chat}"]  # its last slot is still open
        stage.end()
        vllm.work(500)
        stage.config = with_chat
        stage.begin()
        await stage.beat(60)
        page = counters(stage.page())  # its absence costs nothing, and what it did meanwhile is not ours
        assert page.items() >= (before | {UNOBSERVED: 65}).items()
        vllm.work(1)
        await stage.beat()
        page = stage.page()
        assert (page[OUTPUT], compute(page)) == (1001, compute(before) + 0.005)


async def test_what_an_engine_that_is_gone_still_owed_is_counted_as_unobserved(tmp_path: Path):
    """A restart with another config: nobody knows its price any more, but that time is missing does not go unsaid."""
    async with staged(tmp_path, price="3.6") as (stage, vllm):
        await stage.beat()
        vllm.answers = False
        await stage.beat()
        await stage.beat()
        booked = compute(stage.page())
        stage.end()
        stage.config = config(Engine(name="other", url="http://127.0.0.1:9", gpus=Fraction(0)))
        stage.begin()
        await stage.beat(3600)
        page = stage.page()
        assert (compute(page), page[UNOBSERVED]) == (booked, 10 + 3600)
        await stage.beat()
        assert stage.page()[UNOBSERVED] == 10 + 3600


def states(stage: Stage) -> dict[str, str]:
    page = stage.live._snapshot(stage.clock.now())
    return {view.budget.name: view.state.value for view in page.budgets}


async def test_unpriced_time_makes_a_budget_unknown_whatever_becomes_of_its_engine(tmp_path: Path):
    """Renamed, removed, or given another tier: what was spent of the month is known no better."""
    budgets = (
        Budget(name="all", monthly_usd=Decimal(100)),
        Budget(name="fast", monthly_usd=Decimal(100), match=Match(tier="fast")),
    )
    nameless = Prices(gpu=GpuPrice(by_name={"NVIDIA L4": Decimal("3.6")}))
    async with staged(tmp_path / "unused") as (stage, _):
        engine = Engine(name="chat", url=stage.config.engines[0].url, models=("m",), tier="fast")
        stage.end()
        stage.config = config(engine, prices=nameless, budgets=budgets)
        stage.begin()
        for _ in range(3):
            await stage.beat()
        assert states(stage) == {"all": "unknown", "fast": "unknown"}
        changes = {"name": "renamed"}, {"tier": "slow"}, {"name": "other", "gpus": Fraction(0)}
        for change in changes:
            stage.config = config(msgspec.structs.replace(engine, **change), price="3.6", budgets=budgets)
            stage.live.plan(stage.config)
            await stage.beat()
            await stage.beat()
            assert states(stage) == {"all": "unknown", "fast": "unknown"}
        stage.end()
        stage.begin()
        await stage.beat()
        assert states(stage) == {"all": "unknown", "fast": "unknown"}


async def test_an_engine_that_left_and_is_reloaded_is_a_new_one_too(tmp_path: Path):
    async with staged(tmp_path, price="3.6") as (stage, vllm):
        with_chat, rest = stage.config, Engine(name="other", url="http://127.0.0.1:9", gpus=Fraction(0))
        await stage.beat()
        stage.end()
        stage.config = config(rest)
        stage.begin()
        await stage.beat()
        vllm.work(500)
        stage.live.plan(with_chat)
        await stage.beat()
        await stage.beat()
        vllm.work(1)
        await stage.beat()
        page = stage.page()
        assert (page[OUTPUT], compute(page)) == (1, 0.010)


# --- gaps and clocks


@pytest.mark.parametrize("restart", [False, True])
async def test_a_gap_longer_than_max_gap_is_counted_and_not_booked(tmp_path: Path, restart: bool):
    """Also what was pending before it is booked, and what the engine did in it is counted."""
    async with staged(tmp_path, price="3.6", max_gap=3600.0) as (stage, vllm):
        await stage.beat()
        vllm.answers = False
        await stage.beat()
        vllm.answers = True
        vllm.work(2000)
        if restart:
            stage.kill()
            stage.begin()
        await stage.beat(3600.5)
        page = stage.page()
        assert (page[UNOBSERVED], page[OUTPUT], compute(page)) == (3600.5, 2000, 0.005)
        if restart:
            stage.kill()
            stage.begin()
        await stage.beat(3600)
        page = stage.page()
        assert (page[UNOBSERVED], spent(page, "unobserved")) == (3600.5, 3.6)


@pytest.mark.parametrize("restart", [False, True])
async def test_each_day_knows_its_own_part_of_a_long_gap(tmp_path: Path, restart: bool):
    budgets = (Budget(name="all", daily_usd=Decimal(100), monthly_usd=Decimal(1000)),)
    midnight = 1_795_478_400.0  # 2026-11-24 00:00 UTC
    async with staged(tmp_path, FakeClock(midnight - 3 * 86_400 - 5), budgets=budgets) as (stage, _):
        await stage.beat()
        for _ in range(60 * 11):
            await stage.beat(60)
        if restart:
            stage.kill()
            stage.begin()
        await stage.beat(2 * 86_400 + 16 * 3600)  # until three in the morning, three days later
        for _ in range(60):
            await stage.beat(60)
        page = stage.page()
        complete = "llmcost_budget_history_complete_ratio{{budget=all,period={}}}"
        assert page[complete.format("day")] == pytest.approx(1 / 4, abs=0.001)
        assert page[complete.format("month")] == pytest.approx(12 / (23 * 24 + 4), abs=0.001)
        # The days without a look are no days without spend.
        forecast = page["llmcost_budget_forecast_usd{budget=all,period=month}"]
        assert forecast == pytest.approx((11 + 1 + 6 * 24 + 20) * 0.80, rel=0.001)


async def test_a_gap_of_years_is_booked_at_once(tmp_path: Path):
    async with staged(tmp_path) as (stage, _):
        await stage.beat()
        stage.kill()
        stage.clock.advance(20 * 365 * 86_400)
        stage.begin()
        began = time.perf_counter()
        await stage.beat()
        assert time.perf_counter() - began < 2
        assert stage.page()[UNOBSERVED] == 20 * 365 * 86_400 + 5
    assert len(saved(stage.folder).buckets) < KEPT_QUARTERS + 10


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0, 3600.0, -3600.0, 400 * 86_400.0, -400 * 86_400.0])
async def test_a_clock_that_jumps_while_we_run_changes_no_sum(tmp_path: Path, jump: float):
    budgets = (Budget(name="all", daily_usd=Decimal(100)),)
    async with staged(tmp_path, price="3.6", budgets=budgets) as (stage, vllm):
        await stage.beat()
        for number in range(1, 9):
            vllm.work(10)
            if number == 3:
                stage.clock.step_wall(jump)
            if number in (4, 6):
                stage.kill()
                stage.begin()
            await stage.beat()
            page = stage.page()
            assert page[OUTPUT] == 10 * number
            assert compute(page) == pytest.approx(0.005 * number, abs=1e-9)
            assert min(page[name] for name in page if name.startswith("llmcost_budget_burn_rate")) >= 0
        stage.clock.step_wall(-jump)
        for _ in range(3):
            vllm.work(10)
            await stage.beat()
            stage.end()
            stage.begin()
        await stage.beat()
        page = stage.page()
        assert page[OUTPUT] == 110
        assert compute(page) == pytest.approx(0.060, abs=1e-9)
        assert page[UNOBSERVED] == 0


@pytest.mark.parametrize("jump", [-86_400.0, -5.0])
async def test_a_clock_set_back_while_we_were_away_books_nothing_and_loses_nothing(tmp_path: Path, jump: float):
    async with staged(tmp_path, price="3.6") as (stage, vllm):
        await stage.beat()
        await stage.beat()
        vllm.answers = False
        await stage.beat()  # pending
        stage.kill()
        stage.clock.step_wall(jump)
        stage.begin()
        vllm.answers = True
        vllm.work(10)
        await stage.beat()
        page = stage.page()
        assert (page[OUTPUT], compute(page)) == (10, 0.010)
        for _ in range(3):
            await stage.beat()
        assert compute(stage.page()) == 0.025


async def test_a_clock_set_forward_while_we_were_away_is_a_gap_like_any_other(tmp_path: Path):
    """Nobody can tell them apart."""
    async with staged(tmp_path, price="3.6") as (stage, vllm):
        await stage.beat()
        for jump, unobserved, booked in ((86_400, 86_405, 0), (3600, 86_405, 3.605)):
            stage.kill()
            stage.clock.step_wall(jump)
            stage.begin()
            vllm.work(10)
            await stage.beat()
            page = stage.page()
            assert (page[UNOBSERVED], spent(page, "unobserved")) == (unobserved, booked)
        await stage.beat()
        assert (stage.page()[OUTPUT], compute(stage.page())) == (20, 3.610)


# --- the engine meanwhile


async def test_an_engine_that_began_anew_while_we_were_away(tmp_path: Path):
    """All tokens since its start are new to us, and time is divided where it started."""
    async with staged(tmp_path, price="3.6") as (stage, vllm):
        vllm.work(5000)
        await stage.beat()
        stage.kill()
        stage.clock.advance(600)
        vllm.begin()
        vllm.work(7000)  # more than it had: only its start tells
        stage.clock.advance(35)
        stage.begin()
        await stage.beat()
        page = stage.page()
        assert page[OUTPUT] == 7000
        assert (spent(page, "unobserved"), spent(page, "loading"), compute(page)) == (0.600, 0.040, 0.640)
        assert page["llmcost_cold_starts_total{engine=chat}"] == 1
        assert page["llmcost_cold_start_seconds{engine=chat}"] == 40


async def test_an_engine_that_stayed_up_while_we_were_away(tmp_path: Path):
    async with staged(tmp_path, price="3.6") as (stage, vllm):
        vllm.work(5000)
        await stage.beat()
        stage.kill()
        vllm.work(300)
        stage.begin()
        await stage.beat(600)
        page = stage.page()
        assert page[OUTPUT] == 300
        assert (spent(page, "unobserved"), compute(page)) == (0.600, 0.600)
        stage.end()
        vllm.work(1)
        stage.begin()
        await stage.beat(15)  # a quick restart is no absence
        page = stage.page()
        assert (page[OUTPUT], spent(page, "busy")) == (301, 0.015)
        assert page["llmcost_cold_starts_total{engine=chat}"] == 0


async def test_an_engine_that_moved_while_we_were_away_is_another_one_that_costs_the_same(tmp_path: Path):
    async with staged(tmp_path, price="3.6") as (stage, vllm):
        await stage.beat()
        vllm.answers = False
        await stage.beat()  # pending
        stage.end()
        vllm.answers = True
        vllm.work(9000)
        chat = stage.config.engines[0]
        stage.config = config(msgspec.structs.replace(chat, url=f"{chat.url}/metrics"), price="3.6")
        stage.begin()
        await stage.beat()
        page = stage.page()
        assert OUTPUT not in page or page[OUTPUT] == 0
        assert compute(page) == 0.010
        vllm.work(50)
        await stage.beat()
        assert stage.page()[OUTPUT] == 50


async def test_an_engine_that_joined_while_we_were_away_does_not_pay_for_the_time_before(tmp_path: Path):
    async with staged(tmp_path, price="3.6") as (stage, vllm):
        chat = stage.config.engines[0]
        await stage.beat()
        stage.end()
        joined = msgspec.structs.replace(chat, name="joined")
        stage.config = config(chat, joined, price="3.6")
        stage.begin()
        vllm.work(10)
        await stage.beat()
        await stage.beat()
        page = stage.page()
        by_joined = sum(value for name, value in page.items() if "spend_usd_total" in name and "engine=joined" in name)
        assert compute(page) == pytest.approx(0.015)
        assert by_joined == 0.005
        assert page[OUTPUT.replace("chat", "joined")] == 0


async def test_an_engine_that_is_down_is_booked_by_an_exporter_that_crashes_again_and_again(tmp_path: Path):
    async with staged(tmp_path, price="3.6", max_gap=60.0) as (stage, vllm):
        await stage.beat()
        vllm.answers = False
        for _ in range(20):
            stage.kill()
            stage.begin()
            await stage.beat()
        page = stage.page()
        assert page[UNOBSERVED] == 0
        assert spent(page, "down") == pytest.approx(0.085)


@pytest.mark.parametrize("says_its_start", [True, False])
async def test_cold_starts_and_hang_ups_go_on(tmp_path: Path, says_its_start: bool):
    abandoned = "llmcost_requests_total{engine=chat,model=m,outcome=abandoned}"
    duration = "llmcost_cold_start_seconds{engine=chat}"
    async with staged(tmp_path) as (stage, vllm):
        vllm.loads = True
        vllm.says_its_start = says_its_start
        await stage.beat()
        stage.kill()
        vllm.begin()
        vllm.loads = False
        stage.begin()
        await stage.beat(20)
        page = stage.page()
        assert page["llmcost_cold_starts_total{engine=chat}"] == 1
        assert page.get(duration) == (20 if says_its_start else None)
        vllm.work(10, hung_up=3)
        await stage.beat()
        for leave in (stage.end, stage.kill):
            leave()
            stage.begin()
            vllm.work(10)
            await stage.beat()
            page = stage.page()
            assert page["llmcost_cold_starts_total{engine=chat}"] == 1
            assert page.get(duration) == (20 if says_its_start else None)
            assert page[abandoned] == 3
        vllm.work(10, hung_up=1)
        await stage.beat()
        assert stage.page()[abandoned] == 4


async def test_histograms_and_gpus_start_at_nothing(tmp_path: Path):
    """A normal reset, after which `increase()` sees what was observed meanwhile."""
    count = "llmcost_ttft_seconds_count{engine=chat,model=m}"
    busy = "llmcost_gpu_busy_seconds_total"
    with_gpu = Gpu(source=GpuSource.DCGM, select=GpuSelect.ALL)
    async with served(lambda: (200, DCGM)) as dcgm_url:
        gpu = msgspec.structs.replace(with_gpu, dcgm_url=dcgm_url)
        async with staged(tmp_path, gpu=gpu) as (stage, vllm):
            await stage.beat()
            for _ in range(3):
                vllm.work(10)
                await stage.beat()
            page = stage.page()
            assert page[count] == 3
            assert max(value for name, value in page.items() if name.startswith(busy)) > 0
            stage.kill()
            vllm.work(10)
            stage.begin()
            await stage.beat()
            page = stage.page()
            assert page[count] == 1
            assert max(value for name, value in page.items() if name.startswith(busy)) == 0
            assert page["llmcost_source_errors_total{reason=refused,source=engine,target=chat}"] == 0


async def test_energy_of_beats_that_nobody_wrote_down_is_charged_by_the_next_life(tmp_path: Path):
    """To the nano-dollar: a dollar an hour and 100 nano-dollars a joule."""
    price = OwnedPrice(purchase_usd=Decimal(8760), lifetime=365 * 86_400.0, usd_per_kwh=Decimal("0.36"))
    counter = [7000]
    page = DCGM + DCGM.replace("GPU_UTIL", "TOTAL_ENERGY_CONSUMPTION").replace(" 50", " MILLIJOULES")
    budgets = (Budget(name="all", daily_usd=Decimal(25)),)
    async with served(lambda: (200, page.replace("MILLIJOULES", f"{counter[-1]}000"))) as dcgm_url:
        gpu = Gpu(source=GpuSource.DCGM, dcgm_url=dcgm_url)
        async with staged(tmp_path, gpu=gpu, prices=Prices(gpu=GpuPrice(owned=price)), budgets=budgets) as (stage, _):
            await stage.beat()
            with stage.no_commits():
                for joules in (7100, 7300):
                    counter.append(joules)
                    stage.clock.advance(5)
                    await stage.live.once()
                stage.kill()
            stage.begin()
            counter.append(7450)
            await stage.beat(3)
            spent_nano = round(13 * NANO / 3600 + 450 * 100)
            assert compute(stage.page()) * NANO == pytest.approx(spent_nano, abs=1.1)
            assert stage.page()["llmcost_budget_spent_usd{budget=all,period=day}"] == compute(stage.page())
            assert not [name for name in stage.page() if "unpriced" in name and stage.page()[name]]


# --- windows and budgets

BUDGETS = (
    Budget(name="all", daily_usd=Decimal(25), monthly_usd=Decimal(600), timezone="Asia/Kathmandu"),
    Budget(name="idle", daily_usd=Decimal(25), match=Match(category="compute_idle")),
)
NOT_MUCH = Match(category="compute_idle")


def windows(page: Mapping[str, float]) -> dict[str, float]:
    names = ("usd_per_million_tokens", "engine_load_ratio", "underused_spend", "budget_")
    return {name: value for name, value in page.items() if name.removeprefix("llmcost_").startswith(names)}


@pytest.mark.parametrize("seconds", [3, 40, 55, 100, 1300, 8000])
async def test_windows_and_budgets_are_back_after_a_restart(tmp_path: Path, seconds: int):
    """Beside one exporter that never ended; `seconds` is how old the history is."""
    pages = []
    for restarts in (False, True):
        folder, capacity = tmp_path / str(restarts), Decimal(1000)
        async with staged(folder, min_tokens=1, budgets=BUDGETS, capacity=capacity) as (stage, vllm):
            await stage.beat()
            step = 1 if seconds < 600 else 20
            for number in range(seconds // step):
                vllm.work(200 if number < seconds / step / 2 else 70)
                await stage.beat(step)
            if restarts:
                stage.kill()
                stage.begin()
            vllm.work(70)
            await stage.beat(step)
            pages.append(windows(stage.page()))
    once, restarted = pages
    assert restarted.keys() == once.keys()
    assert "llmcost_budget_burn_rate{budget=all,period=month,window=24h}" in once
    assert restarted == pytest.approx(once, rel=0.15, abs=1e-9)


async def test_a_gap_is_part_of_the_windows_and_no_peak_is_lost(tmp_path: Path):
    """What was idle while we were away is part of the cost per token; the best five minutes stay the best ones."""
    async with staged(tmp_path, price="3.6", budgets=BUDGETS) as (stage, vllm):
        stage.clock.advance(130)  # the five minutes of the burst are none of the clock's
        await stage.beat()
        for seconds, tokens in ((300, 3000), (600, 150)):
            for _ in range(seconds // 10):
                vllm.work(tokens // 30)
                await stage.beat(10)
        before = stage.page()
        load = "llmcost_engine_load_ratio{engine=chat,window=5m}"
        million = "llmcost_usd_per_million_tokens{engine=chat,tokens=output,window=1h}"
        assert before[load] == pytest.approx(0.05)
        assert before[million] == pytest.approx(900 / 3300 * 1000)
        for _ in range(3):
            stage.kill()
            stage.begin()
            for _ in range(40):
                vllm.work(5)
                await stage.beat(10)
            assert stage.page()[load] == pytest.approx(0.05, rel=0.01)
        stage.kill()
        stage.begin()
        await stage.beat(1500)
        page = stage.page()
        assert page[million] == pytest.approx(3600 / 3900 * 1000, rel=0.01)
        burn = "llmcost_budget_burn_rate{{budget=all,period=day,window={}}}"
        assert page[burn.format("1h")] == pytest.approx(3.6 * 24 / 25, rel=0.01)
        assert page[burn.format("5m")] == pytest.approx(3.6 * 24 / 25, rel=0.01)


async def test_after_a_gap_that_nothing_was_booked_for_no_window_looks_across_it(tmp_path: Path):
    """Tokens without their money would be cheap ones."""
    async with staged(tmp_path, price="3.6", budgets=BUDGETS) as (stage, vllm):
        for _ in range(10):
            vllm.work(1000)
            await stage.beat()
        for restart in (False, True):
            if restart:
                stage.kill()
                stage.begin()
            vllm.work(10**9)
            await stage.beat(7 * 3600)
            assert "llmcost_usd_per_million_tokens{engine=chat,tokens=output,window=24h}" not in stage.page()
            for _ in range(2):
                vllm.work(1000)
                await stage.beat()
            page = stage.page()
            assert page["llmcost_usd_per_million_tokens{engine=chat,tokens=output,window=24h}"] == pytest.approx(5)
            burn = page["llmcost_budget_burn_rate{budget=all,period=day,window=24h}"]
            assert burn == pytest.approx(3.6 * 24 / 25, rel=0.01)
            assert page[OUTPUT] > 10**9


async def test_a_budget_that_means_other_spend_after_a_restart_has_its_own_sums_and_no_history(tmp_path: Path):
    """The samples of one sum under the name of another would be a burn of a thousand."""
    async with staged(tmp_path, price="3.6", budgets=(Budget(name="b", daily_usd=Decimal(25), match=NOT_MUCH),)) as (
        stage,
        vllm,
    ):
        for _ in range(100):
            vllm.work(10)
            await stage.beat(60)
        stage.end()
        chat = stage.config.engines[0]
        stage.config = config(chat, price="3.6", budgets=(Budget(name="b", daily_usd=Decimal(25)),))
        stage.begin()
        await stage.beat()
        await stage.beat()
        page = stage.page()
        assert page["llmcost_budget_spent_usd{budget=b,period=day}"] == pytest.approx(compute(page))
        burn = page["llmcost_budget_burn_rate{budget=b,period=day,window=1h}"]
        assert burn == pytest.approx(3.6 * 24 / 25, rel=0.01)


# --- a ledger that cannot be written or understood


def of_another_version(state: bytes) -> Iterator[bytes]:
    known = msgspec.msgpack.decode(state)
    yield msgspec.msgpack.encode({**known, "known": {"watched_since": 1.0, "first_look": 2.0, "processes": [{}]}})
    yield msgspec.msgpack.encode({**known, "counts": ["teleports"]})
    yield msgspec.msgpack.encode({name: value for name, value in known.items() if name != "pending"})
    yield from (b"", b"\xc1", b"\xff" * 100, b"garbage", b"\x81\xa3url\xa1\xff", b"\x91" * 5000, b"{}")
    yield from (state[:cut] for cut in range(1, len(state), 37))


async def test_a_state_of_another_version_makes_the_engine_a_new_one_and_nothing_else(tmp_path: Path):
    async with staged(tmp_path, price="3.6") as (stage, vllm):
        vllm.work(1000)
        await stage.beat()
        vllm.work(10)
        await stage.beat()
        stage.end()
        (state,) = saved(stage.folder).states.values()
        for number, other in enumerate(of_another_version(state), start=2):
            with contextlib.closing(sqlite3.connect(stage.folder / file.NAME)) as connection, connection:
                connection.execute("UPDATE baselines SET state = ?", (other,))
            stage.begin()
            vllm.work(10)
            await stage.beat()
            page = stage.page()
            assert page[OUTPUT] == 10
            assert compute(page) == pytest.approx(0.005 * number, abs=1e-9)
            stage.end()
        assert number > 20


@given(st.binary())
def test_no_state_is_beyond_being_refused(state: bytes):
    assert resume._decoded(state) is None


async def test_what_waits_for_a_commit_is_told_and_budgets_count_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Somebody else's lock stands for a disk that is slow at first, and then cannot be written."""
    monkeypatch.setattr(file, "_BUSY_SECONDS", 0.2)
    monkeypatch.setattr(writer, "_LEAST_PAUSE_SECONDS", 0.05)
    budgets = (Budget(name="all", daily_usd=Decimal("0.03"), hard_cap=True),)
    waits, errors = "llmcost_ledger_uncommitted_usd{}", "llmcost_ledger_write_errors_total{}"
    last_commit = "llmcost_ledger_last_commit_timestamp_seconds{}"
    budget = "llmcost_budget_{}{{budget=all,period=day}}"
    async with staged(tmp_path, price="3.6", budgets=budgets) as (stage, vllm):
        await stage.beat()
        await stage.beat()
        before = stage.page()
        assert (before[waits], before[budget.format("spent_usd")], before[budget.format("capped")]) == (0, 0.005, 0)
        with stage.no_commits():
            for number in range(1, 11):
                vllm.work(10)
                stage.clock.advance(5)
                began = time.perf_counter()
                await stage.live.once()
                assert time.perf_counter() - began < 1
                page = stage.page()
                assert counters(page) == counters(before)
                assert page[waits] == pytest.approx(0.005 * number)
                assert page[budget.format("spent_usd")] == pytest.approx(0.005 * (number + 1))
                assert page[budget.format("capped")] == (number >= 5)
                assert page[last_commit] == before[last_commit]
            while not stage.ledger.errors:
                await asyncio.sleep(0.01)
            assert stage.page()[errors] > 0
        await stage.written()
        page = stage.page()
        assert (page[waits], page[OUTPUT], compute(page)) == (0, 100, 0.055)
    assert saved(stage.folder).totals[Account(Kind.OUTPUT_TOKENS, ("chat", "m", ""))] == 100
