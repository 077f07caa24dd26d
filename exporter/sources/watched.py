"""A source under watch: the record of how reading it went, and the one place where any error of a source is caught."""

import logging
from collections import Counter
from typing import Generic, Protocol, TypeVar

from exporter.clock import NANOSECONDS, Clock, Instant
from exporter.core.readings import Failure
from exporter.core.snapshot import SourceView
from exporter.sources.http import SourceError

log = logging.getLogger(__name__)


Reading_co = TypeVar("Reading_co", covariant=True)
Reading = TypeVar("Reading")


class Reads(Protocol[Reading_co]):
    """A source of readings."""

    @property
    def source(self) -> str:
        """The kind of source, a label."""

    @property
    def target(self) -> str:
        """The engine's name, or who else is asked, a label; never an address."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it can fail, labels; `bug` is added to them."""

    async def read(self) -> Reading_co:
        """Read once; raises SourceError."""


class Watched(Generic[Reading]):
    """A source with the record of how reading it went."""

    def __init__(self, reads: Reads[Reading]) -> None:
        self.reads = reads
        self.errors: Counter[str] = Counter(dict.fromkeys((*reads.reasons, "bug"), 0))
        self.last_success: float | None = None
        self.read_seconds = 0.0
        self.problem: str | None = None
        self._down_since: float | None = None

    async def read(self, clock: Clock) -> tuple[Reading | Failure, Instant]:
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

    async def _outcome(self) -> Reading | Failure:
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
