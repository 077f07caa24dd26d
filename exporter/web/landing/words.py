"""Figures in words. What is not known is a dash for the eye and "not known" for the ear, and never 0."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from math import floor, log10
from typing import Final

from exporter.core.money import NANO
from exporter.web.landing.markup import Markup, element, joined

UNKNOWN: Final = joined(
    element("span", "–", aria_hidden="true"),  # noqa: RUF001 - a dash
    element("span", "not known", class_="unseen"),
)
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_PREFIXES: Final = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
_LONG: Final = 365 * 86_400
_SMALL: Final = 0.001
_FEW: Final = 10
_FINE: Final = 0.01
_COARSE: Final = 100  # from here on nobody reads decimals


def known(value: float | None, say: Callable[[float], str]) -> str:
    """Return a value in words, or that it is not known."""
    return UNKNOWN if value is None else say(value)


def usd(amount: float) -> str:
    """Return dollars: to the cent, and what is less than one with three digits that mean something."""
    digits = 2 if amount == 0 or abs(amount) >= 1 else 2 - floor(log10(abs(amount)))
    return "$" + _trimmed(f"{amount:,.{digits}f}")


def usd_of(nano: float) -> str:
    """Return nano-dollars as dollars."""
    return usd(nano / NANO)


def hourly(amount: float) -> str:
    """Return dollars an hour."""
    return f"{usd(amount)}/h"


def percent(ratio: float) -> str:
    """Return a ratio in percent: with one decimal below ten."""
    if 0 < ratio < _SMALL:
        return "< 0.1 %"
    percents = ratio * 100
    return f"{percents:,.1f} %" if 0 < percents < _FEW else f"{percents:,.0f} %"


def times(ratio: float) -> str:
    """Return a multiple."""
    if 0 < ratio < _FINE:
        return "< 0.01×"  # noqa: RUF001 - the sign
    return f"{ratio:,.2f}×" if ratio < _COARSE else f"{ratio:,.0f}×"  # noqa: RUF001


def count(number: float) -> str:
    """Return a number of things."""
    return f"{number:,.0f}" if number == int(number) else _three(number)


def seconds(duration: float) -> str:
    """Return a short time, as latencies are told."""
    return f"{_three(duration)} s" if round(duration, 3) >= 1 else f"{duration * 1000:.0f} ms"


def span(duration: float) -> str:
    """Return a long time in its biggest unit and the next one."""
    if duration > _LONG:
        return "over a year"
    whole = round(duration)
    at = next((at for at, (unit, _) in enumerate(_UNITS) if whole >= unit), len(_UNITS) - 1)
    (unit, name), *smaller = _UNITS[at : at + 2]
    parts = [f"{whole // unit} {name}"]
    parts += [f"{rest} {name}" for size, name in smaller if (rest := whole % unit // size)]
    return " ".join(parts)


def size(number: float) -> str:
    """Return bytes."""
    for unit, name in _PREFIXES:
        if number >= unit:
            return f"{_three(number / unit)} {name}"
    return f"{number:,.0f} B"


def moment(unix_seconds: float, words: str | None = None) -> Markup:
    """Return an instant, to the second or in other words for people, and to the millisecond for scripts."""
    at = datetime.fromtimestamp(unix_seconds, UTC)
    exact = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return element("time", words or f"{at:%Y-%m-%d %H:%M:%S} UTC", datetime=exact)


def several(number: float, thing: str) -> str:
    """Return a number with its thing."""
    return f"{count(number)} {thing}" if number == 1 else f"{count(number)} {thing}s"


def _three(number: float) -> str:
    """Return a number with three digits that mean something, or all those before its point."""
    return f"{number:.3g}" if number < _COARSE - 0.5 else f"{number:,.0f}"


def _trimmed(text: str) -> str:
    """Leave out zeros at the end beyond the cents."""
    return re.sub(r"(\.\d\d\d*?)0+$", r"\1", text)
