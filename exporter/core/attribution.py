"""Showback: what an engine's busy time cost in a settling window, shared over the features that claimed its tokens.

Time is cut into slots. What an engine did in one, and what events claim of it, waits until the slot closes, some
minutes after its end, since the event of a request comes after its work. What is closed never changes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from exporter.config.model import Config, Role
from exporter.core.money import NANO, Account, Category, Entry, Kind, divided
from exporter.core.periods import QUARTER

UNATTRIBUTED: Final = "unattributed"
OTHER: Final = "other"  # whatever has no label of its own
RESULTS: Final = ("accepted", "late", "duplicate", "conflict", "rejected", "skipped")
_LONGEST_SLOT_SECONDS: Final = 300
_OUTPUT_WEIGHT: Final = 5  # of an output token against 2 of a prompt token, where the engine does not measure
_PROMPT_WEIGHT: Final = 2
_MONEY: Final = "nano_usd"
_AHEAD_SECONDS: Final = 60

Item = tuple[str, ...]  # what is pending in a slot: a name, and labels
Claimant = tuple[str, str]  # feature, team


class Slot(NamedTuple):
    """A settling window of one engine: `seconds` from the Unix second `start` on."""

    engine: str
    start: int
    seconds: int

    @property
    def end(self) -> int:
        """The Unix second at which it is over; it still waits for events then."""
        return self.start + self.seconds


class Claim(NamedTuple):
    """Tokens that events claim of a slot; the cached ones are a part of the prompt tokens."""

    prompt_tokens: int
    cached_prompt_tokens: int
    output_tokens: int

    def plus(self, more: "Claim") -> "Claim":
        """Return the sum."""
        return Claim(*(one + other for one, other in zip(self, more, strict=True)))

    @property
    def tokens(self) -> int:
        """Prompt and output tokens together."""
        return self.prompt_tokens + self.output_tokens


class Weights(NamedTuple):
    """How much work a token is; a cached prompt token is none."""

    prompt: int
    output: int

    def of(self, claim: Claim) -> int:
        """Return the work of tokens."""
        return sum(self.by_direction(claim))

    def by_direction(self, claim: Claim) -> tuple[int, int]:
        """Return the work of prompts, and of output."""
        computed = claim.prompt_tokens - claim.cached_prompt_tokens
        return max(computed, 0) * self.prompt, claim.output_tokens * self.output


PENDING: Final = {
    Kind.PROMPT_TOKENS: "prompt_tokens",
    Kind.CACHED_PROMPT_TOKENS: "cached_prompt_tokens",
    Kind.OUTPUT_TOKENS: "output_tokens",
    Kind.PREFILL_TIME: "prefill_nanoseconds",
    Kind.DECODE_TIME: "decode_nanoseconds",
}


def pending_item(account: Account) -> tuple[str, Item] | None:
    """Return the engine and the item that an account's increments add to; None where they settle nothing."""
    if account.kind is Kind.SPEND:
        category, engine, model, tier = account.labels
        return (engine, (_MONEY, model, tier)) if category == Category.COMPUTE_BUSY else None
    name = PENDING.get(account.kind)
    return None if name is None else (account.labels[0], (name,))


def usage_accounts(config: Config) -> Iterator[Account]:
    """Yield all accounts that usage events are known to come to."""
    if config.role is not Role.LONE:
        return
    yield from (Account(Kind.USAGE_EVENTS, (result,)) for result in RESULTS)
    yield Account(Kind.UNPRICED_TOKENS, (OTHER,))
    yield Account(Kind.OVERFLOW_EVENTS, ())
    for cascade in config.cascades:
        yield from (Account(Kind.CASCADE_REQUESTS, (cascade.name, tier)) for tier in cascade.tiers)
        for edge in pairwise(cascade.tiers):
            yield Account(Kind.ESCALATIONS, (cascade.name, *edge))
            yield Account(Kind.ESCALATION_SPEND, (cascade.name, *edge))


def showback_accounts(engine: str, model: str, tier: str, features: Iterable[str]) -> Iterator[Account]:
    """Yield the accounts of an engine that answers: of what nobody claims, and of features that are known to come."""
    yield Account(Kind.ATTRIBUTED, (UNATTRIBUTED, "", engine, model, tier))
    for feature in features:
        yield Account(Kind.ATTRIBUTED, (feature, "", engine, model, tier))
        for kind in (Kind.FEATURE_REQUESTS, Kind.FEATURE_PROMPT_TOKENS, Kind.FEATURE_OUTPUT_TOKENS):
            yield Account(kind, (feature, "", model, tier))


def weights(counted: Claim, prefill_ns: int, decode_ns: int) -> Weights:
    """Return what tokens weigh in a slot.

    Measured: prefill seconds ÷ computed prompt tokens, and decode seconds ÷ output tokens, as integers by their common
    denominator. Where an engine gives no such seconds, or none of one kind of tokens, an output token weighs 2.5
    prompt tokens.
    """
    computed = counted.prompt_tokens - counted.cached_prompt_tokens
    if min(prefill_ns, decode_ns, computed, counted.output_tokens) <= 0:
        return Weights(_PROMPT_WEIGHT, _OUTPUT_WEIGHT)
    return Weights(prefill_ns * counted.output_tokens, decode_ns * computed)


def shared(amount: int, counted: Claim, weigh: Weights, claims: Mapping[Claimant, Claim]) -> dict[Claimant, int]:
    """Share an amount over those who claim tokens, to the last unit; the rest of the work is unattributed.

    Claims above what the engine counted are scaled down to it.
    """
    work = {claimant: weigh.of(claim) for claimant, claim in claims.items()}
    unclaimed = max(weigh.of(counted) - sum(work.values()), 0)
    if not weigh.of(counted):
        work, unclaimed = {}, 1
    work[UNATTRIBUTED, ""] = work.get((UNATTRIBUTED, ""), 0) + unclaimed
    return dict(zip(work, divided(amount, list(work.values())), strict=True))


def by_direction(amount: int, work: tuple[int, int]) -> tuple[int, int]:
    """Divide a share by what of its work were prompts and what output; (0, 0) where there is no work to go by."""
    if not any(work):
        return 0, 0
    prompts = amount * work[0] // sum(work)
    return prompts, amount - prompts


@dataclass(slots=True)
class _Open:
    pending: Counter[Item] = field(default_factory=Counter)
    claims: dict[Claimant, Claim] = field(default_factory=dict)
    held: int = 0

    @property
    def counted(self) -> Claim:
        return Claim(
            *(self.pending[item] for item in (("prompt_tokens",), ("cached_prompt_tokens",), ("output_tokens",)))
        )


class Closed(NamedTuple):
    """A slot that is settled: what to book, and the tokens that were claimed and counted in it."""

    slot: Slot
    entries: list[Entry]
    claimed_tokens: int
    counted_tokens: int


class Settling:
    """All open slots: what is pending in each, and what is claimed of it."""

    def __init__(self, settle_seconds: float, now: int | None = None) -> None:
        """Begin at the Unix second at which slots were last closed, None where none ever was."""
        self._open: dict[Slot, _Open] = {}
        self._now = now
        self.adopt(settle_seconds)

    def adopt(self, settle_seconds: float) -> None:
        """Wait so long for events from now on. Slots are five minutes long, or as short as the wait."""
        self._settle = settle_seconds
        longest = max(min(int(settle_seconds), _LONGEST_SLOT_SECONDS), 1)
        self._seconds = max(length for length in range(1, longest + 1) if QUARTER % length == 0)

    def restore(self, pending: Mapping[tuple[Slot, Item], int], claims: Mapping[tuple[Slot, Claimant], Claim]) -> None:
        """Go on with what an earlier process left open."""
        for (slot, item), amount in pending.items():
            self._open.setdefault(slot, _Open()).pending[item] += amount
        for (slot, claimant), claim in claims.items():
            self._open.setdefault(slot, _Open()).claims[claimant] = claim

    def place(self, engine: str, second: int) -> tuple[Slot, bool]:
        """Return the slot for what happened at a Unix second, and whether that is another than its own: it is late."""
        slot = Slot(engine, second // self._seconds * self._seconds, self._seconds)
        if self._now is None or not self._is_over(slot, self._now):
            return slot, False
        return Slot(engine, self._now // self._seconds * self._seconds, self._seconds), True

    def pend(self, slot: Slot, item: Item, amount: int) -> None:
        """Add to what is pending in a slot."""
        self._open.setdefault(slot, _Open()).pending[item] += amount

    def claim(self, slot: Slot, claimant: Claimant, claim: Claim) -> None:
        """Add tokens that a feature claims of a slot."""
        claims = self._open.setdefault(slot, _Open()).claims
        claims[claimant] = claims[claimant].plus(claim) if claimant in claims else claim

    def hold(self, slots: Iterable[Slot]) -> None:
        """Keep slots open until `release`: claims of them are being written."""
        for slot in slots:
            self._open.setdefault(slot, _Open()).held += 1

    def release(self, slots: Iterable[Slot]) -> None:
        """Let slots close again."""
        for slot in slots:
            self._open[slot].held -= 1

    def close(self, now: int) -> list[Closed]:
        """Settle every slot that has waited long enough at a Unix second, the oldest first."""
        self._now = now
        due = [slot for slot, one in self._open.items() if self._is_over(slot, now) and not one.held]
        due.sort(key=_by_start)
        return [_settled(slot, self._open.pop(slot)) for slot in due]

    def pending_nano_usd(self) -> dict[str, int]:
        """Return by engine what busy time cost whose slot is open."""
        found: dict[str, int] = {}
        for slot, one in self._open.items():
            for item, amount in one.pending.items():
                if item[0] == _MONEY:
                    found[slot.engine] = found.get(slot.engine, 0) + amount
        return found

    def settled_until(self, now: int) -> int:
        """Return the end of the newest slot that has waited long enough at a Unix second."""
        return int(now - self._settle) // self._seconds * self._seconds

    def _is_over(self, slot: Slot, now: int) -> bool:
        """Tell whether nothing is waited for any more; a slot far ahead was opened before the clock was set back."""
        return slot.end + self._settle <= now or slot.start > now + slot.seconds + _AHEAD_SECONDS


def _by_start(slot: Slot) -> tuple[int, Slot]:
    return slot.start, slot


def _settled(slot: Slot, one: _Open) -> Closed:
    counted = one.counted
    weigh = weights(counted, one.pending[("prefill_nanoseconds",)], one.pending[("decode_nanoseconds",)])
    work = {claimant: weigh.by_direction(claim) for claimant, claim in one.claims.items()}
    prompts, output = weigh.by_direction(counted)
    claimed = [sum(parts) for parts in zip(*work.values(), strict=True)] or [0, 0]
    work[UNATTRIBUTED, ""] = max(prompts - claimed[0], 0), max(output - claimed[1], 0)
    entries: list[Entry] = []
    for item, amount in one.pending.items():
        if item[0] == _MONEY:
            for claimant, part in shared(amount, counted, weigh, one.claims).items():
                labels = (*claimant, slot.engine, *item[1:])
                entries += _entries(labels, part, by_direction(part, work[claimant]), slot.start * NANO)
    return Closed(slot, entries, sum(claim.tokens for claim in one.claims.values()), counted.tokens)


def _entries(labels: tuple[str, ...], part: int, directions: tuple[int, int], at: int) -> Iterator[Entry]:
    """Yield a share, and what of it is known to be of one direction."""
    yield Entry(Account(Kind.ATTRIBUTED, labels), part, at)
    for kind, amount in zip((Kind.ATTRIBUTED_INPUT, Kind.ATTRIBUTED_OUTPUT), directions, strict=True):
        if amount:
            yield Entry(Account(kind, labels), amount, at)
