"""Mistakes that exporters of cost have shipped, each under the name of its trap."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest

from exporter.beat import Beat
from exporter.books import Books
from exporter.config.load import parse
from exporter.config.model import Config, Disaggregation, Engine, Kind
from exporter.config.nodes import ConfigError
from exporter.config.prices import GpuPrice, Prices
from exporter.core.counters import Baselines
from exporter.core.money import NANO, nano_usd
from exporter.core.money import Kind as Account
from exporter.core.prices import HourlyPrice
from exporter.core.readings import Counted, EngineReading, Series
from exporter.core.snapshot import Snapshot
from exporter.metrics import PREFIX, ROWS
from exporter.page import PageWriter
from exporter.sources.dialects import UnknownPageError, recognise, translate, wanted_names
from exporter.sources.exposition import Page
from exporter.sources.http import new_session
from tests.bench import BEGAN, REFUSED, Bench, page, terms
from tests.fakes import FakeClock, served
from tests.processes import samples


def rank(number: int, output: int) -> tuple[Series, int]:
    return Series(Counted.OUTPUT_TOKENS, "m", "", f"engine={number}"), output


def ranks(*outputs: int, start: float | None = None) -> EngineReading:
    counters = dict(rank(number, output) for number, output in enumerate(outputs))
    return EngineReading(kind="vllm", start_time=start, counters=counters, ttft={}, models={})


def moved(*readings: EngineReading) -> list[int]:
    baselines = Baselines(BEGAN)
    return [sum(baselines.advance(reading, BEGAN + 5 * n).counters.values()) for n, reading in enumerate(readings, 1)]


def read(text: str, disaggregation: Disaggregation = Disaggregation.NONE) -> EngineReading:
    dialect = recognise(text, Kind.AUTO)
    return translate(dialect, Page(wanted_names(dialect).__contains__).read(text), disaggregation)


def counted(reading: EngineReading, what: Counted) -> int:
    return sum(value for series, value in reading.counters.items() if series.counted is what)


def test_counter_reset_masked_by_aggregation():
    """One rank falls from 1000 to 10 while the other does 2000: the sum rises, and still both moves count."""
    start = BEGAN - 100
    assert moved(ranks(1000, 1000, start=start), ranks(10, 3000, start=start)) == [0, 10 + 2000]


def test_missing_baseline():
    """A lifetime of tokens is not this window's; a rank that appears later has done all its work since."""
    assert moved(ranks(5_000_000, start=BEGAN - 9), ranks(5_000_007, 3, start=BEGAN - 9)) == [0, 7 + 3]


def test_missing_baseline_of_an_engine_that_started_while_we_watched():
    assert moved(ranks(40, start=BEGAN + 2), ranks(50, start=BEGAN + 2)) == [40, 10]


def test_engine_restart_mid_window_that_overtakes_the_old_value():
    """The new process has already done more than the old one: only its start time tells."""
    assert moved(ranks(100, start=BEGAN - 9), ranks(150, start=BEGAN + 6)) == [0, 150]


def test_engine_restart_without_a_start_time_is_seen_in_any_counter():
    """One rank has overtaken its old value, the other has not: all are new."""
    assert moved(ranks(100, 100), ranks(150, 20)) == [0, 150 + 20]


def test_no_restart_without_a_start_time_while_all_counters_are_at_or_above_their_baselines():
    assert moved(ranks(100, 100), ranks(100, 130)) == [0, 30]


def test_a_start_time_that_some_pages_lack_is_no_restart():
    known, silent = BEGAN - 9, None
    assert moved(ranks(100, start=known), ranks(130, start=silent), ranks(150, start=known)) == [0, 30, 20]


def test_a_restart_is_seen_when_a_start_time_appears_that_is_new():
    assert moved(ranks(100), ranks(130, start=BEGAN + 6)) == [0, 130]
    assert moved(ranks(100), ranks(130, start=BEGAN - 60)) == [0, 30]


def test_the_first_reading_without_a_start_time_is_a_baseline():
    assert moved(ranks(100), ranks(101)) == [0, 1]


def test_a_start_time_that_trembles_is_no_restart():
    assert moved(ranks(100, start=BEGAN - 9.0), ranks(130, start=BEGAN - 7.1)) == [0, 30]


def test_several_replicas_behind_one_address():
    """A load balancer answers for two processes in turn: the second is taken for a restart once, then each goes on."""
    older, younger = BEGAN - 900, BEGAN - 100
    a, b = ranks(1000, start=older), ranks(5000, start=younger)
    more_a, more_b = ranks(1010, start=older), ranks(5020, start=younger)
    assert moved(b, a, more_b, more_a) == [0, 1000, 20, 10]


def test_a_series_that_is_missing_once_keeps_its_baseline():
    assert moved(ranks(100, 100, start=BEGAN - 9), ranks(110, start=BEGAN - 9), ranks(110, 107, start=BEGAN - 9)) == [
        0,
        10,
        7,
    ]


def test_shared_gpu_is_charged_by_its_share():
    bench = Bench(of=terms(gpus="0.25"))
    bench.beat(page(0))
    bench.beat(page(0), 14.0)
    assert bench.total(Account.SPEND, "compute_idle", "chat", "m", "fast") == 14 * NANO // 5 // 3600


def test_shared_gpu_is_not_charged_twice():
    content = b"""
engines:
  - {name: a, url: "http://a", gpus: [{uuid: GPU-1, share: 0.6}]}
  - {name: b, url: "http://b", gpus: [{uuid: GPU-1, share: 0.6}]}
prices: {gpu: {usd_per_hour: 1}}
"""
    with pytest.raises(ConfigError, match=r"at most 1, found 1\.2"):
        parse(content, "config.yml")


def test_mig_costs_its_slices_of_seven():
    content = b"""
engines: [{url: "http://a", gpus: [{uuid: MIG-1, slices: 3}, {uuid: MIG-2, slices: 1}]}]
prices: {gpu: {usd_per_hour: 7}}
"""
    assert parse(content, "config.yml").engines[0].gpus_charged == Fraction(4, 7)


def test_tensor_parallel_gpus_are_counted_once_by_uuid():
    content = b"""
engines: [{url: "http://a", gpus: [GPU-1, GPU-2, GPU-1]}]
prices: {gpu: {usd_per_hour: 7}}
"""
    with pytest.raises(ConfigError, match="sum to at most 1, found 2"):
        parse(content, "config.yml")


DISAGGREGATED = """\
vllm:prompt_tokens_total{engine="0",model_name="m"} 1000
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 10
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 40
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="external_kv_transfer"} 950
vllm:generation_tokens_total{engine="0",model_name="m"} 500
"""


@pytest.mark.parametrize(
    ("part", "prompt"), [(Disaggregation.NONE, 1000), (Disaggregation.PREFILL, 1000), (Disaggregation.DECODE, 50)]
)
def test_pd_disaggregation_counts_a_prompt_where_it_was_computed(part: Disaggregation, prompt: int):
    assert counted(read(DISAGGREGATED, part), Counted.PROMPT_TOKENS) == prompt


async def test_cached_tokens_are_a_subset_and_never_above_the_prompt():
    """An engine may count the hit before the prompt: until then the hit waits."""
    text = """\
vllm:prompt_tokens_total{{engine="0",model_name="m"}} {prompt}
vllm:prompt_tokens_cached_total{{engine="0",model_name="m"}} {cached}
vllm:generation_tokens_total{{engine="0",model_name="m"}} 1
"""
    first, last = (text.format(prompt=prompt, cached=cached) for prompt, cached in ((0, 0), (100, 160)))
    found = await played(first, last)
    assert found["llmcost_prompt_tokens_total{engine=chat,model=m,tier=}"] == 100
    assert found["llmcost_cached_prompt_tokens_total{engine=chat,model=m,tier=}"] == 100


async def played(*pages: str | None, config: Config | None = None, seconds: float = 5.0) -> dict[str, float]:
    """The last page after some beats of the real exporter, with the engine answering these pages."""
    clock, answers, snapshots = FakeClock(BEGAN), list(pages), list[Snapshot]()
    now: list[str | None] = [None]
    async with served(lambda: None if now[0] is None else (200, now[0])) as url, new_session() as session:
        engine = Engine(name="chat", url=url, timeout=5.0)
        price = Prices(gpu=GpuPrice(usd_per_hour=Decimal("0.80")))
        chosen = config or Config(engines=(engine,), prices=price)
        chosen = Config(engines=(engine,), prices=chosen.prices, max_gap=chosen.max_gap)
        beat = Beat(chosen, clock, Books(), session, snapshots.append)
        for answer in answers:
            now[0] = answer
            await beat.once()
            clock.advance(seconds)
    return samples(PageWriter(ROWS).write(snapshots[-1]).body.decode())


def working(tokens: int, running: int = 1) -> str:
    return f"""\
process_start_time_seconds {BEGAN - 1000}
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m"}} 3
vllm:prompt_tokens_total{{engine="0",model_name="m"}} {3 * tokens}
vllm:generation_tokens_total{{engine="0",model_name="m"}} {tokens}
"""


async def test_idle_window_has_no_cost_per_token():
    """Nine hundred and ninety-nine tokens are too few to divide by; one more is enough."""
    few, enough = await played(working(0), working(249)), await played(working(0), working(1000))
    name = "llmcost_usd_per_million_tokens{engine=chat,tokens=output,window=5m}"
    assert name not in few
    assert few["llmcost_spend_usd_total{category=compute_busy,engine=chat,model=m,tier=}"] > 0
    assert enough[name] == pytest.approx(0.80 / 3600 * 5 / 1000 * 1e6, rel=1e-6)


async def test_prompt_vs_output_are_two_figures_with_two_names():
    found = await played(working(0), working(1000))
    output, total = (
        found[f"llmcost_usd_per_million_tokens{{engine=chat,tokens={what},window=5m}}"] for what in ("output", "total")
    )
    assert output == pytest.approx(4 * total)


async def test_nan_at_zero_traffic_is_no_value():
    nan = working(0).replace('_waiting{engine="0",model_name="m"} 3', '_waiting{engine="0",model_name="m"} NaN')
    found = await played(nan, nan)
    assert "llmcost_requests_waiting{engine=chat,model=m}" not in found
    assert found["llmcost_requests_running{engine=chat,model=m}"] == 1
    assert not any(math.isnan(value) for value in found.values())


async def test_a_value_that_no_engine_can_reach_is_no_value():
    huge = working(3).replace('_total{engine="0",model_name="m"} 3', '_total{engine="0",model_name="m"} 1.7e308')
    found = await played(working(1), huge, working(9))
    assert found["llmcost_output_tokens_total{engine=chat,model=m,tier=}"] == 8
    assert all(math.isfinite(value) for value in found.values())


async def test_a_start_time_that_no_clock_can_show_is_none():
    odd = working(3).replace(f"{BEGAN - 1000}", "1e300")
    found = await played(working(1), odd, working(9))
    assert found["llmcost_output_tokens_total{engine=chat,model=m,tier=}"] == 8


async def test_missing_data_is_not_zero():
    found = await played(working(5), None)
    gauges = (
        "requests_waiting",
        "requests_running",
        "scaling_signal{",
        "scaling_signal_ratio",
        "ttft_p95",
        "load_ratio",
    )
    assert not [name for name in found if any(gauge in name for gauge in gauges)]
    assert found["llmcost_source_up{source=engine,target=chat}"] == 0


async def test_stale_gauges_go_at_the_first_failed_read_and_counters_stay():
    before, after = (
        await played(working(5), working(9)),
        await played(working(5), working(9), None, None, None, None, None),
    )
    assert "llmcost_requests_running{engine=chat,model=m}" in before
    assert "llmcost_requests_running{engine=chat,model=m}" not in after
    tokens = "llmcost_output_tokens_total{engine=chat,model=m,tier=}"
    assert (before[tokens], after[tokens]) == (4, 4)


def test_renamed_metrics_are_found_under_their_old_and_new_names():
    for name in ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"):
        text = f'vllm:generation_tokens_total{{model_name="m"}} 1\n{name}{{model_name="m"}} 0.5\n'
        assert read(text).models["m"].kv_cache_usage_ratio == 0.5


def test_name_collisions_with_a_router_that_re_exports_the_engines_names():
    router = 'vllm:num_requests_running{server="http://a"} 3\nvllm:num_incoming_requests_total{model="m"} 9\n'
    with pytest.raises(UnknownPageError, match="router"):
        read(router)


def test_colon_names_are_for_rules():
    assert not [row.name for row in ROWS if ":" in f"{PREFIX}{row.name}"]


async def test_scrape_gaps_of_the_sidecar_are_charged_by_real_elapsed_time():
    found = await played(working(0), working(10), seconds=47.0)
    spent = found["llmcost_spend_usd_total{category=compute_unobserved,engine=chat,model=m,tier=}"]
    assert spent == pytest.approx(47 * 0.80 / 3600, abs=2e-9)
    assert found["llmcost_unobserved_seconds_total{}"] == 0


async def test_a_scrape_gap_of_exactly_max_gap_is_charged():
    found = await played(working(0), working(10), seconds=6 * 3600.0)
    assert found["llmcost_unobserved_seconds_total{}"] == 0
    assert found["llmcost_spend_usd_total{category=compute_unobserved,engine=chat,model=m,tier=}"] == pytest.approx(
        6 * 0.80
    )


async def test_scrape_gaps_above_max_gap_are_counted_and_not_charged():
    found = await played(working(0), working(10), seconds=7 * 3600.0)
    assert found["llmcost_unobserved_seconds_total{}"] == 7 * 3600
    assert sum(value for name, value in found.items() if name.startswith("llmcost_spend_usd_total")) == 0
    assert found["llmcost_output_tokens_total{engine=chat,model=m,tier=}"] == 10


def test_price_change_rewrites_nothing():
    bench = Bench()
    bench.beat(page(0))
    bench.beat(page(0), 3600.0)
    before = bench.total(Account.SPEND, "compute_unobserved", "chat", "m", "fast")
    bench.terms = terms(prices=(HourlyPrice(0, nano_usd(Decimal(100)), "usd_per_hour"),))
    bench.beat(page(0))
    assert bench.total(Account.SPEND, "compute_unobserved", "chat", "m", "fast") == before == 800_000_000


def test_price_is_per_instance():
    content = b"engines: [{url: 'http://a', gpus: 2}]\nprices: {gpu: {instance: {usd_per_hour: 12, gpus: 8}}}\n"
    config = parse(content, "config.yml")
    gpu = config.prices.gpu
    assert gpu is not None
    assert gpu.instance is not None
    assert gpu.instance.usd_per_hour / gpu.instance.gpus * int(config.engines[0].gpus_charged) == 3


async def test_unknown_price_is_never_zero():
    unpriced = Config(engines=(Engine(url="http://x"),), prices=Prices(gpu=GpuPrice(by_name={"NVIDIA L4": Decimal(1)})))
    found = await played(working(0), working(2000), config=unpriced)
    assert found["llmcost_unpriced_gpu_seconds_total{gpu=any}"] == 5
    gone = ("spend_usd_per_hour", "usd_per_million_tokens", "gpu_price_usd_per_hour", "underused")
    assert not [name for name in found if any(gauge in name for gauge in gone)]


def test_float_drift_does_not_reach_the_sum():
    """A year of five-second beats at a price that no float holds."""
    bench = Bench(of=terms(prices=(HourlyPrice(0, nano_usd(Decimal("0.1")), "usd_per_hour"),)))
    bench.beat(page(0))
    for _ in range(720):
        bench.beat(page(0), 5.0)
    assert bench.total(Account.SPEND, "compute_idle", "chat", "m", "fast") == 100_000_000


def test_clock_jumps_do_not_change_what_is_charged():
    bench = Bench()
    bench.beat(page(0))
    bench.at += 86_400  # the wall clock is set forward by a day
    bench.beat(page(0), 5.0, stepped=True)
    bench.at -= 2 * 86_400  # and back by two
    bench.beat(page(0), 5.0, stepped=True)
    assert bench.seconds() == {"idle": 10.0}


def test_aborted_requests_cost_tokens_that_no_finished_request_shows():
    bench = Bench()
    bench.beat(page(0, requests=0, http=0))
    bench.beat(page(100, requests=1, http=4))
    assert bench.total(Account.OUTPUT_TOKENS, "chat", "m", "fast") == 100
    assert bench.total(Account.REQUESTS, "chat", "m", "stop") == 1
    assert bench.total(Account.REQUESTS, "chat", "m", "abandoned") == 3


def test_a_failed_read_books_nothing_that_must_be_taken_back():
    bench = Bench()
    bench.beat(page(0))
    for outcome in (REFUSED, REFUSED, page(5), REFUSED, page(5)):
        before = bench.books.totals()
        bench.beat(outcome)
        for kind, totals in before.items():
            assert all(bench.books.totals()[kind][labels] >= total for labels, total in totals.items())
