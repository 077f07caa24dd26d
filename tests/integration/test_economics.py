"""Beats beside an API's prices, and cascades counted from engines: what the page says, through restarts."""

from decimal import Decimal
from pathlib import Path

import pytest

from exporter.config.model import Cascade, CascadeSource, Engine
from exporter.config.prices import ApiModel, ApiPrices, ApiReference, GpuPrice, Prices
from exporter.core.api_prices import configured
from exporter.core.money import NANO, Account, Entry, Kind
from tests.stage import Stage, Vllm, config, staged

MINI = ApiModel(
    provider="openai", model="mini", input_usd_per_million=Decimal("0.15"), output_usd_per_million=Decimal("0.60")
)
API = ApiPrices(models=(MINI,), compare_with=ApiReference(provider="openai", model="mini"))
PRICES = Prices(gpu=GpuPrice(usd_per_hour=Decimal("3.6")), api=API)  # a thousandth of a dollar a second
EQUIVALENT = "llmcost_api_equivalent_usd_total{api_model=openai/mini,engine=chat,model=m}"
RATIO = "llmcost_break_even_ratio{api_model=openai/mini,engine=chat,window=1h}"
REQUESTS = "llmcost_break_even_requests_per_day{api_model=openai/mini,engine=chat}"


def adopt(stage: Stage) -> None:
    stage.live.plan(stage.config, configured(stage.config.prices.api))


async def work(stage: Stage, vllm: Vllm, beats: int, tokens: int = 1000) -> None:
    for _ in range(beats):
        vllm.work(tokens)
        await stage.beat()


async def test_break_even_is_shown_once_enough_is_known_and_goes_on_after_a_restart(tmp_path: Path):
    """A request of 2 000 prompt (500 of them cached) and 1 000 output tokens is $0.0009 there, and $0.005 here."""
    async with staged(tmp_path, prices=PRICES) as (stage, vllm):
        await stage.beat()
        adopt(stage)
        await stage.beat()
        await work(stage, vllm, 49)
        page = stage.page()
        assert page[EQUIVALENT] == pytest.approx(49 * 0.0009, abs=1e-9)
        assert REQUESTS not in page
        await work(stage, vllm, 11)
        page = stage.page()
        assert page[RATIO] == pytest.approx((60 + 1) * 0.005 / (60 * 0.0009), rel=0.02)
        assert page[REQUESTS] == pytest.approx(3.6 * 24 / 0.0009)
        (view,) = stage.live._snapshot(stage.clock.now()).economics.break_even
        assert view.is_reachable is False  # 0.2 requests a second were the best so far
        stage.kill()
        stage.begin()
        adopt(stage)
        await stage.beat()
        await stage.beat()
        again = stage.page()
        assert again[EQUIVALENT] == page[EQUIVALENT]
        assert again[RATIO] == pytest.approx(page[RATIO], rel=0.05)
        assert again[REQUESTS] == pytest.approx(page[REQUESTS], rel=0.05)


async def test_without_a_price_to_compare_with_nothing_is_said(tmp_path: Path):
    async with staged(tmp_path, prices=PRICES) as (stage, vllm):
        await work(stage, vllm, 60)
        assert not [name for name in stage.page() if "api_equivalent" in name or "break_even" in name]


async def test_a_cascade_of_engines_is_on_the_page_with_its_cost(tmp_path: Path):
    cascade = Cascade(name="support", tiers=("fast", "balanced"), source=CascadeSource.ENGINES)
    steps = "cascade=support,from_tier=fast,to_tier=balanced"
    async with staged(tmp_path / "small") as (stage, small), staged(tmp_path / "big") as (other, big):
        engines = (
            Engine(name="small", url=stage.config.engines[0].url, tier="fast"),
            Engine(name="big", url=other.config.engines[0].url, tier="balanced"),
        )
        stage.end()
        stage.config = config(*engines, price="3.6", cascades=(cascade,))
        stage.begin()
        await stage.beat()
        page = stage.page()
        assert page[f"llmcost_escalations_total{{{steps}}}"] == 0
        assert page["llmcost_cascade_requests_total{cascade=support,tier=fast}"] == 0
        for number in range(200):
            small.work(10)
            if number % 4 == 0:
                big.work(10)
            await stage.beat()
        page = stage.page()
        assert page["llmcost_cascade_requests_total{cascade=support,tier=fast}"] == 200
        assert page[f"llmcost_escalations_total{{{steps}}}"] == 50
        assert page[f"llmcost_escalation_ratio{{{steps},window=1h}}"] == 0.25
        # both engines cost the same, and the bigger one served a quarter
        assert page[f"llmcost_escalation_break_even_ratio{{{steps}}}"] == pytest.approx(0.75, rel=0.01)
        assert page[f"llmcost_escalation_spend_usd_total{{{steps}}}"] == pytest.approx(50 * 0.005, rel=0.1)
        stage.kill()
        stage.begin()
        await stage.beat()
        again = stage.page()
        assert (
            again[f"llmcost_escalation_spend_usd_total{{{steps}}}"]
            == page[f"llmcost_escalation_spend_usd_total{{{steps}}}"]
        )
        assert again[f"llmcost_escalation_ratio{{{steps},window=1h}}"] == pytest.approx(0.25, rel=0.05)


async def test_first_tries_wait_until_a_request_has_a_known_cost(tmp_path: Path):
    cascade = Cascade(name="support", tiers=("fast", "balanced"))
    steps = "cascade=support,from_tier=fast,to_tier=balanced"
    spend = f"llmcost_escalation_spend_usd_total{{{steps}}}"
    async with staged(tmp_path) as (stage, vllm):
        engine = Engine(name="small", url=stage.config.engines[0].url, tier="fast")
        stage.end()
        stage.config = config(engine, price="3.6", cascades=(cascade,))
        stage.begin()
        await stage.beat()
        told = Account(Kind.ESCALATIONS, ("support", "fast", "balanced"))
        await stage.books.post([Entry(told, 3, stage.clock.now().wall)])
        await work(stage, vllm, 40)
        assert stage.page()[spend] == 0
        await work(stage, vllm, 20)
        first = stage.page()[spend]
        assert first == pytest.approx(3 * 0.005, rel=0.05)
        await work(stage, vllm, 20)
        assert stage.page()[spend] == first
        assert stage.books.total(told._replace(kind=Kind.COSTED_ESCALATIONS)) == 3
        assert stage.books.total(told._replace(kind=Kind.ESCALATION_SPEND)) == round(first * NANO)
