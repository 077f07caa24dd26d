"""The cost model on paper: a month of self-hosting, the same work at an API, and where the two meet.

Money is in exact US dollars, tokens and requests are means; only what is shown is rounded. A planned month has 30 days
of 24 hours. None is not known: it is never taken for 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from math import floor
from typing import Final

from exporter.core.api_prices import Rule
from exporter.core.money import NANO

DAYS: Final = 30
HOURS: Final = DAYS * 24
_SECONDS_A_DAY: Final = 86_400
_MILLION: Final = 10**6

Figure = Fraction | int | bool | str | None


class Cheaper(StrEnum):
    """Who does the same work for less; the API where both cost the same, since it needs no hardware."""

    SELF_HOSTED = "self_hosted"
    API = "api"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """What is paid for whether or not anybody asks.

    `gpus` and `most_output_tokens_per_second` are those of one replica; the rest is paid once for all replicas.
    """

    gpu_usd_per_hour: Fraction
    gpus: Fraction = Fraction(1)
    replicas: int = 1
    storage_usd_per_month: Fraction = Fraction(0)
    other_usd_per_hour: Fraction = Fraction(0)
    most_output_tokens_per_second: Fraction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What users ask for; tokens and bytes are means of one request, and cached tokens a part of the input tokens."""

    requests_per_day: Fraction | None = None
    input_tokens: Fraction = Fraction(0)
    cached_input_tokens: Fraction = Fraction(0)
    output_tokens: Fraction | None = None
    network_usd_per_request: Fraction | None = Fraction(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What an API takes for a million tokens; without a price of their own, cached tokens cost what any input does."""

    output: Fraction
    input: Fraction = Fraction(0)
    cached_input: Fraction | None = None

    def usd_per_request(self, demand: Demand) -> Fraction | None:
        """Return (input − cached) × p_input + cached × p_cached + output × p_output; None without output tokens."""
        if demand.output_tokens is None:
            return None
        cached = min(demand.cached_input_tokens, demand.input_tokens)
        cached_price = self.input if self.cached_input is None else self.cached_input
        paid = (demand.input_tokens - cached) * self.input + cached * cached_price
        return (paid + demand.output_tokens * self.output) / _MILLION


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One planned month; the fields are what is shown, by their names.

    `break_even_requests_per_day` is the last whole number at which the API is not dearer: above it self-hosting is
    cheaper. It is None, too, where that never comes. `break_even_is_reachable` says whether the hardware can serve more
    than that, and `can_serve_requests_per_day` whether it can serve what is asked for.
    """

    replicas: int
    monthly_compute_usd: Fraction
    monthly_storage_usd: Fraction
    monthly_network_usd: Fraction | None
    monthly_other_usd: Fraction
    monthly_total_usd: Fraction
    usd_per_request: Fraction | None
    usd_per_million_output_tokens: Fraction | None
    usd_per_million_tokens: Fraction | None
    most_requests_per_day: int | None
    can_serve_requests_per_day: bool | None
    api_usd_per_request: Fraction | None
    api_monthly_usd: Fraction | None
    cheaper: Cheaper | None
    break_even_requests_per_day: int | None
    break_even_is_reachable: bool | None

    def figures(self) -> dict[str, Figure]:
        """Return all figures by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def api_of(rule: Rule, input_tokens: Fraction) -> Api:
    """Return the prices of a list's rule for requests with so many input tokens."""
    length = floor(input_tokens)
    return Api(
        input=Fraction(rule.input.of(length), NANO),
        output=Fraction(rule.output.of(length), NANO),
        cached_input=None if rule.cached_input is None else Fraction(rule.cached_input.of(length), NANO),
    )


def ratio(part: Fraction | int | None, whole: Fraction | int | None) -> Fraction | None:
    """Return part ÷ whole; None where one is not known or the whole is nothing."""
    return None if part is None or not whole else Fraction(part) / Fraction(whole)


def product(*factors: Fraction | int | None) -> Fraction | None:
    """Return the product; None where a factor is not known."""
    result = Fraction(1)
    for factor in factors:
        if factor is None:
            return None
        result *= factor
    return result


def plan(hosting: Hosting, demand: Demand, api: Api | None = None) -> Plan:
    """Plan a month.

    compute = USD an hour × GPUs × replicas × 720; other = USD an hour × 720; network = requests a month × USD a
    request; total = the sum of what is known. USD a million tokens = total ÷ tokens a month × 10⁶.
    """
    requests = product(demand.requests_per_day, DAYS)
    compute, storage, other = _fixed(hosting)
    fixed = compute + storage + other
    network = Fraction(0) if demand.network_usd_per_request == 0 else product(requests, demand.network_usd_per_request)
    total = fixed + (network or 0)
    api_request = api.usd_per_request(demand) if api else None
    api_month = product(requests, api_request)
    most, even = most_requests_per_day(hosting, demand), break_even(fixed, demand, api_request)
    is_too_much = _is_less(most, demand.requests_per_day)
    output, prompt = product(requests, demand.output_tokens), product(requests, demand.input_tokens)
    return Plan(
        replicas=hosting.replicas,
        monthly_compute_usd=compute,
        monthly_storage_usd=storage,
        monthly_network_usd=network,
        monthly_other_usd=other,
        monthly_total_usd=total,
        usd_per_request=ratio(total, requests),
        usd_per_million_output_tokens=ratio(total * _MILLION, output),
        usd_per_million_tokens=None if output is None else ratio(total * _MILLION, output + (prompt or 0)),
        most_requests_per_day=most,
        can_serve_requests_per_day=None if is_too_much is None else not is_too_much,
        api_usd_per_request=api_request,
        api_monthly_usd=api_month,
        cheaper=cheaper(total, api_month),
        break_even_requests_per_day=even,
        break_even_is_reachable=_is_less(even, most),
    )


def _fixed(hosting: Hosting) -> tuple[Fraction, Fraction, Fraction]:
    """Return what a month of compute, storage and anything else costs."""
    return (
        hosting.gpu_usd_per_hour * hosting.gpus * hosting.replicas * HOURS,
        hosting.storage_usd_per_month,
        hosting.other_usd_per_hour * HOURS,
    )


def _is_less(one: int | None, other: Fraction | int | None) -> bool | None:
    return None if one is None or other is None else one < other


def cheaper(total: Fraction, api_month: Fraction | None) -> Cheaper | None:
    """Say who costs less in a month."""
    if api_month is None:
        return None
    return Cheaper.SELF_HOSTED if total < api_month else Cheaper.API


def break_even(fixed: Fraction, demand: Demand, api_usd_per_request: Fraction | None) -> int | None:
    """Return the requests a day up to which the API is not dearer, rounded down; None where it never is.

    fixed cost of a day ÷ (API's USD a request − network's USD a request): what a request saves must pay for the fixed
    cost.
    """
    if api_usd_per_request is None:
        return None
    saved = api_usd_per_request - (demand.network_usd_per_request or 0)
    return floor(fixed / DAYS / saved) if saved > 0 else None


def most_requests_per_day(hosting: Hosting, demand: Demand) -> int | None:
    """Return output tokens a second at most × replicas × 86 400 ÷ output tokens of a request, rounded down."""
    tokens = product(hosting.most_output_tokens_per_second, hosting.replicas, _SECONDS_A_DAY)
    most = ratio(tokens, demand.output_tokens)
    return None if most is None else floor(most)


def with_gpu(hosting: Hosting, usd_per_hour: Decimal | None, gpus: Fraction | None, speedup: Decimal | None) -> Hosting:
    """Return the same on other GPUs, `speedup` times as fast; what is not given stays."""
    best = hosting.most_output_tokens_per_second
    return replace(
        hosting,
        gpu_usd_per_hour=hosting.gpu_usd_per_hour if usd_per_hour is None else Fraction(usd_per_hour),
        gpus=hosting.gpus if gpus is None else gpus,
        most_output_tokens_per_second=None if best is None else best * Fraction(speedup or 1),
    )


def differences(before: Plan, after: Plan) -> dict[str, Figure]:
    """Return after − before of every figure that is an amount; None where one of them is not known."""
    return dict(_differences(before.figures(), after.figures()))


def _differences(before: dict[str, Figure], after: dict[str, Figure]) -> Iterator[tuple[str, Figure]]:
    for name, new in after.items():
        old = before[name]
        if isinstance(new, bool | str) or isinstance(old, bool | str):
            continue
        yield name, None if new is None or old is None else new - old


def verdict(found: Plan) -> str:
    """Say in words what follows from a plan."""
    even = _even(found)
    if found.cheaper is None or found.api_monthly_usd is None:
        if found.api_usd_per_request is not None:
            return f"{even[0].upper()}{even[1:]}."
        return "Nothing is compared: the price of an API, requests a day and output tokens are needed for that."
    amounts = f"{usd(found.monthly_total_usd)} USD a month self-hosted, {usd(found.api_monthly_usd)} USD at the API"
    if found.cheaper is Cheaper.API:
        return f"{amounts}: switch to the API; {even}."
    if found.can_serve_requests_per_day is False:
        return f"{amounts}: self-hosting would be cheaper, but this hardware cannot serve so many requests."
    return f"{amounts}: stay self-hosted; {even}."


def _even(found: Plan) -> str:
    """Say from where on self-hosting is cheaper, and whether the hardware gets there."""
    even, most = found.break_even_requests_per_day, found.most_requests_per_day
    if even is None:
        return "self-hosting never pays, whatever the number of requests"
    limit = f"self-hosting is cheaper above {even:,} requests a day"
    if most is None:
        return f"{limit}; whether this hardware could serve them is not known"
    can = "could" if found.break_even_is_reachable else "could not"
    return f"{limit}, and this hardware {can} serve them (at most {most:,})"


def usd(amount: Fraction) -> str:
    """Return dollars and cents, rounded."""
    return f"{Decimal(round(amount * 100)) / 100:,.2f}"
