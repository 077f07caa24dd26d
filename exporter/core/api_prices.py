"""What the tokens of a request cost at an API: dated prices, daily ones, tiers by the length of the prompt.

Rates are integers of nano-dollars for a million tokens, so that costs are exact. A prompt token that the API had cached
costs the rate for cached ones where there is one. Tokens alone are priced: what an API charges beside them (by the
request, web searches, audio and images, writing a cache, another service tier) is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

from exporter.config.prices import ApiModel, ApiPrices
from exporter.core.money import NANO

Wanted = tuple[str | None, str]  # provider (None: none is named) and model, as the config and events write them

_MILLION: Final = 1_000_000
_DAY_SECONDS: Final = 86_400


class Tier(NamedTuple):
    """A rate for all tokens of a request that has more than `start` prompt tokens."""

    start: int
    nano_usd_per_million: int


@dataclass(frozen=True, slots=True)
class Rate:
    """Nano-dollars for a million tokens of one kind; tiers in rising order of their start."""

    base: int
    tiers: tuple[Tier, ...] = ()

    def of(self, prompt_tokens: int) -> int:
        """Return the rate for a request with so many prompt tokens, cached ones included."""
        above = (tier.nano_usd_per_million for tier in reversed(self.tiers) if prompt_tokens > tier.start)
        return next(above, self.base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The rates that hold from `start` (Unix second) on, or in a `daily` interval, or (neither) always.

    `daily` has the first second of the UTC day, and the one after the last; it crosses midnight where that is less.
    """

    input: Rate
    output: Rate
    cached_input: Rate | None = None  # None: a cached prompt token costs what any prompt token does
    start: int | None = None
    daily: tuple[int, int] | None = None

    def holds(self, at: int) -> bool:
        """Tell whether it holds at a Unix second."""
        if self.start is not None and at < self.start:
            return False
        if self.daily is None:
            return True
        first, end = self.daily
        second = at % _DAY_SECONDS
        return first <= second < end if first <= end else second >= first or second < end


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiPrice:
    """What a model costs, and who says so (`source`); rules are tried last to first, and else the first holds."""

    provider: str | None
    model: str
    source: str
    rules: tuple[Rule, ...]

    def rule(self, at: int) -> Rule:
        """Return the rule that holds at a Unix second."""
        return next((rule for rule in reversed(self.rules) if rule.holds(at)), self.rules[0])


def cost_nano_usd(price: ApiPrice, at: int, prompt_tokens: int, cached_prompt_tokens: int, output_tokens: int) -> int:
    """Return what one request at a Unix second costs, rounded once, half up, to whole nano-dollars.

    Cached prompt tokens are a part of the prompt tokens.
    """
    rule = price.rule(at)
    rates = tuple(rate.of(prompt_tokens) for rate in (rule.input, rule.cached_input or rule.input, rule.output))
    return (_cost(rates, prompt_tokens, cached_prompt_tokens, output_tokens) + _MILLION // 2) // _MILLION


def equivalent_nano_usd(
    price: ApiPrice, at: int, prompt_tokens: int, cached_prompt_tokens: int, output_tokens: int
) -> Fraction:
    """Return what tokens counted over many requests would have cost at a Unix second, in exact nano-dollars.

    Since counters do not tell how long each prompt was, no tier above the base is reached.
    """
    rule = price.rule(at)
    rates = (rule.input.base, (rule.cached_input or rule.input).base, rule.output.base)
    return Fraction(_cost(rates, prompt_tokens, cached_prompt_tokens, output_tokens), _MILLION)


def _cost(rates: tuple[int, ...], prompt_tokens: int, cached_prompt_tokens: int, output_tokens: int) -> int:
    """Return tokens × rates, in millionths of a nano-dollar; cached tokens beyond the prompt's count for nothing."""
    cached = min(cached_prompt_tokens, prompt_tokens)
    computed_rate, cached_rate, output_rate = rates
    return (prompt_tokens - cached) * computed_rate + cached * cached_rate + output_tokens * output_rate


def nano_usd_per_million(usd: Decimal) -> int:
    """Return dollars for a million tokens as whole nano-dollars for a million tokens, rounded half up.

    What is lost is below 10⁻¹⁵ dollars a token; it is how 0.18000000000000002 of a price list becomes 0.18.
    """
    return int(Fraction(usd) * NANO + Fraction(1, 2))


def configured(config: ApiPrices) -> Mapping[Wanted, ApiPrice]:
    """Return the prices that the config itself gives."""
    return {(model.provider, model.model): price for model in config.models if (price := _configured(model))}


def _configured(model: ApiModel) -> ApiPrice | None:
    if model.input_usd_per_million is None or model.output_usd_per_million is None:
        return None
    cached = model.cached_input_usd_per_million
    rule = Rule(
        input=Rate(nano_usd_per_million(model.input_usd_per_million)),
        output=Rate(nano_usd_per_million(model.output_usd_per_million)),
        cached_input=None if cached is None else Rate(nano_usd_per_million(cached)),
    )
    return ApiPrice(provider=model.provider, model=model.model, source="config", rules=(rule,))
