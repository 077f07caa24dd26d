"""Scalars of the config, from text: durations, sizes, money, names. Each says in words what it expects."""

import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import yarl


class Scalar(NamedTuple):
    """How one kind of scalar is written; `parse` raises ValueError for a text that is not `expected`."""

    expected: str
    parse: Callable[[str], Any]
    secret: bool = False  # the text itself must not be shown in a message


_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0}
_BYTES: Final = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_LONGEST_NAME: Final = 128
_LONGEST_SECONDS: Final = 100 * 31536000.0
_PLACES: Final = ("key_alias", "team_alias", "team_id", "user_id", "end_user", "model_group")
VARIABLE: Final = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")  # of the environment, in an address that differs by node


def seconds(text: str) -> float:
    """Parse a duration as Prometheus writes it (`500ms`, `1h30m`) into seconds."""
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|[smhdwy]))+", text, re.ASCII):
        raise ValueError(text)
    total = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"([\d.]+)(ms|[smhdwy])", text))
    if not 0 < total <= _LONGEST_SECONDS:
        raise ValueError(text)
    return total


def size_bytes(text: str) -> int:
    """Parse a size (`1MiB`, `500kB`, `4096`) into bytes."""
    match = re.fullmatch(r"(\d{1,15}) ?([A-Za-z]*)", text, re.ASCII)
    if not match or match[2] not in _BYTES or int(match[1]) == 0:
        raise ValueError(text)
    return int(match[1]) * _BYTES[match[2]]


def decimal(text: str) -> Decimal:
    """Parse a finite decimal number exactly as it is written."""
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(text) from None
    if not value.is_finite() or abs(value.adjusted()) > 18:  # noqa: PLR2004 - no price or size has that many digits
        raise ValueError(text)
    return value


def _bounded(minimum: Decimal, maximum: Decimal | None = None, *, open_minimum: bool = False) -> Callable[[str], Any]:
    def parse(text: str) -> Decimal:
        value = decimal(text)
        if value < minimum or (open_minimum and value == minimum) or (maximum is not None and value > maximum):
            raise ValueError(text)
        return value

    return parse


def _count(text: str) -> Fraction:
    match = re.fullmatch(r"(\d{1,6}) ?/ ?(\d{1,6})", text, re.ASCII)
    value = Fraction(int(match[1]), int(match[2]) or 1) if match else Fraction(decimal(text))
    if not 0 <= value <= 1024 or (match and int(match[2]) == 0):  # noqa: PLR2004 - GPUs of one engine
        raise ValueError(text)
    return value


def _whole(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,15}", text, re.ASCII) or not minimum <= int(text) <= maximum:
            raise ValueError(text)
        return int(text)

    return parse


def _name(text: str) -> str:
    name = unicodedata.normalize("NFC", text)
    if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(text)
    return name


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ValueError(text)
    _ = parts.port  # raises ValueError when it is no port
    if parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise ValueError(text)
    if not yarl.URL(text).raw_host:  # what will ask it must understand it as well
        raise ValueError(text)
    return text


def _url_template(text: str) -> str:
    plain = VARIABLE.sub("x", text)
    if "$" in plain:
        raise ValueError(text)
    _url(plain)
    return text


def _line(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError(text)
    return text


def _place(text: str) -> str:
    if text not in _PLACES and not re.fullmatch(r"(tag|metadata):[^\s:][^\s]*", text):
        raise ValueError(text)
    return _line(text)


def _device(text: str) -> str:
    if not re.fullmatch(r"(GPU|MIG)-[0-9A-Za-z/-]{1,100}", text, re.ASCII):
        raise ValueError(text)
    return text


def _instant(text: str) -> int:
    """Parse an ISO 8601 date or time into Unix nanoseconds; without a zone it is UTC."""
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1) * 1000


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


DURATION: Final = Scalar("a duration like 30s, 500ms or 1h30m", seconds)
SIZE: Final = Scalar("a size like 1MiB", size_bytes)
MONEY: Final = Scalar("an amount in US dollars, 0 or more", _bounded(Decimal(0)))
LIMIT: Final = Scalar("an amount in US dollars above 0", _bounded(Decimal(0), open_minimum=True))
AMOUNT: Final = Scalar("a number, 0 or more", _bounded(Decimal(0)))
PUE: Final = Scalar("a number, 1 or more", _bounded(Decimal(1)))
POSITIVE: Final = Scalar("a number above 0", _bounded(Decimal(0), open_minimum=True))
RATIO: Final = Scalar("a ratio from 0 to 1", _bounded(Decimal(0), Decimal(1)))
GPU_COUNT: Final = Scalar("a number of GPUs like 1, 0.5 or 3/7", _count)
GPU_SHARE: Final = Scalar("a share of one GPU above 0, up to 1", _bounded(Decimal(0), Decimal(1), open_minimum=True))
SLICES: Final = Scalar("a number of compute slices from 1 to 7", _whole(1, 7))
WHOLE: Final = Scalar("a whole number, 0 or more", _whole(0, 10**12))
WHOLE_POSITIVE: Final = Scalar("a whole number, 1 or more", _whole(1, 10**12))
DENY_STATUS: Final = Scalar("an HTTP status from 400 to 599", _whole(400, 599))
NAME: Final = Scalar(f"a name of 1 to {_LONGEST_NAME} printable characters", _name)
DEVICE: Final = Scalar("a UUID as the driver spells it, GPU-… or MIG-…", _device)
URL: Final = Scalar("an address like http://127.0.0.1:8000, without user, password or query", _url, secret=True)
URL_TEMPLATE: Final = Scalar(
    "an address like http://127.0.0.1:9400 or http://${NODE_IP}:9400, without user, password or query",
    _url_template,
    secret=True,
)
PATH: Final = Scalar("the path of a file", _line)
TEXT: Final = Scalar("one line of text", _line)
PLACE: Final = Scalar(f"one of {', '.join(_PLACES)}, tag:PREFIX or metadata:KEY", _place)
INSTANT: Final = Scalar("a date or time like 2026-11-01 or 2026-11-01T00:00:00Z", _instant)
FLAG: Final = Scalar("true or false", _flag)
