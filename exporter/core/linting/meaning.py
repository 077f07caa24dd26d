"""What the answer of a query is: how many elements, of what unit, the whole load or the load of one replica."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from exporter.core.linting.expressions import (
    Aggregation,
    Binary,
    Call,
    Expression,
    Number,
    Range,
    Selector,
    Text,
    children,
    selectors,
)

Labels = frozenset[tuple[str, str]]  # the labels that a single element has, with their values

_ALWAYS_ONE: Final = frozenset(("scalar", "vector", "absent", "absent_over_time", "time", "pi"))
_SEVERAL: Final = frozenset(("count_values", "limit_ratio"))
_FIRST_K: Final = frozenset(("topk", "bottomk", "limitk"))
_PICKED: Final = frozenset(("min", "max", "quantile", "topk", "bottomk"))
_KEEPERS: Final = (
    "avg_over_time min_over_time max_over_time last_over_time quantile_over_time abs clamp clamp_min clamp_max vector"
    " scalar sort sort_desc label_replace label_join"
)
_KEEPS_UNIT: Final = frozenset(_KEEPERS.split())
_SHARE: Final = re.compile(
    r"(kv|gpu|cpu)_cache_usage_perc|llmcost_(kv_cache_usage|gpu_\w+|engine_load)_ratio|DCGM_FI_PROF_\w+_ACTIVE"
    r"|sglang:token_usage|nv_gpu_utilization"
)
_PERCENT: Final = re.compile(r"DCGM_FI_DEV_(GPU|MEM_COPY)_UTIL|nvidia_smi_utilization\w*|gpu_utilization")
_RATIO: Final = re.compile(r"_ratio$|_perc(ent)?$|_UTIL$|_ACTIVE$|usage$|utilization$")
_SECONDS: Final = re.compile(r"_seconds$")
_PER_REPLICA: Final = re.compile(r"waiting|running|queue|pending")
_LOAD: Final = re.compile(
    r"^(?!.*(avg|mean|median|p\d\d|per.(replica|pod|gpu)|time|latency|duration)).*(requests|waiting|running|queue|pending)"
)
_REPLICAS: Final = re.compile(r"(spec|status|ready|available|deployment)_replicas|healthy_pods|^up$|source_up$")


class Unit(StrEnum):
    """What a threshold is written in."""

    SHARE = "a ratio from 0 to 1"
    PERCENT = "a percentage from 0 to 100"
    SECONDS = "seconds"


class Whose(StrEnum):
    """What the number is of."""

    FLEET = "fleet"  # the whole load: it doubles where the load doubles, however many replicas there are
    REPLICA = "replica"  # a mean, a ratio or a percentile: it falls where replicas are added
    UNKNOWN = "unknown"  # a name that does not say it, or one series of several
    CONSTANT = "constant"


_HUNDREDFOLD: Final[Mapping[tuple[str, Unit | None], Unit]] = {
    ("*", Unit.SHARE): Unit.PERCENT,
    ("/", Unit.PERCENT): Unit.SHARE,
}


def single(expression: Expression) -> Labels | None:
    """Return the labels of the one element that a query returns at most; None where it may return several."""
    match expression:
        case Number() | Text():
            return frozenset()
        case Aggregation():
            return _single_of_aggregation(expression)
        case Call():
            return _single_of_call(expression)
        case Binary():
            return _single_of_binary(expression)
        case Range(inner):
            return single(inner)
    return None


def _single_of_call(call: Call) -> Labels | None:
    if call.function in _ALWAYS_ONE:
        return frozenset()
    if call.function in ("histogram_quantile", "histogram_fraction") and call.arguments:
        return _single_of_histogram(call.arguments[-1])
    arguments = call.arguments
    found = [single(argument) for argument in arguments if not isinstance(argument, Number | Text)]
    return next(iter(found)) if found and None not in found else None


def _single_of_aggregation(found: Aggregation) -> Labels | None:
    if found.operator in _SEVERAL or found.without:
        return None
    argument = found.arguments[-1]
    if found.operator in _FIRST_K:
        first = found.arguments[0]
        if not found.labels and isinstance(first, Number) and first.value == 1:
            return frozenset()
        return single(argument)
    return _fixed(argument, found.labels)


def _single_of_histogram(argument: Expression) -> Labels | None:
    """Its buckets are several, but one in every other label."""
    if isinstance(argument, Aggregation) and not argument.without and argument.operator == "sum":
        return _fixed(argument.arguments[-1], tuple(label for label in argument.labels if label != "le"))
    return single(argument)


def _fixed(argument: Expression, labels: tuple[str, ...]) -> Labels | None:
    """Return the values of labels where every selector allows just one."""
    found: set[tuple[str, str]] = set()
    for label in labels:
        values = {_demanded(selector, label) for selector, _ in selectors(argument)}
        value = values.pop() if len(values) == 1 else None
        if value is None:
            return None
        found.add((label, value))
    return frozenset(found)


def _demanded(selector: Selector, label: str) -> str | None:
    values = [matcher.value for matcher in selector.matchers if matcher.label == label and matcher.operator == "="]
    return values[0] if values else None


def _single_of_binary(found: Binary) -> Labels | None:
    left, right = single(found.left), single(found.right)
    if found.operator == "or":
        return left if left is not None and left == right else None
    if found.operator in ("and", "unless"):
        return left
    if found.group:
        return left if found.group == "left" else right
    if left is not None and is_scalar(found.left):
        return right
    # Two sides are matched one to one: where one has one element, so has the answer. A scalar matches with all.
    return left if left is not None or is_scalar(found.right) else right


def is_scalar(expression: Expression) -> bool:
    """Tell whether the answer is a number or a text by itself, not a vector of elements."""
    match expression:
        case Number() | Text() | Call("scalar" | "time" | "pi", _):
            return True
        case Binary(_, left, right):
            return is_scalar(left) and is_scalar(right)
    return False


def filter_of(expression: Expression) -> Binary | None:
    """Return a comparison that leaves no answer where it does not hold; one with bool answers 0 or 1 instead."""
    match expression:
        case Binary():
            return _filter_of_binary(expression)
        case Call("absent" | "absent_over_time" | "scalar", _):  # scalar() answers NaN
            return None
        case Range(inner):
            return filter_of(inner)
    return next(filter(None, map(filter_of, children(expression))), None)


def _filter_of_binary(found: Binary) -> Binary | None:
    left, right = (_filter_of_side(one, found.operator) for one in (found.left, found.right))
    if found.operator == "or":
        return left if right is not None else None
    if found.is_comparison and not found.is_bool and not is_scalar(found):
        return found
    # Behind `and` stands a guard: where there is no data, no answer is meant. One on the clock alone is none.
    guards = found.operator == "unless" or (found.operator == "and" and selectors(found.right))
    return left if guards else left or right


def _filter_of_side(side: Expression, operator: str) -> Binary | None:
    """Pass over a join with series that say a state by 1, like the pods that are ready."""
    match found := filter_of(side):
        case Binary("==", _, Number(1)) if operator == "*" and single(side) is None:
            return None
    return found


def is_switch(expression: Expression) -> bool:
    """Tell whether every metric in it is only compared with something, for an answer of 0 or 1."""
    match expression:
        case Selector():
            return False
        case Binary(is_bool=True):
            return True
    return all(map(is_switch, children(expression)))


def whose(expression: Expression) -> Whose:
    """Tell whether the number is of the whole fleet or of one replica."""
    match expression:
        case Selector(name, _):
            return _whose_by_name(name)
        case Aggregation():
            return _whose_of_aggregation(expression)
        case Call():
            return _whose_of_call(expression)
        case Binary():
            return _whose_of_binary(expression)
        case Range(inner):
            return whose(inner)
    return Whose.CONSTANT


def _whose_by_name(name: str) -> Whose:
    if _RATIO.search(name) or _SECONDS.search(name):
        return Whose.REPLICA
    return Whose.FLEET if _LOAD.search(name) else Whose.UNKNOWN


def _whose_of_aggregation(found: Aggregation) -> Whose:
    argument = found.arguments[-1]
    if found.operator in ("avg", "stddev", "stdvar"):
        return Whose.REPLICA
    if found.operator in _PICKED:
        raw = any(_PER_REPLICA.search(selector.name) for selector, _ in selectors(argument))
        if raw and isinstance(argument, Selector):
            return Whose.REPLICA
        of = whose(argument)  # of several series it is one: who knows whether that is of all of them
        return Whose.UNKNOWN if of is Whose.FLEET and single(argument) is None else of
    return Whose.FLEET


def _whose_of_call(found: Call) -> Whose:
    if not found.arguments:
        return Whose.CONSTANT
    if found.function.startswith("histogram_"):
        return Whose.REPLICA
    if found.function in ("rate", "irate"):
        busy = any(selector.name.endswith("_seconds_total") for selector, _ in selectors(found))
        return Whose.REPLICA if busy else Whose.FLEET
    first = [argument for argument in found.arguments if not isinstance(argument, Number)]
    return whose(first[0]) if first else Whose.CONSTANT


def _whose_of_binary(found: Binary) -> Whose:
    if found.is_comparison and found.is_bool:
        return Whose.CONSTANT
    if found.is_comparison:
        return whose(_compared(found))
    left, right = whose(found.left), whose(found.right)
    if found.operator in ("and", "unless"):
        return left
    totals = [one for one in (Whose.FLEET, Whose.UNKNOWN) if one in (left, right)]
    if found.operator == "/" and {left, right} <= {*totals}:
        return left if _is_setting(found.right) else Whose.REPLICA
    if found.operator in ("*", "+", "-") and totals:
        return totals[0]
    return right if left is Whose.CONSTANT else left


def _is_setting(divisor: Expression) -> bool:
    """Tell whether load over it is still load, as over a number: a scalar or a maximum is no total beside the load."""
    if not is_scalar(divisor) and not (isinstance(divisor, Aggregation) and divisor.operator in _PICKED):
        return False
    return not any(_REPLICAS.search(one.name) or {"sum", "count"} & {*inside} for one, inside in selectors(divisor))


def _compared(found: Binary) -> Expression:
    """Return the side whose number a comparison lets through: a scalar is only what it is compared with."""
    return found.right if is_scalar(found.left) else found.left


def unit(expression: Expression) -> Unit | None:
    """Return the unit of the answer where that is certain."""
    match expression:
        case Selector(name, _):
            return _unit_of_name(name)
        case Aggregation("avg" | "min" | "max" | "quantile" | "topk" | "bottomk", arguments):
            return unit(arguments[-1])
        case Call():
            return _unit_of_call(expression)
        case Binary():
            return _unit_of_binary(expression)
        case Range(inner):
            return unit(inner)
    return None


def _unit_of_binary(found: Binary) -> Unit | None:
    if found.is_comparison and not found.is_bool:
        return unit(_compared(found))
    left, right = found.left, found.right
    if found.operator == "*" and left == Number(100):
        left, right = right, left
    if right == Number(100):
        return _HUNDREDFOLD.get((found.operator, unit(left)))
    first = unit(found.left) if found.operator in ("or", "and") else None
    return first or (unit(found.right) if found.operator == "or" else None)


def _unit_of_call(call: Call) -> Unit | None:
    names = [selector.name for selector, _ in selectors(call)]
    if call.function == "histogram_quantile":
        return Unit.SECONDS if any(name.endswith("_seconds_bucket") for name in names) else None
    if call.function in ("rate", "irate"):
        return Unit.SHARE if any(name.endswith("_busy_seconds_total") for name in names) else None
    if call.function in _KEEPS_UNIT:
        return next((unit(one) for one in call.arguments if not isinstance(one, Number)), None)
    return None


def _unit_of_name(name: str) -> Unit | None:
    bare = name.removeprefix("vllm:")
    if _SHARE.fullmatch(bare):
        return Unit.SHARE
    if _PERCENT.fullmatch(bare):
        return Unit.PERCENT
    return Unit.SECONDS if _SECONDS.search(bare) else None
