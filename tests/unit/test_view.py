"""What is shown of an engine: states, rates, load, and TTFT that forgets what has left its window."""

from decimal import Decimal
from fractions import Fraction

import pytest

from exporter.books import Books
from exporter.clock import Instant
from exporter.config.model import Config, Engine
from exporter.config.prices import GpuPrice, OtherPrice, Prices
from exporter.core.meter import EngineMeter, Terms
from exporter.core.money import NANO, Account, Entry, Kind
from exporter.core.prices import Interval, gpu_timeline
from exporter.core.readings import EngineReading, Failure, ModelGauges
from exporter.core.snapshot import EngineView
from exporter.core.standing import standing_costs
from exporter.core.view import EngineFacts, engine_view
from tests.bench import BEGAN, REFUSED, page


class Shown:
    """One engine, beat by beat, and what is shown of it."""

    def __init__(self, engine: Engine, prices: Prices) -> None:
        self.config = Config(engines=(engine,), prices=prices)
        timeline = gpu_timeline(prices.gpu, {})
        self.terms = Terms(engine=engine, gpu="any", gpu_prices=timeline, away_ns=15 * NANO)
        self.meter, self.books = EngineMeter(self.terms, BEGAN), Books()
        self.now = Instant(BEGAN * NANO, 0)

    async def beat(self, outcome: EngineReading | Failure, seconds: int = 5) -> EngineView:
        self.now = Instant(self.now.wall + seconds * NANO, self.now.monotonic + seconds * NANO)
        interval = Interval(self.now.wall, seconds * NANO) if self.now.monotonic > seconds * NANO else None
        await self.books.post(self.meter.beat(self.terms, interval, outcome, self.now.unix_seconds))
        name = self.terms.engine.name
        self.meter.remember(self.now.monotonic)
        totals = self.books.engine_totals(name)
        self.books.windows(name).record(self.now.monotonic, totals)
        facts = EngineFacts(
            terms=self.terms, meter=self.meter, windows=self.books.windows(name), totals=totals, gpu_utilization=None
        )
        return engine_view(self.config, standing_costs(self.config), facts, self.now)


def chat(**changes: object) -> Engine:
    return Engine(**{"name": "chat", "url": "http://x", "tier": "fast", **changes})  # type: ignore[arg-type]


PRICED = Prices(gpu=GpuPrice(usd_per_hour=Decimal("0.80")))


async def test_an_engine_is_loading_then_up_then_down():
    shown = Shown(chat(), PRICED)
    views = [await shown.beat(outcome) for outcome in (REFUSED, page(0), REFUSED, page(0))]
    assert [view.state for view in views] == ["loading", "up", "down", "up"]
    assert [view.kind for view in views] == [None, "vllm", None, "vllm"]
    assert {view.tier for view in views} == {"fast"}
    assert [view.model for view in views] == ["unknown", "m", "m", "m"]


async def test_the_model_of_the_config_is_known_before_the_first_answer():
    shown = Shown(chat(models=("llama", "alias")), PRICED)
    assert (await shown.beat(REFUSED)).model == "llama"


async def test_an_engine_without_gpus_costs_its_standing_share():
    other = (OtherPrice(name="server", usd_per_hour=Decimal("0.25")),)
    view = await Shown(chat(gpus=Fraction(0)), Prices(other=other)).beat(page(0))
    assert view.spend_usd_per_hour == 0.25
    assert view.gpu_price_usd_per_hour is None


async def test_what_an_engine_costs_an_hour_is_its_gpus_and_its_standing_share():
    other = (OtherPrice(name="server", usd_per_hour=Decimal("0.25")),)
    prices = Prices(gpu=GpuPrice(usd_per_hour=Decimal("0.80")), other=other)
    view = await Shown(chat(gpus=Fraction(3)), prices).beat(page(0))
    assert view.spend_usd_per_hour == pytest.approx(2.65)


async def test_ttft_of_the_last_minute_forgets_what_is_older():
    """Ninety slow requests at first, then nine quick ones: the buckets end at 0.1 s and 1 s."""
    shown = Shown(chat(), PRICED)
    await shown.beat(page(requests=0))
    view = await shown.beat(page(requests=90))
    assert view.ttft_p95_seconds["1m"] == pytest.approx(0.1 + 0.9 * 0.95)
    for _ in range(13):
        view = await shown.beat(page(requests=90))
    assert view.ttft_p95_seconds == {"1m": None, "5m": pytest.approx(0.1 + 0.9 * 0.95)}
    for _ in range(60):
        view = await shown.beat(page(requests=90))
    assert view.ttft_p95_seconds == {"1m": None, "5m": None}


async def test_load_is_known_after_five_minutes_and_underused_spend_with_it():
    shown = Shown(chat(), PRICED)
    view = await shown.beat(page(0))
    for beat in range(1, 61):
        assert view.windows["5m"].load_ratio is None
        assert view.underused_spend_usd_per_hour is None
        view = await shown.beat(page(10 * beat))
    assert view.windows["5m"].load_ratio == 1.0
    for _ in range(30):
        view = await shown.beat(page(600))
    assert view.windows["5m"].load_ratio == pytest.approx(0.5)
    assert view.underused_spend_usd_per_hour == pytest.approx(0.40)


async def test_a_configured_capacity_is_the_measure_of_load_at_once():
    shown = Shown(chat(max_output_tokens_per_second=Decimal(8)), PRICED)
    await shown.beat(page(0))
    assert (await shown.beat(page(20))).windows["5m"].load_ratio == pytest.approx(0.5)
    assert (await shown.beat(page(900))).windows["5m"].load_ratio == 1.0


async def test_unpriced_time_in_a_window_leaves_it_without_a_cost_per_token():
    shown = Shown(chat(), PRICED)
    await shown.beat(page(0))
    view = await shown.beat(page(5000))
    assert view.windows["5m"].usd_per_million_output_tokens is not None
    await shown.books.post([Entry(Account(Kind.UNPRICED_GPU, ("chat", "m", "fast", "any")), 1, 0)])
    view = await shown.beat(page(9000))
    assert view.windows["5m"].usd_per_million_output_tokens is None


async def test_an_engine_whose_page_names_no_model_is_shown_under_the_configs():
    nameless = EngineReading(
        kind="llamacpp", start_time=None, counters={}, ttft={}, models={"": ModelGauges(running=2, waiting=5)}
    )
    for models, name in (((), "unknown"), (("tiny",), "tiny")):
        view = await Shown(chat(models=models), PRICED).beat(nameless)
        assert (view.model, list(view.models)) == (name, [name])
        assert {signal.name: signal.value for signal in view.signals}["queue_depth"] == 5
