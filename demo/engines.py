"""The replayed engines as the demo sees them: their load, and what their counters moved."""

from collections.abc import Mapping
from typing import Final, NamedTuple, Self

import aiohttp

from exporter.sources.exposition import Page, by_name

SEATS: Final = 4  # requests that the recorded engine works on at once
_TIMEOUT: Final = aiohttp.ClientTimeout(total=2)
_NAMES: Final[Mapping[str, str]] = {
    "running": "vllm:num_requests_running",
    "kv_cache_ratio": "vllm:kv_cache_usage_perc",
    "requests": "vllm:request_success_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "output_tokens": "vllm:generation_tokens_total",
}


class Work(NamedTuple):
    """Finished requests and tokens: what an engine has counted, or what that moved."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    def since(self, before: Self) -> "Work":
        """Return what has moved; after a restart that is all there is."""
        if any(new < old for new, old in zip(self, before, strict=True)):
            return self
        return Work(*(new - old for new, old in zip(self, before, strict=True)))


class Look(NamedTuple):
    """One look at an engine's page."""

    load: float  # 0 to 1: seats that are taken
    kv_cache_ratio: float
    work: Work


class Engine:
    """One replayed engine."""

    def __init__(self, name: str, url: str, session: aiohttp.ClientSession) -> None:
        self.name, self._url, self._session = name, url, session
        self._page = Page(frozenset(_NAMES.values()).__contains__)

    async def look(self) -> Look | None:
        """Read the page; None while nothing answers."""
        try:
            async with self._session.get(self._url, timeout=_TIMEOUT) as response:
                return self.read(await response.text())
        except (aiohttp.ClientError, TimeoutError):
            return None

    def read(self, text: str) -> Look:
        """Understand a page."""
        found = by_name(self._page.read(text))
        said = {key: sum(sample.value for sample in found.get(name, ())) for key, name in _NAMES.items()}
        work = Work(int(said["requests"]), int(said["prompt_tokens"]), int(said["output_tokens"]))
        return Look(min(said["running"] / SEATS, 1.0), said["kv_cache_ratio"], work)
