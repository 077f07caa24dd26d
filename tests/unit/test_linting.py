"""The linter's rules on a folder of manifests, and what it joins."""

import io
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from exporter.cli.lint_files import UnusableError, comments, nodes, text_of
from exporter.config.model import Engine, Workload
from exporter.core import linting
from exporter.core.linting import RULES, Facts, Family, Finding, Node, Severity, promql
from exporter.core.linting.documents import Document
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


# queries


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
        (
            "prometheus",
            "histogram_quantile(0.9, sum by (le) (rate(vllm:e2e_request_latency_seconds_bucket[2m])))",
            False,
        ),
        ("prometheus", "max(recorded:ttft:p95)", False),
        ("prometheus", "sum(rate(vllm:time_to_first_token_seconds_count[2m]))", True),
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


KEEP_ALIVE = "sum(rate(vllm:num_incoming_requests_total[1m]) > bool 0)"


@pytest.mark.parametrize(
    ("beside", "keep_alive", "found"),
    [
        ("sum(vllm:num_requests_waiting)", KEEP_ALIVE, set()),
        ("sum(vllm:num_requests_waiting)", f"({KEEP_ALIVE}) or vector(0)", set()),
        ("max(vllm:kv_cache_usage_perc)", KEEP_ALIVE, {"LLM002"}),
        ("sum(vllm:num_requests_waiting)", "sum(rate(vllm:num_incoming_requests_total[1m]))", {"LLM002"}),
        ("sum(vllm:num_requests_waiting)", f"sum(rate(http_requests_total[1m])) * {KEEP_ALIVE}", {"LLM002"}),
        ("sum(vllm:num_requests_waiting)", "sum(rate(vllm:request_success_total[1m]) > bool 0)", {"LLM014"}),
    ],
)
def test_the_router_stays_at_zero_and_a_switch_is_no_request_count(beside: str, keep_alive: str, found: set[str]):
    switch = f"    - type: prometheus\n      metadata: {{query: '{keep_alive}'}}\n"
    assert rules(triggered(beside) + switch) & {"LLM002", "LLM014", "LLM032", "LLM033"} == found


@pytest.mark.parametrize(
    ("query", "misused"),
    [
        ("sum(celery_queue_message_count)", False),
        ("sum(kafka_consumergroup_lag_sum)", False),
        ("sum(vllm:healthy_pods_total)", False),
        ("sum(nv_inference_pending_request_count)", False),
        ("sum(rate(vllm:healthy_pods_total[1m]))", True),
        ("sum(http_server_duration_seconds_count)", True),
        ("sum(some_bucket)", True),
        ("sum(nv_inference_request_success)", True),
        ("sum(tgi_request_count)", True),
        ("sum(some_total)", True),
        ("sum(vllm:request_errors_total)", True),
    ],
)
def test_a_counter_is_known_by_its_name(query: str, misused: bool):
    assert ("LLM033" in rules(triggered(query))) is misused


@pytest.mark.parametrize(
    ("query", "multiplied"),
    [
        ("sum(vllm:num_requests_waiting)", True),
        ("vllm:num_requests_running", True),
        ("(clamp_max((count(llmcost_source_up == 1) or vector(0)) * max(a), scalar(min(b))) >= 0) or (sum(a))", True),
        ("sum(a) / count(a)", False),
        ("max(recorded:ttft:p95)", False),
        (KEEP_ALIVE, False),
        ("vector(0)", False),
    ],
)
def test_a_total_is_not_multiplied_by_replicas(query: str, multiplied: bool):
    text = triggered(query).replace("prometheus\n", "prometheus\n      metricType: Value\n")
    found = [one for one in found_in(text) if one.rule == "LLM042"]
    assert [(one.line, "AverageValue" in one.message) for one in found] == [(5, True)] * multiplied
    if multiplied:
        assert "LLM042" not in rules(text.replace("Value", "AverageValue"))


@pytest.mark.parametrize(
    ("kind", "name", "multiplied"),
    [
        ("External", "vllm:num_requests_running", True),
        ("Object", "requests-per-second", True),
        ("External", "llm_requests_per_replica", False),
        ("External", "llm_ttft_p95", False),
        ("Pods", "vllm_num_requests_waiting", False),
    ],
)
def test_an_hpa_is_asked_for_the_mean_of_a_total(kind: str, name: str, multiplied: bool):
    metric = f"{{metric: {{name: '{name}'}}, target: {{type: Value, value: 8}}}}"
    text = f"kind: HorizontalPodAutoscaler\nspec: {{metrics: [{{type: {kind}, {kind.lower()}: {metric}}}]}}\n"
    assert ("LLM042" in rules(text)) is multiplied


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


@pytest.mark.parametrize(
    ("container", "runtime", "has_gpu"),
    [
        ("{name: x, image: ollama/ollama}", "nvidia", True),
        ("{name: x, image: ollama/ollama}", "gvisor", False),
        ("{name: x, image: some/gpu-exporter}", "nvidia", False),
    ],
)
def test_a_pod_of_the_gpus_runtime_has_one(container: str, runtime: str, has_gpu: bool):
    pod = f"      runtimeClassName: {runtime}\n      containers: "
    found = rules(SCALED + workload(container).replace("      containers: ", pod))
    assert ("LLM001" in found) is has_gpu
    assert ("LLM072" in found) is has_gpu


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
