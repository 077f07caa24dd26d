"""YAML nodes into config sections, with every problem at once and the line of each.

Nodes, not Python values, are read, so that `0.80` stays the decimal that was written, `no` and `010` are no surprise,
and a key that stands twice is seen.
"""

import difflib
import types
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from exporter.config.section import Section, fields
from exporter.config.units import NAME, Scalar

Node = Any  # one of PyYAML's, which is loaded when a file is read: a start with flags alone need not wait for it
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_DEEPEST: Final = 12
_LARGEST_FILE_BYTES: Final = 2**17  # a reload reads it between two beats
_MOST_VALUES: Final = 10_000
_LONGEST_SHOWN: Final = 40


Parsed = TypeVar("Parsed", bound=Section)


class Problem(NamedTuple):
    """One thing wrong in a file: where, what was expected, what stands there."""

    line: int
    path: str
    text: str


class ConfigError(Exception):
    """The config cannot be used; `lines` says why, one problem a line, without secrets."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class _TooManyValuesError(Exception):
    """The file is larger than it looks: aliases repeat what they stand for."""


def read_file(path: Path) -> bytes:
    """Read a file of a sensible size.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: expected a readable file, found: {error.strerror}"]) from error
    if len(content) > _LARGEST_FILE_BYTES:
        raise ConfigError([f"{path}: expected at most {_LARGEST_FILE_BYTES} bytes, found more"])
    return content


def parse_as(
    section: type[Parsed], content: bytes, name: str, disagreements: Callable[[Parsed], Iterable[tuple[str, str]]]
) -> Parsed:
    """Parse a file's bytes into a section.

    Args:
        section: what the whole file is.
        content: the bytes.
        name: stands before each problem.
        disagreements: yields (path, problem) for what no single value shows.

    Raises:
        ConfigError: with every problem that the file has.
    """
    node = _composed(content, name)
    if node is None and any(field.required for field in fields(section).values()):
        raise ConfigError([f"{name}: expected a config, found an empty file"])
    reader = Reader()
    try:
        parsed = reader.read(node, section, "") if node else section()
    except _TooManyValuesError:
        raise ConfigError([f"{name}: expected at most {_MOST_VALUES} values, aliases included, found more"]) from None
    if isinstance(parsed, section):
        known = [problem.path for problem in reader.problems]
        for path, text in disagreements(parsed):
            # A value that could not be read is missing from its section: what follows from that is no news.
            if not any(within == path or within.startswith((f"{path}.", f"{path}[")) for within in known):
                reader.problem(path, text)
    if reader.problems or not isinstance(parsed, section):
        raise ConfigError(
            [f"{name}:{problem.line}: {problem.path}: {problem.text}" for problem in sorted(reader.problems)]
        )
    return parsed


def _composed(content: bytes, name: str) -> Node:
    import yaml  # noqa: PLC0415 - see Node

    try:
        return yaml.compose(content.decode("utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError([_syntax(name, error)]) from error


def _syntax(name: str, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        problem = getattr(error, "problem", None)
        return f"{name}:{mark.line + 1}: expected YAML, found at column {mark.column + 1}: {problem}"
    found = {UnicodeDecodeError: "bytes that are not UTF-8", RecursionError: "nesting that is too deep"}
    return f"{name}: expected YAML in UTF-8, found {found.get(type(error), 'characters that YAML does not allow')}"


class Reader:
    """Reads nodes and collects problems; `lines` remembers where each path stands."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.lines: dict[str, int] = {}
        self._values = 0

    def problem(self, path: str, text: str) -> None:
        """Note a problem at a path, on the line of the path or of its nearest parent."""
        at = path
        while at and at not in self.lines:
            at = at[: max(at.rfind("."), at.rfind("["), 0)]
        self.problems.append(Problem(self.lines.get(at, 1), path or "(file)", text))

    def read(self, node: Node, hint: Any, path: str) -> Any:
        """Convert a node to the type of `hint`, or note problems and return `msgspec.UNSET`."""
        self._count()
        self.lines[path] = node.start_mark.line + 1
        if path.count(".") + path.count("[") > _DEEPEST:
            return self._unexpected(node, hint, path)
        chosen = _choose(node, hint)
        if chosen is None:
            return self._unexpected(node, hint, path)
        if node.id == "mapping":
            return self._mapping(node, chosen, path)
        if node.id == "sequence":
            item = get_args(chosen)[0]
            items = tuple(self.read(child, item, f"{path}[{index}]") for index, child in enumerate(node.value))
            return msgspec.UNSET if msgspec.UNSET in items else items
        return self._scalar(node, chosen, hint, path)

    def _count(self) -> None:
        self._values += 1
        if self._values > _MOST_VALUES:
            raise _TooManyValuesError

    def _unexpected(self, node: Node, hint: Any, path: str) -> Any:
        found = _found(node) if _is_null(node) or node.id != "scalar" else "a single value"
        self.problem(path, f"expected {expected(hint)}, found {found}")
        return msgspec.UNSET

    def _scalar(self, node: Node, chosen: Any, hint: Any, path: str) -> Any:
        if chosen is type(None):
            return None
        try:
            return chosen(node.value) if _is_enum(chosen) else _scalar_of(chosen).parse(node.value)
        except (ValueError, OverflowError):
            secret = not _is_enum(chosen) and _scalar_of(chosen).secret
            wanted = expected(hint if _is_enum(chosen) else chosen)
            self.problem(path, f"expected {wanted}, found {'something else' if secret else _found(node)}")
            return msgspec.UNSET

    def _mapping(self, node: Node, hint: Any, path: str) -> Any:
        children = self._children(node, path)
        if get_origin(hint) is dict:
            return {key: self.read(child, get_args(hint)[1], _join(path, key)) for key, child in children.items()}
        hints = get_type_hints(hint, include_extras=True)
        known = fields(hint)
        values: dict[str, Any] = {}
        for key, child in children.items():
            if key not in known:
                self._unknown_key(key, known, path)
            elif not _is_null(child) or known[key].required or type(None) in get_args(hints[known[key].name]):
                values[known[key].name] = self.read(child, hints[known[key].name], _join(path, key))
        for key, field in known.items():
            if field.required and key not in children:
                self.problem(_join(path, key), f"expected {expected(hints[field.name])}, found nothing")
        return _build(hint, values)

    def _children(self, node: Node, path: str) -> dict[str, Node]:
        children: dict[str, Node] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            try:
                key = NAME.parse(key_node.value) if key_node.id == "scalar" else ""
            except ValueError:
                key = ""
            if not key:
                text = f"expected {NAME.expected} as a key, found {_found(key_node)}"
                self.problems.append(Problem(line, path or "(file)", text))
                continue
            self.lines[_join(path, key)] = line
            if key in children:
                self.problem(_join(path, key), "expected each key once, found it again")
            children.setdefault(key, child)
        return children

    def _unknown_key(self, key: str, known: dict[str, Any], path: str) -> None:
        self._count()
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        self.problem(_join(path, key), f"expected a known key ({hint}), found an unknown one")


def expected(hint: Any) -> str:
    """Say in words what a type accepts."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(expected(member) for member in get_args(hint) if member is not type(None))
    if get_origin(hint) is tuple:
        return f"a list, each item {expected(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return f"a mapping of names, each to {expected(get_args(hint)[1])}"
    if _is_enum(hint):
        return f"one of {', '.join(hint)}"
    if isinstance(hint, type) and issubclass(hint, Section):
        return f"a mapping with {', '.join(fields(hint))}"
    return _scalar_of(hint).expected


def _build(section: type[Section], values: dict[str, Any]) -> Any:
    """Make the section from what could be read, so that one bad key does not hide what the others say together."""
    good = {name: value for name, value in values.items() if value is not msgspec.UNSET}
    missing = [field for field in fields(section).values() if field.required and field.name not in good]
    return msgspec.UNSET if missing else section(**good)


def _choose(node: Node, hint: Any) -> Any:
    """Pick the member of a union that has the node's shape; None when there is none."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if node.id == "scalar":
        wanted = [m for m in members if _is_enum(m) or get_origin(m) is Annotated]
        if _is_null(node):
            return type(None) if type(None) in members else None
        return wanted[0] if wanted else None
    origin = tuple if node.id == "sequence" else dict
    for member in members:
        is_section = isinstance(member, type) and issubclass(member, Section)
        if get_origin(member) is origin or (origin is dict and is_section):
            return member
    return None


def _scalar_of(hint: Any) -> Scalar:
    scalar: Scalar = get_args(hint)[1]
    return scalar


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, StrEnum)


def _is_null(node: Node) -> bool:
    return node.id == "scalar" and node.style is None and node.value in _NULLS


def _found(node: Node) -> str:
    if node.id == "mapping":
        return "a mapping"
    if node.id == "sequence":
        return "a list"
    if _is_null(node):
        return "nothing"
    text = str(node.value)
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
