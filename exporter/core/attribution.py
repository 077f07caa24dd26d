"""Showback: what an engine's busy time cost in a settling window, shared over the features that claimed its tokens."""

from typing import NamedTuple


class Slot(NamedTuple):
    """A settling window of one engine: `seconds` from the Unix second `start` on."""

    engine: str
    start: int
    seconds: int


class Claim(NamedTuple):
    """Tokens that events claim of a slot; the cached ones are a part of the prompt tokens."""

    prompt_tokens: int
    cached_prompt_tokens: int
    output_tokens: int

    def plus(self, more: "Claim") -> "Claim":
        """Return the sum."""
        return Claim(*(one + other for one, other in zip(self, more, strict=True)))
