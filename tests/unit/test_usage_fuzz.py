"""Random and mutated bodies of usage events: each is read whole or refused in words, and nothing else ever happens."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

from exporter.core.money import Kind
from exporter.core.refused import RefusedError
from exporter.core.usage import Rules, Sheet
from exporter.core.usage_body import Body
from tests.unit.test_usage import NOW, rules

BODIES: Final = 10_000
SEED: Final = 20_261_123
_LONGEST_ANSWER: Final = 600

_NAMES: Final = (
    "llama",
    "api-model",
    "summary",
    "gpt",
    "openai",
    "chat",
    "docs",
    "fast",
    "best",
    "support",
    "vip",
    "é",
)
_ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 10_000_000, 10_000_001, 2**63, 10**40, 1.0, 1e300, -0.0, "", " ", "a" * 300,
    "e\u0301", "\u202e", "\x00", "\n", "other", "unattributed", [], {}, [[]], {"a": {}}, "2026-11-23T20:13:00Z",
    "2026-11-23T20:13:00", "2026-11-23T19:00:00.123456789+05:45", "0001-01-01T00:00:00+23:59", "24:00", "NaN",
)  # fmt: skip
_BYTES: Final = (
    b"", b"{", b"}", b"[", b"]", b",", b'"', b"\\", b"\n", b"\r", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\\ud800", b"e9",
    b"-", b".", b":", b"null", b"NaN", b"//", b"\xe2\x80\xa8", b'"feature":', b"{}", b"[[[[", b"1" * 40,
)  # fmt: skip
_KEYS: Final = (
    "id", "feature", "team", "model", "engine", "provider", "tier", "input_tokens", "cached_input_tokens",
    "output_tokens", "cascade", "escalated_from", "at",
)  # fmt: skip


_VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "engine": ("chat", "big", "open", "odd"),
    "cascade": ("support",),
    "escalated_from": ("fast",),
    "tier": ("fast", "balanced", "best"),
    "team": ("docs",),
    "at": ("2026-11-23T20:13:00Z", "2026-11-23T02:00:00.5+01:00"),
    "input_tokens": (100, 10_000_000),
    "cached_input_tokens": (0, 99),
    "output_tokens": (0, 7),
}


def event(chance: random.Random) -> dict[str, Any]:
    """An event that may be a good one."""
    said: dict[str, Any] = {"feature": chance.choice(_NAMES), "model": chance.choice(_NAMES)}
    for key in chance.sample(_KEYS, chance.randrange(5)):
        said[key] = chance.choice(_VALUES.get(key, _NAMES))
    if chance.random() < 0.1:
        said[chance.choice((*_KEYS, "typo"))] = chance.choice(_ODD)
    return said


def body(chance: random.Random) -> bytes:
    """A body of events, in any of its shapes."""
    events = [event(chance) for _ in range(chance.randrange(1, 4))]
    shape = chance.randrange(4)
    if shape == 0:
        return json.dumps(events, ensure_ascii=chance.random() < 0.5).encode()
    if shape == 1:
        return json.dumps(events[0], indent=chance.choice((None, 1))).encode()
    end = chance.choice(("\n", "\r\n", "\n\n"))
    return end.join(json.dumps(said, ensure_ascii=False) for said in events).encode() + end.encode() * (shape == 2)


def mutated(chance: random.Random) -> bytes:
    """A body that may have been changed here and there, or that never was one."""
    if chance.random() < 0.02:
        return chance.randbytes(chance.randrange(40))
    content = body(chance)
    for _ in range(chance.choice((0, 0, 0, 1, 1, 8))):
        start = chance.randrange(len(content) + 1)
        end = min(start + chance.choice((0, 0, 1, 1, 5, 40)), len(content))
        content = content[:start] + chance.choice((*_BYTES, content[start:end] * 2)) + content[end:]
    return content


def taken(content: bytes, of: Rules, team: str | None = None) -> int:
    """Take a body as the desk does; returns how many events were taken, 0 where it was refused in words."""
    made = Sheet(of, team)
    read: Body | None = None
    try:
        read = Body(content, of.limits.name_length, NOW)
        for part in read.slices():
            for usage in part:
                made.add(usage)
    except RefusedError as error:
        text = str(error)
        assert "expected" in text
        assert "found" in text
        assert len(text) < _LONGEST_ANSWER
        assert text.isprintable(), text
        assert read is None or read.count > 0
        return 0
    finally:
        made.end()
    made.place()
    _check(made)
    return len(made.keys)


def _check(made: Sheet) -> None:
    """All events are booked, none by half."""
    count = len(made.keys)
    effect = made.effect(range(count))
    sums: dict[Kind, int] = {}
    for account, amount in effect.totals.items():
        assert amount >= 0
        assert all(label.isprintable() for label in account.labels)
        sums[account.kind] = sums.get(account.kind, 0) + amount
    assert sums[Kind.FEATURE_REQUESTS] == sums[Kind.USAGE_EVENTS] == count > 0
    assert sums.get(Kind.SPEND, 0) == sums.get(Kind.ATTRIBUTED, 0)
    assert sum(effect.buckets.values()) == sum(effect.totals.values())
    claimed = sum(claim.tokens for claim in effect.claims.values())
    assert claimed <= sums[Kind.FEATURE_PROMPT_TOKENS] + sums[Kind.FEATURE_OUTPUT_TOKENS]
    json.dumps([key.hex() + says.hex() for key, says in made.keys])


def outcomes(bodies: int, seed: int, make: Callable[[random.Random], bytes] = mutated) -> Iterator[int]:
    """Take so many bodies, and yield how many events of each were taken."""
    chance, of = random.Random(seed), rules(most=50)
    for number in range(bodies):
        content = make(chance)
        try:
            yield taken(content, of, "docs" if number % 5 == 0 else None)
        except Exception as error:
            raise AssertionError(f"seed {seed}, body {number}: {content!r}") from error


def test_ten_thousand_bodies_are_read_or_refused_and_nothing_else_happens():
    found = list(outcomes(BODIES, SEED))
    good = sum(map(bool, found))
    assert BODIES // 10 < good < BODIES * 9 // 10, "the bodies are all good, or all bad"
