"""The beat: which plan charges which time, and what one bad source does to the rest."""

import logging
from decimal import Decimal

import pytest

from exporter.beat import Beat
from exporter.books import Books
from exporter.config.model import Config, Engine
from exporter.config.prices import GpuPrice, OtherPrice, Prices
from exporter.core.readings import EngineReading, Failure
from exporter.core.snapshot import Snapshot
from exporter.metrics import ROWS
from exporter.page import PageWriter
from exporter.sources.http import REASONS, SourceError, new_session
from exporter.sources.watched import Watched
from tests.fakes import FakeClock, served
from tests.processes import samples

PAGE = """\
process_start_time_seconds 1795460000
vllm:num_requests_running{engine="0",model_name="m"} 1
vllm:prompt_tokens_total{engine="0",model_name="m"} 1
vllm:generation_tokens_total{engine="0",model_name="m"} 1
"""


def config(*engines: Engine, price: str = "0.80", other: tuple[OtherPrice, ...] = ()) -> Config:
    return Config(engines=engines, prices=Prices(gpu=GpuPrice(usd_per_hour=Decimal(price)), other=other))


class Stage:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.snapshots: list[Snapshot] = []

    async def beat(self, beat: Beat, seconds: float = 5.0) -> dict[str, float]:
        self.clock.advance(seconds)
        await beat.once()
        return samples(PageWriter(ROWS).write(self.snapshots[-1]).body.decode())


def busy(engine: str = "chat") -> str:
    return f"llmcost_spend_usd_total{{category=compute_busy,engine={engine},model=m,tier=}}"


async def test_a_new_price_charges_only_the_time_after_it_was_loaded():
    stage = Stage()
    async with served(lambda: (200, PAGE)) as url, new_session() as session:
        chat = Engine(name="chat", url=url, timeout=5.0)
        beat = Beat(config(chat, price="3.6"), stage.clock, Books(), session, stage.snapshots.append)
        await stage.beat(beat)
        beat.plan(config(chat, price="7200"))
        page = await stage.beat(beat)
        assert page[busy()] == 0.005  # five seconds at 3.60 an hour
        assert page["llmcost_spend_usd_per_hour{engine=chat}"] == 7200
        assert (await stage.beat(beat))[busy()] == 10.005


async def test_an_engine_joins_without_paying_for_the_time_before():
    stage = Stage()
    async with served(lambda: (200, PAGE)) as url, new_session() as session:
        chat, other = Engine(name="chat", url=url, timeout=5.0), Engine(name="other", url=f"{url}/metrics", timeout=5.0)
        beat = Beat(config(chat, price="3.6"), stage.clock, Books(), session, stage.snapshots.append)
        await stage.beat(beat)
        beat.plan(config(chat, other, price="3.6"))
        await stage.beat(beat)
        page = await stage.beat(beat)
        assert page[busy()] == 0.010
        spent_by_other = sum(
            value for name, value in page.items() if "spend_usd_total" in name and "engine=other" in name
        )
        assert spent_by_other == pytest.approx(0.005)


async def test_an_engine_that_moved_to_another_address_is_another_process():
    """Its counters begin with a baseline: what it did before we looked is not ours."""
    stage = Stage()
    busy_page = PAGE.replace('_total{engine="0",model_name="m"} 1', '_total{engine="0",model_name="m"} 900')
    async with (
        served(lambda: (200, PAGE)) as url,
        served(lambda: (200, busy_page)) as elsewhere,
        new_session() as session,
    ):
        beat = Beat(config(Engine(name="chat", url=url)), stage.clock, Books(), session, stage.snapshots.append)
        await stage.beat(beat)
        beat.plan(config(Engine(name="chat", url=elsewhere)))
        await stage.beat(beat)
        page = await stage.beat(beat)
        assert page["llmcost_output_tokens_total{engine=chat,model=m,tier=}"] == 0
        assert page["llmcost_source_up{source=engine,target=chat}"] == 1


async def test_all_accounts_begin_at_zero_a_beat_before_their_first_charge():
    """Storage and other from the first page on, and again under a new model and a new tier."""
    stage, answers = Stage(), [None, PAGE]
    other = (OtherPrice(name="server", usd_per_hour=Decimal("3.6")),)
    async with served(lambda: None if answers[0] is None else (200, answers[0])) as url, new_session() as session:
        chat = Engine(name="chat", url=url)
        beat = Beat(config(chat, other=other), stage.clock, Books(), session, stage.snapshots.append)
        pages = [await stage.beat(beat), await stage.beat(beat)]
        answers.pop(0)
        pages += [await stage.beat(beat), await stage.beat(beat)]
        beat.plan(config(Engine(name="chat", url=url, tier="fast"), other=other))
        pages += [await stage.beat(beat), await stage.beat(beat), await stage.beat(beat)]
    seen: dict[str, float] = {}
    for page in pages:
        for name, value in page.items():
            if name.startswith(("llmcost_spend_usd_total", "llmcost_unpriced")):
                assert name in seen or value == 0, name
                seen[name] = value
    assert len([name for name in seen if "category=other" in name]) == 3
    assert len([name for name, value in seen.items() if value]) == 6


async def test_a_model_that_the_config_renames_begins_at_zero():
    """llama.cpp names no model, so the config does."""
    stage, work = Stage(), [0]

    def answer() -> tuple[int, str]:
        work[0] += 50
        return 200, f"llamacpp:tokens_predicted_total {work[0]}\n"

    async with served(answer) as url, new_session() as session:
        first, second = (Engine(name="chat", url=url, models=(name,)) for name in ("x", "y"))
        beat = Beat(config(first), stage.clock, Books(), session, stage.snapshots.append)
        await stage.beat(beat)
        await stage.beat(beat)
        beat.plan(config(second))
        pages = [await stage.beat(beat), await stage.beat(beat)]
    name = "llmcost_output_tokens_total{engine=chat,model=y,tier=}"
    assert [page[name] for page in pages] == [0, 50]


async def test_windows_begin_anew_for_an_engine_that_was_away():
    stage, work = Stage(), [0]

    def answer() -> tuple[int, str]:
        work[0] += 50
        line = f'vllm:generation_tokens_total{{engine="0",model_name="m"}} {work[0]}'
        return 200, PAGE.replace('vllm:generation_tokens_total{engine="0",model_name="m"} 1', line)

    async with served(answer) as url, new_session() as session:
        chat = Engine(name="chat", url=url, max_output_tokens_per_second=Decimal(10))
        rest = Engine(name="rest", url="http://127.0.0.1:9")
        beat = Beat(config(chat, rest), stage.clock, Books(), session, stage.snapshots.append)
        load = "llmcost_engine_load_ratio{engine=chat,window=5m}"
        assert (await stage.beat(beat), await stage.beat(beat))[1][load] == 1.0
        beat.plan(config(rest))
        await stage.beat(beat)
        await stage.beat(beat, 1800)
        beat.plan(config(chat, rest))
        await stage.beat(beat)
        await stage.beat(beat)
        # One of its two beats was the baseline; half an hour of absence would leave a thirtieth.
        assert (await stage.beat(beat))[load] == 0.5


@pytest.mark.parametrize(("seconds", "category"), [(15.0, "busy"), (15.1, "unobserved")])
async def test_more_than_three_beats_without_a_look_are_unobserved(seconds: float, category: str):
    stage = Stage()
    async with served(lambda: (200, PAGE)) as url, new_session() as session:
        beat = Beat(config(Engine(name="chat", url=url)), stage.clock, Books(), session, stage.snapshots.append)
        await stage.beat(beat)
        page = await stage.beat(beat, seconds)
        assert page[busy().replace("busy", category)] > 0


async def test_what_was_pending_when_an_engine_left_is_booked():
    stage, answers = Stage(), [PAGE, None, None]
    async with served(lambda: None if answers[0] is None else (200, answers[0])) as url, new_session() as session:
        chat, rest = Engine(name="chat", url=url), Engine(name="rest", url="http://127.0.0.1:9")
        beat = Beat(config(chat, rest, price="3.6"), stage.clock, Books(), session, stage.snapshots.append)
        await stage.beat(beat)
        answers.pop(0)
        await stage.beat(beat)
        beat.plan(config(rest, price="3.6"))
        page = await stage.beat(beat)
        assert page["llmcost_spend_usd_total{category=compute_down,engine=chat,model=m,tier=}"] == 0.010
        assert "llmcost_spend_usd_per_hour{engine=chat}" not in page


async def test_a_wall_clock_that_jumps_changes_no_charge(caplog: pytest.LogCaptureFixture):
    stage = Stage()
    async with served(lambda: (200, PAGE)) as url, new_session() as session:
        beat = Beat(
            config(Engine(name="chat", url=url), price="3.6"), stage.clock, Books(), session, stage.snapshots.append
        )
        await stage.beat(beat)
        pages = []
        for jump in (86_400, -2 * 86_400, 3.0):
            stage.clock.step_wall(jump)
            pages.append(await stage.beat(beat))
        assert [page[busy()] for page in pages] == [0.005, 0.010, 0.015]
        assert caplog.text.count("the wall clock moved") == 3


async def test_one_engine_that_is_gone_does_not_disturb_the_other():
    stage = Stage()
    async with served(lambda: (200, PAGE)) as url, new_session() as session:
        engines = (Engine(name="gone", url="http://127.0.0.1:9"), Engine(name="chat", url=url))
        beat = Beat(config(*engines, price="3.6"), stage.clock, Books(), session, stage.snapshots.append)
        await stage.beat(beat)
        page = await stage.beat(beat)
        assert page[busy()] == 0.005
        assert page["llmcost_source_up{source=engine,target=gone}"] == 0
        assert page["llmcost_source_up{source=engine,target=chat}"] == 1


async def test_beats_begin_an_interval_apart_and_a_slow_one_is_not_made_up_for():
    stage = Stage()
    slept: list[float] = []

    class Enough(Exception):  # noqa: N818
        pass

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise Enough
        stage.clock.advance(seconds)

    spent = iter((1.25, 7.0, 0.5))

    def answer() -> tuple[int, str]:
        stage.clock.advance(next(spent))
        return 200, PAGE

    async with served(answer) as url, new_session() as session:
        beat = Beat(config(Engine(name="chat", url=url)), stage.clock, Books(), session, stage.snapshots.append)
        with pytest.raises(Enough):
            await beat.run(sleep)
    assert slept == [3.75, 0.0, 4.5]
    assert [snapshot.sources[0].read_seconds for snapshot in stage.snapshots] == [1.25, 7.0, 0.5]


class Broken:
    """A source with a bug, then with a reason, then well."""

    source, target, reasons = "engine", "chat", REASONS

    def __init__(self) -> None:
        self.outcomes: list[Exception | EngineReading] = [
            ZeroDivisionError("a bug"),
            SourceError("refused", "Connection refused"),
            SourceError("refused", "Connection refused"),
            EngineReading(kind="vllm", start_time=None, counters={}, ttft={}, models={}),
        ]

    async def read(self) -> EngineReading:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def test_a_bug_in_a_source_is_that_sources_failure_and_edges_are_logged_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    clock = FakeClock()
    watched: Watched[EngineReading] = Watched(Broken())
    outcomes = [await watched.read(clock) for _ in range(4)]
    reasons = [outcome.reason if isinstance(outcome, Failure) else None for outcome, _ in outcomes]
    assert reasons == ["bug", "refused", "refused", None]
    view = watched.view(5.0)
    assert (view.up, view.errors["bug"], view.errors["refused"], view.errors["timeout"]) == (True, 1, 2, 0)
    assert caplog.text.count("down: Connection refused") == 1
    assert caplog.text.count("up after") == 1
    assert "ZeroDivisionError" in caplog.text
