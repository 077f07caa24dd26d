"""An inference engine's metrics page over HTTP, as a reading."""

import aiohttp

from exporter.config.model import Engine
from exporter.core.readings import EngineReading
from exporter.sources.dialects import Dialect, UnknownPageError, recognise, translate, wanted_names
from exporter.sources.exposition import ExpositionError, Page
from exporter.sources.http import DEADLINE_SHARE, REASONS, Request, SourceError, get, metrics_url


class EngineSource:
    """Reads one engine."""

    source = "engine"
    reasons = REASONS

    def __init__(self, engine: Engine, interval_seconds: float, session: aiohttp.ClientSession) -> None:
        self.target = engine.name
        self.engine = engine
        self._session = session
        self._request = Request(
            url=metrics_url(engine.url),
            timeout_seconds=engine.timeout or interval_seconds * DEADLINE_SHARE,
            token_file=engine.token_file,
            ca_file=engine.ca_file,
        )
        self._learned: tuple[Dialect, Page] | None = None

    async def read(self) -> EngineReading:
        """Read the engine's page once.

        Raises:
            SourceError: there is no reading this time, and why.
        """
        response = await get(self._session, self._request)
        return self._understood(response.text())

    def _understood(self, text: str) -> EngineReading:
        learned = self._learned
        if learned is None or not learned[0].fits(text):
            learned = self._learned = self._learn(text)
        dialect, page = learned
        try:
            return translate(dialect, page.read(text), self.engine.disaggregation)
        except ExpositionError as error:
            raise SourceError("malformed", str(error)) from error

    def _learn(self, text: str) -> tuple[Dialect, Page]:
        self._learned = None
        try:
            dialect = recognise(text, self.engine.kind)
        except UnknownPageError as error:
            raise SourceError("not_an_engine", str(error)) from error
        return dialect, Page(wanted_names(dialect).__contains__)
