"""What usage events are held against: the config in force, its API prices, and what moves beside them."""

from collections.abc import Mapping

from exporter.books import Books
from exporter.config.model import Config
from exporter.core.api_prices import ApiPrice, Wanted
from exporter.core.directory import Directory
from exporter.core.money import Kind
from exporter.core.usage import Room, Rules
from exporter.web.board import Board


class Intake:
    """Keeps the rules of the ingest."""

    def __init__(self, books: Books, board: Board) -> None:
        self._books, self._board = books, board
        self._config: Config | None = None
        self._prices: Mapping[Wanted, ApiPrice] | None = None
        self._room: Room | None = None
        self._known: tuple[Mapping[str, set[str]], Mapping[str, str]] = {}, {}
        self._rules: Rules | None = None

    def plan(self, config: Config, prices: Mapping[Wanted, ApiPrice] | None) -> None:
        """Go by another config; nothing is taken before its prices are known, since what is booked is final."""
        self._config, self._prices, self._rules = config, prices, None

    def rules(self) -> Rules | None:
        """Return the rules in force; None before the first beat, and while prices are looked up."""
        if self._config is None or self._prices is None or not self._books.has_beaten:
            return None
        billed = {engine.name: engine.model for engine in self._board.snapshot.engines}
        known = self._books.seen_models(), billed
        if self._rules is None or known != self._known:
            self._known = known
            self._rules = self._made(self._config, self._prices)
        return self._rules

    def _made(self, config: Config, prices: Mapping[Wanted, ApiPrice]) -> Rules:
        if self._room is None:
            known = self._books.shown(Kind.FEATURE_REQUESTS)
            self._room = Room(known={(feature, team, model, tier) for feature, team, model, tier in known})
        return Rules(
            directory=Directory(config.engines, self._known[0], prices, self._known[1]),
            place=self._books.showback.settling.place,
            room=self._room,
            limits=config.limits,
            usage=config.usage,
            features=frozenset(config.features.known),
            cascades=config.cascades,
        )
