"""Synthetic traffic: the work that the replayed engines did, dealt out to features that never asked for it."""

import json
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from typing import Final, NamedTuple
from uuid import UUID

import aiohttp

from demo.engines import Look, Work

Event = dict[str, str | int]

MODEL: Final = "tiny-llama"
API: Final[Event] = {"model": "example-large", "provider": "example", "tier": "frontier"}
ESCALATED: Final = 0.28  # of the requests of support_chat that the small model tries first
TIERS: Final = {"chat-small": "fast", "chat-large": "balanced"}
_MOST_ESCALATED: Final = 0.5  # of what the large engine finished between two looks
_OPENING_EVENTS: Final = 40
_API_CHANCE: Final = 0.25  # of an API request between two looks


class Feature(NamedTuple):
    """Who asks: its share of the requests of each tier, and how long its prompts and answers are beside others."""

    name: str
    team: str
    fast: int
    balanced: int
    prompt: int
    answer: int


NOBODY: Final = Feature("", "", 4, 4, 10, 10)  # work that no event claims
SUPPORT: Final = Feature("support_chat", "support", 46, 0, 8, 10)
FEATURES: Final = (
    SUPPORT,
    Feature("search_answers", "platform", 32, 0, 6, 4),
    Feature("document_summary", "docs", 18, 46, 30, 8),
    Feature("code_review", "platform", 0, 50, 20, 14),
)


class Request(NamedTuple):
    """One finished request as it is dealt out; `id` is that of the first try where a smaller tier had it before."""

    feature: Feature
    prompt_tokens: int
    output_tokens: int
    id: str = ""


def split(total: int, weights: Sequence[int]) -> list[int]:
    """Cut a total into integers in proportion to weights; they sum to it exactly."""
    ends = [total * part // sum(weights) for part in accumulate(weights)]
    return [end - start for start, end in pairwise([0, *ends])]


class Traffic:
    """Deals out what engines did, as usage events."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._before: dict[str, Work] = {}
        self._escalated: deque[str] = deque(maxlen=1000)  # ids that wait for the large engine

    def events(self, looks: Mapping[str, Look | None]) -> list[Event]:
        """Return events for all that engines have finished since the last time, and some of an API."""
        found = [self._api_event()] if self._chance.random() < _API_CHANCE else []
        for engine, look in looks.items():
            if look is not None:
                found += self._of_engine(engine, look.work)
        return found

    def opening(self) -> list[Event]:
        """Return what an API has cost before: 40 long requests, $18."""
        return [self._said(FEATURES[3], 80_000, 25_000) | API for _ in range(_OPENING_EVENTS)]

    def _of_engine(self, engine: str, work: Work) -> Iterator[Event]:
        moved = work.since(self._before.setdefault(engine, work))
        if moved.requests:
            self._before[engine] = work
            for request in self.dealt(TIERS[engine], moved):
                yield from self._events(request, engine)

    def dealt(self, tier: str, moved: Work) -> list[Request]:
        """Give each finished request to a feature, and each a part of the tokens."""
        ids = self._first_tries(moved.requests) if tier == "balanced" else []
        askers = (*FEATURES, NOBODY)
        shares = [feature.fast if tier == "fast" else feature.balanced for feature in askers]
        dealt = [SUPPORT] * len(ids) + self._chance.choices(askers, shares, k=moved.requests - len(ids))
        prompts = split(moved.prompt_tokens, [feature.prompt for feature in dealt])
        answers = split(moved.output_tokens, [feature.answer for feature in dealt])
        ids += [""] * (len(dealt) - len(ids))
        return [Request(*parts) for parts in zip(dealt, prompts, answers, ids, strict=True)]

    def _first_tries(self, finished: int) -> list[str]:
        count = min(len(self._escalated), int(finished * _MOST_ESCALATED))
        return [self._escalated.popleft() for _ in range(count)]

    def _events(self, request: Request, engine: str) -> Iterator[Event]:
        if request.feature is NOBODY:
            return
        event = self._said(request.feature, request.prompt_tokens, request.output_tokens)
        event |= {"model": MODEL, "engine": engine, "tier": TIERS[engine]}
        if request.id:
            event |= {"id": request.id, "escalated_from": "fast"}
        elif request.feature is SUPPORT and self._chance.random() < ESCALATED:
            self._escalated.append(str(event["id"]))
        yield event | ({"cascade": "support"} if request.feature is SUPPORT else {})

    def _api_event(self) -> Event:
        feature = self._chance.choice(FEATURES[2:])
        return self._said(feature, self._chance.randrange(200, 1500), self._chance.randrange(50, 300)) | API

    def _said(self, feature: Feature, prompt_tokens: int, output_tokens: int) -> Event:
        """Return what any event says."""
        return {
            "id": str(UUID(int=self._chance.getrandbits(128))),
            "feature": feature.name,
            "team": feature.team,
            "input_tokens": prompt_tokens,
            "output_tokens": output_tokens,
        }


class Application:
    """Posts events to the exporter, and asks whether features may still spend, as gateways do."""

    def __init__(self, exporter: str, session: aiohttp.ClientSession) -> None:
        self._exporter, self._session = exporter, session

    async def post(self, events: Sequence[Event]) -> None:
        """Post events, if there are any.

        Raises:
            aiohttp.ClientError: they were not taken.
        """
        if events:
            async with self._session.post(f"{self._exporter}/v1/usage", data=json.dumps(events)) as response:
                response.raise_for_status()

    async def ask(self) -> None:
        """Ask for each feature; what is answered is the exporter's to count."""
        for feature in FEATURES:
            asked = {"feature": feature.name, "team": feature.team, "model": MODEL}
            with suppress(aiohttp.ClientError, TimeoutError):
                async with self._session.get(f"{self._exporter}/v1/budgets/check", params=asked) as response:
                    await response.read()
