"""Money and counts in motion: accounts, entries, and exact integers.

Money is an integer of nano-dollars wherever it is kept. A charge is computed exactly, as a fraction of a nano-dollar;
what is smaller than one waits in its account until it is one, so that any split of the same time into beats comes to
the same sum.
"""

from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Final, NamedTuple

NANO: Final = 1_000_000_000


class Kind(StrEnum):
    """What an account counts, and in which unit."""

    SPEND = "spend"  # nano-dollars
    UNPRICED_GPU = "unpriced_gpu"  # nanoseconds of one GPU
    UNOBSERVED = "unobserved"  # nanoseconds
    PROMPT_TOKENS = "prompt_tokens"
    CACHED_PROMPT_TOKENS = "cached_prompt_tokens"
    OUTPUT_TOKENS = "output_tokens"
    REQUESTS = "requests"
    COLD_STARTS = "cold_starts"
    SENT_BYTES = "sent_bytes"
    BUDGET_DENIED = "budget_denied"  # checks
    PREFILL_TIME = "prefill_time"  # nanoseconds that requests spent on their prompts, as the engine measures it
    DECODE_TIME = "decode_time"  # likewise on their output
    ATTRIBUTED = "attributed"  # nano-dollars
    ATTRIBUTED_INPUT = "attributed_input"  # nano-dollars of those, for prompts
    ATTRIBUTED_OUTPUT = "attributed_output"  # likewise for output; what neither has is of no known direction
    FEATURE_REQUESTS = "feature_requests"
    FEATURE_PROMPT_TOKENS = "feature_prompt_tokens"
    FEATURE_OUTPUT_TOKENS = "feature_output_tokens"
    UNPRICED_TOKENS = "unpriced_tokens"
    USAGE_EVENTS = "usage_events"
    OVERFLOW_EVENTS = "overflow_events"
    GATEWAY_SPEND = "gateway_spend"  # nano-dollars, as a gateway says
    GATEWAY_BOOKED = "gateway_booked"  # nano-dollars, as they are booked for the same calls
    CASCADE_REQUESTS = "cascade_requests"
    ESCALATIONS = "escalations"
    COSTED_ESCALATIONS = "costed_escalations"  # those whose first try is in ESCALATION_SPEND
    ESCALATION_SPEND = "escalation_spend"  # nano-dollars
    API_EQUIVALENT = "api_equivalent"  # nano-dollars


LABELS: Final = {
    Kind.SPEND: ("category", "engine", "model", "tier"),
    Kind.UNPRICED_GPU: ("engine", "model", "tier", "gpu"),
    Kind.UNOBSERVED: (),
    Kind.PROMPT_TOKENS: ("engine", "model", "tier"),
    Kind.CACHED_PROMPT_TOKENS: ("engine", "model", "tier"),
    Kind.OUTPUT_TOKENS: ("engine", "model", "tier"),
    Kind.REQUESTS: ("engine", "model", "outcome"),
    Kind.COLD_STARTS: ("engine",),
    Kind.SENT_BYTES: (),
    Kind.BUDGET_DENIED: ("budget", "mode"),
    Kind.PREFILL_TIME: ("engine",),
    Kind.DECODE_TIME: ("engine",),
    Kind.ATTRIBUTED: ("feature", "team", "engine", "model", "tier"),
    Kind.ATTRIBUTED_INPUT: ("feature", "team", "engine", "model", "tier"),
    Kind.ATTRIBUTED_OUTPUT: ("feature", "team", "engine", "model", "tier"),
    Kind.FEATURE_REQUESTS: ("feature", "team", "model", "tier"),
    Kind.FEATURE_PROMPT_TOKENS: ("feature", "team", "model", "tier"),
    Kind.FEATURE_OUTPUT_TOKENS: ("feature", "team", "model", "tier"),
    Kind.UNPRICED_TOKENS: ("model",),
    Kind.USAGE_EVENTS: ("result",),
    Kind.OVERFLOW_EVENTS: (),
    Kind.GATEWAY_SPEND: ("model",),
    Kind.GATEWAY_BOOKED: ("model",),
    Kind.CASCADE_REQUESTS: ("cascade", "tier"),
    Kind.ESCALATIONS: ("cascade", "from_tier", "to_tier"),
    Kind.COSTED_ESCALATIONS: ("cascade", "from_tier", "to_tier"),
    Kind.ESCALATION_SPEND: ("cascade", "from_tier", "to_tier"),
    Kind.API_EQUIVALENT: ("engine", "model", "api_model"),
}


class Category(StrEnum):
    """What the money bought."""

    COMPUTE_BUSY = "compute_busy"
    COMPUTE_IDLE = "compute_idle"
    COMPUTE_LOADING = "compute_loading"
    COMPUTE_DOWN = "compute_down"
    COMPUTE_UNOBSERVED = "compute_unobserved"
    STORAGE = "storage"
    NETWORK = "network"
    API = "api"
    OTHER = "other"


class Account(NamedTuple):
    """One total that only grows."""

    kind: Kind
    labels: tuple[str, ...]


class Entry(NamedTuple):
    """An amount for an account, in the account's unit, and the instant (Unix nanoseconds) at which its time began."""

    account: Account
    amount: Fraction | int
    at: int


def nano_usd(usd: Decimal) -> Fraction:
    """Return dollars as exact nano-dollars."""
    return Fraction(usd) * NANO


def cost(duration_ns: int, nano_usd_per_hour: Fraction) -> Fraction:
    """Return what a duration (nanoseconds) costs at an hourly rate, in exact nano-dollars."""
    return nano_usd_per_hour * duration_ns / (3600 * NANO)


def divided(amount: int, weights: Sequence[int]) -> list[int]:
    """Divide a whole amount by weights (0 or more, one of them above 0), so that the parts sum to it exactly.

    By the largest remainder: each part is rounded down, and what is left goes, one by one, to those that lost most.
    """
    total = sum(weights)
    parts = [amount * weight // total for weight in weights]
    lost = sorted(range(len(weights)), key=lambda index: -(amount * weights[index] % total))
    for index in lost[: amount - sum(parts)]:
        parts[index] += 1
    return parts
