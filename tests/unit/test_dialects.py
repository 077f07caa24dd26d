"""Dialects that no real server has spoken to us yet: their pages are written here by hand.

SGLang's follow its source code, 0.4 to 0.5; NIM's and TGI's follow their documentation. Only names, labels and types
are theirs; the numbers are ours, and lines that say nothing here are left out.
"""

import math
from pathlib import Path
from typing import Final

import pytest

from exporter.config.model import Disaggregation, Kind
from exporter.core.counters import Baselines
from exporter.core.readings import Buckets, Counted, EngineReading, HistogramSeries, ModelGauges, Series
from exporter.sources.dialects import (
    DIALECTS,
    NIM,
    TGI,
    VLLM,
    KnownFrom,
    UnknownPageError,
    recognise,
    resolved,
    translate,
    wanted_names,
)
from exporter.sources.exposition import Page

CAPTURES: Final = Path(__file__).parents[1] / "fixtures" / "captures"


def read(text: str, disaggregation: Disaggregation = Disaggregation.NONE) -> EngineReading:
    dialect = recognise(text, Kind.AUTO)
    return translate(dialect, Page(wanted_names(dialect).__contains__).read(text), disaggregation)


def captured(name: str) -> str:
    return (CAPTURES / f"{name}.prom").read_text(encoding="utf-8")


# SGLang ----------------------------------------------------------------------------------------------------------

# The scheduler's gauges; the front's counters, with a label for streaming that the newest release has.
SGLANG_PAGE: Final = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="tiny",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 4.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="tiny",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 9.0
# TYPE sglang:num_grammar_queue_reqs gauge
sglang:num_grammar_queue_reqs{engine_type="unified",model_name="tiny",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 1.0
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="tiny",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 0.75
# TYPE sglang:fwd_occupancy gauge
sglang:fwd_occupancy{engine_type="unified",model_name="tiny",moe_ep_rank="0",pp_rank="0",tp_rank="0"} NaN
# TYPE sglang:realtime_tokens_total counter
sglang:realtime_tokens_total{engine_type="unified",mode="decode",model_name="tiny",pp_rank="0",tp_rank="0"} 999.0
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{engine_type="unified",is_streaming="true",model_name="tiny"} 1000.0
sglang:prompt_tokens_total{engine_type="unified",is_streaming="false",model_name="tiny"} 200.0
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{engine_type="unified",is_streaming="true",model_name="tiny"} 500.0
sglang:generation_tokens_total{engine_type="unified",is_streaming="false",model_name="tiny"} 60.0
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{cache_source="device",engine_type="unified",model_name="tiny"} 300.0
sglang:cached_tokens_total{cache_source="host",engine_type="unified",model_name="tiny"} 40.0
# TYPE sglang:num_requests_total counter
sglang:num_requests_total{engine_type="unified",is_streaming="true",model_name="tiny"} 10.0
sglang:num_requests_total{engine_type="unified",is_streaming="false",model_name="tiny"} 2.0
# TYPE sglang:num_aborted_requests_total counter
sglang:num_aborted_requests_total{engine_type="unified",model_name="tiny"} 3.0
# TYPE sglang:time_to_first_token_seconds histogram
sglang:time_to_first_token_seconds_sum{engine_type="unified",is_streaming="true",model_name="tiny"} 2.5
sglang:time_to_first_token_seconds_bucket{engine_type="unified",is_streaming="true",le="0.1",model_name="tiny"} 6.0
sglang:time_to_first_token_seconds_bucket{engine_type="unified",is_streaming="true",le="0.4",model_name="tiny"} 8.0
sglang:time_to_first_token_seconds_bucket{engine_type="unified",is_streaming="true",le="+Inf",model_name="tiny"} 11.0
sglang:time_to_first_token_seconds_count{engine_type="unified",is_streaming="true",model_name="tiny"} 11.0
"""

# 0.4: the model is the only label, and cached tokens have no source.
OLD_SGLANG_PAGE: Final = """\
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="tiny"} 1000.0
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{model_name="tiny"} 500.0
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{model_name="tiny"} 300.0
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="tiny"} 4.0
"""

# Before the first request: constants, and not one counter.
NEW_SGLANG: Final = (
    'sglang:max_total_num_tokens{engine_type="unified",model_name="tiny",pp_rank="0",tp_rank="0"} 4096.0\n'
)


def test_a_page_of_sglang_reads_as_a_person_reads_it() -> None:
    streamed, whole = "engine_type=unified,is_streaming=true", "engine_type=unified,is_streaming=false"
    assert read(SGLANG_PAGE) == EngineReading(
        kind="sglang",
        start_time=None,
        counters={
            Series(Counted.PROMPT_TOKENS, "tiny", "", f"sglang:prompt_tokens_total,{streamed}"): 1000,
            Series(Counted.PROMPT_TOKENS, "tiny", "", f"sglang:prompt_tokens_total,{whole}"): 200,
            Series(
                Counted.CACHED_PROMPT_TOKENS,
                "tiny",
                "",
                "sglang:cached_tokens_total,cache_source=device,engine_type=unified",
            ): 300,
            Series(
                Counted.CACHED_PROMPT_TOKENS,
                "tiny",
                "",
                "sglang:cached_tokens_total,cache_source=host,engine_type=unified",
            ): 40,
            Series(Counted.OUTPUT_TOKENS, "tiny", "", f"sglang:generation_tokens_total,{streamed}"): 500,
            Series(Counted.OUTPUT_TOKENS, "tiny", "", f"sglang:generation_tokens_total,{whole}"): 60,
            Series(Counted.REQUESTS, "tiny", "", f"sglang:num_requests_total,{streamed}"): 10,
            Series(Counted.REQUESTS, "tiny", "", f"sglang:num_requests_total,{whole}"): 2,
        },
        ttft={HistogramSeries("tiny", streamed): Buckets((0.1, 0.4, math.inf), (6, 8, 11), 2.5)},
        models={"tiny": ModelGauges(running=4, waiting=9, kv_cache_usage_ratio=0.75)},
    )


def test_a_page_of_an_older_sglang_reads_the_same_facts() -> None:
    reading = read(OLD_SGLANG_PAGE)
    assert sums(reading) == {"prompt_tokens": 1000, "output_tokens": 500, "cached_prompt_tokens": 300}
    assert reading.models == {"tiny": ModelGauges(running=4)}


def test_an_sglang_that_was_asked_nothing_yet_is_an_idle_engine() -> None:
    nothing = EngineReading(kind="sglang", start_time=None, counters={}, ttft={}, models={})
    assert read(NEW_SGLANG) == nothing


@pytest.mark.parametrize(
    ("ranks", "running"),
    [
        pytest.param({'tp_rank="0"': 4, 'tp_rank="1"': 4}, 4, id="tensor-parallel ranks hold the same requests"),
        pytest.param({'pp_rank="0",tp_rank="0"': 3, 'pp_rank="1",tp_rank="0"': 4}, 4, id="and so do stages"),
        pytest.param(
            {'moe_ep_rank="0",tp_rank="0"': 4, 'moe_ep_rank="1",tp_rank="1"': 4}, 4, id="and expert-parallel ranks"
        ),
        pytest.param({'dp_rank="0",tp_rank="0"': 4, 'dp_rank="1",tp_rank="0"': 3}, 7, id="data-parallel ranks add up"),
        pytest.param(
            {'dp_rank="0",tp_rank="0"': 4, 'dp_rank="1",tp_rank="1"': 3}, 7, id="and so they do within attention"
        ),
        pytest.param(
            {
                'dp_rank="0",tp_rank="0"': 4,
                'dp_rank="0",tp_rank="1"': 4,
                'dp_rank="1",tp_rank="2"': 3,
                'dp_rank="1",tp_rank="3"': 3,
            },
            7,
            id="both",
        ),
        pytest.param(
            {'priority="",tp_rank="0"': 4, 'priority="0",tp_rank="0"': 1, 'priority="7",tp_rank="0"': 3},
            4,
            id="priorities are parts of the sum",
        ),
        pytest.param({'priority="",tp_rank="0"': 0, 'priority="7",tp_rank="0"': 0}, 0, id="nothing is 0"),
    ],
)
def test_requests_that_several_ranks_of_sglang_report_are_counted_once(ranks: dict[str, int], running: int) -> None:
    names = ("num_running_reqs", "num_queue_reqs")
    lines = [f'sglang:{name}{{model_name="tiny",{rank}}} {value}' for name in names for rank, value in ranks.items()]
    gauges = read("\n".join([*lines, ""])).models["tiny"]
    assert (gauges.running, gauges.waiting) == (running, running)


def test_the_kv_cache_of_sglang_is_the_mean_of_what_does_not_repeat() -> None:
    usage = 'sglang:token_usage{{dp_rank="{}",model_name="tiny",tp_rank="{}"}} {}\n'
    text = usage.format(0, 0, 0.5) + usage.format(0, 1, 0.5) + usage.format(1, 2, 0.25)
    assert read(text).models["tiny"].kv_cache_usage_ratio == 0.375


def test_counters_and_ttft_of_sglang_add_up_over_priorities() -> None:
    text = SGLANG_PAGE.replace('model_name="tiny"', 'model_name="tiny",priority="1"') + SGLANG_PAGE.replace(
        'model_name="tiny"', 'model_name="tiny",priority="2"'
    )
    reading = read(text)
    assert sums(reading) == {name: 2 * value for name, value in sums(read(SGLANG_PAGE)).items()}
    assert len(reading.ttft) == 2


@pytest.mark.parametrize("part", Disaggregation)
def test_a_decode_engine_of_sglang_leaves_prompts_to_the_prefill_engine(part: Disaggregation) -> None:
    prompts = {} if part is Disaggregation.DECODE else {"prompt_tokens": 1200, "cached_prompt_tokens": 340}
    assert sums(read(SGLANG_PAGE, part)) == {"output_tokens": 560, "requests": 12} | prompts


# NIM -------------------------------------------------------------------------------------------------------------

NIM_PAGE: Final = """\
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.79546447309e+09
# TYPE num_requests_running gauge
num_requests_running{model_name="tiny"} 4.0
# TYPE num_requests_waiting gauge
num_requests_waiting{model_name="tiny"} 9.0
# TYPE num_request_max gauge
num_request_max{model_name="tiny"} 64.0
# TYPE gpu_cache_usage_perc gauge
gpu_cache_usage_perc{model_name="tiny"} 0.75
# TYPE prompt_tokens_total counter
prompt_tokens_total{model_name="tiny"} 1200.0
# TYPE generation_tokens_total counter
generation_tokens_total{model_name="tiny"} 560.0
# TYPE time_to_first_token_seconds histogram
time_to_first_token_seconds_bucket{le="0.1",model_name="tiny"} 6.0
time_to_first_token_seconds_bucket{le="+Inf",model_name="tiny"} 11.0
time_to_first_token_seconds_count{model_name="tiny"} 11.0
time_to_first_token_seconds_sum{model_name="tiny"} 2.5
# TYPE request_prompt_tokens histogram
request_prompt_tokens_sum{model_name="tiny"} 1200.0
# TYPE request_finish_total counter
request_finish_total{finished_reason="length",model_name="tiny"} 10.0
request_finish_total{finished_reason="stop",model_name="tiny"} 2.0
# TYPE request_success_total counter
request_success_total{model_name="tiny"} 12.0
# TYPE request_failure_total counter
request_failure_total{model_name="tiny"} 1.0
"""


def test_a_page_of_nim_reads_as_a_person_reads_it() -> None:
    assert read(NIM_PAGE) == EngineReading(
        kind="nim",
        start_time=1795464473.09,
        counters={
            Series(Counted.PROMPT_TOKENS, "tiny", "", "prompt_tokens_total,"): 1200,
            Series(Counted.OUTPUT_TOKENS, "tiny", "", "generation_tokens_total,"): 560,
            Series(Counted.REQUESTS, "tiny", "length", "request_finish_total,finished_reason=length"): 10,
            Series(Counted.REQUESTS, "tiny", "stop", "request_finish_total,finished_reason=stop"): 2,
        },
        ttft={HistogramSeries("tiny", ""): Buckets((0.1, math.inf), (6, 11), 2.5)},
        models={"tiny": ModelGauges(running=4, waiting=9, kv_cache_usage_ratio=0.75)},
    )


def test_a_nim_that_counts_no_reasons_counts_successes() -> None:
    text = "".join(line for line in NIM_PAGE.splitlines(keepends=True) if "request_finish" not in line)
    requests = {series.outcome: value for series, value in read(text).counters.items() if series.counted == "requests"}
    assert requests == {"": 12}


# TGI -------------------------------------------------------------------------------------------------------------

TGI_PAGE: Final = """\
# TYPE tgi_request_count counter
tgi_request_count 15

# TYPE tgi_request_success counter
tgi_request_success 12

# TYPE tgi_request_failure counter
tgi_request_failure{err="validation"} 1

# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 2

# TYPE tgi_queue_size gauge
tgi_queue_size 9

# TYPE tgi_request_input_length histogram
tgi_request_input_length_bucket{le="10"} 3
tgi_request_input_length_bucket{le="+Inf"} 14
tgi_request_input_length_sum 1200
tgi_request_input_length_count 14

# TYPE tgi_request_generated_tokens histogram
tgi_request_generated_tokens_bucket{le="20"} 4
tgi_request_generated_tokens_bucket{le="+Inf"} 12
tgi_request_generated_tokens_sum 560
tgi_request_generated_tokens_count 12

# TYPE tgi_request_queue_duration histogram
tgi_request_queue_duration_bucket{le="0.1"} 12
tgi_request_queue_duration_bucket{le="+Inf"} 12
tgi_request_queue_duration_sum 0.5
tgi_request_queue_duration_count 12

"""


def test_a_page_of_tgi_reads_as_a_person_reads_it() -> None:
    assert read(TGI_PAGE) == EngineReading(
        kind="tgi",
        start_time=None,
        counters={
            Series(Counted.PROMPT_TOKENS, "", "", "tgi_request_input_length_sum,"): 1200,
            Series(Counted.OUTPUT_TOKENS, "", "", "tgi_request_generated_tokens_sum,"): 560,
            Series(Counted.REQUESTS, "", "", "tgi_request_success,"): 12,
        },
        ttft={},
        models={"": ModelGauges(running=2, waiting=9)},
    )


def test_a_tgi_in_its_first_request_has_a_prompt_and_no_answer_yet() -> None:
    text = "tgi_request_count 1\ntgi_request_input_length_sum 100\ntgi_queue_size 0\ntgi_batch_current_size 1\n"
    assert sums(read(text)) == {"prompt_tokens": 100}


def test_a_tgi_that_began_anew_is_seen_by_its_counters_alone() -> None:
    baselines = Baselines(watched_since=100.0)
    baselines.advance(read(TGI_PAGE), 105.0)
    again = TGI_PAGE.replace("_sum 1200", "_sum 30").replace("_sum 560", "_sum 7").replace("success 12", "success 1")
    movement = baselines.advance(read(again), 110.0)
    assert (movement.restarted, movement.started) == (True, None)
    assert {series.counted: moved for series, moved in movement.counters.items()} == {
        Counted.PROMPT_TOKENS: 30,
        Counted.OUTPUT_TOKENS: 7,
        Counted.REQUESTS: 1,
    }


# Telling them apart ----------------------------------------------------------------------------------------------

PAGES: Final = {
    Kind.VLLM: captured("vllm-0.32.0/saturated"),
    Kind.LLAMACPP: captured("llama.cpp-b11434/saturated"),
    Kind.SGLANG: SGLANG_PAGE,
    Kind.NIM: NIM_PAGE,
    Kind.TGI: TGI_PAGE,
}
PAIRS: Final = [(kind, other) for kind in PAGES for other in PAGES if other is not kind]


def test_every_kind_has_a_dialect_and_a_page() -> None:
    assert [dialect.kind for dialect in DIALECTS] == list(PAGES) == [kind for kind in Kind if kind is not Kind.AUTO]


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_fits_its_own_dialect_alone(kind: Kind) -> None:
    assert [dialect.kind for dialect in DIALECTS if dialect.fits(PAGES[kind])] == [kind]
    assert recognise(PAGES[kind], Kind.AUTO).kind is recognise(PAGES[kind], kind).kind is kind


@pytest.mark.parametrize(("kind", "other"), PAIRS)
def test_a_page_of_another_kind_than_the_config_says_is_refused(kind: Kind, other: Kind) -> None:
    with pytest.raises(UnknownPageError) as refused:
        recognise(PAGES[kind], other)
    assert str(refused.value) == f"expected a page of {other}, found one of {kind}"


@pytest.mark.parametrize("path", sorted(CAPTURES.rglob("*.prom")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_captured_page_fits_two_dialects_or_one_that_is_known_from_documents(path: Path) -> None:
    fitting = [dialect.known_from for dialect in DIALECTS if dialect.fits(path.read_text(encoding="utf-8"))]
    assert fitting in ([], [KnownFrom.SERVERS])


@pytest.mark.parametrize(
    ("page", "more", "kind"),
    [
        pytest.param(PAGES[Kind.VLLM], 'num_request_max{model_name="tiny"} 64\n', Kind.VLLM, id="NIM 2 around vLLM"),
        pytest.param(SGLANG_PAGE, 'num_request_max{model_name="tiny"} 64\n', Kind.SGLANG, id="NIM 2 around SGLang"),
        pytest.param(PAGES[Kind.VLLM], TGI_PAGE, Kind.VLLM, id="vLLM with an adapter that adds TGI's names"),
    ],
)
def test_a_page_of_a_wrapped_engine_is_read_as_the_engine_inside(page: str, more: str, kind: Kind) -> None:
    assert read(more + page).kind == kind
    assert read(more + page) == read(page)


def test_names_without_a_prefix_are_nims_only_beside_its_sign() -> None:
    """Other servers took over vLLM's names without the prefix, too."""
    bare = PAGES[Kind.VLLM].replace("vllm:", "")
    with pytest.raises(UnknownPageError):
        recognise(bare, Kind.NIM)
    assert sums(read(bare + 'num_request_max{model_name="tiny"} 4\n'))["prompt_tokens"] == 8764


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.kind)
def test_a_sign_counts_only_where_a_name_begins(dialect) -> None:
    sign = dialect.sign
    for line in (f"{sign}x 1\n", f"# TYPE {sign}x counter\n", f"up 1\n{sign}x 1\n", f"up 1\r\n{sign}x 1\r\n"):
        assert dialect.fits(line)
    for line in (f"my_{sign}x 1\n", f'up{{model="{sign}x"}} 1\n', f"# HELP up {sign}x\n", f"up 1 # {sign}x\n", ""):
        assert not dialect.fits(line)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('sgl_router_requests_total{route="/generate"} 1\n', "the page of an SGLang router"),
        ('smg_http_requests_total{method="POST"} 1\n', "the page of an SGLang gateway"),
        ('bare:generation_tokens_total{model_name="m"} 1\n', "something else"),
    ],
)
def test_a_page_in_front_of_an_engine_is_refused(text: str, words: str) -> None:
    with pytest.raises(UnknownPageError, match=f"^expected the metrics page of an inference engine, found {words}"):
        recognise(text, Kind.AUTO)


# What is said about them -----------------------------------------------------------------------------------------


def test_a_dialect_says_how_well_it_is_known() -> None:
    assert {dialect.kind: dialect.known_from for dialect in DIALECTS} == {
        Kind.VLLM: KnownFrom.SERVERS,
        Kind.LLAMACPP: KnownFrom.SERVERS,
        Kind.SGLANG: KnownFrom.SOURCE,
        Kind.NIM: KnownFrom.DOCUMENTATION,
        Kind.TGI: KnownFrom.DOCUMENTATION,
    }


def test_a_page_tells_under_which_names_it_has_the_facts() -> None:
    assert resolved(TGI, TGI_PAGE) == {
        "prompt_tokens": "tgi_request_input_length_sum",
        "output_tokens": "tgi_request_generated_tokens_sum",
        "requests": "tgi_request_success",
        "running": "tgi_batch_current_size",
        "waiting": "tgi_queue_size",
        "kv_cache_usage": None,
        "ttft": None,
        "start_time": None,
    }
    assert resolved(NIM, NIM_PAGE)["requests"] == "request_finish_total"


def test_no_dialect_wants_a_name_of_vllms_but_vllm() -> None:
    shared = {
        name for dialect in DIALECTS if dialect is not VLLM for name in wanted_names(dialect) & wanted_names(VLLM)
    }
    assert shared == {"process_start_time_seconds"}


def sums(reading: EngineReading) -> dict[str, int]:
    found: dict[str, int] = {}
    for series, value in reading.counters.items():
        found[series.counted] = found.get(series.counted, 0) + value
    return found
