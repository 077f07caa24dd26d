"""LiteLLM's records and OpenTelemetry's spans over HTTP: each call is booked once, and what is bad is named.

What is posted was captured from a real LiteLLM and a real SDK; the desk, the books and the ledger are the exporter's.
"""

import gzip
import io
import json
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from exporter.config.model import Engine, LitellmUsage, TokenFile, TracesUsage, Usage
from exporter.config.prices import ApiModel, ApiPrices
from exporter.core.api_prices import configured
from exporter.core.attribution import Claim
from exporter.core.directory import Directory
from exporter.core.money import Account, Kind
from exporter.core.usage import Rules
from tests.captured import as_json, litellm_records, spans
from tests.fakes import FakeClock
from tests.integration.test_usage_http import Reply, Stage, event, lines, staged
from tests.ledgers import saved

NOW = FakeClock().now().unix_seconds
PROTOBUF, JSON = "application/x-protobuf", "application/json"
STATUSES = {200, 202, 400, 413, 415}


def the_rules(rules: Rules) -> Rules:
    """An engine at the address that was asked, and one model of an API with a price."""
    tiny = Engine(name="tiny", url="http://127.0.0.1:8811", models=("tiny",), tier="fast")
    mini = ApiModel(
        model="gpt-4o-mini",
        provider="openai",
        input_usd_per_million=Decimal("0.15"),
        output_usd_per_million=Decimal("0.50"),
    )
    usage = Usage(litellm=LitellmUsage(features={"other": "rest"}))  # a key's name that is a label of ours
    return replace(rules, directory=Directory([tiny], {}, configured(ApiPrices(models=(mini,)))), usage=usage)


@asynccontextmanager
async def taking(folder: Path, **limits: int) -> AsyncIterator[Stage]:
    async with staged(folder, **limits) as stage:
        assert stage.rules is not None
        stage.rules = the_rules(stage.rules)
        yield stage


async def post(stage: Stage, path: str, body: bytes, **headers: str) -> Reply:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    url = f"{stage.url.removesuffix('/v1/usage')}{path}"
    async with stage.session.post(url, data=io.BytesIO(body), headers=named) as reply:
        return Reply(reply.status, dict(reply.headers), await reply.read())


def field(number: int, content: bytes) -> bytes:
    """A message in a field of another, as protobuf writes it."""
    size, length = len(content), b""
    while size > 127:
        size, length = size >> 7, length + bytes([size & 127 | 128])
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


async def litellm(stage: Stage, records: list[dict[str, Any]]) -> Reply:
    return await post(stage, "/v1/usage/litellm", json.dumps(records).encode())


async def traces(stage: Stage, body: bytes, media: str = PROTOBUF, **headers: str) -> Reply:
    return await post(stage, "/v1/traces", body, Content_Type=media, **headers)


def answer(reply: Reply) -> ExportTraceServiceResponse:
    assert (reply.status, reply.headers["Content-Type"]) == (200, PROTOBUF)
    return ExportTraceServiceResponse.FromString(reply.body)


# LiteLLM


async def test_each_call_of_a_batch_is_booked_once_and_its_retry_never(tmp_path: Path):
    async with taking(tmp_path) as stage:
        said = {"accepted": 8, "duplicates": 0, "skipped": 4}
        assert (reply := await litellm(stage, litellm_records(NOW))).status == 202
        assert reply.json == said
        again = await litellm(stage, litellm_records(NOW))
        assert again.json == {"accepted": 0, "duplicates": 8, "skipped": 4}
        assert await stage.results() == {"accepted": 8, "duplicate": 8, "skipped": 8}
        found = saved(tmp_path)
    claims = {claimant: claim for (_, claimant), claim in found.claims.items()}
    assert claims == {
        ("summary", "docs"): Claim(17 + 3 + 4 + 17 + 235 + 236, 128, 8 + 4 + 5 + 5 + 3 + 3),
        ("digest", "docs"): Claim(13, 0, 4),
    }
    assert found.totals[Account(Kind.SPEND, ("api", "", "gpt-4o-mini", ""))] == 10 * 150 + 20 * 500
    assert found.totals[Account(Kind.ATTRIBUTED, ("rest", "docs", "", "gpt-4o-mini", ""))] == 10 * 150 + 20 * 500


async def test_litellms_own_figure_is_shown_beside_ours_and_never_booked(tmp_path: Path):
    records = [one for one in litellm_records(NOW) if one["custom_llm_provider"] == "openai"]
    unknown = {**records[0], "litellm_call_id": "2", "model": "openai/o9", "model_group": "o9", "response_cost": 0.25}
    async with taking(tmp_path) as stage:
        assert (await litellm(stage, [*records, unknown])).json["accepted"] == 2
        ours = 10 * 150 + 20 * 500
        assert stage.total(Kind.GATEWAY_SPEND, "gpt-4o-mini") == 13_500
        assert stage.total(Kind.GATEWAY_BOOKED, "gpt-4o-mini") == ours
        assert (stage.total(Kind.GATEWAY_SPEND, "other"), stage.total(Kind.GATEWAY_BOOKED, "other")) == (250_000_000, 0)
        assert sum(stage.books.totals()[Kind.SPEND].values()) == ours
        assert stage.total(Kind.UNPRICED_TOKENS, "other") == 30


async def test_what_an_engine_did_has_no_figure_of_litellm(tmp_path: Path):
    of_engines = [one for one in litellm_records(NOW) if one["custom_llm_provider"] != "openai" and one["total_tokens"]]
    records = [dict(one, response_cost=1.0) for one in of_engines]
    async with taking(tmp_path) as stage:
        assert (await litellm(stage, records)).json["accepted"] == 7
        assert not stage.books.totals()[Kind.GATEWAY_SPEND]


async def test_good_records_are_booked_and_bad_ones_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    records = litellm_records(NOW)
    records[0]["prompt_tokens"] = -1
    records[5]["endTime"] -= 100_000
    records[7]["custom_llm_provider"], records[7]["model"] = "nobody", "m" * 300
    async with taking(tmp_path) as stage:
        reply = await litellm(stage, records)
        assert reply.status == 202
        assert reply.json == {
            "accepted": 5,
            "duplicates": 0,
            "skipped": 4,
            "rejected": 3,
            "errors": [
                {"record": 1, "error": "prompt_tokens: expected an integer from 0 to 10000000, found -1"},
                {"record": 6, "error": reply.json["errors"][1]["error"]},
                {"record": 8, "error": reply.json["errors"][2]["error"]},
            ],
        }
        assert "expected a time within the last 24 hours" in reply.json["errors"][1]["error"]
        assert "model: expected a name of 1 to 128" in reply.json["errors"][2]["error"]
        assert await stage.results() == {"accepted": 5, "rejected": 3, "skipped": 4}
    line = "LiteLLM: 3 of 12 records are not booked: record 1: prompt_tokens: expected an integer from 0 to 10000000"
    assert [one.getMessage().startswith(line) for one in caplog.records if one.levelno >= logging.WARNING] == [True]


async def test_a_call_that_says_otherwise_than_before_is_named_and_the_others_are_booked(tmp_path: Path):
    records = litellm_records(NOW)
    changed = dict(records[0], completion_tokens=9)
    async with taking(tmp_path) as stage:
        await litellm(stage, records[:1])
        reply = await litellm(stage, [changed, *records[1:]])
        assert (reply.status, reply.json["accepted"], reply.json["rejected"]) == (202, 7, 1)
        assert reply.json["errors"][0]["error"].startswith("id: expected what this id, model and tier stood for before")
        assert await stage.results() == {"accepted": 8, "conflict": 1, "skipped": 4}


async def test_a_retry_of_a_call_that_does_not_say_when_it_ended_counts_nothing(tmp_path: Path):
    """It was taken for another call, since the second in which it came stood for its end."""
    record = dict(litellm_records(NOW)[0], endTime=None)
    async with taking(tmp_path) as stage:
        await litellm(stage, [record])
        stage.clock.advance(5)
        assert (await litellm(stage, [record])).json == {"accepted": 0, "duplicates": 1, "skipped": 0}


async def test_where_all_are_bad_litellm_is_told_so(tmp_path: Path):
    async with taking(tmp_path) as stage:
        reply = await litellm(stage, [{"status": "success"}, {}])
        assert (reply.status, reply.json["rejected"], len(reply.json["errors"])) == (400, 2, 2)
        assert reply.error.startswith("record 1: expected a record of LiteLLM, found Object missing required field")
        assert (await litellm(stage, [])).json == {"accepted": 0, "duplicates": 0, "skipped": 0}
        assert (await post(stage, "/v1/usage/litellm", b"[{]")).error.startswith("expected an array of events, found")


async def test_names_may_be_given_in_the_config_and_a_token_may_be_a_teams(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("secret-of-docs")
    async with taking(tmp_path / "data") as stage:
        places = LitellmUsage(feature=("key_alias",), features={"summary": "document_summary"}, teams={"docs": "Docs"})
        assert stage.rules is not None
        stage.rules = replace(stage.rules, usage=Usage(litellm=places))
        await litellm(stage, litellm_records(NOW)[:1])
        assert stage.total(Kind.FEATURE_REQUESTS, "document_summary", "Docs", "tiny", "fast") == 1
        stage.tokens.adopt(Usage(tokens=(TokenFile(file=str(token), team="search"),)))
        body = json.dumps(litellm_records(NOW)[2:3]).encode()
        assert (await post(stage, "/v1/usage/litellm", body)).status == 401
        reply = await post(stage, "/v1/usage/litellm", body, Authorization="Bearer secret-of-docs")
        assert (reply.status, reply.json["rejected"]) == (400, 1)
        assert reply.error == 'record 1: team: expected "search", the token\'s, found "Docs"'


async def test_a_batch_may_be_larger_than_a_body_of_events(tmp_path: Path):
    records = [dict(one, litellm_call_id=str(number)) for number in range(250) for one in litellm_records(NOW)[:1]]
    async with taking(tmp_path) as stage:
        assert len(json.dumps(records)) > 2**20
        assert (await litellm(stage, records)).json["accepted"] == 250
        assert stage.rules is not None
        stage.rules = replace(stage.rules, limits=replace_limits(stage, 2**20))
        reply = await litellm(stage, records)
        assert (reply.status, reply.error) == (413, "expected at most 1048576 bytes (limits.batch_bytes), found more")


def replace_limits(stage: Stage, batch_bytes: int) -> Any:
    assert stage.rules is not None
    return type(stage.rules.limits)(batch_bytes=batch_bytes)


# OpenTelemetry


@pytest.mark.parametrize("media", [PROTOBUF, JSON])
@pytest.mark.parametrize("zipped", [False, True])
async def test_each_span_of_a_call_is_booked_once_and_its_retry_never(tmp_path: Path, media: str, zipped: bool):
    request = spans(NOW)
    body = request.SerializeToString() if media == PROTOBUF else json.dumps(as_json(request)).encode()
    headers = {"Content_Encoding": "gzip"} if zipped else {}
    async with taking(tmp_path) as stage:
        for _ in range(2):
            reply = await traces(stage, gzip.compress(body) if zipped else body, media, **headers)
            assert (reply.status, reply.body) == (200, b"" if media == PROTOBUF else b"{}")
        assert await stage.results() == {"accepted": 4, "duplicate": 4, "skipped": 2}
        (claim,) = saved(tmp_path).claims.values()
        assert claim == Claim(4 + 4 + 4 + 2, 0, 20)
        assert stage.total(Kind.FEATURE_REQUESTS, "docs-app", "", "tiny", "fast") == 4


async def test_spans_and_their_twin_in_json_are_the_same_calls(tmp_path: Path):
    request = spans(NOW)
    async with taking(tmp_path) as stage:
        await traces(stage, request.SerializeToString())
        await traces(stage, json.dumps(as_json(request)).encode(), "application/json; charset=utf-8")
        assert await stage.results() == {"accepted": 4, "duplicate": 4, "skipped": 2}


async def test_spans_that_are_refused_are_a_partial_success(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    request = spans(NOW)
    first, second, *_ = request.resource_spans[0].scope_spans[0].spans
    for key in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"):
        (one,) = [attribute for attribute in first.attributes if attribute.key == key]
        first.attributes.remove(one)
    second.end_time_unix_nano += 120 * 10**9
    async with taking(tmp_path) as stage:
        told = answer(await traces(stage, request.SerializeToString())).partial_success
        assert told.rejected_spans == 2
        text = "record 1: gen_ai.usage.input_tokens: expected tokens, found none: a stream tells them if it is asked to"
        assert told.error_message == f"{text} (and 1 more)"
        assert await stage.results() == {"accepted": 2, "rejected": 2, "skipped": 1}
    assert "OpenTelemetry: 2 of 5 records are not booked: record 1" in caplog.text


async def test_the_feature_is_an_attribute_that_the_config_names(tmp_path: Path):
    async with taking(tmp_path) as stage:
        assert stage.rules is not None
        named = TracesUsage(
            feature=("openai.response.system_fingerprint",), team=("service.name",), default_feature="none"
        )
        stage.rules = replace(stage.rules, usage=Usage(traces=named))
        assert answer(await traces(stage, spans(NOW).SerializeToString())) == ExportTraceServiceResponse()
        shown = {labels[:2]: count for labels, count in stage.books.totals()[Kind.FEATURE_REQUESTS].items()}
        assert shown == {("vllm-0.32.0-50bc193d", "docs-app"): 3, ("none", "docs-app"): 1}


async def test_what_is_no_request_is_answered_as_otlp_has_it(tmp_path: Path):
    async with taking(tmp_path) as stage:
        reply = await traces(stage, b"\xff\xff")
        assert (reply.status, reply.headers["Content-Type"], reply.body[:1]) == (400, PROTOBUF, b"\x12")
        reply = await traces(stage, b"{", JSON)
        assert (reply.status, reply.headers["Content-Type"]) == (400, JSON)
        assert reply.json["message"].startswith("expected an ExportTraceServiceRequest in JSON, found ")
        reply = await traces(stage, b"", "text/plain")
        assert (reply.status, reply.json["message"]) == (
            415,
            "expected a Content-Type of application/x-protobuf or application/json, found 'text/plain'",
        )
        stage.rules = None
        reply = await traces(stage, b"{}", JSON)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")


async def test_an_event_a_record_and_a_span_are_three_calls(tmp_path: Path):
    """Nothing can tell that they are one: whoever posts a call in two forms pays for two."""
    request = spans(NOW)
    same = request.resource_spans[0].scope_spans[0].spans[0].span_id.hex()
    record = dict(litellm_records(NOW)[0], litellm_call_id="", id=same)
    async with taking(tmp_path) as stage:
        await stage.post(lines(event(same, model="tiny")))
        await litellm(stage, [record])
        await traces(stage, request.SerializeToString())
        assert await stage.results() == {"accepted": 6, "skipped": 1}


async def test_a_retry_is_the_same_call_also_when_the_config_has_changed(tmp_path: Path):
    """What a call is booked as depends on prices and models that are known; what names it does not."""
    records = [one for one in litellm_records(NOW) if one["custom_llm_provider"] == "openai"]
    async with taking(tmp_path) as stage:
        assert stage.rules is not None
        before = stage.rules
        stage.rules = replace(before, directory=Directory([], {}, {}), usage=Usage())
        assert (await litellm(stage, [*records, litellm_records(NOW)[0]])).json["accepted"] == 2
        stage.rules = before
        again = (await litellm(stage, [*records, litellm_records(NOW)[0]])).json
        assert (again["accepted"], again["duplicates"]) == (0, 2)


@pytest.mark.parametrize("name", ["other", "unattributed", "x" * 129, "two\nlines", " x", ""])
async def test_who_gives_a_feature_or_a_team_no_possible_name_pays_all_the_same(tmp_path: Path, name: str):
    """Any client could take what it spent at an API off the budgets, with one tag."""
    (record,) = (one for one in litellm_records(NOW) if one["custom_llm_provider"] == "openai")
    record |= {"request_tags": [f"feature:{name}"]}
    record["metadata"]["user_api_key_alias"] = record["metadata"]["user_api_key_team_alias"] = name
    request = spans(NOW)
    request.resource_spans[0].resource.attributes[0].key = "service.name"
    for attribute in request.resource_spans[0].resource.attributes:
        if attribute.key == "service.name":
            attribute.value.string_value = name
    async with taking(tmp_path) as stage:
        assert stage.rules is not None
        stage.rules = replace(stage.rules, usage=Usage())
        assert (await litellm(stage, [record])).json["accepted"] == 1
        assert answer(await traces(stage, request.SerializeToString())) == ExportTraceServiceResponse()
        features = {labels[:2] for labels, count in stage.books.totals()[Kind.FEATURE_REQUESTS].items() if count}
    team = name if name in ("other", "unattributed") else ""  # as in an event
    assert features == {("litellm", team), ("traces", "")}


async def test_calls_that_a_client_gives_one_id_are_several(tmp_path: Path):
    """LiteLLM takes its id of a call from a header; answers without one of their own, like embeddings, have that."""
    record = dict(litellm_records(NOW)[0], litellm_call_id="mine" * 100, id="mine" * 100)
    later = dict(record, endTime=record["endTime"] + 1)
    async with taking(tmp_path) as stage:
        assert (await litellm(stage, [record, later, record])).json["accepted"] == 2


# Sizes


MANY = 10_001
LITELLM, TRACES = "/v1/usage/litellm", "/v1/traces"


@pytest.mark.parametrize(
    ("path", "media", "body", "why"),
    [
        (LITELLM, JSON, b"0\n" * MANY, "10000 records"),
        (LITELLM, JSON, b"0" + b"\n" * MANY + b"0", "10000 records"),
        (LITELLM, JSON, b"[" + b"0," * MANY + b"0]", "10000 records"),
        (LITELLM, JSON, b"[" + b"," * 500_001, "500000 values"),
        (LITELLM, JSON, b"[" + b"[" * 900 + b"]" * 900 + b"," + b"[" * 500_001 + b"NaN]", "500000 values"),
        (TRACES, JSON, b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * MANY + b"{}]}]}]}", "10000 spans"),
        (TRACES, JSON, b"," * 500_001, "500000 values"),
        (TRACES, PROTOBUF, b"\x0a\x00" * MANY, "10000 groups of spans"),
        (TRACES, PROTOBUF, field(1, b"\x12\x00" * MANY), "10000 groups of spans"),
        (TRACES, PROTOBUF, field(1, field(2, b"\x12\x00" * MANY)), "10000 spans"),
        (TRACES, PROTOBUF, field(1, field(2, field(2, b"\x4a\x00" * 1001))), "1000 attributes of a span"),
    ],
)
async def test_a_body_has_only_so_much_in_it(tmp_path: Path, path: str, media: str, body: bytes, why: str):
    async with taking(tmp_path) as stage:
        reply = await post(stage, path, body, Content_Type=media)
        assert reply.status == 413
        assert f"expected at most {why} in a body, found more".encode() in reply.body
        assert (await stage.results())["rejected"] >= 1
        assert (await post(stage, LITELLM, b"\n" * 100_000)).json["accepted"] == 0


async def test_records_that_come_after_the_days_last_are_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with taking(tmp_path, events_per_day=2) as stage:
        reply = await litellm(stage, litellm_records(NOW))
        assert (reply.status, int(reply.headers["Retry-After"]) > 0) == (429, True)
        assert (await traces(stage, spans(NOW).SerializeToString())).status == 429
        assert await stage.results() == {"rejected": 12}
    assert "LiteLLM: a body is not booked: expected at most 2 events a day" in caplog.text
    assert "OpenTelemetry: a body is not booked: expected at most 2 events a day" in caplog.text


# Anything else


def broken(content: bytes, chance: random.Random) -> bytes:
    """Bytes that were changed here and there."""
    for _ in range(chance.choice((0, 1, 1, 2, 8))):
        start = chance.randrange(len(content) + 1)
        end = min(start + chance.choice((0, 1, 2, 40)), len(content))
        pieces = (b"", b"null", b"-", b"1e999", b"{", b'"', b"[", b"\xff", b"\x00", b"9" * 30, content[start:end] * 2)
        content = content[:start] + chance.choice(pieces) + content[end:]
    return content


@pytest.mark.parametrize("form", ["records", "spans", "spans in JSON"])
async def test_whatever_comes_is_booked_or_refused_in_words(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
):
    chance = random.Random(seed := 20_261_126)
    print(f"seed {seed}")
    bodies = {
        "records": json.dumps(litellm_records(NOW)[:3]).encode(),
        "spans": spans(NOW).SerializeToString(),
        "spans in JSON": json.dumps(as_json(spans(NOW))).encode(),
    }
    seen = set()
    async with taking(tmp_path) as stage:
        for number in range(1500):
            body = broken(bodies[form], chance)
            headers = {"Content_Encoding": "gzip"} if number % 4 == 0 else {}
            packed = gzip.compress(body, 1) if headers else body
            packed = packed[: chance.randrange(len(packed) + 1)] if number % 12 == 0 else packed
            if form == "records":
                reply = await post(stage, "/v1/usage/litellm", packed, **headers)
            else:
                reply = await traces(stage, packed, PROTOBUF if form == "spans" else JSON, **headers)
            assert reply.status in STATUSES, (reply.status, body)
            seen.add(reply.status)
        sums = {kind: sum(stage.books.totals()[kind].values()) for kind in Kind}
        results = await stage.results()
        assert sums[Kind.FEATURE_REQUESTS] == results.get("accepted", 0) + results.get("late", 0)
        assert sums[Kind.SPEND] == sums[Kind.ATTRIBUTED]
    assert seen >= {400, 202 if form == "records" else 200}
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert all(one.getMessage().isprintable() for one in caplog.records)


ODD: list[Any] = [
    None, "", "x" * 300, "\ud800", "other", "1", "NaN",
    0, -1, 10**20, -(10**400), 1.5, 1e300, True, [], {}, [[]], {"a": 1},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything that is in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(one for key, part in inner for one in places(part, (*path, key)))]


def changed(document: Any, path: tuple[Any, ...], value: Any) -> bytes:
    """A document with another value in one place."""
    copy = json.loads(json.dumps(document))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return json.dumps(copy).encode()


@pytest.mark.parametrize("form", ["records", "spans"])
async def test_whatever_stands_in_a_field_is_booked_or_refused_in_words(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
):
    chance = random.Random(seed := 20_261_127)
    print(f"seed {seed}")
    document: Any = [litellm_records(NOW)[0]] if form == "records" else as_json(spans(NOW))
    where = places(document)
    async with taking(tmp_path) as stage:
        for path in where:
            for value in chance.sample(ODD, 6):
                body = changed(document, path, value)
                if form == "records":
                    reply = await post(stage, "/v1/usage/litellm", body)
                else:
                    reply = await traces(stage, body, JSON)
                assert reply.status in STATUSES, (path, value, reply.body)
        assert (await stage.results())["accepted"] > 0
    assert len(where) > 60
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert all(one.getMessage().isprintable() for one in caplog.records)
