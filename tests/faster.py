"""Rules and routes in which time goes faster: every duration divided, and nothing else changed."""

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import yaml

MILLISECONDS = {
    "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000, "y": 31_536_000_000,
}  # fmt: skip
DURATION = r"(?:\d+(?:ms|[smhdwy]))+"
DURATION_KEYS = frozenset(
    {"for", "keep_firing_for", "interval", "group_wait", "group_interval", "repeat_interval", "resolve_timeout"}
)
QUERY_KEYS = frozenset({"expr"})
QUERY = re.compile(
    r"""
    (?P<text> "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | `[^`]*` | \#[^\n]* )  # a duration in here is only words
    | \[ (?P<range> [^\]]* ) \]
    | (?P<offset> \boffset\s+-?\s* ) (?P<by> %s )
    """  # noqa: UP031 - braces of a format would hide those of the pattern
    % DURATION,
    re.VERBOSE | re.IGNORECASE,
)


def milliseconds(duration: str) -> int:
    parts = re.findall(r"(\d+)(ms|[smhdwy])", duration if duration != "0" else "0s")
    assert "".join(number + unit for number, unit in parts) in (duration, f"{duration}s"), duration
    return sum(int(number) * MILLISECONDS[unit] for number, unit in parts)


def divided(duration: str, by: int) -> str:
    """Divide a duration of Prometheus, exactly."""
    shorter = Decimal(milliseconds(duration)) / by
    assert shorter == shorter.to_integral_value(), f"{duration} / {by} is no whole number of milliseconds"
    return f"{shorter:.0f}ms" if shorter % 1000 else f"{shorter / 1000:.0f}s"


def faster_query(query: str, by: int) -> str:
    """Divide the ranges, steps and offsets of a PromQL expression; what stands in quotes is left alone."""

    def replace(found: re.Match[str]) -> str:
        if found["range"] is not None:
            return "[" + re.sub(DURATION, lambda each: divided(each[0], by), found["range"]) + "]"
        return found["offset"] + divided(found["by"], by) if found["by"] else found[0]

    return QUERY.sub(replace, query)


def faster(text: str, by: int) -> str:
    """Divide every duration of a rule file, or of a config of Alertmanager."""
    changes: dict[str, Callable[[str, int], str]] = dict.fromkeys(DURATION_KEYS, divided)
    changes |= dict.fromkeys(QUERY_KEYS, faster_query)

    def walk(node: Any, key: str = "") -> Any:
        if isinstance(node, dict):
            return {name: walk(value, name) for name, value in node.items()}
        if isinstance(node, list):
            return [walk(value) for value in node]
        return changes[key](node, by) if key in changes and isinstance(node, str) else node

    return yaml.safe_dump(walk(yaml.safe_load(text)), sort_keys=False, width=1000)


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield every value of a YAML document with the way to it."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if pairs is None:
        yield path, node
        return
    yield path, type(node)
    for key, value in pairs:
        yield from leaves(value, (*path, key))


def differences(before: str, after: str, by: int) -> list[str]:
    """Say what differs between two documents but for durations, and which duration is not divided."""
    old, new = (dict(leaves(yaml.safe_load(text))) for text in (before, after))
    found = [f"{path}: only in one" for path in old.keys() ^ new.keys()]
    for path in old.keys() & new.keys():
        timed = path[-1:] and path[-1] in DURATION_KEYS | QUERY_KEYS
        same = _only_faster(str(old[path]), str(new[path]), by) if timed else old[path] == new[path]
        if not same:
            found.append(f"{path}: {old[path]!r} became {new[path]!r}")
    return found


def _only_faster(old: str, new: str, by: int) -> bool:
    words = r'"[^"]*"|#[^\n]*'  # quoted or commented: not a duration, whatever it looks like
    duration = rf"\b{DURATION}\b"
    old_rest, new_rest = (re.sub(words, "", text) for text in (old, new))
    pairs = zip(re.findall(duration, old_rest), re.findall(duration, new_rest), strict=False)
    return (
        re.findall(words, old) == re.findall(words, new)
        and re.split(duration, old_rest) == re.split(duration, new_rest)
        and all(milliseconds(slow) == by * milliseconds(fast) for slow, fast in pairs)
    )
