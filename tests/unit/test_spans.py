"""Spans of calls to models: which count, what they used, in JSON and in protobuf, and how OTLP is answered."""

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message

from exporter.config.model import TracesUsage
from exporter.core import otlp
from exporter.core.calls import Call
from exporter.core.refused import RefusedError
from exporter.core.spans import READ, Span, call_of, wanted
from tests.captured import as_json, spans
from tests.integration.test_records_http import field

NAMED = TracesUsage()
ALL = READ.union(NAMED.feature, NAMED.team)
AT_NS = 1_795_666_039_000_000_000
CHAT: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "llama",
    "gen_ai.usage.input_tokens": 10,
    "gen_ai.usage.output_tokens": 5,
}


def span(id: str = "00f067aa0ba902b7", parent: str = "", kind: int = 3, /, **resource: Any) -> Span:
    return Span(id, parent, kind, AT_NS, CHAT, resource)


def said(**more: Any) -> Span:
    attributes = {**CHAT, **{key.replace("__", "."): value for key, value in more.items()}}
    return span()._replace(attributes={key: value for key, value in attributes.items() if value is not None})


def called(one: Span, named: TracesUsage = NAMED) -> Call:
    call = call_of(one, named)
    assert call is not None
    return call


def test_a_batch_of_a_real_one_says_the_same_in_protobuf_and_in_json():
    request = spans(AT_NS / 1e9)
    found = otlp.spans_of_protobuf(request.SerializeToString(), ALL)
    assert otlp.spans_of_json(json.dumps(as_json(request)).encode(), ALL) == found
    assert len(found) == 6
    numbers, chosen = zip(*wanted(found), strict=True)
    calls = [call_of(one, NAMED) for one in chosen]
    assert numbers == (1, 2, 3, 4, 5)
    assert calls[4] is None, "it failed"
    tokens = [(call.input_tokens, call.output_tokens) for call in calls if call]
    assert tokens == [(4, 5), (4, 5), (4, 5), (2, 5)]
    assert {(call.feature, call.team, call.models, call.providers) for call in calls if call} == {
        ("docs-app", None, ("tiny",), ("openai",))
    }
    assert [call.id for call in calls if call] == [one.id for one in found[:4]]


def test_cached_and_reasoning_tokens_are_parts_and_never_added():
    call = called(said(gen_ai__usage__cache_read__input_tokens=4, gen_ai__usage__reasoning__output_tokens=3))
    assert (call.input_tokens, call.cached_input_tokens, call.output_tokens) == (10, 4, 5)


def test_older_names_are_understood():
    old = {"gen_ai.system": "az.ai.openai", "gen_ai.usage.prompt_tokens": 7, "gen_ai.usage.completion_tokens": 2}
    call = called(span()._replace(attributes={**old, "gen_ai.request.model": "m", "gen_ai.response.model": "m-2024"}))
    assert (call.input_tokens, call.output_tokens, call.providers) == (7, 2, ("az.ai.openai", "azure"))
    assert call.models == ("m-2024", "m")
    assert list(wanted([span()._replace(attributes=old)]))


def test_what_was_asked_is_an_address():
    """Some write the port as a double, and leave out that of http as well as that of https."""
    for port in (8000, 8000.0):
        assert called(said(server__address="Engine", server__port=port)).addresses == ("engine:8000",)
    assert called(said(server__address="api.openai.com")).addresses == ("api.openai.com:443", "api.openai.com:80")
    assert called(said()).addresses == ()


def test_features_and_teams_are_of_the_span_or_else_of_its_resource():
    named = TracesUsage(feature=("llm.feature", "service.name"), team=("llm.team",), default_feature="nobody")
    of_both = span()._replace(
        attributes={**CHAT, "llm.feature": "search"}, resource={"llm.feature": "app", "llm.team": "docs"}
    )
    assert (called(of_both, named).feature, called(of_both, named).team) == ("search", "docs")
    assert called(of_both._replace(attributes=CHAT), named).feature == "app"
    assert called(of_both._replace(attributes=CHAT, resource={"service.name": 7}), named).feature == "7"
    assert called(said(), named).feature == "nobody"


def test_spans_of_servers_tools_and_agents_are_left_out():
    tool = said(gen_ai__operation__name="execute_tool")
    agent = said(gen_ai__operation__name="invoke_agent")
    nothing = span()._replace(attributes={})
    assert list(wanted([span("a", "", 2), tool, agent, nothing, span("b", "", 1)])) == [(5, span("b", "", 1))]


def test_of_two_spans_around_one_call_the_inner_one_counts_also_below_others():
    outer, between, inner, other = span("a"), span("m", "a")._replace(attributes={}), span("b", "m"), span("c", "x")
    chosen = list(wanted([inner, outer, between, other]))
    assert [(number, one.id if one else None) for number, one in chosen] == [(1, "b"), (2, None), (4, "c")]
    assert call_of(None, NAMED) is None, "which is counted as skipped"


@pytest.mark.parametrize("operation", ["execute_tool", "invoke_agent", "create_agent"])
def test_a_call_that_a_tool_makes_is_none_of_the_model_that_called_the_tool(operation: str):
    outer, inner = span("a"), span("c", "b")
    between = span("b", "a")._replace(attributes={"gen_ai.operation.name": operation})
    assert [one.id for _, one in wanted([outer, between, inner]) if one] == ["a", "c"]


def test_a_span_around_another_operation_or_around_one_that_knows_less_counts():
    outer = span("a")
    embedding = span("b", "a")._replace(attributes={**CHAT, "gen_ai.operation.name": "embeddings"})
    stream = span("c", "a")._replace(attributes={"gen_ai.operation.name": "chat", "gen_ai.request.model": "llama"})
    assert [one.id for _, one in wanted([outer, embedding, stream]) if one] == ["a", "b", "c"]


def test_spans_that_are_their_own_parent_or_go_round_are_not_lost():
    around = [span("", ""), span("a", "a"), span("b", "c"), span("c", "b")]
    assert [one.id for _, one in wanted(around) if one] == ["", "a", "b", "c"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"gen_ai__usage__input_tokens": None, "gen_ai__usage__output_tokens": None},
         "gen_ai.usage.input_tokens: expected tokens, found none: a stream tells them if it is asked to"),
        ({"gen_ai__usage__input_tokens": None}, "gen_ai.usage.input_tokens: expected tokens, found none"),
        ({"gen_ai__usage__output_tokens": None}, "gen_ai.usage.output_tokens: expected tokens, found none"),
        ({"gen_ai__usage__input_tokens": "10"}, "gen_ai.usage.input_tokens: expected an integer from 0 to 10000000, "),
        ({"gen_ai__usage__output_tokens": -1}, "gen_ai.usage.output_tokens: expected an integer from 0 to 10000000, "),
        ({"gen_ai__usage__output_tokens": True}, "gen_ai.usage.output_tokens: expected an integer from 0 to 10000000,"),
        ({"gen_ai__request__model": None}, "gen_ai.request.model: expected a model, found none"),
    ],
)  # fmt: skip
def test_what_cannot_be_booked_is_told(more: dict[str, Any], why: str):
    with pytest.raises(ValueError, match="expected") as error:
        call_of(said(**more), NAMED)
    assert str(error.value).startswith(why)


def test_an_embedding_has_no_output():
    call = called(said(gen_ai__operation__name="embeddings", gen_ai__usage__output_tokens=None))
    assert (call.input_tokens, call.output_tokens) == (10, 0)


@pytest.mark.parametrize("end", [-1, -(10**400), 2**63, 10**400])
def test_an_end_that_is_no_time_is_told(end: int):
    with pytest.raises(ValueError, match="endTimeUnixNano: expected Unix nanoseconds, found"):
        call_of(span()._replace(end_unix_ns=end), NAMED)


def test_a_call_that_failed_without_usage_is_passed_over_and_one_with_usage_is_not():
    failed = {"error__type": "Timeout"}
    assert called(said(**failed)).input_tokens == 10
    without = {"gen_ai__usage__input_tokens": None, "gen_ai__usage__output_tokens": None}
    assert call_of(said(**failed, **without), NAMED) is None


@pytest.mark.parametrize("id", ["", "0000000000000000"])
def test_a_span_without_an_id_is_refused(id: str):
    """Also beside one without a parent: it was taken for that parent, and skipped."""
    assert [one for _, one in wanted([span(id), span("b", id), span("c")])] == [span(id), span("b", id), span("c")]
    with pytest.raises(ValueError, match="spanId: expected an id, found none"):
        call_of(span(id), NAMED)


def test_json_may_write_numbers_as_texts_and_kinds_as_names_and_leave_all_out():
    value = {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "12"}}
    one = {
        "spanId": "00F067AA0BA902B7",
        "kind": "SPAN_KIND_SERVER",
        "endTimeUnixNano": str(AT_NS),
        "attributes": [value],
    }
    (found,) = otlp.spans_of_json(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]}).encode(), ALL)
    assert found == Span("00f067aa0ba902b7", "", 2, AT_NS, {"gen_ai.usage.input_tokens": 12}, {})
    for empty in ("{}", '{"resourceSpans": null}', '{"resourceSpans": [{"scopeSpans": [{"spans": [{}]}]}]}'):
        assert [one for _, one in wanted(otlp.spans_of_json(empty.encode(), ALL))] == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"resourceSpans": 1}', b"\xff", b"[" * 10_000])
def test_what_is_no_request_in_json_is_told(body: bytes):
    with pytest.raises(RefusedError, match="expected an ExportTraceServiceRequest in JSON, found "):
        otlp.spans_of_json(body, ALL)


def test_what_is_no_request_in_protobuf_is_told():
    with pytest.raises(RefusedError, match="expected an ExportTraceServiceRequest in protobuf, found something else"):
        otlp.spans_of_protobuf(b"\xff\xff", ALL)
    assert otlp.spans_of_protobuf(b"", ALL) == []


SCALARS = st.one_of(
    st.builds(AnyValue, string_value=st.text(max_size=20)),
    st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1)),
    st.builds(AnyValue, double_value=st.floats(allow_nan=False)),
    st.builds(AnyValue, bool_value=st.booleans()),
)
LISTS = st.builds(lambda values: AnyValue(array_value=ArrayValue(values=values)), st.lists(SCALARS, max_size=2))
ATTRIBUTES = st.dictionaries(
    st.sampled_from((*sorted(ALL), "of.another.kind")), SCALARS | LISTS | st.just(AnyValue()), max_size=4
)


def as_written(attributes: dict[str, AnyValue]) -> list[KeyValue]:
    return [KeyValue(key=key, value=value) for key, value in attributes.items()]


def as_read(attributes: dict[str, AnyValue]) -> dict[str, Any]:
    kinds = {key: value.WhichOneof("value") for key, value in attributes.items()}
    return {
        key: getattr(attributes[key], kind)
        for key, kind in kinds.items()
        if key in ALL and kind not in (None, "array_value")
    }


@given(
    id=st.binary(max_size=8), parent=st.binary(max_size=8), kind=st.integers(0, 5), end=st.integers(0, 2**64 - 1),
    of_span=ATTRIBUTES, of_resource=ATTRIBUTES,
)  # fmt: skip
def test_a_span_is_read_as_the_library_of_otlp_writes_it(
    id: bytes, parent: bytes, kind: Any, end: int, of_span: dict[str, AnyValue], of_resource: dict[str, AnyValue]
):
    one = Message(
        trace_id=b"t" * 16, span_id=id, parent_span_id=parent, kind=kind, name="chat llama", start_time_unix_nano=7,
        end_time_unix_nano=end, attributes=as_written(of_span), events=[Message.Event(name="said")],
        links=[Message.Link(span_id=b"l")],
    )  # fmt: skip
    group = ResourceSpans(
        resource=Resource(attributes=as_written(of_resource)), scope_spans=[ScopeSpans(spans=[one, one]), ScopeSpans()]
    )
    body = ExportTraceServiceRequest(resource_spans=[ResourceSpans(), group]).SerializeToString()
    read = Span(id.hex(), parent.hex(), kind, end, as_read(of_span), as_read(of_resource))
    assert otlp.spans_of_protobuf(body, ALL) == [read, read]


def test_a_resource_in_pieces_is_one():
    first, second = (Resource(attributes=as_written({key: AnyValue(string_value="x")})) for key in sorted(ALL)[:2])
    group = ResourceSpans(scope_spans=[ScopeSpans(spans=[Message(span_id=b"12345678")])])
    pieces = [ResourceSpans(resource=one).SerializeToString() for one in (first, second)]
    (read,) = otlp.spans_of_protobuf(field(1, pieces[0] + group.SerializeToString() + pieces[1]), ALL)
    assert read.resource == dict.fromkeys(sorted(ALL)[:2], "x")


@pytest.mark.parametrize(
    "body",
    [
        "field(1, field(2, bytes((0x12, 0)) * 2**21))",  # spans
        "field(1, bytes((0x12, 0)) * 2**21)",  # scopes
        "field(1, bytes((0x0A, 0)) * 2**21)",  # pieces of a resource
        "field(1, field(1, bytes((0x0A, 0)) * 2**21))",  # attributes of it
        "field(1, field(2, field(2, bytes((0x4A, 0)) * 2**21)))",  # attributes of a span
        "field(1, bytes((0x12, 0)) * 300) * 7000",  # scopes of many groups
    ],
)
def test_many_small_messages_take_no_hundred_times_their_size(body: str):
    """4 MiB of empty spans took 354 MiB, and an exporter of 256 MiB with it."""
    program = f"""
import resource
from exporter.core import otlp, refused
from tests.integration.test_records_http import field
otlp.spans_of_protobuf(b"", ())
most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
body = {body}
before = most()
try:
    otlp.spans_of_protobuf(body, ())
except refused.TooManyError:
    print((most() - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 128


def test_protobuf_without_its_c_library_refuses_the_same():
    """It raises other errors for what is no text, which were a 500."""
    program = """
import random
from google.protobuf.internal import api_implementation
from exporter.core import otlp, refused
from tests.captured import spans
from tests.integration.test_records_http import broken
assert api_implementation.Type() == "python"
chance, body, found = random.Random(7), spans(1e9).SerializeToString(), []
for _ in range(1500):
    try:
        found.append(len(otlp.spans_of_protobuf(broken(body, chance), ())))
    except refused.RefusedError:
        found.append(-1)
print(max(found), min(found))
"""
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout, done.stderr) == ("6 -1\n", "")


def test_without_the_extra_protobuf_cannot_be_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "google.protobuf.message", None)
    with pytest.raises(otlp.MissingExtraError):
        otlp.spans_of_protobuf(b"", ALL)


@given(refused=st.integers(0, 2**31), message=st.text(max_size=300))
def test_answers_are_what_the_library_of_otlp_reads(refused: int, message: str):
    told = ExportTraceServiceResponse.FromString(otlp.answer(otlp.PROTOBUF, refused, message))
    assert told.partial_success.rejected_spans == refused
    assert told.partial_success.error_message == (message if refused else "")
    in_json = json.loads(otlp.answer(otlp.JSON, refused, message))
    assert in_json == ({"partialSuccess": {"rejectedSpans": str(refused), "errorMessage": message}} if refused else {})


def test_a_status_is_what_googles_library_reads():
    assert otlp.status(otlp.PROTOBUF, "no") == b"\x12\x02no"
    # A status has its text in field 2, as the message of a partial success has.
    again = ExportTraceServiceResponse.FromString(
        b"\x0a" + bytes([len(long := otlp.status(otlp.PROTOBUF, "é" * 20))]) + long
    )
    assert again.partial_success.error_message == "é" * 20
    assert json.loads(otlp.status(otlp.JSON, "no")) == {"message": "no"}


@given(st.binary(max_size=200))
def test_any_bytes_are_spans_or_are_refused(body: bytes):
    for read in (otlp.spans_of_json, otlp.spans_of_protobuf):
        with contextlib.suppress(RefusedError):
            list(wanted(read(body, ALL)))
