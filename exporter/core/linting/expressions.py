"""What a query of PromQL is made of."""

from dataclasses import dataclass
from typing import Final, NamedTuple

COMPARISONS: Final = frozenset(("==", "!=", "<", ">", "<=", ">="))


class Matcher(NamedTuple):
    """A condition on a label."""

    label: str
    operator: str
    value: str


@dataclass(frozen=True, slots=True)
class Number:
    """A number."""

    value: float


@dataclass(frozen=True, slots=True)
class Text:
    """A string, as some functions take it."""

    value: str


@dataclass(frozen=True, slots=True)
class Selector:
    """Series of a metric, which may be given by its label `__name__` alone."""

    name: str
    matchers: tuple[Matcher, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """What an expression was over a time."""

    inner: "Expression"


@dataclass(frozen=True, slots=True)
class Call:
    """A function of its arguments."""

    function: str
    arguments: "tuple[Expression, ...]"


@dataclass(frozen=True, slots=True)
class Aggregation:
    """Many series made fewer: by some labels, or without them."""

    operator: str
    arguments: "tuple[Expression, ...]"
    labels: tuple[str, ...] = ()
    without: bool = False


@dataclass(frozen=True, slots=True)
class Binary:
    """Two expressions joined; `group` is left or right where that side may have several for one of the other."""

    operator: str
    left: "Expression"
    right: "Expression"
    is_bool: bool = False
    group: str = ""

    @property
    def is_comparison(self) -> bool:
        """Whether it compares."""
        return self.operator in COMPARISONS


Expression = Number | Text | Selector | Range | Call | Aggregation | Binary


def children(expression: Expression) -> tuple[Expression, ...]:
    """Return what an expression is made of."""
    match expression:
        case Range(inner):
            return (inner,)
        case Call(_, arguments) | Aggregation(_, arguments):
            return arguments
        case Binary(_, left, right):
            return (left, right)
    return ()


def selectors(expression: Expression) -> list[tuple[Selector, tuple[str, ...]]]:
    """Return every selector of a query with the functions and aggregations around it, the outermost first."""
    found: list[tuple[Selector, tuple[str, ...]]] = []
    waiting: list[tuple[Expression, tuple[str, ...]]] = [(expression, ())]
    while waiting:
        one, inside = waiting.pop()
        match one:
            case Selector():
                found.append((one, inside))
            case Call(name, _) | Aggregation(name, _):
                inside = (*inside, name)
        waiting += [(child, inside) for child in reversed(children(one))]
    return found
