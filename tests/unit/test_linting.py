"""The linter's rules on a folder of manifests, its reader of PromQL, and what it joins."""

import io
import re
from pathlib import Path

import promql_parser
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from exporter.cli.lint_files import UnusableError, comments, nodes, text_of
from exporter.config.model import Engine, Workload
from exporter.core import linting
from exporter.core.autoscaling import Fleet, triggers
from exporter.core.linting import RULES, Facts, Family, Finding, Node, Severity, promql
from exporter.core.linting.documents import Document
from exporter.core.linting.meaning import Unit, Whose, filter_of, is_scalar, single, unit, whose
from exporter.core.linting.promql import QueryError
from exporter.metrics import PREFIX, ROWS

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "tests" / "lint"
FAMILIES = {f"{PREFIX}{row.name}": Family(row.type, row.labels) for row in ROWS}
FILES = sorted(MANIFESTS.glob("*/*.yaml"))


def found_in(text: str, facts: Facts | None = None, name: str = "x.yaml") -> list[Finding]:
    allowed = {(name, line): frozenset(rules) for line, rules in comments(text)}
    return linting.lint(linting.objects(name, nodes(name, text)), facts or Facts(families=FAMILIES), allowed)


def rules(text: str, facts: Facts | None = None) -> set[str]:
    return {one.rule for one in found_in(text, facts)}


def expected(text: str) -> list[str]:
    words = text.splitlines()[0].removeprefix("# expect:").split()
    return [] if words == ["nothing"] else words


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_manifest_has_the_findings_that_it_expects(path: Path):
    text = path.read_text()
    found = [f"{one.rule}:{one.line}" for one in found_in(text)]
    missed = [f"LLM090:{line}" for line, named in comments(text) for rule in named if rule not in RULES]
    assert sorted(found + missed) == sorted(expected(text))


def test_there_are_good_and_bad_manifests_for_every_rule():
    bad = {one.partition(":")[0] for path in FILES if path.parent.name == "bad" for one in expected(path.read_text())}
    assert bad == set(RULES)
    good: set[str] = set()
    for path in FILES:
        if path.parent.name == "good":
            lines = path.read_text().splitlines()
            assert lines[0] == "# expect: nothing"
            good |= set(lines[1].removeprefix("# covers:").split())
    assert good == set(RULES)
    assert len(FILES) >= 45


def test_a_bad_manifest_is_named_for_a_rule_that_it_breaks():
    for path in (MANIFESTS / "bad").glob("llm*.yaml"):
        assert path.name[:6].upper() in {one.partition(":")[0] for one in expected(path.read_text())}, path.name


def test_the_page_and_the_table_of_rules_agree():
    page = (ROOT / "docs" / "lint.md").read_text()
    headings = re.findall(r"^### (LLM\d{3}): (.+)$", page, re.MULTILINE)
    assert headings == [(name, rule.title) for name, rule in RULES.items()]
    sections = re.split(r"^### ", page, flags=re.MULTILINE)[1:]
    for section, rule in zip(sections, RULES.values(), strict=True):
        assert rule.reason in section
        examples = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
        assert len(examples) == 2, rule.title
        for example in examples:
            assert yaml.safe_load(example), example
    for rule in RULES.values():
        for text in rule:
            assert text
            assert text.isprintable()


# the reader of PromQL


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
        ("vector(scalar(sum(a) > 5))", ">"),
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
        ("max(wva_desired_replicas)", Whose.FLEET),
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
        ("100 * max(vllm:kv_cache_usage_perc)", None),
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


@pytest.mark.parametrize("query", ["a" + " + a" * 150, "a" + " or vector(0)" * 150, "abs(" * 59 + "a" + ")" * 59])
def test_the_longest_query_is_walked_to_its_end(query: str):
    promql.parse(query)
    text = f"kind: ScaledObject\nspec: {{triggers: [{{type: prometheus, metadata: {{query: '{query}'}}}}]}}\n"
    assert "LLM030" in rules(text)


TRIGGERED = """\
kind: ScaledObject
spec:
  triggers:
    - type: {kind}
      metadata: {{serverAddress: '{address}', query: '{query}'}}
"""


def triggered(query: str, *, kind: str = "prometheus", address: str = "http://a.b") -> str:
    return TRIGGERED.format(kind=kind, address=address, query=query)


@pytest.mark.parametrize(
    ("query", "severity"),
    [("sum(a) > 5", Severity.ERROR), ("count(a > 5)", Severity.WARNING), ("sum(a) / count(b == 1)", Severity.WARNING)],
)
def test_one_number_that_is_compared_is_worse_than_series_that_are(query: str, severity: Severity):
    assert [one.severity for one in found_in(triggered(query)) if one.rule == "LLM036"] == [severity]


@pytest.mark.parametrize(
    ("address", "severity"),
    [
        ("prometheus:9090", Severity.ERROR),
        ("prometheus.monitoring:9090", Severity.ERROR),
        ("//prometheus.monitoring:9090", Severity.ERROR),
        ("grpc://prometheus.monitoring:9090", Severity.ERROR),
        ("http://", Severity.ERROR),
        ("http://[::1", Severity.ERROR),
        ("", Severity.ERROR),
        ("http://prometheus-operated:9090", Severity.WARNING),
        ("https://user:a.b@prometheus/x.y", Severity.WARNING),
        ("HTTP://prometheus.monitoring.svc:9090", None),
        ("http://[fd00::7]:9090", None),
        ("${PROMETHEUS_URL}", None),
    ],
)
def test_an_address_has_a_scheme_and_a_namespace(address: str, severity: Severity | None):
    found = [one for one in found_in(triggered("sum(a)", address=address)) if one.rule == "LLM046"]
    assert [one.severity for one in found] == ([] if severity is None else [severity])


@pytest.mark.parametrize(
    ("kind", "query", "alone"),
    [
        ("prometheus", "sum(vllm:num_requests_waiting)", False),
        ("prometheus", "sum(gateway_queue_depth)", False),
        ("kafka", "", False),
        ("prometheus", "max(vllm:kv_cache_usage_perc)", True),
        ("cron", "", True),
    ],
)
def test_requests_in_work_are_not_alone_beside_those_that_wait(kind: str, query: str, alone: bool):
    in_work = "    - type: prometheus\n      metadata: {query: sum(vllm:num_requests_running)}\n"
    assert ("LLM002" in rules(triggered(query, kind=kind) + in_work)) is alone


@pytest.mark.parametrize(
    ("query", "alone"),
    [
        ("vector(scalar(sum(vllm:num_requests_running)))", True),
        ("sum(vllm:num_requests_running) / scalar(max(vllm:num_requests_waiting))", True),
        ("sum(vllm:num_requests_running) + scalar(sum(vllm:num_requests_waiting))", False),
    ],
)
def test_a_scalar_counts_where_it_is_added_and_not_where_it_divides(query: str, alone: bool):
    assert ("LLM002" in rules(triggered(query))) is alone


# joins


SCALED = """\
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: chat}
spec:
  scaleTargetRef: {name: chat}
  minReplicaCount: 0
  maxReplicaCount: 2
  fallback: {failureThreshold: 3, replicas: 1}
  triggers:
    - type: cron
      metadata: {timezone: UTC, start: "0 1 * * *", end: "0 2 * * *", desiredReplicas: "1"}
    - type: cpu
      metricType: Utilization
      metadata: {value: "60"}
"""


def workload(container: str, annotations: str = "{}", kind: str = "Deployment") -> str:
    return f"""\
---
apiVersion: apps/v1
kind: {kind}
metadata: {{name: chat, annotations: {annotations}}}
spec:
  strategy: {{type: Recreate}}
  template:
    metadata: {{labels: {{app: chat}}}}
    spec:
      containers: [{container}]
"""


@pytest.mark.parametrize(
    ("container", "has_gpu"),
    [
        ("{name: x, image: y, resources: {limits: {nvidia.com/gpu: 1}}}", True),
        ("{name: x, image: y, resources: {requests: {nvidia.com/mig-1g.10gb: 1}}}", True),
        ("{name: x, image: y, resources: {limits: {amd.com/gpu: 1}}}", True),
        ("{name: x, image: y, resources: {claims: [{name: gpu}]}}", True),
        ("{name: x, image: y, resources: {limits: {nvidia.com/gpu: 0}}}", False),
        ("{name: x, image: y}", False),
        ("{name: x, image: nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8}", True),
        ("{name: x, image: ghcr.io/huggingface/text-generation-inference:3.3}", True),
        ("{name: x, image: 'ghcr.io/ggml-org/llama.cpp:server-cuda'}", True),
        ("{name: x, image: 'ghcr.io/ggml-org/llama.cpp:server'}", False),
        ("{name: x, image: vllm/vllm-cpu:1}", False),
        ("{name: x, image: python, args: [-m, vllm.entrypoints.openai.api_server]}", True),
        ("{name: x, image: python, command: [sh, -c, 'vllm serve llama']}", True),
    ],
)
def test_a_gpu_workload_is_known_by_what_it_asks_for_or_runs(container: str, has_gpu: bool):
    assert ("LLM001" in rules(SCALED + workload(container))) is has_gpu


def test_a_target_that_is_not_in_the_files_is_a_warning():
    (found,) = [one for one in found_in(SCALED) if one.rule == "LLM001"]
    assert found.severity is Severity.WARNING
    assert "no chat in the files" in found.message


@pytest.mark.parametrize(
    ("said", "known", "wrong"),
    [
        ("{llm-cost/workload: batch}", None, False),
        ("{llm-cost/workload: webhook}", None, True),
        ("{llm-cost/workload: interactive}", Workload.BATCH, True),
        ("{}", Workload.NIGHTLY, False),
        ("{}", Workload.INTERACTIVE, True),
        ("{llm-cost/engine: other}", Workload.BATCH, True),
        ("{llm-cost/workload: who-knows}", None, True),
    ],
)
def test_who_waits_decides_whether_zero_is_wrong(said: str, known: Workload | None, wrong: bool):
    engines = {} if known is None else {"chat": Engine(name="chat", url="http://x", workload=known)}
    text = SCALED + workload("{name: x, image: vllm/vllm-openai}", said)
    assert ("LLM010" in rules(text, Facts(families=FAMILIES, engines=engines))) is wrong


def test_the_config_may_ask_for_more_replicas_than_one():
    engine = Engine(name="chat", url="http://x", workload=Workload.BATCH, min_replicas=2)
    text = SCALED.replace("minReplicaCount: 0", "minReplicaCount: 1")
    (found,) = [one for one in found_in(text, Facts(engines={"chat": engine})) if one.rule == "LLM010"]
    assert "goes down to 1, and needs 2" in found.message


def test_a_route_that_leads_to_it_says_that_somebody_waits():
    outside = """\
---
kind: Service
metadata: {name: api}
spec: {selector: {app: chat}}
---
kind: HTTPRoute
metadata: {name: door}
spec: {rules: [{backendRefs: [{name: api, port: 80}]}]}
"""
    text = SCALED + workload("{name: x, image: vllm/vllm-openai}") + outside
    (found,) = [one for one in found_in(text) if one.rule == "LLM010"]
    assert found.severity is Severity.ERROR
    assert "HTTPRoute/door" in found.message
    (other,) = [one for one in found_in(text.replace("name: api, port", "name: web, port")) if one.rule == "LLM010"]
    assert other.severity is Severity.WARNING


@pytest.mark.parametrize(
    ("annotation", "given_seconds", "text"),
    [
        ("{llm-cost/cold-start: 90s}", None, "llm-cost/cold-start: 90 s"),
        ("{llm-cost/cold-start: 90s}", 700.0, "--cold-start: 700 s"),
        ("{llm-cost/cold-start: soon}", None, "what the startupProbe allows: 620 s"),
    ],
)
def test_the_cold_start_is_from_the_best_source(annotation: str, given_seconds: float | None, text: str):
    container = "{name: x, image: vllm/vllm-openai, startupProbe: {initialDelaySeconds: 20, failureThreshold: 60}}"
    scaled = SCALED.replace("  fallback:", "  cooldownPeriod: 30\n  fallback:")
    facts = Facts(cold_start_seconds=given_seconds)
    (found,) = [one for one in found_in(scaled + workload(container, annotation), facts) if one.rule == "LLM051"]
    assert text in found.message


def test_objects_of_other_namespaces_are_strangers():
    other = workload("{name: x, image: web}").replace("name: chat, ann", "name: chat, namespace: b, ann")
    here = SCALED.replace("{name: chat}\nspec", "{name: chat, namespace: a}\nspec")
    assert {one.severity for one in found_in(here + other) if one.rule == "LLM001"} == {Severity.WARNING}
    assert "LLM001" not in rules(SCALED + other)


def test_an_object_without_anything_in_it_is_no_crash():
    for kind in ("ScaledObject", "HorizontalPodAutoscaler", "Deployment", "StatefulSet"):
        for spec in ("", "spec:", "spec: 3", "spec: []", "spec: {triggers: 1, metrics: x, template: []}"):
            found_in(f"kind: {kind}\nmetadata:\n{spec}\n")


WORDS = (
    "kind metadata name spec scaleTargetRef minReplicaCount maxReplicas triggers type metadata query threshold metrics"
    " external target template containers image fallback behavior scaleDown resources limits replicas items"
    " ScaledObject HorizontalPodAutoscaler Deployment List prometheus cpu sum(a) 1e999999 -1 25%"
)
NAMES = st.sampled_from(WORDS.split())
TREES = st.recursive(
    NAMES | st.none() | st.text(max_size=8) | st.integers() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=25,
)
KINDS = st.sampled_from(["ScaledObject", "HorizontalPodAutoscaler", "Deployment", "List", "Service", "Ingress"])


@given(st.lists(st.tuples(KINDS, TREES), min_size=1, max_size=3))
def test_any_tree_has_findings_or_none(trees: list[tuple[str, object]]):
    texts = [yaml.safe_dump({"kind": kind, "spec": tree, "items": tree}, allow_unicode=True) for kind, tree in trees]
    for one in found_in("---\n".join(texts)):
        assert one.rule in RULES
        assert one.line >= 1


@given(st.text(alphabet="a: -[]{}&*<#|>\"'\n\t!%@`,?") | st.text())
def test_any_text_is_read_or_refused_in_one_line(text: str):
    said = ""
    try:
        found_in(text)
    except UnusableError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1


# files


def test_lines_are_those_of_the_file():
    text = "---\n\n---\na: 1\n---\nb:\n  - c: |\n      x\n      --- y\n    d: 2\n"
    first, second = nodes("x", text)
    assert first.line_of("a") == 4
    (item,) = second.items_at("b")
    assert (second.line_of("b"), item.line, item.line_of("d")) == (6, 7, 10)
    assert nodes("x", text.replace("\n", "\r\n").replace("\r\n", "\n"))[1].line_of("b") == 6


def test_a_merged_mapping_yields_to_its_own_keys():
    (node,) = nodes("x", "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc:\n  <<: [*a, *b]\n  x: 5\n")
    assert {key: child.text for key, child in node.fields["c"].fields.items()} == {"x": "5", "y": "2", "z": "4"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n\tb: 2\n", "x:2: not YAML: "),
        ("a: 1\n---\na: [1\n", "x:4: not YAML: "),
        ("a: \0", "x:1: not YAML: characters"),
        ("a: {{ .Values.x }}\n", "x:1: not YAML: a Helm template is left in it"),
        ('a: 1\nb: "{{ .Values.x }}"\n', "x:2: not YAML: a Helm template is left in it"),
        ("a: {{ image }}\n", "x:1: not YAML: a Helm template is left in it"),
        ("? [a]\n: b\n", "x:1: not YAML: a key that is not a name"),
        ("a: &a [*a]\n", "x:1: expected at most 64 levels, found more"),
        ("[" * 20000, "x:1: not YAML: nested too deep"),
        ("a: *b\n", "x:1: not YAML: found undefined alias"),
    ],
)
def test_what_is_not_yaml_is_said_in_one_line(text: str, message: str):
    with pytest.raises(UnusableError) as caught:
        nodes("x", text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_alias_bomb_is_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{place}: &a{place} [{', '.join([f'*a{place - 1}'] * 10)}]" for place in range(1, 12)]
    with pytest.raises(UnusableError, match="expected at most 200000 values"):
        nodes("x", "\n".join(lines))


def test_standard_input_is_a_file_like_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfa: 1\r\n")))
    assert text_of("-") == "a: 1\n"


def test_a_comment_speaks_of_its_line_or_of_the_next():
    first = "a: 1  # llm-cost: allow LLM001, LLM002 since nobody waits\n"
    text = f"{first}# llm-cost: allow LLM003\n# so\nb: 2\n# llm-cost: allow"
    assert list(comments(text)) == [(1, ["LLM001", "LLM002"]), (4, ["LLM003"]), (5, [])]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500m", "0.500"),
        ("2k", "2000"),
        ("1Ki", "1024"),
        ("-3", "-3"),
        ("1e3", "1E+3"),
        ("x", None),
        ("1e999999", None),
    ],
)
def test_a_quantity_is_a_number(text: str, number: str | None):
    found = Node(text, 1).number
    assert (None if found is None else str(found)) == number


def test_an_object_is_called_as_kubectl_calls_it():
    (node,) = nodes("x", "kind: Deployment\nmetadata: {generateName: chat-}\n")
    assert Document("x", node).title == "Deployment/chat-"
