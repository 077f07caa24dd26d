"""Bearer tokens in files: who may ask about budgets, who may override one, and who may post usage events."""

import hmac
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from aiohttp import web

from exporter.config.model import BudgetApi, Usage
from exporter.config.nodes import ConfigError

_HEADER: Final = "X-LLM-Cost-Token"  # for who needs `Authorization` for something else
_FOR_SOMEBODY_ELSE: Final = ("Origin", "Forwarded", "X-Forwarded-For")  # of a browser, of a proxy


@dataclass(slots=True)
class Tokens:
    """The tokens in force, None where none is asked for."""

    check: bytes | None = None
    override: bytes | None = None

    def adopt(self, config: BudgetApi) -> None:
        """Read the tokens anew.

        Raises:
            ConfigError: a file holds none, and nothing has changed; it is not named, in case its name is the token.
        """
        found: dict[str, bytes | None] = {}
        problems = []
        for key in ("token_file", "override_token_file"):
            try:
                found[key] = None if (file := getattr(config, key)) is None else _token(file)
            except ValueError as error:
                problems.append(f"budget_api.{key}: expected a readable file with a token, found {error}")
        if problems:
            raise ConfigError(problems)
        self.check, self.override = found["token_file"], found["override_token_file"]


class Sender(NamedTuple):
    """Who posts usage events: a token's bearer, for one team or (None) for any."""

    team: str | None = None


class UsageTokens:
    """The tokens of those who post usage events; without any only this machine may."""

    def __init__(self) -> None:
        self._teams: dict[bytes, str | None] = {}

    def adopt(self, config: Usage) -> None:
        """Read the tokens anew.

        Raises:
            ConfigError: a file holds none or another's, and nothing has changed; no file is named.
        """
        found: dict[bytes, str | None] = {}
        problems = []
        for index, one in enumerate(config.tokens):
            path = f"usage.tokens[{index}].file"
            try:
                token = _token(one.file)
            except ValueError as error:
                problems.append(f"{path}: expected a readable file with a token, found {error}")
                continue
            if token in found:
                problems.append(f"{path}: expected a token that no other file has, found it again")
            found[token] = one.team
        if problems:
            raise ConfigError(problems)
        self._teams = found

    def __bool__(self) -> bool:
        """Whether a token is asked for."""
        return bool(self._teams)

    def sender(self, request: web.Request) -> Sender | None:
        """Return who bears which token, None for nobody's; every token is compared, however many come after it."""
        found = [Sender(team) for token, team in self._teams.items() if bears(request, token)]
        return found[0] if found else None


def _token(file: str) -> bytes:
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("something else") from None
    except OSError as error:
        raise ValueError(f"none: {error.strerror}") from None
    if not token or not token.isprintable():
        raise ValueError("something else")
    return token.encode()


def bears(request: web.Request, token: bytes) -> bool:
    """Tell whether a request bears a token; how long that takes does not tell how much of it is right."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    bearer = given.strip() if scheme.lower() == "bearer" else ""
    said = [text.encode(errors="surrogateescape") for text in (bearer, request.headers.get(_HEADER, ""))]
    return any(hmac.compare_digest(text, token) for text in said)


def is_local(request: web.Request) -> bool:
    """Tell whether somebody on this machine asks, as far as can be seen: for itself, not for a browser's page."""
    try:
        address = ipaddress.ip_address(request.remote or "")
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback and not any(header in request.headers for header in _FOR_SOMEBODY_ELSE)
