"""Every captured page, and what a person reads off it: the numbers below were typed from the pages."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from exporter.config.model import Disaggregation, Kind
from exporter.core.readings import Counted, EngineReading
from exporter.sources.dialects import UnknownPageError, recognise, translate, wanted_names
from exporter.sources.exposition import Page

CAPTURES: Final = Path(__file__).parents[1] / "fixtures" / "captures"


def finished(length: int) -> dict[str, int]:
    """Return vLLM's requests by outcome, of which only "length" ever moved."""
    return {"stop": 0, "length": length, "abort": 0, "error": 0, "repetition": 0}


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a page says; None is absent."""

    kind: str = "vllm"
    start_time: float | None
    model: str = "tiny"
    prompt: int
    output: int
    cached: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    http: int | None = None
    running: int | None
    waiting: int | None
    kv: float | None
    ttft: int | None


def just_started(start_time: float, model: str = "tiny") -> Read:
    """Return what a vLLM says that has not been asked anything yet."""
    nothing = finished(0)
    return Read(
        start_time=start_time, model=model, prompt=0, output=0, requests=nothing, running=0, waiting=0, kv=0.0, ttft=0
    )


READ: Final = {
    "vllm-0.32.0/started": just_started(1795464473.09),
    "vllm-0.32.0/started-openmetrics": just_started(1795461837.69),
    "vllm-0.32.0/light-load": Read(
        start_time=1795464473.09,
        prompt=1863,
        output=1179,
        requests=finished(17),
        http=17,
        running=1,
        waiting=0,
        kv=0.00588235294117645,
        ttft=18,
    ),
    "vllm-0.32.0/saturated": Read(
        start_time=1795464473.09,
        prompt=8764,
        output=5054,
        requests=finished(74),
        http=76,
        running=4,
        waiting=28,
        kv=0.026470588235294135,
        ttft=78,
    ),
    "vllm-0.32.0/idle-after-load": Read(
        start_time=1795464473.09,
        prompt=26085,
        output=14176,
        requests=finished(189),
        http=201,
        running=0,
        waiting=0,
        kv=0.0,
        ttft=189,
    ),
    "vllm-0.32.0/two-names-started": just_started(1795463622.17, "big"),
    "vllm-0.32.0/two-names": Read(
        start_time=1795464626.33,
        model="big",
        prompt=2951,
        output=1542,
        requests=finished(21),
        http=21,
        running=4,
        waiting=5,
        kv=0.02352941176470591,
        ttft=25,
    ),
    "vllm-0.32.0/lora-started": just_started(1795464571.22),
    "vllm-0.32.0/lora-saturated": Read(
        start_time=1795464571.22,
        prompt=773,
        output=602,
        requests=finished(8),
        http=8,
        running=4,
        waiting=20,
        kv=0.01764705882352946,
        ttft=12,
    ),
    "vllm-0.32.0/lora-idle": Read(
        start_time=1795464571.22,
        prompt=5821,
        output=4041,
        requests=finished(60),
        http=60,
        running=0,
        waiting=0,
        kv=0.0,
        ttft=60,
    ),
    "vllm-0.32.0/api-servers-2-started": Read(
        start_time=None, prompt=0, output=0, requests=finished(0), running=None, waiting=None, kv=None, ttft=0
    ),
    "vllm-0.32.0/api-servers-2-saturated": Read(
        start_time=None,
        prompt=2493,
        output=1725,
        requests=finished(21),
        http=21,
        running=4,
        waiting=24,
        kv=0.020588235294117685,
        ttft=25,
    ),
    "vllm-0.32.0/data-parallel-2-saturated": Read(
        start_time=None,
        prompt=1478 + 1374,
        output=923 + 937,
        requests=finished(11 + 10),
        http=21,
        running=4 + 4,
        waiting=12 + 12,
        kv=(0.020588235294117685 + 0.02352941176470591) / 2,
        ttft=15 + 14,
    ),
    "vllm-0.32.0/kv-pressure": Read(
        start_time=1795464695.36,
        prompt=2404,
        output=3336,
        requests=finished(17),
        http=17,
        running=4,
        waiting=19,
        kv=0.7692307692307692,
        ttft=23,
    ),
    "llama.cpp-b11434/started": Read(
        kind="llamacpp", start_time=None, model="", prompt=0, output=0, running=0, waiting=0, kv=None, ttft=None
    ),
    "llama.cpp-b11434/saturated": Read(
        kind="llamacpp", start_time=None, model="", prompt=404, output=731, running=2, waiting=20, kv=None, ttft=None
    ),
    "llama.cpp-b11434/idle-after-load": Read(
        kind="llamacpp",
        start_time=None,
        model="",
        prompt=5884 + 7,  # its prompt counter leaves cached tokens out
        output=10818,
        cached=7,
        running=0,
        waiting=0,
        kv=None,
        ttft=None,
    ),
}

AN_ENGINE: Final = "expected the metrics page of an inference engine, found "
A_PROXY: Final = AN_ENGINE + "the page of a LiteLLM proxy; point the address at the inference engine behind it"
A_ROUTER: Final = AN_ENGINE + "the page of a vLLM router; point the address at the inference engine behind it"

REFUSED: Final = {
    "vllm-0.32.0/disable-log-stats": AN_ENGINE
    + "a page without any engine metric (vLLM writes such a page when it runs with --disable-log-stats)",
    "litellm-1.86.0/started": A_PROXY,
    "litellm-1.86.0/under-load": A_PROXY,
    "vllm-router-0.1.17/started": A_ROUTER,
    "vllm-router-0.1.17/under-load": A_ROUTER,
    "vllm-router-0.1.17/after-load": A_ROUTER,
}

# elapsed ms: running, waiting, prompt tokens, output tokens, finished requests, HTTP replies
IDLE_BEFORE: Final = (0, 0, 6219, 3741, 60, 60)
IDLE_AFTER: Final = (0, 0, 26083, 14170, 187, 200)
TIMELINE: Final = {
    "000000ms": IDLE_BEFORE,
    "001038ms": IDLE_BEFORE,
    "002057ms": IDLE_BEFORE,
    "003072ms": (4, 28, 7516, 4046, 64, 64),
    "004191ms": (4, 28, 8087, 4422, 68, 69),
    "005295ms": (4, 28, 8172, 4782, 70, 71),
    "006332ms": (3, 28, 8953, 5154, 76, 78),
    "007404ms": (3, 28, 9699, 5566, 80, 83),
    "008534ms": (3, 28, 10117, 5990, 83, 87),
    "009672ms": (3, 28, 10809, 6474, 88, 93),
    "010777ms": (3, 28, 12032, 6898, 95, 100),
    "011928ms": (4, 28, 12942, 7274, 98, 103),
    "012945ms": (3, 28, 13293, 7654, 101, 106),
    "013963ms": (2, 28, 14063, 8074, 108, 114),
    "015023ms": (3, 26, 15236, 8494, 114, 120),
    "016213ms": (3, 28, 15832, 8894, 118, 125),
    "017307ms": (4, 28, 17170, 9246, 124, 132),
    "018328ms": (4, 27, 18032, 9674, 131, 139),
    "019399ms": (3, 28, 19145, 10098, 138, 147),
    "020538ms": (4, 28, 19524, 10566, 140, 149),
    "021881ms": (3, 28, 20318, 11106, 147, 157),
    "023808ms": (3, 22, 23372, 12314, 163, 175),
    "027109ms": (3, 2, 25758, 13806, 182, 195),
    "030540ms": IDLE_AFTER,
    "031798ms": IDLE_AFTER,
    "032815ms": IDLE_AFTER,
    "033832ms": IDLE_AFTER,
    "034852ms": IDLE_AFTER,
    "035874ms": IDLE_AFTER,
    "036894ms": IDLE_AFTER,
}


def test_every_captured_page_has_an_expectation() -> None:
    pages = {path.relative_to(CAPTURES).with_suffix("").as_posix() for path in CAPTURES.rglob("*.prom")}
    assert pages == {*READ, *REFUSED}
    assert not {*READ} & {*REFUSED}


@pytest.mark.parametrize("name", READ)
def test_a_captured_page_reads_as_a_person_reads_it(name: str) -> None:
    expected = READ[name]
    reading = _reading((CAPTURES / f"{name}.prom").read_text(encoding="utf-8"))
    assert (reading.kind, reading.start_time) == (expected.kind, expected.start_time)
    assert _sum(reading, Counted.PROMPT_TOKENS) == expected.prompt
    assert _sum(reading, Counted.OUTPUT_TOKENS) == expected.output
    assert _sum(reading, Counted.CACHED_PROMPT_TOKENS) == expected.cached
    assert _by_outcome(reading) == expected.requests
    assert _sum(reading, Counted.HTTP_REQUESTS) == expected.http
    assert list(reading.models) == [expected.model]
    gauges = reading.models[expected.model]
    assert (gauges.running, gauges.waiting, gauges.kv_cache_usage_ratio) == (
        expected.running,
        expected.waiting,
        expected.kv,
    )
    assert _ttft_count(reading) == expected.ttft
    assert {series.model for series in reading.counters} - {""} == {expected.model} - {""}


@pytest.mark.parametrize("name", REFUSED)
def test_a_captured_page_that_is_no_engines_is_refused_in_words(name: str) -> None:
    with pytest.raises(UnknownPageError) as refused:
        recognise((CAPTURES / f"{name}.prom").read_text(encoding="utf-8"), Kind.AUTO)
    assert str(refused.value) == REFUSED[name]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("vllm-0.32.0/started", Kind.LLAMACPP, "expected a page of llamacpp, found one of vllm"),
        ("llama.cpp-b11434/started", Kind.VLLM, "expected a page of vllm, found one of llamacpp"),
    ],
)
def test_a_captured_page_of_another_kind_than_the_config_says_is_refused(name: str, kind: Kind, words: str) -> None:
    with pytest.raises(UnknownPageError) as refused:
        recognise((CAPTURES / f"{name}.prom").read_text(encoding="utf-8"), kind)
    assert str(refused.value) == words


def test_the_timeline_reads_page_by_page_as_a_person_reads_it() -> None:
    readings = {name: _reading(text) for name, text in _timeline()}
    assert {name: _row(reading) for name, reading in readings.items()} == TIMELINE
    assert {reading.start_time for reading in readings.values()} == {1795464473.09}


def test_the_timeline_reads_the_same_through_one_page_that_remembers_its_heads() -> None:
    texts = [text for _, text in _timeline()]
    dialect = recognise(texts[0], Kind.VLLM)
    page = Page(wanted_names(dialect).__contains__)
    remembered = [translate(dialect, page.read(text), Disaggregation.NONE) for text in texts]
    assert remembered == [_reading(text) for text in texts]


def test_no_counter_of_the_timeline_ever_falls_or_goes() -> None:
    readings = [_reading(text) for _, text in _timeline()]
    for earlier, later in pairwise(readings):
        assert [series for series, value in earlier.counters.items() if later.counters[series] < value] == []
        for series, buckets in earlier.ttft.items():
            assert later.ttft[series].bounds == buckets.bounds
            assert later.ttft[series].sum >= buckets.sum
            pairs = zip(buckets.counts, later.ttft[series].counts, strict=True)
            assert [(old, new) for old, new in pairs if new < old] == []


def test_the_queue_of_28_is_seen_from_the_third_to_the_twenty_first_second_of_the_timeline() -> None:
    full = [name for name, text in _timeline() if _reading(text).models["tiny"].waiting == 28]
    assert (full[0], full[-1], len(full)) == ("003072ms", "021881ms", 16)


def _reading(text: str) -> EngineReading:
    dialect = recognise(text, Kind.AUTO)
    return translate(dialect, Page(wanted_names(dialect).__contains__).read(text), Disaggregation.NONE)


def _timeline() -> Iterator[tuple[str, str]]:
    with tarfile.open(CAPTURES / "vllm-0.32.0" / "timeline.tar.gz") as archive:
        for name in sorted(member.name for member in archive.getmembers() if member.isfile()):
            page = archive.extractfile(name)
            assert page is not None
            yield Path(name).stem, page.read().decode("utf-8")


def _row(reading: EngineReading) -> tuple[int | None, ...]:
    gauges = reading.models["tiny"]
    counted = (Counted.PROMPT_TOKENS, Counted.OUTPUT_TOKENS, Counted.REQUESTS, Counted.HTTP_REQUESTS)
    return gauges.running, gauges.waiting, *(_sum(reading, what) for what in counted)


def _sum(reading: EngineReading, counted: Counted) -> int | None:
    values = [value for series, value in reading.counters.items() if series.counted is counted]
    return sum(values) if values else None


def _by_outcome(reading: EngineReading) -> dict[str, int]:
    outcomes: dict[str, int] = {}
    for series, value in reading.counters.items():
        if series.counted is Counted.REQUESTS:
            outcomes[series.outcome] = outcomes.get(series.outcome, 0) + value
    return outcomes


def _ttft_count(reading: EngineReading) -> int | None:
    return sum(buckets.counts[-1] for buckets in reading.ttft.values()) if reading.ttft else None
