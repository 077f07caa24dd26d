"""Bodies of usage events: the three shapes, what is an event and what is not, and what is said of the first bad one."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from exporter.core.refused import RefusedError
from exporter.core.usage_body import Body, Names, Usage

NOW = 1_795_464_804.25  # 2026-11-23T20:13:24.25Z


def read(content: bytes | str, name_length: int = 128, now: float = NOW) -> list[Usage]:
    body = Body(content.encode() if isinstance(content, str) else content, name_length, now)
    return [usage for part in body.slices() for usage in part]


def refusal(content: bytes | str, name_length: int = 128) -> str:
    with pytest.raises(RefusedError) as refused:
        read(content, name_length)
    return str(refused.value)


def one(**said: Any) -> str:
    return json.dumps({"feature": "summary", "model": "llama", **said}, ensure_ascii=False)


A, B = one(id="a"), one(id="b")


@pytest.mark.parametrize(
    ("content", "unit", "numbers"),
    [
        (A, "line", [1]),
        (f"{A}\n{B}", "line", [1, 2]),
        (f"\n\r\n  \n{A}\r\n\n\n{B}\n\n", "line", [4, 7]),
        (f"[{A},{B}]", "event", [1, 2]),
        (f" \n[\n{A},\n\n{B}\n]\n", "event", [1, 2]),
        (json.dumps(json.loads(A), indent=2), "event", [1]),
        ("\n\n" + json.dumps(json.loads(A), indent=1) + "\n", "event", [1]),
        (A.replace('", "', '",\n"'), "event", [1]),
    ],
)
def test_a_body_is_an_object_an_array_or_an_object_a_line(content: str, unit: str, numbers: list[int]):
    body = Body(content.encode(), 128, NOW)
    found = [usage for part in body.slices() for usage in part]
    assert (body.where(1).split()[0], [usage.number for usage in found]) == (unit, numbers)
    assert [usage.event.id for usage in found] == ["a", "b"][: len(numbers)]
    assert body.count >= len(numbers)


def test_all_that_an_event_says_is_read():
    (found,) = read(
        one(id="req-7", team="docs", engine="chat", provider="openai", tier="fast", input_tokens=1200,
            cached_input_tokens=200, output_tokens=300, cascade="support", escalated_from="tiny",
            at="2026-11-23T20:00:00.999+00:00")
    )  # fmt: skip
    assert found.names == Names("summary", "llama", "docs", "chat", "openai", "fast", "support", "tiny")
    assert (found.event.id, found.tokens, found.second) == ("req-7", (1200, 200, 300), 1_795_464_000)


def test_null_is_as_good_as_absent():
    keys = ("id", "team", "engine", "provider", "tier", "input_tokens", "cached_input_tokens", "output_tokens",
            "cascade", "escalated_from", "at")  # fmt: skip
    (absent,), (null,) = read(one()), read(one(**dict.fromkeys(keys)))
    assert absent == null
    assert (null.tokens, null.second, null.names) == ((0, 0, 0), int(NOW), Names("summary", "llama"))


def test_a_large_body_comes_in_slices_and_whole():
    content = "\n".join(one(id=str(number)) for number in range(1234)).encode()
    for whole in (content, b"[" + content.replace(b"\n", b",") + b"]"):
        parts = list(Body(whole, 128, NOW).slices())
        assert max(map(len, parts)) <= 500
        assert [usage.event.id for part in parts for usage in part] == [str(number) for number in range(1234)]


def test_empty_lines_without_end_are_read_in_slices_too():
    parts = list(Body(b"\n" * 5000 + A.encode(), 128, NOW).slices())
    assert len(parts) > 10
    assert [usage.number for part in parts for usage in part] == [5001]


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "a b",
        "dé",
        "文書の要約",
        "😀",
        'a"b',
        "a\\b",
        "{x}",
        "x" * 128,
        "é" * 128,
        "NaN",
        "ﬁ",
        "OTHER",
        "other team",
    ],
)
def test_names_are_what_people_write(name: str):
    (found,) = read(one(feature=name, team=name, tier=name))
    assert found.names.feature == found.names.team == found.names.tier == name


def test_names_are_composed():
    names = {"feature": "re\u0301sume\u0301", "model": "\u1100\u1161", "team": "\u212b", "engine": "e\u0301"}
    (found,) = read(one(**names, provider="A\u030a", tier="o\u0308", cascade="n\u0303", escalated_from="u\u0308"))
    assert found.names == Names("résumé", "가", "Å", "é", "Å", "ö", "ñ", "ü")
    assert read(one(feature="\u1f82" * 128))[0].names.feature == "\u1f82" * 128
    decomposed = "\u03b1\u0313\u0300\u0345" * 128
    assert read(one(feature=decomposed))[0].names.feature == "\u1f82" * 128


NAME = "expected a name of 1 to 128 printable characters without a space at its ends, found"
TOKENS = "expected an integer from 0 to 10000000, found"
TIME = "expected a time with a zone like 2026-11-23T10:00:00Z, found"
KNOWN = (
    "known are feature, model, id, team, engine, provider, tier, input_tokens, cached_input_tokens, output_tokens, "
    "cascade, escalated_from, at"
)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"input_tokens": "x"}, f'input_tokens: {TOKENS} "x"'),
        ({"input_tokens": "5"}, f'input_tokens: {TOKENS} "5"'),
        ({"input_tokens": 1.0}, f"input_tokens: {TOKENS} 1.0"),
        ({"input_tokens": 1e3}, f"input_tokens: {TOKENS} 1000.0"),
        ({"output_tokens": True}, f"output_tokens: {TOKENS} true"),
        ({"output_tokens": -1}, f"output_tokens: {TOKENS} -1"),
        ({"output_tokens": 10_000_001}, f"output_tokens: {TOKENS} 10000001"),
        ({"output_tokens": 2**64}, f"output_tokens: {TOKENS} 18446744073709551616"),
        ({"output_tokens": 10**60}, f"output_tokens: {TOKENS} 1{'0' * 39}…"),
        ({"output_tokens": [1, {"a": 2}]}, f'output_tokens: {TOKENS} [1,{{"a":2}}]'),
        ({"cached_input_tokens": {}}, f"cached_input_tokens: {TOKENS} {{}}"),
        ({"input_tokens": 5, "cached_input_tokens": 6},
         "cached_input_tokens: expected at most the input_tokens, 5, found 6"),
        ({"cached_input_tokens": 1}, "cached_input_tokens: expected at most the input_tokens, 0, found 1"),
        ({"feature": None}, f"feature: {NAME} nothing"),
        ({"model": None}, f"model: {NAME} nothing"),
        ({"feature": ""}, f'feature: {NAME} ""'),
        ({"feature": " "}, f'feature: {NAME} " "'),
        ({"feature": " a"}, f'feature: {NAME} " a"'),
        ({"feature": "a "}, f'feature: {NAME} "a "'),
        ({"feature": 7}, f"feature: {NAME} 7"),
        ({"feature": ["a"]}, f'feature: {NAME} ["a"]'),
        ({"feature": False}, f"feature: {NAME} false"),
        ({"feature": "x" * 129}, f'feature: {NAME} "{"x" * 39}…'),
        ({"feature": "x" * 100_000}, f'feature: {NAME} "{"x" * 39}…'),
        ({"model": "a\nb"}, f'model: {NAME} "a\\nb"'),
        ({"model": "a\x00b"}, f'model: {NAME} "a\\u0000b"'),
        ({"model": "a\x7fb"}, f'model: {NAME} "a\\u007fb"'),
        ({"team": "a\u202eb"}, f'team: {NAME} "a\\u202eb"'),
        ({"team": "a\u200bb"}, f'team: {NAME} "a\\u200bb"'),
        ({"team": "a\u00a0b"}, f'team: {NAME} "a\\u00a0b"'),
        ({"team": "a\u2028b"}, f'team: {NAME} "a\\u2028b"'),
        ({"engine": "\ufeffa"}, f'engine: {NAME} "\\ufeffa"'),
        ({"provider": "\ue000"}, f'provider: {NAME} "\\ue000"'),
        ({"tier": ""}, f'tier: {NAME} ""'),
        ({"cascade": ""}, f'cascade: {NAME} ""'),
        ({"escalated_from": 1}, f"escalated_from: {NAME} 1"),
        ({"feature": "unattributed"},
         'feature: expected another name, since the exporter books by this one, found "unattributed"'),
        ({"feature": "other"}, 'feature: expected another name, since the exporter books by this one, found "other"'),
        ({"id": ""}, 'id: expected a text of 1 to 256 characters, found ""'),
        ({"id": "x" * 257}, f'id: expected a text of 1 to 256 characters, found "{"x" * 39}…'),
        ({"id": 5}, "id: expected a text, found 5"),
        ({"at": 1_795_464_000}, f"at: {TIME} 1795464000"),
        ({"at": "yesterday"}, f'at: {TIME} "yesterday"'),
        ({"at": ""}, f'at: {TIME} ""'),
        ({"at": "2026-11-23T20:00:00"}, f'at: {TIME} "2026-11-23T20:00:00", which has no zone'),
        ({"at": "2026-11-23"}, f'at: {TIME} "2026-11-23", which has no zone'),
        ({"at": "2026-11-23T25:00:00Z"}, f'at: {TIME} "2026-11-23T25:00:00Z"'),
        ({"at": "2026-02-30T10:00:00Z"}, f'at: {TIME} "2026-02-30T10:00:00Z"'),
        ({"at": "2026-11-23T20:14:25Z"},
         'at: expected a time at most 60 s ahead of the exporter\'s, found "2026-11-23T20:14:25Z"'),
        ({"at": "9999-12-31T23:59:59-23:59"},
         'at: expected a time at most 60 s ahead of the exporter\'s, found "9999-12-31T23:59:59-23:59"'),
        ({"at": "2026-11-22T20:13:24Z"}, 'at: expected a time within the last 24 hours, found "2026-11-22T20:13:24Z"'),
        ({"at": "0001-01-01T00:00:00+23:59"},
         'at: expected a time within the last 24 hours, found "0001-01-01T00:00:00+23:59"'),
        ({"input_token": 5}, "input_token: expected a known field (did you mean input_tokens?), found an unknown one"),
        ({"prompt": "hi"}, f"prompt: expected a known field ({KNOWN}), found an unknown one"),
        ({"x" * 9000: 1}, f"{'x' * 40}…: expected a known field ({KNOWN}), found an unknown one"),
        ({"a\u202eb": 1}, f"a\\u202eb: expected a known field ({KNOWN}), found an unknown one"),
        ({"": 1}, f": expected a known field ({KNOWN}), found an unknown one"),
    ],
)  # fmt: skip
def test_what_is_no_event_is_named_by_its_line_or_number_and_its_field(said: dict[str, Any], problem: str):
    assert refusal(one(**said)) == f"line 1: {problem}"
    assert refusal(f"{A}\n\n{one(**said)}\n{B}") == f"line 3: {problem}"
    assert refusal(f"[{A},{one(**said)},{B}]") == f"event 2: {problem}"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "expected at least one event, found none"),
        (b"\n \r\n\t\n", "expected at least one event, found none"),
        (b"[]", "expected at least one event, found none"),
        (b"\n" * 1000, "expected at least one event, found none"),
        (b"hello", "line 1: expected JSON, found hello (invalid character (byte 0))"),
        (b"{", "line 1: expected JSON, found { (Input data was truncated)"),
        (b"{}", f"line 1: feature: {NAME} nothing"),
        (b'{"feature": "a"}', f"line 1: model: {NAME} nothing"),
        (b"5", "line 1: expected an object with feature and model, found 5"),
        (b"null", "line 1: expected an object with feature and model, found null"),
        (b'"a"', 'line 1: expected an object with feature and model, found "a"'),
        (A.encode() + b"\n[1]", "line 2: expected an object with feature and model, found [1]"),
        (A.encode() + b" " + B.encode(),
         "line 1: expected JSON, found "
         '{"feature": "summary", "model": "llama",… (trailing characters (byte 53))'),
        (A.encode() + b",\n" + B.encode(),
         "line 1: expected JSON, found "
         '{"feature": "summary", "model": "llama",… (trailing characters (byte 52))'),
        (b"[1]", "event 1: expected an object with feature and model, found 1"),
        (b"[" + A.encode() + b",null]", "event 2: expected an object with feature and model, found null"),
        (b"[" + A.encode() + b",]",
         'expected an array of events, found [{"feature": "summary", "model": "llama"… '
         "(trailing comma in array (byte 53))"),
        (b"[" + A.encode(),
         'expected an array of events, found [{"feature": "summary", "model": "llama"… (Input data was truncated)'),
        (b"[{}] []", "expected an array of events, found [{}] [] (trailing characters (byte 6))"),
        (b"\xef\xbb\xbf" + A.encode(),
         'line 1: expected JSON, found \\ufeff{"feature": "summary", "model": "l… (invalid character (byte 0))'),
        (b'{"feature": "\xff", "model": "a"}',
         'line 1: expected JSON, found {"feature": "\ufffd", "model": "a"} (not UTF-8)'),
        (b'{"feature": "\\ud800", "model": "a"}',
         'line 1: expected JSON, found {"feature": "\\ud800", "model": "a"} '
         "(unexpected end of escaped utf-16 surrogate pair (byte 19))"),
        (b'{"feature": "a", "model": "a", "id": NaN}',
         'line 1: expected JSON, found {"feature": "a", "model": "a", "id": NaN… (invalid character (byte 37))'),
        (b'{"feature": "a", "model": "a", "input_tokens": 1e999}',
         'line 1: expected JSON, found {"feature": "a", "model": "a", "input_to… (Number out of range - at `$[...]`)'),
        (b'{"feature": 1, "model": "a", "feature": "a"}',
         'line 1: expected an event, found {"feature": 1, "model": "a", "feature": … '
         "(Expected `str`, got `int` - at `$.feature`)"),
        (b"[" * 100_000, f"expected an array of events, found {'[' * 40}… (nested too deep)"),
        (b'{"a":' * 100_000, "line 1: expected JSON, found " + '{"a":' * 8 + "… (nested too deep)"),
        (b'{"feature": ' + b"[" * 100_000,
         f'line 1: expected JSON, found {{"feature": {"[" * 28}… (nested too deep)'),
        (b"{\n" * 50_000, "line 1: expected JSON, found { (Input data was truncated)"),
        (b"{\x00}", "line 1: expected JSON, found {\\u0000} (object keys must be strings (byte 1))"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_told_as_well(content: bytes, problem: str):
    assert refusal(content) == problem


def test_boundary_whatever_is_just_not_nested_too_deep_is_shown():
    for depth in range(800, 1000):
        nested = "[" * depth + "]" * depth
        assert "expected" in refusal(f'{{"feature": "a", "model": "m", "at": {nested}}}')


def test_of_a_key_that_comes_twice_the_last_counts():
    (found,) = read('{"feature": "a", "model": "m", "feature": "b", "input_tokens": 1, "input_tokens": 2}')
    assert (found.names.feature, found.tokens[0]) == ("b", 2)


def test_the_name_length_is_the_configs():
    assert read(one(feature="x" * 9), name_length=9)
    assert refusal(one(feature="x" * 10), name_length=9).startswith("line 1: feature: expected a name of 1 to 9 print")


def test_a_name_of_a_million_marks_is_refused_at_once():
    """To compose it would take minutes: marks are sorted one by one."""
    assert refusal(one(feature="a" + "\u0316\u0301" * 500_000)).startswith("line 1: feature: expected a name")
    assert refusal(one(id="a" + "\u0316\u0301" * 500_000)).startswith("line 1: id: expected a text of 1 to 256")


@pytest.mark.parametrize(
    ("seconds", "is_taken"), [(60, True), (60.001, False), (0, True), (-86_400, True), (-86_400.001, False)]
)
def test_boundary_an_event_is_at_most_a_minute_ahead_and_a_day_old(seconds: float, is_taken: bool):
    at = datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=seconds)
    for zone in (UTC, timezone(timedelta(hours=5, minutes=45)), timezone(-timedelta(hours=11))):
        said = one(at=at.astimezone(zone).isoformat())
        if is_taken:
            assert read(said)[0].second == int(NOW + seconds)
        else:
            assert refusal(said).startswith("line 1: at: expected a time ")


@pytest.mark.parametrize(
    "at",
    ["2026-11-23T20:00:00Z", "2026-11-23 20:00:00+00:00", "20261123T200000Z", "2026-W48-1T20:00:00Z",
     "2026-11-23T20:00Z", "2026-11-23T20Z", "2026-11-24T01:30:00+05:30", "2026-11-23T20:00:00.000000001Z",
     "2026-11-23T20:00:00,5Z"],
)  # fmt: skip
def test_a_time_is_iso_8601_in_any_of_its_forms(at: str):
    assert read(one(at=at))[0].second == 1_795_464_000


def test_without_a_time_an_event_happened_now():
    assert read(A)[0].second == int(NOW)
