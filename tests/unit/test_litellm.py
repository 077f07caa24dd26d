"""LiteLLM's records: whose a call was, what it used, what is passed over, and what is refused in words."""

import json
import math
from typing import Any

import pytest

from exporter.config.model import LitellmUsage
from exporter.core.calls import Call, addresses_of, providers_of
from exporter.core.litellm import call_of, records
from exporter.core.refused import RefusedError
from tests.captured import litellm_records

AT = 1_795_665_942.5
PLACES = LitellmUsage()


def record(**said: Any) -> dict[str, Any]:
    base = {
        "status": "success",
        "model": "hosted_vllm/llama",
        "custom_llm_provider": "hosted_vllm",
        "litellm_call_id": "call",
        "id": "answer",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "endTime": AT,
    }
    return {**base, **said}


def read(said: dict[str, Any], places: LitellmUsage = PLACES) -> Call | None:
    return call_of(json.dumps(said).encode(), places)


def called(said: dict[str, Any], places: LitellmUsage = PLACES) -> Call:
    call = read(said, places)
    assert call is not None
    return call


def test_a_batch_of_a_real_one():
    calls = [read(one) for one in litellm_records(AT)]
    assert [call is None for call in calls] == [False, True, False, True, True, False, True, *5 * [False]]
    found = [call for call in calls if call is not None]
    assert {call.team for call in found} == {"docs"}
    assert [call.feature for call in found] == ["summary", "digest", "summary", "other", *4 * ["summary"]]
    assert [call.input_tokens for call in found] == [17, 13, 3, 10, 4, 17, 235, 236]
    assert [call.cached_input_tokens for call in found] == [0, 0, 0, 0, 0, 0, 0, 128]
    assert [call.output_tokens for call in found] == [8, 4, 4, 20, 5, 5, 3, 3]
    assert [call.said_nano_usd for call in found] == [0, 0, 0, 13_500, 0, 0, 0, 0]
    of_api = found.pop(3)
    assert (of_api.models, of_api.providers, of_api.addresses) == (
        ("gpt-4o-mini", "openai/gpt-4o-mini"),
        ("openai",),
        (),
    )
    for call in found:
        assert (call.models, call.addresses) == (("tiny", "hosted_vllm/tiny"), ("127.0.0.1:8811",))
        assert len(call.id) <= 256
    assert len({call.id for call in found}) == len(found)


@pytest.mark.parametrize(
    "said",
    [
        {"cache_hit": True},
        {"status": "failure", "prompt_tokens": 0, "completion_tokens": 0},
        {"call_type": "aget_responses", "model": ""},
        {"call_type": "list_input_items"},
        {"call_type": "afile_content", "model": "", "prompt_tokens": 0, "completion_tokens": 0},
        {"call_type": "amoderation", "prompt_tokens": 0, "completion_tokens": 0},
    ],
)
def test_what_used_nothing_or_is_read_again_is_passed_over(said: dict[str, Any]):
    assert read(record(**said)) is None


def test_what_cost_something_without_tokens_or_failed_with_them_is_booked():
    image = called(record(call_type="aimage_generation", prompt_tokens=0, completion_tokens=0, response_cost=0.04))
    assert (image.input_tokens, image.output_tokens, image.said_nano_usd) == (0, 0, 40_000_000)
    assert called(record(status="failure")).input_tokens == 10


def test_an_answer_that_always_has_the_same_id_is_another_call_each_time():
    first, second = (called(record(litellm_call_id=call, id="always")) for call in ("a", "b"))
    assert first.id != second.id
    ids = [called(record(**said)).id for said in (
        {"litellm_call_id": None}, {"id": None}, {"id": None, "endTime": 7.5}, {"id": "call"}, {"id": "x" * 1000},
        {"id": "x" * 1001}, {"litellm_call_id": "\n" * 1000},
    )]  # fmt: skip
    assert len({*ids, first.id, second.id}) == 8, "an answer with the call's id is one without an id"
    assert {len(one) for one in ids} == {32}


def test_the_first_place_that_names_a_feature_counts():
    tags = ["User-Agent: curl", 7, "feature:search", "feature:other"]
    metadata = {
        "user_api_key_alias": "sk-docs",
        "user_api_key_team_alias": "Docs Team",
        "user_api_key_team_id": "team-7",
        "requester_metadata": {"feature": "of-the-caller", "number": 3},
        "spend_logs_metadata": {"cost_center": "of-the-logs"},
    }
    said = record(request_tags=tags, metadata=metadata, end_user="customer", model_group="chat")

    def at(*places: str) -> tuple[str, str | None]:
        call = called(said, LitellmUsage(feature=places, team=places))
        return call.feature, call.team

    assert called(said).feature == "search"
    assert at("metadata:feature") == ("of-the-caller", "of-the-caller")
    assert at("metadata:number", "metadata:cost_center") == ("of-the-logs", "of-the-logs")
    assert at("tag:nothing:", "team_id") == ("team-7", "team-7")
    assert (at("end_user")[0], at("model_group")[0], at("key_alias")[0]) == ("customer", "chat", "sk-docs")
    assert at("user_id", "tag:User-Agent:") == ("litellm", None)
    named = LitellmUsage(feature=("key_alias",), features={"sk-docs": "document_summary"}, teams={"Docs Team": "docs"})
    assert (called(said, named).feature, called(said, named).team) == ("document_summary", "docs")
    assert (called(record()).feature, called(record()).team) == ("litellm", None)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"litellm_call_id": None, "id": ""}, "litellm_call_id: expected an id, found none"),
        ({"prompt_tokens": -1}, "prompt_tokens: expected an integer from 0 to 10000000, found -1"),
        ({"completion_tokens": 1.5}, "completion_tokens: expected an integer from 0 to 10000000, found 1.5"),
        (
            {"call_type": "aretrieve_batch"},
            'call_type: expected a call to a model, found "aretrieve_batch", which may te',
        ),
        ({"model": ""}, "model: expected a name, found none"),
        ({"prompt_tokens": None}, "prompt_tokens: expected an integer from 0 to 10000000, found null"),
        (
            {"call_type": "atranscription", "prompt_tokens": 0, "completion_tokens": 0},
            "prompt_tokens: expected what was used, found neither tokens nor a cost",
        ),
        ({"prompt_tokens": "10"}, "expected a record of LiteLLM, found Expected `int | float | null`, got `str`"),
        ({"model": None}, "expected a record of LiteLLM, found Expected `str`, got `null` - at `$.model`"),
        ({"metadata": []}, "expected a record of LiteLLM, found Expected `object | null`, got `array`"),
    ],
)
def test_what_cannot_be_booked_is_told(said: dict[str, Any], why: str):
    with pytest.raises(ValueError, match="expected") as error:
        read(record(**said))
    assert str(error.value).startswith(why)


def test_a_figure_that_litellm_does_not_have_is_not_zero():
    debug = {"error_str": "no price"}
    assert called(record(response_cost=0.0, response_cost_failure_debug_info=debug)).said_nano_usd is None
    assert called(record(response_cost=None)).said_nano_usd is None
    nothing: tuple[Any, ...] = (None, {}, "")
    for empty in nothing:
        assert called(record(response_cost=0.0, response_cost_failure_debug_info=empty)).said_nano_usd == 0
    assert called(record(response_cost=-0.1)).said_nano_usd is called(record(response_cost=1e9)).said_nano_usd is None


@pytest.mark.parametrize("odd", ["x" * 2**16, {"x": 1}, 7, [["feature:x"]], ["\ud800"], "[" * 10_000])
def test_what_a_caller_writes_takes_no_call_off_the_books(odd: Any):
    """Tags or metadata that are too large, or no such thing, name nothing; the call is booked all the same."""
    places = LitellmUsage(feature=("tag:feature:", "metadata:x"), default_feature="nobody")
    for said in ({"request_tags": odd}, {"metadata": {"requester_metadata": odd}}, {"request_tags": ["x", odd]}):
        assert called(record(**said), places).feature == "nobody"
    assert called(record(request_tags=[odd, "feature:search"]), places).feature in ("nobody", "search")


def test_a_body_is_one_an_array_or_one_a_line():
    one = json.dumps(record())
    for body, count in ((one, 1), (f"[{one},{one}]", 2), (f"{one}\n\n{one}\n", 2), ("[]", 0)):
        assert len(list(records(body.encode()))) == count
    with pytest.raises(RefusedError, match="expected an array"):
        list(records(b"[" + one.encode()))
    bad = json.dumps(record(response_cost=math.nan))  # as Python writes it
    assert called(json.loads(bad)).said_nano_usd is None
    for body, count in ((bad, 1), (f"[{bad},{one}]", 2), (f"{bad}\n{one}", 2)):
        calls = [call_of(piece, PLACES) for _, piece in records(body.encode())]
        assert len(calls) == count
        assert all(calls), "one that Python alone can read takes no other with it"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://10.0.0.1:8000/v1/chat/completions", "10.0.0.1:8000"),
        ("https://api.openai.com", "api.openai.com:443"),
        ("http://user:secret@engine/v1", "engine:80"),
        ("http://[::1]:8000", "::1:8000"),
        ("", None),
        (None, None),
        ("engine:8000", None),
        ("http://engine:port", None),
        ("http://[broken", None),
    ],
)
def test_addresses(url: str | None, address: str | None):
    assert addresses_of(url) == ((address,) if address else ())


def test_providers_are_named_as_they_are_written_and_as_the_price_list_does():
    assert providers_of("vertex_ai") == ("vertex_ai", "google")
    assert providers_of("OpenAI") == ("openai",)
    assert providers_of("") == providers_of(None) == ()
