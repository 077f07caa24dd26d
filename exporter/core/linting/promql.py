"""A small reader of PromQL: enough to tell what a query asks for, and whether it can be one at all."""

import re
from typing import Final, NamedTuple

from exporter.core.linting.expressions import (
    COMPARISONS,
    Aggregation,
    Binary,
    Call,
    Expression,
    Matcher,
    Number,
    Range,
    Selector,
    Text,
)

_AGGREGATION_NAMES: Final = (
    "sum min max avg group stddev stdvar count count_values bottomk topk quantile limitk limit_ratio"
)
AGGREGATIONS: Final = frozenset(_AGGREGATION_NAMES.split())
_RANGE_FUNCTION_NAMES: Final = (
    "rate irate increase delta idelta deriv predict_linear changes resets holt_winters double_exponential_smoothing"
    " avg_over_time min_over_time max_over_time sum_over_time count_over_time quantile_over_time stddev_over_time"
    " stdvar_over_time last_over_time first_over_time present_over_time absent_over_time mad_over_time"
)
RANGE_FUNCTIONS: Final = frozenset(_RANGE_FUNCTION_NAMES.split())
_STRENGTH: Final = {
    "or": 1,
    "and": 2,
    "unless": 2,
    "+": 4,
    "-": 4,
    "*": 5,
    "/": 5,
    "%": 5,
    "atan2": 5,
    "^": 6,
} | dict.fromkeys(COMPARISONS, 3)
_UNARY: Final = 6  # -x^2 is -(x^2), and -x*y is (-x)*y
_MOST_TOKENS: Final = 800  # far more than a query has that somebody reads
_MOST_OPERATORS: Final = 150  # with the next, how deep the tree can be: whoever walks it does so by recursion
_DEEPEST: Final = 60

_DURATION: Final = r"(?:\d+(?:ms|[smhdwy]))+"
_TOKEN: Final = re.compile(
    rf"""(?P<space>\s+|\#[^\n]*)
       | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`)
       | (?P<range>\[[^\]\[]*\])
       | (?P<duration>{_DURATION}(?!\w))
       | (?P<number>(?:0[xX][0-9a-fA-F]+|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?!\w))
       | (?P<name>[A-Za-z_:][A-Za-z0-9_:]*)
       | (?P<operator>=~|!~|==|!=|<=|>=|[-+*/%^<>=(){{}},@])""",
    re.VERBOSE,
)
_RANGE: Final = re.compile(rf"\[\s*[-+*/^%().\d\s]*{_DURATION}[^$]*\]|\[\s*\d+(\.\d+)?\s*(:.*)?\]", re.DOTALL)


class QueryError(Exception):
    """The text is no query; the message says why."""


def parse(text: str) -> Expression:
    """Read a query.

    Raises:
        QueryError: it is none.
    """
    reader = _Reader(_tokens(text))
    found = reader.expression(0)
    if reader.token.text:
        raise QueryError(f"expected an operator or the end, found {reader.token.text!r}")
    if isinstance(found, Range):
        raise QueryError("it is a range of time: a function like rate() or max_over_time() must stand around it")
    return found


class _Token(NamedTuple):
    kind: str
    text: str


_END: Final = _Token("end", "")


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise QueryError(_unreadable(text[at:]))
        at = match.end()
        if match.lastgroup != "space":
            found.append(_Token(match.lastgroup or "", match[0]))
        if len(found) > _MOST_TOKENS:
            raise QueryError(f"it is longer than {_MOST_TOKENS} words")
    if not found:
        raise QueryError("it is empty")
    return found


def _unreadable(rest: str) -> str:
    if rest[0] == "$":
        return f"{_first_word(rest)!r} is a variable of a dashboard: nobody fills it in here"
    if rest[0] in "\"'`":
        return "a string does not end"
    return "a bracket does not close" if rest[0] == "[" else f"it has {_first_word(rest)!r}, which PromQL does not know"


def _first_word(rest: str) -> str:
    match = re.match(r"\$?\{?\w*\}?", rest)
    return rest[:1] if match is None or not match[0] else match[0][:40]


class _Reader:
    """Reads tokens by the strength of operators."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._operators = 0

    @property
    def token(self) -> _Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else _END

    def expression(self, strength: int) -> Expression:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise QueryError("it is nested too deep")
        left = self._unary()
        while (found := _STRENGTH.get(self.token.text.lower(), 0)) > strength and self.token.kind != "string":
            operator = self._take().text.lower()
            is_bool, group = self._modifiers()
            right = self.expression(found - 1 if operator == "^" else found)
            if isinstance(left, Range) or isinstance(right, Range):
                raise QueryError(f"{operator} cannot join a range of time: put rate() or max_over_time() around it")
            left = self._joined(Binary(operator, left, right, is_bool, group))
        self._depth -= 1
        return left

    def _joined(self, found: Binary) -> Binary:
        self._operators += 1
        if self._operators > _MOST_OPERATORS:
            raise QueryError(f"it has more than {_MOST_OPERATORS} operators")
        return found

    def _take(self, expected: str = "") -> _Token:
        token = self.token
        if expected and token.text != expected:
            found = repr(token.text) if token.text else "the end"
            raise QueryError(f"expected {expected!r}, found {found}")
        self._at += 1
        return token

    def _took(self, text: str) -> bool:
        if self.token.text.lower() != text or self.token.kind == "string":
            return False
        self._at += 1
        return True

    def _modifiers(self) -> tuple[bool, str]:
        is_bool = self._took("bool")
        if self._took("on") or self._took("ignoring"):
            self._labels()
        for side in ("left", "right"):
            if self._took(f"group_{side}"):
                if self.token.text == "(":
                    self._labels()
                return is_bool, side
        return is_bool, ""

    def _labels(self) -> tuple[str, ...]:
        self._take("(")
        found: list[str] = []
        while not self._took(")"):
            found.append(_unquoted(self._take_a("name", "string")))
            if not self._took(",") and self.token.text != ")":
                raise QueryError(f"expected ',' or ')' after the label {found[-1]!r}")
        return tuple(found)

    def _take_a(self, *kinds: str) -> _Token:
        if self.token.kind not in kinds:
            found = repr(self.token.text) if self.token.text else "the end"
            raise QueryError(f"expected a {' or a '.join(kinds)}, found {found}")
        return self._take()

    def _unary(self) -> Expression:
        if self._took("-"):
            return Binary("*", Number(-1), self._signed())
        return self._signed() if self._took("+") else self._postfix(self._primary())

    def _signed(self) -> Expression:
        return self.expression(_UNARY - 1)

    def _primary(self) -> Expression:
        token = self.token
        if token.text == "(" and token.kind == "operator":
            self._take()
            inner = self.expression(0)
            self._take(")")
            return inner
        if token.kind in ("number", "duration"):
            return Number(_number(self._take().text))
        if token.kind == "string":
            return Text(_unquoted(self._take()))
        return self._selector("") if token.text == "{" else self._named(self._take_a("name").text)

    def _named(self, name: str) -> Expression:
        word, following = name.lower(), self.token.text.lower()
        if word in AGGREGATIONS and following in ("(", "by", "without"):
            return self._aggregation(word)
        if following == "(":
            return self._call(name)
        if word in ("inf", "nan"):
            return Number(float(word))
        if word in _STRENGTH:
            raise QueryError(f"expected a metric, found {name!r}")
        return self._selector(name)

    def _selector(self, name: str) -> Selector:
        matchers: list[Matcher] = []
        if self._took("{"):
            while not self._took("}"):
                first = self._take_a("name", "string")
                if self.token.text in ("=", "!=", "=~", "!~"):
                    operator = self._take().text
                    matchers.append(Matcher(_unquoted(first), operator, _unquoted(self._take_a("string"))))
                elif first.kind == "string":
                    name = _unquoted(first)
                else:
                    raise QueryError(f"expected a condition after the label {first.text!r}")
                if not self._took(",") and self.token.text != "}":
                    raise QueryError("expected ',' or '}' after a condition")
        given = [matcher.value for matcher in matchers if matcher.label == "__name__" and matcher.operator == "="]
        return Selector(name or "".join(given[:1]), tuple(matchers))

    def _aggregation(self, operator: str) -> Aggregation:
        labels, without = self._grouping()
        arguments = self._arguments()
        if not labels and not without:
            labels, without = self._grouping()
        if not arguments:
            raise QueryError(f"{operator}() has nothing to aggregate")
        if any(isinstance(argument, Range) for argument in arguments):
            raise QueryError(f"{operator}() cannot take a range of time: put rate() or max_over_time() around it")
        return Aggregation(operator, arguments, labels, without)

    def _grouping(self) -> tuple[tuple[str, ...], bool]:
        if self._took("by"):
            return self._labels(), False
        return (self._labels(), True) if self._took("without") else ((), False)

    def _call(self, name: str) -> Call:
        arguments = self._arguments()
        ranged = any(isinstance(argument, Range) for argument in arguments)
        if name in RANGE_FUNCTIONS and not ranged:
            raise QueryError(f"{name}() takes a range of time, like [5m]")
        if name not in RANGE_FUNCTIONS and ranged:
            raise QueryError(f"{name}() cannot take a range of time")
        return Call(name, arguments)

    def _arguments(self) -> tuple[Expression, ...]:
        self._take("(")
        found: list[Expression] = []
        while not self._took(")"):
            found.append(self.expression(0))
            if not self._took(",") and self.token.text != ")":
                raise QueryError(
                    f"expected ',' or ')', found {self.token.text!r}" if self.token.text else "')' is missing"
                )
        return tuple(found)

    def _postfix(self, found: Expression) -> Expression:
        while True:
            if self.token.kind == "range":
                _check_range(self._take().text)
                found = Range(found)
            elif self._took("offset"):
                self._took("-")
                self._take_a("duration", "number")
            elif self._took("@"):
                self._moment()
            else:
                return found

    def _moment(self) -> None:
        self._took("-")
        if self._take_a("number", "name").text in ("start", "end"):
            self._take("(")
            self._take(")")


def _check_range(text: str) -> None:
    if "$" in text:
        raise QueryError(_unreadable(text[text.index("$") :]))
    if not _RANGE.fullmatch(text):
        raise QueryError(f"expected a time like [5m], found {text[:40]!r}")


def _number(text: str) -> float:
    if text[:2].lower() == "0x":
        return float(int(text, 16))
    try:
        return float(text)
    except ValueError:
        units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
        return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)(ms|[smhdwy])", text))


def _unquoted(token: _Token) -> str:
    if token.kind != "string":
        return token.text
    inner = token.text[1:-1]
    return inner if token.text[0] == "`" else re.sub(r"\\(.)", r"\1", inner)
