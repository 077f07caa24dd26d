"""A source under watch: the record of how reading it went, and the one place where any error of a source is caught."""

import logging
from collections import Counter
from typing import Protocol

from exporter.clock import NANOSECONDS, Clock, Instant
from exporter.core.readings import EngineReading, Failure
from exporter.core.snapshot import SourceView
from exporter.sources.http import REASONS, SourceError

log = logging.getLogger(__name__)


class Reads(Protocol):
    """A source of engine readings."""

    @property
    def source(self) -> str:
        """The kind of source, a label."""

    @property
    def target(self) -> str:
        """The engine's name, a label; never an address."""

    async def read(self) -> EngineReading:
        """Read once; raises SourceError."""


class Watched:
    """A source with the record of how reading it went."""

    def __init__(self, reads: Reads) -> None:
        self.reads = reads
        self.errors: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self.last_success: float | None = None
        self.read_seconds = 0.0
        self.problem: str | None = None
        self._down_since: float | None = None

    async def read(self, clock: Clock) -> tuple[EngineReading | Failure, Instant]:
        """Read once; returns what came and when."""
        began = clock.now()
        outcome = await self._outcome()
        ended = clock.now()
        self.read_seconds = (ended.monotonic - began.monotonic) / NANOSECONDS
        if isinstance(outcome, Failure):
            self._failed(outcome, ended)
        else:
            self._succeeded(ended)
        return outcome, ended

    async def _outcome(self) -> EngineReading | Failure:
        try:
            return await self.reads.read()
        except SourceError as error:
            return Failure(reason=error.reason, detail=error.detail, loading=error.loading)
        except Exception as error:
            log.exception("a bug while reading %s %s", self.reads.source, self.reads.target)
            return Failure(reason="bug", detail=f"internal error ({type(error).__name__})")

    def _failed(self, failure: Failure, at: Instant) -> None:
        self.errors[failure.reason] += 1
        if self.problem != failure.detail:
            log.warning("%s %s: down: %s", self.reads.source, self.reads.target, failure.detail)
        self.problem = failure.detail
        self._down_since = self._down_since or at.unix_seconds

    def _succeeded(self, at: Instant) -> None:
        if self._down_since is not None:
            log.info("%s %s: up after %.0f s", self.reads.source, self.reads.target, at.unix_seconds - self._down_since)
        elif self.last_success is None:
            log.info("%s %s: up", self.reads.source, self.reads.target)
        self.last_success, self.problem, self._down_since = at.unix_seconds, None, None

    def view(self, interval_seconds: float) -> SourceView:
        """Return what the page shows of it."""
        return SourceView(
            source=self.reads.source,
            target=self.reads.target,
            up=self.problem is None and self.last_success is not None,
            last_success=self.last_success,
            read_seconds=self.read_seconds,
            interval_seconds=interval_seconds,
            errors=dict(self.errors),
            problem=self.problem,
        )
