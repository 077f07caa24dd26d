"""Self-hosting against an API: what the same tokens would cost there, and from how many requests on it pays."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from exporter.core.api_prices import ApiPrice, equivalent_nano_usd
from exporter.core.money import NANO, Account, Entry, Kind
from exporter.core.track import Values

LEAST_REQUESTS: Final = 50  # fewer tell no mean
_HOURS_A_DAY: Final = 24
_SECONDS_A_DAY: Final = 86_400
TOKENS: Final = (Kind.PROMPT_TOKENS, Kind.CACHED_PROMPT_TOKENS, Kind.OUTPUT_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEvenView:
    """One engine beside one API model.

    `ratios` are self-hosted spend ÷ the API's, by window; below 1 self-hosting wins. `requests_per_day` is where it
    begins to pay at today's tokens per request; `is_reachable` says whether today's replicas could serve so many, None
    where either is not known.
    """

    engine: str
    api_model: str
    ratios: Mapping[str, float] = field(default_factory=dict)
    requests_per_day: float | None = None
    most_requests_per_day: float | None = None

    @property
    def is_reachable(self) -> bool | None:
        """Whether the engine as it stands could serve as many requests as pay for it."""
        if self.requests_per_day is None or self.most_requests_per_day is None:
            return None
        return self.requests_per_day <= self.most_requests_per_day


def label(price: ApiPrice) -> str:
    """Name the model of an API in labels."""
    return f"{price.provider}/{price.model}" if price.provider else price.model


def account(engine: str, model: str, price: ApiPrice) -> Account:
    """Return the account of what an engine's tokens would cost at an API."""
    return Account(Kind.API_EQUIVALENT, (engine, model, label(price)))


def equivalents(entries: Iterable[Entry], price: ApiPrice) -> Iterator[Entry]:
    """Yield what the tokens among entries of one engine would have cost at the API when they were counted."""
    counted: dict[tuple[str, str, int], dict[Kind, int]] = {}
    for entry in entries:
        if entry.account.kind in TOKENS:
            engine, model, _ = entry.account.labels
            tokens = counted.setdefault((engine, model, entry.at), {})
            tokens[entry.account.kind] = tokens.get(entry.account.kind, 0) + int(entry.amount)
    for (engine, model, at), tokens in counted.items():
        amounts = (tokens.get(kind, 0) for kind in TOKENS)
        yield Entry(account(engine, model, price), equivalent_nano_usd(price, at // NANO, *amounts), at)


def ratio(spend: int, equivalent: int) -> float | None:
    """Return self-hosted spend ÷ what the API would have taken; None where it would have taken nothing."""
    return spend / equivalent if equivalent else None


def requests_per_day(usd_per_hour: float | None, moved: Values) -> float | None:
    """Return the requests a day at which an engine costs what the API would: cost of a day ÷ API cost of a request.

    Args:
        usd_per_hour: what the engine costs now; None without a price.
        moved: over the last day: API equivalent (nano-dollars), finished requests, output tokens.
    """
    equivalent, requests, _ = moved
    if usd_per_hour is None or requests < LEAST_REQUESTS or not equivalent:
        return None
    return usd_per_hour * NANO * _HOURS_A_DAY * requests / equivalent


def most_requests_per_day(output_tokens_per_second: float | None, moved: Values) -> float | None:
    """Return the requests a day that an engine can serve at its best rate, at today's output tokens per request."""
    _, requests, output_tokens = moved
    if output_tokens_per_second is None or requests < LEAST_REQUESTS or not output_tokens:
        return None
    return output_tokens_per_second * _SECONDS_A_DAY * requests / output_tokens
