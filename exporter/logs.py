"""Log lines as Prometheus' own programs write them: logfmt or JSON, one event a line, on standard error."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
FORMATS: Final = ("logfmt", "json")


def set_up(level: str, line_format: str) -> None:
    """Send every record of this process to standard error in the chosen format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if line_format == "json" else _Logfmt())
    logging.basicConfig(level=LEVELS[level], handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").addFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    """Leave out requests that are no HTTP: they are the sender's mistake, and their text may hold a secret."""
    error = record.exc_info[1] if record.exc_info else None
    return not type(error).__module__.startswith("aiohttp.http")


def _facts(record: logging.LogRecord, formatter: logging.Formatter) -> dict[str, str]:
    stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    level = "warn" if record.levelno == logging.WARNING else record.levelname.lower()
    facts = {"ts": stamp, "level": level, "logger": record.name, "msg": record.getMessage()}
    if record.exc_info:
        facts["exception"] = formatter.formatException(record.exc_info)
    return facts


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_facts(record, self), ensure_ascii=False)


class _Logfmt(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_quoted(value)}" for key, value in _facts(record, self).items())


def _quoted(value: Any) -> str:
    text = str(value)
    plain = text and not any(c <= " " or c in '"=\\\x7f' for c in text)
    return text if plain else json.dumps(text, ensure_ascii=False)
