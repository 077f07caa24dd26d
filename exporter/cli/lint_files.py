"""Manifest files into nodes that remember their lines, without making objects of what the YAML says."""

import re
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import yaml

from exporter.core.linting import Node

STANDARD_INPUT: Final = "-"
_LARGEST_FILE_BYTES: Final = 4 * 2**20
_MOST_VALUES: Final = 200_000  # of one file, aliases repeated
_DEEPEST: Final = 64
_MARKER: Final = re.compile(r"^---(?=\s|$)", re.MULTILINE)
# Long, and without anything that scales: an operator's definitions are megabytes.
_PASSED_OVER: Final = re.compile(r"^kind:\s*[\"']?(CustomResourceDefinition|ConfigMap|Secret|PrometheusRule)\b", re.M)
_TEMPLATE: Final = re.compile(
    r"\{\{-?\s*(\.(Values|Release|Chart|Capabilities|Files|Template)\b|(include|template|define|toYaml|tpl|required)\s)"
)
_COMMENT: Final = re.compile(r"#\s*llm-cost:\s*allow\b[:\s]*(?P<rules>[^#]*)")
_PLAIN: Final = "plain"
_STRING: Final = "tag:yaml.org,2002:str"
_NULL: Final = "tag:yaml.org,2002:null"
_MERGE: Final = "tag:yaml.org,2002:merge"
_TEMPLATE_ADVICE: Final = "a Helm template is left in it: run `helm template` first"


class UnusableError(Exception):
    """A file cannot be checked; the message is one line."""


def text_of(name: str) -> str:
    """Read a file, or standard input for `-`.

    Raises:
        UnusableError: it cannot be read as text.
    """
    shown = shown_as(name)
    try:
        content = _bytes(name)
    except OSError as error:
        raise UnusableError(f"{shown}: expected a readable file, found: {error.strerror}") from error
    if len(content) > _LARGEST_FILE_BYTES:
        raise UnusableError(f"{shown}: expected at most {_LARGEST_FILE_BYTES} bytes, found more")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnusableError(f"{shown}:{line}: not YAML: bytes that are not UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _bytes(name: str) -> bytes:
    if name == STANDARD_INPUT:
        return sys.stdin.buffer.read(_LARGEST_FILE_BYTES + 1)
    with Path(name).open("rb") as file:
        return file.read(_LARGEST_FILE_BYTES + 1)


def shown_as(name: str) -> str:
    """Return what messages call a file."""
    return "(standard input)" if name == STANDARD_INPUT else name


def nodes(name: str, text: str) -> list[Node]:
    """Read the documents of a file; empty ones are left out.

    Raises:
        UnusableError: it is not YAML, or of no sensible size, or a template.
    """
    reader = _Nodes(name)
    return [node for lines, chunk in _chunks(text) for node in reader.read(chunk, lines)]


def _chunks(text: str) -> Iterator[tuple[int, str]]:
    """Yield each document with the number of lines before it."""
    starts = [0, *(match.start() for match in _MARKER.finditer(text) if match.start())]
    lines = 0
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        chunk = text[start:end]
        if not _PASSED_OVER.search(chunk):
            yield lines, chunk
        lines += chunk.count("\n")


class _Loader(yaml.SafeLoader):
    """Stops at more values than a manifest has, before they fill the memory."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._values += 1
        if self._values > _MOST_VALUES:
            raise _TooManyValuesError(self.line)
        return super().compose_node(parent, index)


class _TooManyValuesError(Exception):
    """It carries the line, from 0."""


class _Nodes:
    """Makes nodes of PyYAML's, and counts them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._values = 0
        self._lines = 0

    def read(self, chunk: str, lines: int) -> Iterator[Node]:
        self._lines = lines
        template = _TEMPLATE.search(chunk)
        if template is not None:
            line = lines + _line(chunk, template.start())
            raise UnusableError(f"{self._name}:{line}: not YAML: {_TEMPLATE_ADVICE}")
        try:
            composed = list(yaml.compose_all(chunk, Loader=_Loader))
        except yaml.YAMLError as error:
            raise self._syntax(error, chunk) from error
        except _TooManyValuesError as error:
            raise self._too_much(error.args[0], f"{_MOST_VALUES} values, aliases repeated") from None
        except RecursionError:
            raise UnusableError(f"{self._name}:{lines + 1}: not YAML: nested too deep") from None
        for found in composed:
            node = self._node(found, found.start_mark.line, 0, chunk)
            if node.value is not None:
                yield node

    def _syntax(self, error: yaml.YAMLError, chunk: str) -> UnusableError:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if mark is None:
            position = getattr(error, "position", 0)
            line = self._lines + _line(chunk, position if isinstance(position, int) else 0)
            return UnusableError(f"{self._name}:{line}: not YAML: characters that it does not allow")
        if "{{" in chunk:
            line = self._lines + _line(chunk, chunk.index("{{"))
            return UnusableError(f"{self._name}:{line}: not YAML: {_TEMPLATE_ADVICE}")
        problem = " ".join(str(getattr(error, "problem", None) or getattr(error, "context", None)).split())
        return UnusableError(f"{self._name}:{self._lines + mark.line + 1}: not YAML: {problem}")

    def _too_much(self, line: int, limit: str) -> UnusableError:
        return UnusableError(f"{self._name}:{self._lines + line + 1}: expected at most {limit}, found more")

    def _node(self, found: Any, line: int, depth: int, chunk: str) -> Node:
        self._values += 1
        if self._values > _MOST_VALUES or depth > _DEEPEST:
            values = f"{_MOST_VALUES} values, aliases repeated"
            raise self._too_much(line, values if depth <= _DEEPEST else f"{_DEEPEST} levels")
        if found.id == "scalar":
            value = None if found.tag == _NULL else found.value
            return Node(value, self._lines + line + 1, found.tag == _STRING)
        if found.id == "sequence":
            items = tuple(self._node(one, one.start_mark.line, depth + 1, chunk) for one in found.value)
            return Node(items, self._lines + line + 1)
        return Node(self._fields(found, depth, chunk), self._lines + line + 1)

    def _fields(self, found: Any, depth: int, chunk: str) -> dict[str, Node]:
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        for key, child in found.value:
            line = key.start_mark.line
            if key.id != "scalar":
                advice = _TEMPLATE_ADVICE if "{{" in chunk else "a key that is not a name"
                raise UnusableError(f"{self._name}:{self._lines + line + 1}: not YAML: {advice}")
            node = self._node(child, line, depth + 1, chunk)
            if key.tag == _MERGE:
                for one in (*reversed(node.items), node):
                    merged |= one.fields
            else:
                own[key.value] = node
        return merged | own


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def comments(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line that a comment speaks of, and the rules that it allows.

    A comment speaks of its own line; where nothing else stands on that, of the next line that is no comment.
    """
    lines = text.split("\n")
    for number, line in enumerate(lines):
        match = _COMMENT.search(line)
        if match is None:
            continue
        speaks_of = number
        while speaks_of < len(lines) - 1 and lines[speaks_of].lstrip().startswith("#"):
            speaks_of += 1
        words = re.findall(r"[^\s,]+", match["rules"])
        yield speaks_of + 1, words[:1] + list(takewhile(str.isupper, words[1:]))  # what follows says why
