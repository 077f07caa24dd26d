"""Budgets over HTTP: the check that gateways ask, how all budgets stand, and the override of one.

The check answers from memory alone, by what the last beat left; no request makes it look at a disk.
"""

import logging
import re
from asyncio import IncompleteReadError
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple
from unicodedata import normalize
from urllib.parse import parse_qsl, quote

from aiohttp import web

from exporter.books import Books, Fate
from exporter.clock import Clock
from exporter.config.model import Engine
from exporter.config.nodes import ConfigError
from exporter.core.budgets import BudgetFacts, BudgetView, EngineCost
from exporter.core.cap import Asked, Decision, Override, booked_names, decide
from exporter.core.money import NANO, Account, Entry, Kind
from exporter.core.snapshot import Snapshot
from exporter.ledger import LAST_BEAT, moment
from exporter.web import budgets_json
from exporter.web.bearer import Tokens, bears, is_local
from exporter.web.board import Board
from exporter.web.override import LARGEST_BODY_BYTES, parse

log = logging.getLogger(__name__)

_CHECK: Final = "/v1/budgets/check"
_TAIL: Final = r"{tail:[/*][\s\S]*}"  # what a gateway appends; a budget may be named `checkout`
_NAME: Final = "{name:[^/]+}"  # a name may have braces, which aiohttp's own pattern excludes
_HEADERS: Final = {"feature": "x-llm-feature", "team": "x-llm-team", "model": "x-llm-model"}
_KEYS: Final = (*_HEADERS, "deny_status")  # of a query
_SLOT: Final = NANO // 10  # nanoseconds for which an answer is given again
_LONGEST_REMEMBERED: Final = 512  # characters of a query
_UNKNOWN_ENGINE: Final = EngineCost(name="", model="", tier="", compute=None)
_PATIENCE_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 10


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes
    denied: tuple[Account, ...]


class BudgetDesk:
    """Answers all that is asked about budgets."""

    def __init__(
        self, board: Board, books: Books, clock: Clock, tokens: Tokens, engines: Callable[[], Sequence[Engine]] = tuple
    ) -> None:
        """Answer from these parts; `engines` are the config's in force, for the names of their models."""
        self._board, self._books, self._clock, self._tokens = board, books, clock, tokens
        self._engines = engines
        self._answers: dict[tuple[Asked, int | None], _Answer] = {}
        self._of: tuple[int, Snapshot | None] = (0, None)  # the slot and the snapshot that they are for
        self._names: frozenset[str | None] = frozenset()
        self._booked: dict[str, frozenset[str]] = {}

    def routes(self) -> list[web.RouteDef]:
        """Return what is answered here."""
        return [
            *(web.route("*", path, self._check, expect_handler=_no_body) for path in (_CHECK, _CHECK + _TAIL)),
            web.get("/v1/budgets", self._list),
            web.post(f"/v1/budgets/{_NAME}/override", self._override),
        ]

    def overrides(self) -> dict[str, Override]:
        """Return the overrides in force, by the budget's name."""
        now = self._clock.now().wall
        found = self._books.overrides
        return {name: one for name, one in found.items() if one.amount_nano_usd and one.in_force(now)}

    async def _check(self, request: web.Request) -> web.Response:
        """Say whether a request may still spend; any method is answered alike, and no body is read."""
        if self._tokens.check is not None and not bears(request, self._tokens.check):
            return _unauthorised()
        try:  # a query behind an appended path is the client's, and no word of the gateway's
            said, deny_status = _said("" if "tail" in request.match_info else request.rel_url.raw_query_string)
        except ValueError as error:
            return _refused(400, str(error))
        answer = self._answer(said, request.headers, deny_status)
        if answer.denied:
            now = self._clock.now().wall
            await self._books.post([Entry(account, 1, now) for account in answer.denied])
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    def _answer(self, said: Mapping[str, str], headers: Mapping[str, str], deny_status: int | None) -> _Answer:
        """Return an answer, a kept one where it can hardly differ."""
        now = self._clock.now()
        if self._of[0] != now.monotonic // _SLOT or self._of[1] is not self._board.snapshot:
            self._of = now.monotonic // _SLOT, self._board.snapshot
            self._answers.clear()
            self._learn_names()
        asked = self._asked(said, headers)
        kept = self._answers.get((asked, deny_status))
        if kept is None:
            decision = decide(self._views(), asked, now.wall, self._age_seconds(), self._books.overrides)
            kept = self._answers[asked, deny_status] = _encoded(decision, deny_status)
        return kept

    def _learn_names(self) -> None:
        """Learn every name that makes a difference where a request says it."""
        self._names = frozenset(_names(self._views()))
        told = {view.name: view.model for view in self._board.snapshot.engines}
        self._booked = {name: booked & self._names for name, booked in booked_names(self._engines(), told).items()}

    def _asked(self, said: Mapping[str, str], headers: Mapping[str, str]) -> Asked:
        """Return what a request says.

        A name that no budget knows equals nothing, as if it were not said. So there are only so many answers, whatever
        clients call themselves.
        """
        names = [_composed(said.get(key, headers.get(header))) for key, header in _HEADERS.items()]
        feature, team, model = (name if name in self._names else None for name in names)
        return Asked(feature, team, model, self._booked.get(names[-1] or "", frozenset()))

    def _has_beaten(self) -> bool:
        return bool(self._board.snapshot.engines)

    def _views(self) -> tuple[BudgetView, ...]:
        """Return all budgets as the last beat left them; before the first one, as the ledger has them."""
        if self._has_beaten():
            return self._board.snapshot.budgets
        now = self._clock.now()
        awaits = self._books.awaits_ledger
        facts = BudgetFacts(accounting_start=now.wall, awaits_ledger=awaits, engines=(_UNKNOWN_ENGINE,))
        return tuple(meter.view(now, facts) for meter in self._books.budgets.values())

    def _age_seconds(self) -> float:
        """Say how old the figures are; only what an earlier process left is dated by the wall clock."""
        if self._has_beaten():
            return self._board.age_seconds()
        now = self._clock.now()
        return max(now.wall - (moment(self._books.meta, LAST_BEAT) or now.wall), 0) / NANO

    async def _list(self, _: web.Request) -> web.Response:
        overrides = self.overrides()
        budgets = [budgets_json.budget(view, overrides.get(view.budget.name)) for view in self._views()]
        return _json({"age_seconds": round(self._age_seconds(), 3), "budgets": budgets})

    async def _override(self, request: web.Request) -> web.Response:
        """Give the cap of one budget more money for a while; acknowledged once it is on the disk."""
        refused = self._refusal(request)
        if refused is not None:
            return refused
        name = request.match_info["name"]
        view = next((view for view in self._views() if view.budget.name == name), None)
        if view is None:
            return _refused(404, "expected the name of a budget, found another")
        body = await _body(request)
        if body is None:
            return _refused(413, f"expected at most {LARGEST_BODY_BYTES} bytes, found more")
        try:
            override = parse(name, body, self._clock.now().wall)
        except ConfigError as error:
            return _refused(400, *error.lines)
        return await self._put_in_force(override, view, request.remote)

    def _refusal(self, request: web.Request) -> web.Response | None:
        """Return why somebody may not override, None if they may."""
        token = self._tokens.override
        if token is not None and not bears(request, token):
            return _unauthorised()
        if token is None and not is_local(request):
            return _refused(403, "without budget_api.override_token_file only this machine may override a budget")
        return None

    async def _put_in_force(self, override: Override, view: BudgetView, by: str | None) -> web.Response:
        text = _in_words(override)
        log.warning("budget %s, override asked for by %s: %s", override.budget, by, text)
        fate = await self._books.override(override, _PATIENCE_SECONDS)
        if fate is Fate.REPLACED:
            return _refused(409, "a later override of this budget came before this one was written: that one counts")
        if fate is Fate.NOT_WRITTEN:
            log.error("budget %s, override: not in force, since the ledger cannot be written", override.budget)
            why = "the ledger cannot be written: the override is not in force yet; it will be when that is mended"
            return _refused(503, why, retry_after=_RETRY_SECONDS)
        self._answers.clear()
        return _json(budgets_json.budget(view, self.overrides().get(override.budget)))


async def _body(request: web.Request) -> bytes | None:
    """Read a body, however it is sent; None where it is longer than it may be."""
    try:
        await request.content.readexactly(LARGEST_BODY_BYTES + 1)
    except IncompleteReadError as error:
        return error.partial
    return None


def _said(query: str) -> tuple[Mapping[str, str], int | None]:
    """Return what a query says and the status that it wants for a denial; of several values the first one counts.

    A gateway asks by the same few queries. A long one is its clients', and not remembered: there is no end of those.

    Raises:
        ValueError: that is no status by which a client is refused.
    """
    return _remembered(query) if len(query) <= _LONGEST_REMEMBERED else _parsed(query)


def _parsed(query: str) -> tuple[Mapping[str, str], int | None]:
    said: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):  # at most a request line, of 8 kB
        if key in _KEYS:
            said.setdefault(key, value)
    status = said.pop("deny_status", None)
    if status is not None and not re.fullmatch("4[0-9]{2}", status):
        raise ValueError(f"deny_status: expected a status from 400 to 499, found {status[:20]!r}")
    return said, None if status is None else int(status)


_remembered = lru_cache(maxsize=1024)(_parsed)


def _composed(name: str | None) -> str | None:
    return None if name is None else normalize("NFC", name)


def _names(views: tuple[BudgetView, ...]) -> Iterator[str | None]:
    """Yield every name by which budgets are told apart."""
    for view in views:
        match = view.budget.match
        yield from (match.feature, match.team, match.model, *view.budget.cap.exempt_features)


def _encoded(decision: Decision, deny_status: int | None) -> _Answer:
    status = decision.status if decision.allowed or deny_status is None else deny_status
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    if decision.budget is not None and decision.state is not None:
        headers |= {"X-LLM-Budget": quote(decision.budget), "X-LLM-Budget-State": decision.state.value}
    if decision.remaining is not None:
        headers["X-LLM-Budget-Remaining-USD"] = f"{budgets_json.usd(decision.remaining):f}"
    if decision.retry_after_seconds is not None:
        headers["Retry-After"] = str(decision.retry_after_seconds)
    denied = tuple(Account(Kind.BUDGET_DENIED, (name, mode.value)) for name, mode in decision.denied)
    return _Answer(status, headers, budgets_json.encode(budgets_json.decision(decision)), denied)


def _in_words(override: Override) -> str:
    if not override.amount_nano_usd:
        return "no more money"
    usd, until = budgets_json.usd(override.amount_nano_usd), budgets_json.utc(override.until_ns)
    return f"{usd:f} USD more until {until}" + (f": {override.reason}" if override.reason else "")


async def _no_body(_: web.Request) -> None:
    """Ask nobody who waits for it to send a body."""


def _unauthorised() -> web.Response:
    return _refused(401, "expected the token that budget_api names, found another or none", www_authenticate="Bearer")


def _refused(status: int, *problems: str, **headers: object) -> web.Response:
    named = {name.replace("_", "-").title(): str(value) for name, value in headers.items()}
    return _json({"error": "; ".join(problems)}, status, named)


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    body = budgets_json.encode(content)
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")
