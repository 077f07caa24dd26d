"""Money and counts in motion: accounts, entries, and exact integers.

Money is an integer of nano-dollars wherever it is kept. A charge is computed exactly, as a fraction of a nano-dollar;
what is smaller than one waits in its account until it is one, so that any split of the same time into beats comes to
the same sum.
"""

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


LABELS: Final = {
    Kind.SPEND: ("category", "engine", "model", "tier"),
    Kind.UNPRICED_GPU: ("engine", "gpu"),
    Kind.UNOBSERVED: (),
    Kind.PROMPT_TOKENS: ("engine", "model", "tier"),
    Kind.CACHED_PROMPT_TOKENS: ("engine", "model", "tier"),
    Kind.OUTPUT_TOKENS: ("engine", "model", "tier"),
    Kind.REQUESTS: ("engine", "model", "outcome"),
    Kind.COLD_STARTS: ("engine",),
    Kind.SENT_BYTES: (),
    Kind.BUDGET_DENIED: ("budget", "mode"),
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
