"""What a scraper must know about vLLM: fifteen traps, each by its number, and the names of every release."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from exporter.config.model import Disaggregation, Engine, Kind
from exporter.core.counters import Baselines
from exporter.core.meter import EngineMeter, Terms
from exporter.core.money import NANO, Entry
from exporter.core.prices import HourlyPrice, Interval
from exporter.core.readings import Counted, EngineReading, Failure, HistogramSeries
from exporter.sources.dialects import LLAMACPP, VLLM, UnknownPageError, recognise, translate, wanted_names
from exporter.sources.engine import EngineSource
from exporter.sources.exposition import ExpositionError, Page
from exporter.sources.http import SourceError, new_session

CAPTURES: Final = Path(__file__).parents[1] / "fixtures" / "captures"
FIRST_LOOK: Final = 1795464800.0  # after the start of every captured process
BEAT: Final = 5
REFUSED: Final = Failure(reason="refused", detail="Connection refused")


def captured(name: str) -> str:
    return (CAPTURES / f"{name}.prom").read_text(encoding="utf-8")


def read(text: str, disaggregation: Disaggregation = Disaggregation.NONE) -> EngineReading:
    dialect = recognise(text, Kind.AUTO)
    return translate(dialect, Page(wanted_names(dialect).__contains__).read(text), disaggregation)


def sums(reading: EngineReading) -> dict[str, int]:
    """Return the counters of a reading, summed by what they count; requests by their outcome, where any finished."""
    found: defaultdict[str, int] = defaultdict(int)
    for series, value in reading.counters.items():
        if series.counted is not Counted.REQUESTS:
            found[series.counted] += value
        elif value:
            found[series.outcome] += value
    return dict(found)


def moved(baselines: Baselines, reading: EngineReading, at: float) -> dict[str, int]:
    return sums(replace(reading, counters=baselines.advance(reading, at).counters))


class Watch:
    """A meter that is driven beat by beat; an hour of the engine's GPU costs 3600 dollars, a second one dollar."""

    def __init__(self, watched_since: float = FIRST_LOOK) -> None:
        price = HourlyPrice(0, Fraction(3600 * NANO), "usd_per_hour")
        engine = Engine(name="e", url="http://127.0.0.1:8000")
        self.terms = Terms(engine=engine, gpu="", gpu_prices=(price,), away_ns=3 * BEAT * NANO)
        self.meter = EngineMeter(self.terms, watched_since)
        self.now = watched_since
        self._first = True

    def beat(self, outcome: EngineReading | Failure) -> dict[tuple[str, ...], float]:
        """Return what the beat booked, without what is 0: dollars by category, counts by kind and outcome."""
        interval = None if self._first else Interval(int((self.now + BEAT) * NANO), BEAT * NANO)
        self.now, self._first = self.now + BEAT, False
        booked: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for entry in self.meter.beat(self.terms, interval, outcome, self.now):
            booked[_told(entry)] += float(entry.amount / NANO if entry.account.kind == "spend" else entry.amount)
        return {what: amount for what, amount in booked.items() if amount}


def _told(entry: Entry) -> tuple[str, ...]:
    kind, labels = entry.account
    if kind == "spend":
        return (labels[0],)
    return (kind, labels[2]) if kind == "requests" else (kind, *labels[1:2])


Reply = Callable[[web.Request], web.StreamResponse]


async def read_from(reply: Reply, path: str = "/metrics") -> EngineReading:
    """Read once, with the real source, from a real server that answers with `reply`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return reply(request)

    app = web.Application()
    app.router.add_get("/{any:.*}", handle)
    async with TestServer(app) as server, new_session() as session:
        return await EngineSource(Engine(url=str(server.make_url(path))), BEAT, session).read()


# 1 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model"),
    [("two-names", "big"), ("lora-saturated", "tiny"), ("lora-idle", "tiny"), ("api-servers-2-saturated", "tiny")],
)
def test_trap_1_everything_is_counted_under_the_first_served_name(name: str, model: str) -> None:
    reading = read(captured(f"vllm-0.32.0/{name}"))
    assert list(reading.models) == [model]
    of_engine = {series.model for series in reading.counters if series.counted is not Counted.HTTP_REQUESTS}
    assert of_engine == {model}
    assert {histogram.model for histogram in reading.ttft} == {model}


# 2 ---------------------------------------------------------------------------------------------------------------


def test_trap_2_hang_ups_are_the_http_replies_that_no_finished_request_explains() -> None:
    watch = Watch()
    watch.beat(read(captured("vllm-0.32.0/light-load")))
    assert watch.beat(read(captured("vllm-0.32.0/idle-after-load"))) == {
        ("compute_busy",): 5.0,
        ("prompt_tokens", "tiny"): 26085 - 1863,
        ("output_tokens", "tiny"): 14176 - 1179,
        ("requests", "length"): 189 - 17,
        ("requests", "abandoned"): (201 - 189) - (17 - 17),
        ("prefill_time",): 4902771942.0,  # nanoseconds
        ("decode_time",): 129266618127.0,
    }


def test_trap_2_a_client_that_hangs_up_in_the_queue_moves_nothing_but_the_replies() -> None:
    watch, before = Watch(), captured("vllm-0.32.0/saturated")
    replies = 'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} '
    watch.beat(read(before))
    after = watch.beat(read(replaced(before, replies + "76.0", replies + "77.0")))
    assert after == {("compute_busy",): 5.0, ("requests", "abandoned"): 1}


def test_trap_2_an_abort_that_vllm_does_count_is_an_outcome_of_its_own() -> None:
    aborted = 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="tiny"} '
    page = replaced(captured("vllm-0.32.0/saturated"), aborted + "0.0", aborted + "3.0")
    assert sums(read(page))["abort"] == 3


def test_trap_2_refused_requests_and_other_routes_are_no_replies() -> None:
    page = captured("vllm-0.32.0/idle-after-load")
    assert '{handler="/v1/completions",method="POST",status="4xx"} 3.0' in page
    other = 'http_requests_total{handler="/v1/models",method="GET",status="2xx"} 500.0\n'
    assert sums(read(page + other))["http_requests"] == 201


# 3 ---------------------------------------------------------------------------------------------------------------


def test_trap_3_a_frozen_engine_reads_as_idle_never_as_unknown() -> None:
    watch, frozen = Watch(), captured("vllm-0.32.0/saturated")
    watch.beat(read(frozen))
    for gauge, value in (("running", "4.0"), ("waiting", "28.0")):
        head = f'vllm:num_requests_{gauge}{{engine="0",model_name="tiny"}} '
        frozen = replaced(frozen, head + value, head + "0.0")
    assert watch.beat(read(frozen)) == {("compute_busy",): 5.0}  # it ran when it was last seen
    assert watch.beat(read(frozen)) == {("compute_idle",): 5.0}
    assert watch.meter.reading is not None
    gauges = watch.meter.reading.models["tiny"]
    assert (gauges.running, gauges.waiting) == (0, 0)


# 4 ---------------------------------------------------------------------------------------------------------------


def test_trap_4_a_killed_engine_still_answers_then_refuses_then_counts_from_0() -> None:
    watch = Watch(watched_since=1795464480.0)  # the old process began at ...473, the new one at ...571.22
    old, new = read(captured("vllm-0.32.0/idle-after-load")), captured("vllm-0.32.0/lora-started")
    watch.beat(old)
    assert watch.beat(old) == {("compute_idle",): 5.0}  # killed, and the metrics are still answered
    watch.now = 1795464566.0
    assert watch.beat(REFUSED) == {}  # what it bought is known later
    back = watch.beat(read(new))
    assert {what: round(amount, 2) for what, amount in back.items()} == {
        ("compute_down",): 5.22,  # up to the start of the new process
        ("compute_loading",): 4.78,
        ("cold_starts",): 1,
    }
    again = watch.beat(read(captured("vllm-0.32.0/lora-saturated")))
    assert again[("prompt_tokens", "tiny")] == 773
    assert again[("output_tokens", "tiny")] == 602
    assert again[("requests", "length")] == 8


# 5 ---------------------------------------------------------------------------------------------------------------


def test_trap_5_without_a_start_time_a_restart_shows_in_the_counters() -> None:
    baselines = Baselines(FIRST_LOOK)
    busy, fresh = (read(captured(f"vllm-0.32.0/api-servers-2-{state}")) for state in ("saturated", "started"))
    first = baselines.advance(busy, FIRST_LOOK + 5)
    assert (first.restarted, set(first.counters.values())) == (False, {0})
    back = baselines.advance(fresh, FIRST_LOOK + 10)
    assert (back.restarted, back.started, set(back.counters.values())) == (True, None, {0})
    assert moved(baselines, busy, FIRST_LOOK + 15) == {
        "prompt_tokens": 2493,
        "cached_prompt_tokens": 0,
        "output_tokens": 1725,
        "length": 21,
        "http_requests": 21,
        "prefill_time": 513264845,
        "decode_time": 14740967122,
    }


def test_trap_5_an_api_server_that_has_not_served_yet_has_no_gauges_and_they_are_not_0() -> None:
    gauges = read(captured("vllm-0.32.0/api-servers-2-started")).models["tiny"]
    assert (gauges.running, gauges.waiting, gauges.kv_cache_usage_ratio) == (None, None, None)


def test_trap_5_a_rank_that_begins_anew_is_seen_though_the_sum_of_all_ranks_grows() -> None:
    page = captured("vllm-0.32.0/data-parallel-2-saturated")
    baselines = Baselines(FIRST_LOOK)
    baselines.advance(read(page), FIRST_LOOK + 5)
    rank = 'vllm:generation_tokens_total{engine="%d",model_name="tiny"} '
    page = replaced(page, rank % 0 + "923.0", rank % 0 + "10.0")
    page = replaced(page, rank % 1 + "937.0", rank % 1 + "2937.0")  # overtook: 2947 in all, 1860 before
    movement = baselines.advance(read(page), FIRST_LOOK + 10)
    assert movement.restarted
    assert sums(replace(read(page), counters=movement.counters))["output_tokens"] == 10 + 2937


# 6 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["saturated", "lora-idle", "kv-pressure"])
def test_trap_6_created_series_are_families_of_their_own_and_are_ignored(name: str) -> None:
    page = captured(f"vllm-0.32.0/{name}")
    assert read(without(page, r"\w+(:\w+)?_created\b")) == read(page)


def test_trap_6_a_family_with_a_type_line_and_no_sample_is_absent_and_not_0() -> None:
    page = captured("vllm-0.32.0/started")
    assert "# TYPE http_requests_total counter\n" in page
    assert "http_requests" not in sums(read(page))


# 7 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["iteration_tokens_total", "cache_config_info", "admission_rejections"])
def test_trap_7_histograms_named_total_and_odd_labels_change_nothing(family: str) -> None:
    page = captured("vllm-0.32.0/saturated")
    assert read(without(page, rf"vllm:{family}\w*")) == read(page)


def test_trap_7_a_line_of_more_than_1000_characters_does_not_name_a_model() -> None:
    page = captured("vllm-0.32.0/saturated")
    info = next(line for line in page.split("\n") if line.startswith("vllm:cache_config_info{"))
    assert len(info) > 1000
    assert "model_name" not in info
    assert list(read(page).models) == ["tiny"]


# 8 ---------------------------------------------------------------------------------------------------------------


def test_trap_8_any_number_of_lora_sets_changes_nothing() -> None:
    page = captured("vllm-0.32.0/lora-saturated")
    many = "".join(
        f'vllm:lora_requests_info{{max_lora="8",running_lora_adapters="{n},ada",waiting_lora_adapters=""}} 1.79e+09\n'
        for n in range(5000)
    )
    assert read(page + many) == read(page) == read(without(page, "vllm:lora_requests_info"))


# 9 ---------------------------------------------------------------------------------------------------------------


def test_trap_9_disable_log_stats_is_a_page_without_metrics_and_not_an_idle_engine() -> None:
    with pytest.raises(UnknownPageError, match="--disable-log-stats"):
        recognise(captured("vllm-0.32.0/disable-log-stats"), Kind.VLLM)


async def test_trap_9_an_engine_that_comes_back_without_metrics_is_no_longer_read() -> None:
    names = iter(("idle-after-load", "disable-log-stats", "light-load"))

    async def handle(_: web.Request) -> web.Response:
        return web.Response(text=captured(f"vllm-0.32.0/{next(names)}"))

    app = web.Application()
    app.router.add_get("/metrics", handle)
    async with TestServer(app) as server, new_session() as session:
        source = EngineSource(Engine(url=str(server.make_url("/metrics"))), BEAT, session)
        assert sums(await source.read())["output_tokens"] == 14176
        with pytest.raises(SourceError) as refused:
            await source.read()
        assert refused.value.reason == "not_an_engine"
        assert sums(await source.read())["output_tokens"] == 1179


# 10 --------------------------------------------------------------------------------------------------------------


def _plain(_: web.Request) -> web.StreamResponse:
    page = captured("vllm-0.32.0/saturated").encode()
    return web.Response(body=page, headers={"Content-Type": "text/plain; version=1.0.0; charset=utf-8"})


def _chunked(_: web.Request) -> web.StreamResponse:
    page = captured("vllm-0.32.0/saturated").encode()
    response = web.Response(body=page, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
    response.enable_chunked_encoding()
    return response


def _redirected(request: web.Request) -> web.StreamResponse:
    if request.path == "/metrics":
        return web.Response(status=307, headers={"Location": "/metrics/"})
    return _chunked(request)


def _untyped(_: web.Request) -> web.StreamResponse:
    return web.Response(body=captured("vllm-0.32.0/saturated").encode(), content_type="application/octet-stream")


@pytest.mark.parametrize(
    "reply", [_plain, _chunked, _redirected, _untyped], ids=["version=1.0.0", "chunked", "307", "octet-stream"]
)
async def test_trap_10_the_page_counts_whatever_its_content_type_and_framing(reply: Reply) -> None:
    assert await read_from(reply) == read(captured("vllm-0.32.0/saturated"))


async def test_trap_10_the_request_asks_for_text_and_sends_no_key_that_is_not_configured() -> None:
    asked: list[web.Request] = []

    def reply(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        return _plain(request)

    await read_from(reply)
    assert [request.path_qs for request in asked] == ["/metrics"]
    assert asked[0].headers["Accept"].startswith("text/plain;version=0.0.4")
    assert "openmetrics" not in asked[0].headers["Accept"]
    assert "Authorization" not in asked[0].headers


# 11 --------------------------------------------------------------------------------------------------------------


async def test_trap_11_no_connection_is_ever_used_twice() -> None:
    ports: list[int] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        ports.append(request.transport.get_extra_info("peername")[1])
        return _plain(request)

    app = web.Application()
    app.router.add_get("/metrics", handle)
    async with TestServer(app) as server, new_session() as session:
        source = EngineSource(Engine(url=str(server.make_url("/metrics"))), BEAT, session)
        for _ in range(5):
            await source.read()
    assert len(set(ports)) == 5


# 12 --------------------------------------------------------------------------------------------------------------


def test_trap_12_a_queue_with_free_slots_is_read_as_it_is() -> None:
    gauges = read(captured("vllm-0.32.0/kv-pressure")).models["tiny"]
    assert (gauges.running, gauges.waiting, gauges.kv_cache_usage_ratio) == (4, 19, 0.7692307692307692)


def test_trap_12_lora_waiters_are_part_of_the_queue_and_not_added_to_it() -> None:
    page = captured("vllm-0.32.0/lora-saturated")
    by_reason = 'vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="%s"} %s\n'
    assert by_reason % ("capacity", "17.0") in page
    assert by_reason % ("deferred", "3.0") in page
    assert read(page).models["tiny"].waiting == 17 + 3


# 13 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", ["NaN", "+Inf", "-Inf", "-1", "1e999"])
def test_trap_13_a_value_that_is_no_number_of_things_is_unknown_and_not_0(nothing: str) -> None:
    page = captured("vllm-0.32.0/saturated")
    for head, value in (
        ('vllm:num_requests_running{engine="0",model_name="tiny"} ', "4.0"),
        ('vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} ', "0.026470588235294135"),
        ('vllm:prompt_tokens_total{engine="0",model_name="tiny"} ', "8764.0"),
        ("process_start_time_seconds ", "1.79546447309e+09"),
    ):
        page = replaced(page, head + value, head + nothing)
    reading = read(page)
    gauges = reading.models["tiny"]
    assert (gauges.running, gauges.waiting, gauges.kv_cache_usage_ratio) == (None, 28, None)
    assert reading.start_time is None
    assert "prompt_tokens" not in sums(reading)
    assert sums(reading)["output_tokens"] == 5054


def test_trap_13_a_counter_that_was_no_number_once_goes_on_from_its_last_value() -> None:
    page, baselines = captured("vllm-0.32.0/saturated"), Baselines(FIRST_LOOK)
    head = 'vllm:prompt_tokens_total{engine="0",model_name="tiny"} '
    baselines.advance(read(page), FIRST_LOOK + 5)
    assert "prompt_tokens" not in moved(baselines, read(replaced(page, head + "8764.0", head + "NaN")), FIRST_LOOK + 10)
    after = moved(baselines, read(replaced(page, head + "8764.0", head + "8770.0")), FIRST_LOOK + 15)
    assert after["prompt_tokens"] == 6


def test_trap_13_infinite_budgets_and_sentinels_of_a_proxy_are_values_like_any_other() -> None:
    samples = Page(lambda name: name.startswith("litellm_remaining_")).read(captured("litellm-1.86.0/under-load"))
    values = {sample.name: sample.value for sample in samples}
    assert values["litellm_remaining_api_key_budget_metric"] == math.inf
    assert values["litellm_remaining_api_key_tokens_for_model"] == 9.223372036854776e18


# 14 --------------------------------------------------------------------------------------------------------------


def test_trap_14_an_engine_that_reads_0_running_under_load_is_busy_by_its_tokens() -> None:
    watch = Watch()
    page = captured("vllm-0.32.0/idle-after-load")
    head = 'vllm:generation_tokens_total{engine="0",model_name="tiny"} '
    watch.beat(read(page))
    assert watch.beat(read(page)) == {("compute_idle",): 5.0}
    after = read(replaced(page, head + "14176.0", head + "14177.0"))
    assert after.models["tiny"].running == 0
    assert watch.beat(after) == {("compute_busy",): 5.0, ("output_tokens", "tiny"): 1}


# 15 --------------------------------------------------------------------------------------------------------------


def test_trap_15_the_buckets_of_0_32_are_read_from_the_page() -> None:
    (buckets,) = read(captured("vllm-0.32.0/saturated")).ttft.values()
    small = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75)
    large = (1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0, math.inf)
    assert buckets.bounds == small + large
    assert buckets.counts == (0, 0, 0, 13, 59, 60, 61, 61, 64, 64, 67, 68, 73, *(78,) * 10)
    assert buckets.sum == 30.793761014938354


def with_buckets(counts: dict[str, int], total: float) -> str:
    """Return the idle page with other TTFT buckets."""
    name, labels = "vllm:time_to_first_token_seconds", 'engine="0",model_name="tiny"'
    page = without(captured("vllm-0.32.0/idle-after-load"), rf"{name}_(bucket|count|sum)")
    lines = [f'{name}_bucket{{engine="0",le="{le}",model_name="tiny"}} {count}.0' for le, count in counts.items()]
    lines += [f"{name}_count{{{labels}}} {max(counts.values())}.0", f"{name}_sum{{{labels}}} {total}"]
    return page + "\n".join(lines) + "\n"


def test_trap_15_custom_buckets_in_any_order_and_spelling_are_read_as_they_are() -> None:
    (buckets,) = read(with_buckets({"+Inf": 9, "0.3": 2, "1e1": 7}, 41.5)).ttft.values()
    assert (buckets.bounds, buckets.counts, buckets.sum) == ((0.3, 10.0, math.inf), (2, 7, 9), 41.5)


def test_trap_15_buckets_that_changed_between_two_lives_are_counted_anew() -> None:
    watch = Watch()
    watch.beat(read(with_buckets({"0.5": 3, "+Inf": 4}, 2.0)))
    other = with_buckets({"0.25": 1, "2.0": 2, "+Inf": 2}, 1.5)
    head = "process_start_time_seconds "
    watch.beat(read(replaced(other, head + "1.79546447309e+09", head + f"{watch.now + 1}")))
    assert watch.meter.ttft["tiny"].bounds == (0.25, 2.0, math.inf)
    assert watch.meter.ttft["tiny"].counts == (1, 2, 2)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"0.5": 3, "1.0": 4}, "without its +Inf bucket"),
        ({"0.5": 3, "half": 4, "+Inf": 4}, "expected le to be a number, found 'half'"),
        ({"0.5": 3, "NaN": 4, "+Inf": 4}, "expected le to be a number, found 'NaN'"),
    ],
)
def test_trap_15_a_histogram_that_is_not_whole_is_refused(counts: dict[str, int], words: str) -> None:
    with pytest.raises(ExpositionError, match=re.escape(words)):
        read(with_buckets(counts, 2.0))


# Names by version ------------------------------------------------------------------------------------------------

V0_0_4_0: Final = """\
# HELP vllm:num_requests_running Number of requests currently running on GPU.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 2.0
vllm:num_requests_swapped{model_name="m"} 1.0
vllm:num_requests_waiting{model_name="m"} 5.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.25
vllm:cpu_cache_usage_perc{model_name="m"} 0.75
vllm:prompt_tokens_total{model_name="m"} 100.0
vllm:generation_tokens_total{model_name="m"} 50.0
vllm:time_to_first_token_seconds_bucket{le="0.001",model_name="m"} 0.0
vllm:time_to_first_token_seconds_bucket{le="+Inf",model_name="m"} 4.0
vllm:time_to_first_token_seconds_count{model_name="m"} 4.0
vllm:time_to_first_token_seconds_sum{model_name="m"} 1.5
vllm:avg_prompt_throughput_toks_per_s{model_name="m"} 17.0
"""
V0_0_8_5: Final = """\
vllm:num_requests_running{model_name="m"} 2.0
vllm:num_requests_swapped{model_name="m"} 1.0
vllm:num_requests_waiting{model_name="m"} 5.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.25
vllm:cpu_cache_usage_perc{model_name="m"} 0.75
vllm:gpu_prefix_cache_hit_rate{model_name="m"} 0.5
vllm:prompt_tokens_total{model_name="m"} 100.0
vllm:generation_tokens_total{model_name="m"} 50.0
vllm:iteration_tokens_total_bucket{le="+Inf",model_name="m"} 9.0
vllm:request_success_total{finished_reason="length",model_name="m"} 3.0
vllm:request_success_total{finished_reason="stop",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{le="0.001",model_name="m"} 0.0
vllm:time_to_first_token_seconds_bucket{le="+Inf",model_name="m"} 4.0
vllm:time_to_first_token_seconds_sum{model_name="m"} 1.5
"""
V1_0_8_5: Final = """\
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 5.0
vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.25
# HELP vllm:gpu_prefix_cache_hits_total GPU prefix cache hits, in terms of number of cached blocks.
vllm:gpu_prefix_cache_queries_total{engine="0",model_name="m"} 6.0
vllm:gpu_prefix_cache_hits_total{engine="0",model_name="m"} 2.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 100.0
vllm:generation_tokens_total{engine="0",model_name="m"} 50.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 3.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 4.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.5
"""
# with both the old names and the new ones, which differ here so that the choice shows
V1_0_10_0: Final = (
    V1_0_8_5
    + """\
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 32.0
"""
)
V1_0_16_0: Final = """\
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 5.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 33.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 100.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 60.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 32.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="external_kv_transfer"} 8.0
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 40.0
vllm:prompt_tokens_recomputed_total{engine="0",model_name="m"} 1.0
vllm:generation_tokens_total{engine="0",model_name="m"} 50.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 3.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 4.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.5
"""
TOKENS: Final = {"prompt_tokens": 100, "output_tokens": 50}
FINISHED: Final = {"length": 3, "stop": 1}


@pytest.mark.parametrize(
    ("page", "counted", "kv"),
    [
        pytest.param(V0_0_4_0, TOKENS, 0.25, id="V0 0.4.0"),
        pytest.param(V0_0_8_5, TOKENS | FINISHED, 0.25, id="V0 0.8.5"),
        pytest.param(V1_0_8_5.replace('engine="0",', ""), TOKENS | FINISHED, 0.25, id="V1 0.7.3"),
        pytest.param(V1_0_8_5, TOKENS | FINISHED, 0.25, id="V1 0.8.5"),
        pytest.param(V1_0_10_0, TOKENS | FINISHED | {"cached_prompt_tokens": 32}, 0.5, id="V1 0.10.0"),
        pytest.param(V1_0_16_0, TOKENS | FINISHED | {"cached_prompt_tokens": 40}, 0.5, id="V1 0.16.0"),
    ],
)
def test_a_page_of_every_era_of_vllm_reads_the_same_facts(page: str, counted: dict[str, int], kv: float) -> None:
    reading = read(page)
    assert sums(reading) == counted
    gauges = reading.models["m"]
    assert (gauges.running, gauges.waiting, gauges.kv_cache_usage_ratio) == (2, 5, kv)
    assert [(key.model, value) for key, value in reading.ttft.items()] == [("m", ((0.001, math.inf), (0, 4), 1.5))]


def test_a_decode_engine_pays_only_for_the_prompts_that_it_computed_itself() -> None:
    assert sums(read(V1_0_16_0, Disaggregation.DECODE))["prompt_tokens"] == 60 + 32
    assert sums(read(V1_0_16_0, Disaggregation.PREFILL))["prompt_tokens"] == 100


def test_a_decode_engine_of_a_release_without_sources_counts_all_prompts() -> None:
    assert sums(read(V1_0_10_0, Disaggregation.DECODE))["prompt_tokens"] == 100


def test_a_router_that_reuses_an_engines_names_is_not_taken_for_one() -> None:
    page = 'vllm:num_requests_running{server="a"} 3\nvllm:num_requests_waiting{server="a"} 1\n'
    with pytest.raises(UnknownPageError, match="the page of a vLLM router"):
        recognise(page + 'vllm:num_incoming_requests_total{server="a"} 9\n', Kind.AUTO)


V0_RELEASES: Final = "0.4.0 0.4.3 0.5.1 0.5.5 0.6.2 0.6.6 0.7.3 0.8.0 0.8.5 0.9.1 0.9.2 0.10.0 0.10.1 0.10.2 0.11.0"
V1_RELEASES: Final = (
    "0.7.3 0.8.0 0.8.5 0.9.1 0.9.2 0.10.0 0.10.1 0.10.2 0.11.0 0.11.1 0.11.2 0.12.0 0.13.0 0.14.0 0.15.0 0.16.0 0.17.0 "
    "0.18.0 0.19.0 0.20.0 0.21.0 0.22.0 0.24.0 0.26.0 0.28.0 0.30.0 0.31.0 0.32.0"
)
# what a generated page says under each name; any other name says 999999, which must show up nowhere
SAID: Final = {
    "vllm:num_requests_running": ("{labels} 2",),
    "vllm:num_requests_waiting": ("{labels} 5",),
    "vllm:gpu_cache_usage_perc": ("{labels} 0.25",),
    "vllm:kv_cache_usage_perc": ("{labels} 0.5",),
    "vllm:prompt_tokens": ("_total{labels} 100",),
    "vllm:generation_tokens": ("_total{labels} 50",),
    "vllm:prefix_cache_hits": ("_total{labels} 32",),
    "vllm:prompt_tokens_cached": ("_total{labels} 40",),
    "vllm:request_success": ("_total{labels} 3",),
    "vllm:time_to_first_token_seconds": ('_bucket{{le="+Inf",{names}}} 4', "_sum{labels} 1.5", "_count{labels} 4"),
}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def names_list() -> Iterator[tuple[str, str, str]]:
    """Give each name of the list with the ranges of releases of the V0 and the V1 engine that have it."""
    for line in (CAPTURES / "vllm-metric-names.tsv").read_text(encoding="utf-8").splitlines():
        if line.startswith("vllm:"):
            name, v0, v1 = line.split("\t")
            yield name, v0, v1


def page_of(engine: str, release: str) -> str:
    """Write a page with every name that a release has."""
    names = 'model_name="m"' if version(release) < (0, 8, 5) or engine == "V0" else 'engine="0",model_name="m"'
    lines = []
    for name, *ranges in names_list():
        first, _, last = ranges[engine == "V1"].partition("-")
        if first and version(first) <= version(release) <= version(last or first):
            noise = ("{labels} 999999", "_total{labels} 999999")
            said = SAID.get(name, noise)
            lines += [name + line.format(labels="{" + names + "}", names=names) for line in said]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("engine", "release"),
    [*(("V0", release) for release in V0_RELEASES.split()), *(("V1", release) for release in V1_RELEASES.split())],
)
def test_every_release_of_vllm_gives_the_whole_reading(engine: str, release: str) -> None:
    reading = read(page_of(engine, release))
    expected = {"prompt_tokens": 100, "output_tokens": 50}
    if version(release) >= (0, 4, 3):
        expected[""] = 3
    if engine == "V1" and version(release) >= (0, 9, 2):
        expected["cached_prompt_tokens"] = 40 if version(release) >= (0, 16, 0) else 32
    assert sums(reading) == expected
    gauges = reading.models["m"]
    new = engine == "V1" and version(release) >= (0, 9, 2)
    assert (gauges.running, gauges.waiting, gauges.kv_cache_usage_ratio) == (2, 5, 0.5 if new else 0.25)
    (buckets,) = reading.ttft.values()
    assert (buckets.counts, buckets.sum) == ((4,), 1.5)


def test_the_releases_tested_are_those_of_the_names_list() -> None:
    head = (CAPTURES / "vllm-metric-names.tsv").read_text(encoding="utf-8").split("\n")
    assert f"# V0 checked: {V0_RELEASES}" in head
    assert f"# V1 checked: {V1_RELEASES}" in head


def test_every_name_of_the_vllm_dialect_is_in_the_names_list() -> None:
    known = {name for name, *_ in names_list()}
    bare = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in wanted_names(VLLM)}
    assert bare - known == {"http_requests", "process_start_time_seconds"}
    assert len(bare & known) == 13


@pytest.mark.parametrize("name", sorted(wanted_names(VLLM)))
def test_every_name_of_the_vllm_dialect_was_seen_on_a_page_or_is_an_old_one(name: str) -> None:
    seen = re.compile(rf"^{re.escape(name)}[{{ ]", re.MULTILINE)
    assert (name == "vllm:gpu_cache_usage_perc") != bool(seen.search(captured("vllm-0.32.0/saturated")))


@pytest.mark.parametrize("name", sorted(wanted_names(LLAMACPP) - {"process_start_time_seconds"}))
def test_every_name_of_the_llamacpp_dialect_was_seen_on_a_page_or_is_an_old_one(name: str) -> None:
    seen = re.compile(rf"^{re.escape(name)} ", re.MULTILINE)
    assert (name == "llamacpp:kv_cache_usage_ratio") != bool(seen.search(captured("llama.cpp-b11434/saturated")))


def test_ttft_of_several_models_of_one_engine_is_kept_apart() -> None:
    text = V1_0_16_0 + V1_0_16_0.replace('model_name="m"', 'model_name="n"')
    assert {HistogramSeries(key.model, "") for key in read(text).ttft} == {
        HistogramSeries("m", ""),
        HistogramSeries("n", ""),
    }


def replaced(page: str, old: str, new: str) -> str:
    """Return a page with one line changed; the old line must be there, once."""
    assert page.count(f"\n{old}\n") == 1
    return page.replace(f"\n{old}\n", f"\n{new}\n")


def without(page: str, name: str) -> str:
    """Return a page without the samples and comments of a name; there must be some."""
    line = re.compile(rf"(# (HELP|TYPE) )?{name}[{{ ].*")
    lines = page.split("\n")
    kept = [each for each in lines if not line.fullmatch(each)]
    assert len(kept) < len(lines)
    return "\n".join(kept)
