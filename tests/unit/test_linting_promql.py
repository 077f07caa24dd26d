"""The linter's reader of PromQL, and what it makes of a query: how many elements, whose number, what unit."""

import promql_parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.model import Engine
from exporter.core.autoscaling import Fleet, triggers
from exporter.core.linting import promql
from exporter.core.linting.meaning import Unit, Whose, filter_of, is_scalar, single, unit, whose
from exporter.core.linting.promql import QueryError

ONE = [
    "1",
    "sum(a)",
    "sum(a) by ()",
    "avg by () (a)",
    "scalar(a)",
    "vector(1)",
    "absent(a)",
    "time() - 3",
    "-sum(a)",
    "topk(1, a)",
    "sum(a) / sum(b)",
    "sum(a) / on () b",
    "sum(a) + 3 * max(b)",
    "2 ^ 3 ^ 2",
    "sum(a) or vector(0)",
    "(sum(a) > 3) or vector(0)",
    "sum(a) and b",
    "sum(a) unless sum(b) > bool 3",
    "sum by (m) (a{m='x'})",
    "sum by (m) (a{m='x'}) + sum by (m) (b{m='x'})",
    "sum by (m) (a{m='x'}) or sum by (m) (b{m='x'})",
    "histogram_quantile(0.95, sum by (le) (rate(a_bucket[5m])))",
    "histogram_quantile(0.95, sum by (le, m) (rate(a_bucket{m='x'}[5m])))",
    "clamp_min(ceil(sum(a)), 1)",
    "max(max_over_time(a[5m:1m]))",
    "sum(rate(a[5m] offset 1h))",
    "sum(a @ start())",
    'sum({__name__="a", b!~"c.*"})',
    'sum({"a.b", "c.d"="e"})',
    "max_over_time(sum(a)[5m:])",
    "sum(a) * scalar(b)",
    "sum(a) * on () group_left () max(b)",
    "count(a) # all\n+ 1",
    "label_replace(sum(a), 'x', '$1', 'y', '(.*)')",
    "sum(a{x=`b}`})",
    "SUM(a)",
    "inf",
]
SEVERAL = [
    "a",
    "a{pod='x'}",
    "rate(a[5m])",
    "sum by (pod) (a)",
    "sum without (pod) (a)",
    "a + b",
    "a * on (pod) group_left () b",
    "sum(a) * on () group_right () b",
    "topk(3, a)",
    "topk by (x) (1, a)",
    "count_values('v', a)",
    "histogram_quantile(0.95, rate(a_bucket[5m]))",
    "histogram_quantile(0.95, sum by (le, pod) (rate(a_bucket[5m])))",
    "sum by (m) (a{m=~'x'})",
    "sum by (m) (a{m='x'} + b)",
    "sum by (m) (a{m='x'}) or sum by (m) (b{m='y'})",
    "sum(a) or b",
    "sum(a) or sum by (m) (b{m='x'})",
    "a and sum(b)",
    "clamp_min(a, 1)",
    "a * 2",
    "a * scalar(b)",
    "-a",
    "max_over_time(a[5m:1m])",
    "label_replace(a, 'x', '$1', 'y', '(.*)')",
]
NONE = [
    "",
    "  # nothing",
    "sum(",
    "sum(a",
    "sum(a))",
    "a b",
    "a[5m]",
    "sum(a[5m])",
    "rate(a)",
    "ceil(a[5m])",
    "a[5m] + a[5m]",
    "a{b}",
    "a{b=c}",
    "a{b='c'",
    "a{='c'}",
    "'a",
    "a[5m",
    "a[]",
    "a[x]",
    "a offset",
    "a +",
    "sum by (pod a)",
    "sum()",
    "and b",
    "a ! b",
    "sum(rate(a[$__rate_interval]))",
    'sum(a{b="$model"}) + $x',
    "é",
    "{{ query }}",
    "a @ x()",
    "(" * 5000,
    "-" * 5000 + "1",
    "a" + "+a" * 5000,
    "2 ^ " * 5000 + "1",
]


@pytest.mark.parametrize("query", ONE)
def test_a_query_of_one_element(query: str):
    assert single(promql.parse(query)) is not None


@pytest.mark.parametrize("query", SEVERAL)
def test_a_query_that_may_have_several(query: str):
    assert single(promql.parse(query)) is None


@pytest.mark.parametrize("query", NONE)
def test_what_is_no_query(query: str):
    with pytest.raises(QueryError) as caught:
        promql.parse(query)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("query", [one for one in [*ONE, *SEVERAL] if "SUM" not in one])
def test_another_reader_takes_the_same_queries(query: str):
    promql_parser.parse(query)


@given(st.text(alphabet="ab(){}[]+-*/,=~!\"' 15m@#\n") | st.text())
def test_any_text_is_a_query_or_is_not(text: str):
    try:
        found = promql.parse(text)
    except QueryError:
        return
    single(found)
    whose(found)
    unit(found)
    is_scalar(found)
    filter_of(found)


SCALARS = [
    "-1",
    "time()",
    "pi() * 2",
    "scalar(sum(a) + sum(b))",
    "scalar(a) + scalar(b)",
    "(2 ^ 3) / time()",
    "1 > bool 2",
]
VECTORS = ["vector(scalar(a))", "scalar(a) * sum(b)", "sum(a) > bool 3", "hour()", "vector(time()) or a"]


@pytest.mark.parametrize("query", [*SCALARS, *VECTORS, *(one for one in [*ONE, *SEVERAL] if "SUM" not in one)])
def test_a_scalar_is_what_another_reader_takes_for_one(query: str):
    try:
        promql_parser.parse(f"vector({query}\n)")  # takes nothing else
        known = True
    except ValueError:
        known = False
    assert is_scalar(promql.parse(query)) is known
    assert known or query not in SCALARS


@pytest.mark.parametrize(
    ("query", "operator"),
    [
        ("sum(a) > 5", ">"),
        ("5 <= sum(a)", "<="),
        ("sum(a) == 0 or sum(b) > 3", "=="),
        ("100 * (sum(a) > 5) / sum(b)", ">"),
        ("clamp_max(sum(a) > 5, 9)", ">"),
        ("sum(a) and on () hour() > 8", ">"),
        ("(sum(a) > 5) > bool 7", ">"),
        ("max_over_time((sum(a) != 5)[5m:1m])", "!="),
        ("count(a > 5)", ">"),
        ("sum(a) / count(b == 1)", "=="),
        ("sum(a) > bool 5", ""),
        ("(sum(a) > 5) or vector(0)", ""),
        ("sum(a) or sum(b) > 5", ""),
        ("(count(a == 1) or vector(0)) * sum(b)", ""),
        ("sum(a) unless sum(b) > 3", ""),
        ("absent(a > 5)", ""),
        ("vector(scalar(sum(a) > 5))", ""),
        ("sum(a) and on () (count(up == 1) > 0)", ""),
        ("(sum(a) > 5) and on () (count(up == 1) > 0)", ">"),
        ("sum(a * on (pod) group_left () (b == 1))", ""),
        ("sum((b == 1) * on (pod) group_right () a)", ""),
        ("sum(a * on (pod) (b == 2))", "=="),
        ("sum(a) * (sum(b) == 1)", "=="),
        ("vector(1 > bool 2)", ""),
        ("sum(a{b='>'})", ""),
    ],
)
def test_a_comparison_may_leave_no_answer(query: str, operator: str):
    found = filter_of(promql.parse(query))
    assert (found.operator if found is not None else "") == operator


PARTS = st.recursive(
    st.sampled_from(["a", "b{m='x'}", "1", "vector(0)", "rate(c_total[5m])", "max_over_time(d[1h:1m])"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "/", "^", "or", "and", "> bool", "<"]), inner).map(
            lambda parts: f"({parts[0]}) {parts[1]} ({parts[2]})"
        ),
        inner.map(lambda part: f"sum by (m) ({part})"),
        inner.map(lambda part: f"-({part})"),
        inner.map(lambda part: f"clamp_max({part}, 3)"),
    ),
    max_leaves=8,
)


@given(PARTS)
def test_what_another_reader_takes_this_one_takes(query: str):
    try:
        promql_parser.parse(query)
    except ValueError:
        return  # the other knows types as well
    promql.parse(query)


@pytest.mark.parametrize(
    ("query", "of"),
    [
        ("sum(vllm:num_requests_waiting)", Whose.FLEET),
        ("max(wva_desired_replicas)", Whose.UNKNOWN),
        ("max(recorded:ttft:p95)", Whose.UNKNOWN),
        ("max(recorded:ttft:p95) and on () (sum(rate(a[5m])) > 1)", Whose.UNKNOWN),
        ("max(max_over_time(vllm:num_requests_waiting[1m]))", Whose.UNKNOWN),
        ("max(sum by (pod) (a))", Whose.UNKNOWN),
        ("max(sum(a))", Whose.FLEET),
        ("vllm:num_requests_waiting", Whose.FLEET),
        ("vllm:queue_time_p95", Whose.UNKNOWN),
        ("llm_requests_per_replica", Whose.UNKNOWN),
        ("sum(a) / scalar(max(kube_deployment_status_replicas))", Whose.REPLICA),
        ("sum(a) / max(vllm:healthy_pods_total)", Whose.REPLICA),
        ("sum(a) / scalar(count(up == 1))", Whose.REPLICA),
        ("sum(a) / scalar(sum(b))", Whose.REPLICA),
        ("sum(a > bool 5) / count(a)", Whose.REPLICA),
        ("stddev(a)", Whose.REPLICA),
        ("(count(up == 1) or vector(0)) * ((avg(b) / scalar(max(c)) > 0) or vector(0))", Whose.FLEET),
        ("max(vllm:num_requests_waiting)", Whose.REPLICA),
        ("avg(vllm:num_requests_waiting)", Whose.REPLICA),
        ("sum(a) / count(a)", Whose.REPLICA),
        ("sum(a) / 4", Whose.FLEET),
        ("sum(a) / scalar(max(b))", Whose.FLEET),
        ("sum(llmcost_kv_cache_usage_ratio)", Whose.FLEET),
        ("max(llmcost_kv_cache_usage_ratio)", Whose.REPLICA),
        ("histogram_quantile(0.9, sum by (le) (rate(a_bucket[5m])))", Whose.REPLICA),
        ("avg(rate(llmcost_gpu_busy_seconds_total[1m]))", Whose.REPLICA),
        ("sum(a) * (avg(b) >= bool 0.5)", Whose.FLEET),
        ("avg(a) or vector(0)", Whose.REPLICA),
        ("vector(0)", Whose.CONSTANT),
        ("3", Whose.CONSTANT),
        ("scalar(sum(a) + sum(b))", Whose.FLEET),
        ("vector(scalar(sum(a) + sum(b)))", Whose.FLEET),
        ("scalar(sum(a) + sum(b)) * avg(c)", Whose.FLEET),
        ("scalar(sum(a) + sum(b)) / avg(c)", Whose.FLEET),
        ("scalar(sum(a) + sum(b)) / 4 - avg(c)", Whose.FLEET),
        ("scalar(avg(c)) + sum(a)", Whose.FLEET),
        ("scalar(avg(c)) < sum(a)", Whose.FLEET),
        ("avg(c) + sum(a)", Whose.FLEET),
        ("vector(scalar(avg(c)))", Whose.REPLICA),
        ("scalar(sum(a)) / sum(b)", Whose.REPLICA),
        ("avg(c) / scalar(max(b))", Whose.REPLICA),
        ("scalar(sum(a) + sum(b)) / max(c)", Whose.FLEET),
        ("scalar(sum(a) + sum(b)) / scalar(max(c))", Whose.FLEET),
    ],
)
def test_whose_number_it_is(query: str, of: Whose):
    assert whose(promql.parse(query)) is of


@pytest.mark.parametrize(
    ("query", "expected_unit"),
    [
        ("max(vllm:kv_cache_usage_perc)", Unit.SHARE),
        ("avg(avg_over_time(llmcost_gpu_utilization_ratio[1m]))", Unit.SHARE),
        ("avg(rate(llmcost_gpu_busy_seconds_total[1m]))", Unit.SHARE),
        ("100 * max(vllm:kv_cache_usage_perc)", Unit.PERCENT),
        ("avg(vllm:kv_cache_usage_perc) * 100", Unit.PERCENT),
        ("avg(DCGM_FI_DEV_GPU_UTIL) / 100", Unit.SHARE),
        ("100 / max(vllm:kv_cache_usage_perc)", None),
        ("2 * max(vllm:kv_cache_usage_perc)", None),
        ("sum(vllm:kv_cache_usage_perc)", None),
        ("max(DCGM_FI_DEV_GPU_UTIL)", Unit.PERCENT),
        ("max(llmcost_ttft_p95_seconds)", Unit.SECONDS),
        ("histogram_quantile(0.9, sum by (le) (rate(a_seconds_bucket[5m]))) or vector(0)", Unit.SECONDS),
        ("1000 * max(llmcost_ttft_p95_seconds)", None),
        ("max(llmcost_scaling_signal_ratio)", None),
        ("scalar(max(llmcost_ttft_p95_seconds)) < sum(a)", None),
        ("0.5 < max(vllm:kv_cache_usage_perc)", Unit.SHARE),
    ],
)
def test_what_unit_it_has(query: str, expected_unit: Unit | None):
    assert unit(promql.parse(query)) is expected_unit


@pytest.mark.parametrize("budget", [None, "inference"])
def test_the_queries_that_we_render_come_to_one_number(budget: str | None):
    engine = Engine(name='a "b"', url="http://127.0.0.1:8000")
    fleet = Fleet(
        engine=engine, requests_per_replica=8, max_replicas=4, cold_start_seconds=90, budget=budget, selector='x="y"'
    )
    for trigger in triggers(fleet):
        found = promql.parse(trigger.query)
        assert single(found) == frozenset(), trigger.query
        assert (whose(found) is Whose.REPLICA) == (trigger.metric_type == "Value"), trigger.query
