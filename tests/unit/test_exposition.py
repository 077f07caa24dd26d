"""The text format: what is read, what is refused with its line, and the oracle that reads the same."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from exporter.config.model import Disaggregation, Kind
from exporter.sources.dialects import DIALECTS, VLLM, UnknownPageError, recognise, translate, wanted_names
from exporter.sources.exposition import ExpositionError, Page, Sample, by_name

CAPTURES: Final = Path(__file__).parents[1] / "fixtures" / "captures"
LABELS: Final = (("engine", "0"), ("model_name", "m"))
WANTED: Final = frozenset(("a", "b_total", "vllm:c", "h_bucket", "h_sum", "h_count"))

unhurried = settings(deadline=None)


def read(text: str) -> list[Sample]:
    return list(Page(WANTED.__contains__).read(text))


def values(text: str) -> list[float]:
    return [sample.value for sample in read(text)]


# One line --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("a 5", Sample("a", (), 5.0)),
        ("a{} 5", Sample("a", (), 5.0)),
        ('a{x="1"} 5', Sample("a", (("x", "1"),), 5.0)),
        ('a{x="1",} 5', Sample("a", (("x", "1"),), 5.0)),
        ('a{x="1"}5', Sample("a", (("x", "1"),), 5.0)),
        ('a { x = "1" , y = "2" } 5', Sample("a", (("x", "1"), ("y", "2")), 5.0)),
        ('a\t{x="1"}\t5', Sample("a", (("x", "1"),), 5.0)),
        ("a\t5", Sample("a", (), 5.0)),
        ("a\t5 1700000000000", Sample("a", (), 5.0)),
        ("a    5   ", Sample("a", (), 5.0)),
        ("  a 5", Sample("a", (), 5.0)),
        ('\ta{x="1"} 5', Sample("a", (("x", "1"),), 5.0)),
        ('vllm:c{x=""} 5', Sample("vllm:c", (("x", ""),), 5.0)),
        (r'a{x="back\\slash"} 5', Sample("a", (("x", "back\\slash"),), 5.0)),
        (r'a{x="a \"quote\""} 5', Sample("a", (("x", 'a "quote"'),), 5.0)),
        (r'a{x="two\nlines"} 5', Sample("a", (("x", "two\nlines"),), 5.0)),
        (r'a{x="\\n"} 5', Sample("a", (("x", "\\n"),), 5.0)),
        (r'a{x="\t"} 5', Sample("a", (("x", "\\t"),), 5.0)),
        (r'a{x="ends in \\"} 5', Sample("a", (("x", "ends in \\"),), 5.0)),
        ('a{x="with space"} 5', Sample("a", (("x", "with space"),), 5.0)),
        ('a{x="} 7"} 5', Sample("a", (("x", "} 7"),), 5.0)),
        ('a{x="{y=1}"} 5', Sample("a", (("x", "{y=1}"),), 5.0)),
        ('a{x="# EOF"} 5', Sample("a", (("x", "# EOF"),), 5.0)),
        ('a{x="a,b=c"} 5', Sample("a", (("x", "a,b=c"),), 5.0)),
        ('a{x="\r \x0b \u2028 \x85"} 5', Sample("a", (("x", "\r \x0b \u2028 \x85"),), 5.0)),
        ('a{x="Грош 🪙"} 5', Sample("a", (("x", "Грош 🪙"),), 5.0)),
        ("a 5 1700000000000", Sample("a", (), 5.0)),
        ("a 5 -1", Sample("a", (), 5.0)),
        ("a 5 5", Sample("a", (), 5.0)),
        ('a{x="1"} 5 1700000000.5', Sample("a", (("x", "1"),), 5.0)),
        ('b_total 5 # {trace_id="abc"} 0.67', Sample("b_total", (), 5.0)),
        ('b_total 5 # {trace_id="abc"} 5', Sample("b_total", (), 5.0)),
        ('b_total{x="1"} 5 # {trace_id="a b"} 0.67 1700000000.5', Sample("b_total", (("x", "1"),), 5.0)),
        ("b_total 5 1700000000 # {} 1", Sample("b_total", (), 5.0)),
    ],
)
def test_a_line_is_read_as_the_format_says(line: str, sample: Sample) -> None:
    assert read(f"{line}\n") == [sample]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5.0),
        ("5.0", 5.0),
        ("-0.5", -0.5),
        ("+5", 5.0),
        (".5", 0.5),
        ("1.79546447309e+09", 1795464473.09),
        ("9.223372036854776e+18", 9.223372036854776e18),
        ("1E3", 1000.0),
        ("+Inf", math.inf),
        ("-Inf", -math.inf),
        ("Inf", math.inf),
    ],
)
def test_a_value_is_a_number_of_any_spelling(text: str, value: float) -> None:
    assert values(f"a {text}\n") == [value]


def test_nan_is_a_value_like_any_other() -> None:
    assert [math.isnan(value) for value in values('a NaN\na{x="1"} nan\n')] == [True, True]


def test_the_order_of_labels_does_not_change_who_a_series_is() -> None:
    one, other = read('a{engine="0",model_name="m"} 1\n'), read('a{model_name="m",engine="0"} 1\n')
    assert one == other == [Sample("a", LABELS, 1.0)]


# One page --------------------------------------------------------------------------------------------------------


def test_only_wanted_names_are_kept_and_similar_ones_are_not() -> None:
    page = 'aa 1\na_total 2\na_created 3\nA 4\n a_b 5\na{x="y"} 6\nvllm:cc 7\nvllm 8\nb_created{x="1"} 9\n'
    assert read(page) == [Sample("a", (("x", "y"),), 6.0)]


def test_comments_blank_lines_and_unknown_types_are_passed_over() -> None:
    page = "#\n# a 1\n#a 2\n\n   \n# TYPE a thingamajig\n# HELP a x\n# UNIT a seconds\na 3\n# a 4\n"
    assert values(page) == [3.0]


def test_windows_line_ends_are_line_ends() -> None:
    assert read('a 1\r\n# x\r\n\r\na{x="1"} 2\r\nb_total 3 17\r\n') == read('a 1\n# x\n\na{x="1"} 2\nb_total 3 17\n')


def test_created_series_are_other_names() -> None:
    assert values("# TYPE b counter\nb_total 3\nb_created 1.7e9\nh_created 1.7e9\n") == [3.0]


@pytest.mark.parametrize("end", ["# EOF", "# EOF\n"])
def test_an_openmetrics_page_is_read_to_its_end(end: str) -> None:
    page = '# TYPE b counter\n# UNIT b tokens\nb_total{x="1"} 3.0 1700000000.0 # {trace_id="abc"} 0.67\n'
    assert read(page + end) == [Sample("b_total", (("x", "1"),), 3.0)]


def test_an_empty_page_has_no_samples() -> None:
    assert (values("\n"), values("# EOF\n"), values("# nothing\n\n")) == ([], [], [])


@pytest.mark.parametrize(
    "garbage",
    ["z", "z{", 'z{x="1', 'z{x="1"', 'z{x="1"} many', "z 1 2 3 4", "{", "}", '{"a", x="1"} 2', "=", "\x00\x01", "ä 1"],
)
def test_garbage_on_unwanted_lines_never_matters(garbage: str) -> None:
    assert values(f"{garbage}\na 1\n{garbage}\nb_total 2\n{garbage}\n") == [1.0, 2.0]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("a", "expected a sample, found 'a'"),
        ("a ", "expected a sample, found 'a '"),
        ("a{", "expected a sample, found 'a{'"),
        ("a{}", "expected a sample, found 'a{}'"),
        ('a{x="1"', """expected a sample, found 'a{x="1"'"""),
        ('a{x="1} 5', """expected a sample, found 'a{x="1} 5'"""),
        ("a{x=1} 5", "expected a sample, found 'a{x=1} 5'"),
        ("a{x} 5", "expected a sample, found 'a{x} 5'"),
        ('a{="1"} 5', """expected a sample, found 'a{="1"} 5'"""),
        ('a{x="1" y="2"} 5', """expected a sample, found 'a{x="1" y="2"} 5'"""),
        ('a{x="1"}', """expected a sample, found 'a{x="1"}'"""),
        ("a five", "expected a number, found 'five'"),
        ("a 1_000", "expected a number, found '1_000'"),
        ("a 1,5", "expected a number, found '1,5'"),
        ("a 0x1F", "expected a number, found '0x1F'"),
        ("a None", "expected a number, found 'None'"),
    ],
)
def test_a_malformed_wanted_line_is_refused_with_its_number(line: str, found: str) -> None:
    with pytest.raises(ExpositionError) as refused:
        read(f"# HELP a x\nb_total 1\n\n{line}\nb_total 2\n")
    assert str(refused.value) == f"line 4: {found}"


def test_a_value_that_turns_malformed_is_refused_with_its_number_and_forgotten_afterwards() -> None:
    page = Page(WANTED.__contains__)
    page.read("# x\na 1\n")
    with pytest.raises(ExpositionError, match=r"^line 2: expected a number, found 'x'$"):
        page.read("# x\na x\n")
    assert page.read("# x\na 2\n") == [Sample("a", (), 2.0)]


def test_a_malformed_line_is_shown_by_its_beginning_only() -> None:
    with pytest.raises(ExpositionError) as refused:
        read("a{" + "x" * 10_000 + "\n")
    assert len(str(refused.value)) < 120


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("", "the page ends in the middle of line 1: ''"),
        ("a 1", "the page ends in the middle of line 1: 'a 1'"),
        ("a 1\nb_total 12", "the page ends in the middle of line 2: 'b_total 12'"),
        ("# HELP a b\n# EO", "the page ends in the middle of line 2: '# EO'"),
        ('a 1\na{x="# EOF', """the page ends in the middle of line 2: 'a{x="# EOF'"""),
        ("a 1\r\nb_total 1\r", "the page ends in the middle of line 2: 'b_total 1\\r'"),
    ],
)
def test_a_page_whose_last_line_does_not_end_was_cut(page: str, words: str) -> None:
    with pytest.raises(ExpositionError) as refused:
        read(page)
    assert str(refused.value) == words


SMALL_PAGES: Final = (
    '# HELP a of "x"\n# TYPE a gauge\na{x="1, {2} # EOF",y="3"} 1.25\na 10\n\nz 9\n# TYPE b counter\nb_total 123\n',
    'a{x="1"} 17 1700000000000\r\nb_total 12.5\r\nvllm:c{x="ü"} 1e3\r\n',
    '# TYPE b counter\nb_total{x="1"} 17.5 # {trace_id="a b"} 0.25 1700000000\nb_created 17\na 1\n# EOF\n',
)


@pytest.mark.parametrize("whole", SMALL_PAGES)
def test_a_page_cut_anywhere_is_refused_or_gives_only_whole_lines(whole: str) -> None:
    """Nothing in the format tells a page that ends with a line from a whole one; HTTP's framing does."""
    samples = read(whole)
    refused = 0
    for cut in range(len(whole.encode())):
        part = whole.encode()[:cut].decode("utf-8", errors="ignore")
        try:
            got = read(part)
        except ExpositionError:
            refused += 1
            assert not part.endswith("\n")
            continue
        assert part.endswith(("\n", "\n# EOF"))
        assert got == samples[: len(got)]
    assert refused >= len(whole.encode()) - whole.count("\n") - 1


@pytest.mark.parametrize("whole", SMALL_PAGES)
def test_a_page_cut_anywhere_is_the_same_to_one_that_remembers_the_whole(whole: str) -> None:
    for cut in range(len(whole)):
        page = Page(WANTED.__contains__)
        page.read(whole)
        assert outcome(page, whole[:cut]) == outcome(Page(WANTED.__contains__), whole[:cut])


def test_an_engines_page_cut_after_any_line_never_gives_another_value_than_the_whole() -> None:
    text = (CAPTURES / "vllm-0.32.0" / "saturated.prom").read_text(encoding="utf-8")
    names = wanted_names(VLLM).__contains__
    whole = translate(VLLM, Page(names).read(text), Disaggregation.NONE)
    lines = text.splitlines(keepends=True)
    for count in range(0, len(lines), 3):
        part = "".join(lines[:count])
        try:
            reading = translate(recognise(part, Kind.VLLM), Page(names).read(part), Disaggregation.NONE)
        except (UnknownPageError, ExpositionError):
            continue
        assert reading.counters.items() <= whole.counters.items()
        assert reading.ttft.items() <= whole.ttft.items()


# Duplicates ------------------------------------------------------------------------------------------------------

TWICE: Final = """\
vllm:num_requests_running{engine="0",model_name="m"} 2
vllm:num_requests_running{model_name="m",engine="0"} 7
vllm:num_requests_running{engine="1",model_name="m"} 1
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.9
vllm:generation_tokens_total{engine="0",model_name="m"} 50
vllm:generation_tokens_total{engine="0",model_name="m"} 70
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 4
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 5
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.5
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 2.5
"""


def test_a_series_that_stands_twice_counts_once_by_its_first_line() -> None:
    reading = translate(VLLM, Page(wanted_names(VLLM).__contains__).read(TWICE), Disaggregation.NONE)
    assert (reading.models["m"].running, reading.models["m"].kv_cache_usage_ratio) == (2 + 1, 0.5)
    assert list(reading.counters.values()) == [50]
    assert list(reading.ttft.values()) == [((math.inf,), (4,), 1.5)]


def test_a_page_gives_duplicates_as_they_stand_and_groups_them_by_name() -> None:
    samples = read("a 1\nb_total 3\na 2\n")
    assert samples == [Sample("a", (), 1.0), Sample("b_total", (), 3.0), Sample("a", (), 2.0)]
    assert by_name(samples) == {"a": [samples[0], samples[2]], "b_total": [samples[1]]}


# A page that is remembered ---------------------------------------------------------------------------------------

Outcome = list[tuple[str, tuple[tuple[str, str], ...], str]] | type[ExpositionError]


def outcome(page: Page, text: str) -> Outcome:
    """Read; samples with values as text, since NaN is not equal to itself, or the kind of error."""
    try:
        return [(name, labels, repr(value)) for name, labels, value in page.read(text)]
    except ExpositionError as error:
        return type(error)


HEADS: Final = (
    *("a ", 'a{x="1"} ', 'a{x="1 2"} ', 'a{x="1",y="} # {"} ', 'a{y="2",x="1"} ', "vllm:c ", 'h_bucket{le="+Inf"} '),
    *("b_total\t", 'b_total{x="1"}', "a  ", " a ", "z ", 'z{x="1"} ', "# HELP a ", "# TYPE a ", "z{"),
)
numbers = st.sampled_from(("0", "1", "5", "5.0", "-2", "NaN", "+Inf", "1e9", "1.5"))
tails = numbers | st.sampled_from(("5 5", "5 7", "7 5", "5 # {} 5", '5 # {t="x y"} 7', "", "x", "5 ", "5\r", "gauge"))
heads = st.lists(st.sampled_from(HEADS), max_size=8)


@st.composite
def pages(draw: st.DrawFn) -> str:
    return "".join(f"{head}{draw(tails)}\n" for head in draw(heads))


@given(st.lists(st.sampled_from(HEADS[:7]), max_size=8), st.data())
@unhurried
def test_a_remembered_page_with_new_values_reads_as_a_fresh_one(which: list[str], data: st.DataObject) -> None:
    page = Page(WANTED.__contains__)
    for _ in range(3):
        text = "".join(f"{head}{data.draw(numbers)}\n" for head in which) + "# x\n"
        assert outcome(page, text) == outcome(Page(WANTED.__contains__), text)


@given(st.lists(pages(), min_size=2, max_size=4))
@example(["a 5 5\n", "a 5 7\n"])
@example(["a 5 5\n", "a x\n", "a 5 7\n"])
@example(["b_total 5 # {} 5\n", "b_total 5 # {} 7\n"])
@example(["z\n", "a\t5\n", "z\n"])
@example(["a 5\n", "a\n"])
@example(["\n", "a\n"])
@unhurried
def test_a_remembered_page_whose_heads_change_reads_as_a_fresh_one(texts: list[str]) -> None:
    page = Page(WANTED.__contains__)
    for text in texts:
        assert outcome(page, text) == outcome(Page(WANTED.__contains__), text)


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)))
@unhurried
def test_series_that_move_come_and_go_keep_their_own_values(order: list[int], gone: set[int]) -> None:
    page = Page(WANTED.__contains__)
    page.read("".join(f'a{{x="{n}"}} {n}\n' for n in range(6)))
    text = "".join(f'a{{x="{n}"}} {n + 0.5}\n' for n in order if n not in gone) + "# that is all\n"
    assert page.read(text) == [Sample("a", (("x", str(n)),), n + 0.5) for n in order if n not in gone]


# The oracle ------------------------------------------------------------------------------------------------------

label_values = st.text(max_size=12) | st.text(alphabet='\\"\n{}#=, \t\rxE', max_size=12)
amounts = st.floats(min_value=0, max_value=1e15)
anything = st.floats()
Build = Callable[[CollectorRegistry, st.DrawFn], None]


def _labels(draw: st.DrawFn, count: int) -> list[tuple[str, ...]]:
    return draw(st.lists(st.tuples(*[label_values] * count), min_size=1, max_size=3, unique=True))


def _counter(name: str) -> Build:
    def build(registry: CollectorRegistry, draw: st.DrawFn) -> None:
        family = Counter(name, draw(label_values), ("model_name", "engine"), registry=registry)
        for labels in _labels(draw, 2):
            family.labels(*labels).inc(draw(amounts))

    return build


def _gauge(name: str) -> Build:
    def build(registry: CollectorRegistry, draw: st.DrawFn) -> None:
        family = Gauge(name, draw(label_values), ("model_name",), registry=registry)
        for labels in _labels(draw, 1):
            family.labels(*labels).set(draw(anything))

    return build


def _bare_gauge(name: str) -> Build:
    def build(registry: CollectorRegistry, draw: st.DrawFn) -> None:
        Gauge(name, draw(label_values), registry=registry).set(draw(anything))

    return build


def _histogram(name: str) -> Build:
    def build(registry: CollectorRegistry, draw: st.DrawFn) -> None:
        bounds = draw(st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=4, unique=True).map(sorted))
        family = Histogram(name, draw(label_values), ("model_name",), buckets=bounds, registry=registry)
        for labels in _labels(draw, 1):
            for seconds in draw(st.lists(st.floats(min_value=0, max_value=1e6), max_size=5)):
                family.labels(*labels).observe(seconds)

    return build


FAMILIES: Final = (
    *(_counter(f"vllm:{name}") for name in ("prompt_tokens", "generation_tokens", "request_success", "unwanted")),
    *(_gauge(f"vllm:{name}") for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "no")),
    *(_histogram(f"vllm:{name}") for name in ("time_to_first_token_seconds", "iteration_tokens_total")),
    _bare_gauge("process_start_time_seconds"),
)


@st.composite
def registries(draw: st.DrawFn) -> CollectorRegistry:
    registry = CollectorRegistry()
    for build in draw(st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=6, unique=True)):
        build(registry, draw)
    return registry


@given(registries())
@unhurried
def test_any_page_that_prometheus_client_writes_reads_as_its_own_parser_reads_it(registry: CollectorRegistry) -> None:
    text = generate_latest(registry).decode("utf-8")
    wanted = wanted_names(VLLM)
    expected = [
        (sample.name, tuple(sorted(sample.labels.items())), repr(sample.value))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in wanted
    ]
    page = Page(wanted.__contains__)
    assert outcome(page, text) == expected
    assert outcome(page, text) == expected  # by its remembered heads


@pytest.mark.parametrize("path", sorted(CAPTURES.rglob("*.prom")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_captured_page_reads_as_prometheus_clients_parser_reads_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    expected = [
        # that parser adds _total to a counter that has none
        (
            sample.name if sample.name in text else sample.name.removesuffix("_total"),
            tuple(sorted(sample.labels.items())),
            repr(float(sample.value)),
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    assert len(expected) > 1
    every_name = Page(lambda _: True)
    assert outcome(every_name, text) == expected
    assert outcome(every_name, text) == expected


# Anything at all -------------------------------------------------------------------------------------------------

TOKENS: Final = (
    *("vllm:generation_tokens_total", "llamacpp:tokens_predicted_total", "vllm:time_to_first_token_seconds_bucket"),
    *("vllm:time_to_first_token_seconds_sum", "vllm:num_requests_running", "process_start_time_seconds"),
    *("{", "}", '"', "\\", "=", ",", " ", "\t", "\n", "\r\n", "#", "# EOF", '{le="+Inf"}', '{le="x"}', '{le="nan"}'),
    *(" 5\n", " NaN\n", " -1\n", " 1e999\n", " +Inf\n", " 1 2\n", 'model_name="m"', '{model_name="m"} 3\n'),
)
arbitrary = st.lists(st.sampled_from(TOKENS) | st.text(max_size=6), max_size=30).map("".join)


def understood(text: str) -> bool:
    """Read a page as a source does; True where it gives a reading."""
    try:
        dialect = recognise(text, Kind.AUTO)
        translate(dialect, Page(wanted_names(dialect).__contains__).read(text), Disaggregation.DECODE)
    except (ExpositionError, UnknownPageError):
        return False
    return True


@given(arbitrary)
@settings(deadline=None, max_examples=300)
def test_no_text_at_all_raises_anything_but_a_refusal(text: str) -> None:
    understood(text)
    for dialect in DIALECTS:
        understood(f"# TYPE {dialect.sign}\n{text}\n")


def test_a_page_with_a_sign_and_nothing_else_is_understood() -> None:
    assert [understood(f"# TYPE {dialect.sign}\n") for dialect in DIALECTS] == [True] * 5
    assert not understood("# nothing\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty page"),
        (" \n\n", "an empty page"),
        ("<!doctype html><html></html>\n", "an HTML page"),
        ("\n  <html>\n", "an HTML page"),
        ("llmcost_build_info 1\n", "the page of this exporter itself"),
        ("node_load1 0.5\n", "something else"),
        ('{"error": "not found"}\n', "something else"),
    ],
)
def test_a_page_of_no_engine_is_refused_by_what_it_looks_like(text: str, words: str) -> None:
    with pytest.raises(UnknownPageError) as refused:
        recognise(text, Kind.AUTO)
    assert str(refused.value) == f"expected the metrics page of an inference engine, found {words}"
