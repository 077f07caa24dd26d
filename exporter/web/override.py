"""What somebody asks for who overrides a budget: JSON into an Override."""

from typing import Annotated, Final

import msgspec

from exporter.config.nodes import ConfigError, parse_as
from exporter.config.section import Duration, Section, UnixNanoseconds
from exporter.config.units import MONEY, Scalar
from exporter.core.cap import Override
from exporter.core.money import NANO, nano_usd

LARGEST_BODY_BYTES: Final = 4096
_MOST_USD: Final = 10**9
_LONGEST: Final = 31 * 86400 * NANO  # nanoseconds: who wants more for longer changes the budget
_LONGEST_REASON: Final = 200
_NAME: Final = "body"


def _nano_usd(text: str) -> int:
    usd = MONEY.parse(text)
    amount = int(nano_usd(usd))
    if usd > _MOST_USD or (usd and not amount):  # a little must not be taken for nothing, which ends an override
        raise ValueError(text)
    return amount


def _reason(text: str) -> str:
    if len(text) > _LONGEST_REASON or not text.isprintable():
        raise ValueError(text)
    return text


_AMOUNT: Final = Scalar(f"an amount in US dollars, 0 or from 1e-9 to {_MOST_USD}", _nano_usd)
_REASON: Final = Scalar(f"one line of at most {_LONGEST_REASON} printable characters", _reason)


class _Wanted(Section, frozen=True, kw_only=True):
    """So much more money, in nano-dollars, until an instant or for a duration; 0 for no more."""

    amount_usd: Annotated[int, _AMOUNT]
    until: UnixNanoseconds | None = None
    lasting: Duration | None = msgspec.field(default=None, name="for")
    reason: Annotated[str, _REASON] = ""

    def end(self, now: int) -> int:
        """When it ends, in Unix nanoseconds."""
        if self.until is not None:
            return self.until
        return now if self.lasting is None else now + round(self.lasting * NANO)


def parse(budget: str, body: bytes, now: int) -> Override:
    """Read what is asked for; `now` in Unix nanoseconds.

    Raises:
        ConfigError: with every problem that it has.
    """
    wanted = _read(body)
    problem = _disagreement(wanted, now)
    if problem:
        raise ConfigError([problem])
    end = wanted.end(now) if wanted.amount_usd else now
    return Override(budget=budget, amount_nano_usd=wanted.amount_usd, until_ns=end, at_ns=now, reason=wanted.reason)


def _read(body: bytes) -> _Wanted:
    try:
        plain = msgspec.json.encode(msgspec.json.decode(body))  # without escapes and line breaks it is YAML, too
    except (msgspec.DecodeError, RecursionError):
        raise ConfigError(["expected a JSON object, found something else"]) from None
    try:
        return parse_as(_Wanted, plain, _NAME, lambda _: ())
    except ConfigError as error:
        raise ConfigError([line.removeprefix(f"{_NAME}:1: ") for line in error.lines]) from None


def _disagreement(wanted: _Wanted, now: int) -> str | None:
    """Say what no single value shows; nothing needs no end."""
    if not wanted.amount_usd:
        return None
    if (wanted.until is None) == (wanted.lasting is None):
        return f"until: expected either until or for, found {'neither' if wanted.until is None else 'both'}"
    if now < wanted.end(now) <= now + _LONGEST:
        return None
    return f"{'until' if wanted.lasting is None else 'for'}: expected an end within the next 31 days, found another"
