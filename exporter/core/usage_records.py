"""Others' records of calls to models, in place of usage events: each good one is booked, each bad one is named.

Whoever sends them cannot mend them, and sends many at once: one that is bad may not take the others with it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from time import perf_counter
from typing import Final, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from exporter.core.refused import TooManyError, shown
from exporter.core.usage_body import MOST_TOKENS, SLICE, Checker, Event, Refusal, Usage

Item = TypeVar("Item")

_PORTS: Final = {"http": 80, "https": 443}
_HTTPS: Final = ":443"
_INSIDE: Final = (".svc", ".local", ".internal", ".lan", ".localhost", ".home.arpa")  # names that no API has
_SLICE_SECONDS: Final = 0.01
MOST_RECORDS: Final = 10_000  # of one body
MOST_COMMAS: Final = 500_000  # of one body in JSON: values that would all be in memory at once
# Providers as LiteLLM and OpenTelemetry write them, and as the price list does; the rest is written alike.
_PROVIDERS: Final[Mapping[str, str]] = {
    "anthropic_text": "anthropic",
    "aws.bedrock": "aws",
    "azure.ai.inference": "azure",
    "azure.ai.openai": "azure",
    "azure_ai": "azure",
    "azure_text": "azure",
    "az.ai.inference": "azure",
    "az.ai.openai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "bedrock_mantle": "aws",
    "cohere_chat": "cohere",
    "fireworks_ai": "fireworks",
    "gcp.gemini": "google",
    "gcp.gen_ai": "google",
    "gcp.vertex_ai": "google",
    "gemini": "google",
    "mistral_ai": "mistral",
    "moonshot": "moonshotai",
    "text-completion-openai": "openai",
    "together_ai": "together",
    "vertex_ai": "google",
    "vertex_ai_beta": "google",
    "vertexai": "google",
    "x_ai": "x-ai",
    "xai": "x-ai",
}
# Those that speak of no API in particular: a server of one's own, or the protocol of OpenAI.
_OWN: Final = frozenset({
    "_other", "aiohttp_openai", "custom", "custom_openai", "docker_model_runner", "hosted_vllm", "huggingface",
    "infinity", "langchain", "lemonade", "litellm_proxy", "llama.cpp", "llamafile", "lm_studio", "nvidia_nim", "ollama",
    "ollama_chat", "oobabooga", "openai", "openai_like", "sglang", "text-completion-openai", "tgi", "triton", "vllm",
    "xinference",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call to a model, as somebody else recorded it.

    `id` names it among those of its `form`, `models` are the names that it went by, best first, and `providers` are the
    names of whose model it is; `addresses` are HOST:PORT of what was asked, likeliest first. Cached tokens are a part
    of the input tokens. `second` is the Unix second at which it ended, None where that is not said.
    """

    form: str
    id: str
    feature: str
    team: str | None
    models: tuple[str, ...]
    providers: tuple[str, ...]
    addresses: tuple[str, ...]
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    second: float | None
    said_nano_usd: int | None = None

    @property
    def may_be_of_an_engine(self) -> bool:
        """Whether nothing says that somebody else's API was asked: at https of the internet, or by its own protocol."""
        is_of_an_api = any(_is_public(address) and address.endswith(_HTTPS) for address in self.addresses)
        return not is_of_an_api and _OWN.issuperset(self.providers[:1])

    @property
    def is_of_an_engine(self) -> bool:
        """Whether it may be one's, and was asked at an address that no API has."""
        return self.may_be_of_an_engine and bool(self.addresses) and not any(map(_is_public, self.addresses))


class Found(NamedTuple):
    """What did the work of a call, in the words of an event."""

    engine: str | None
    provider: str | None
    model: str


class Records(Generic[Item]):
    """The records of one body, read in slices so that other work gets its turn in between."""

    is_whole = False

    def __init__(
        self,
        items: Iterable[tuple[int, Item]],
        call: Callable[[Item], Call | None],
        find: Callable[[Call], Found],
        checker: Checker,
    ) -> None:
        """Begin to read.

        Args:
            items: the records, with their numbers.
            call: returns what a record says, or None where nothing was used; raises ValueError.
            find: returns what did the work.
            checker: checks names, tokens and times.
        """
        self._items, self._call, self._find, self._checker = items, call, find, checker
        self.refused: list[Refusal] = []
        self.skipped = 0
        self.count = 0  # so far

    def where(self, number: int) -> str:
        """Say in words where a record stands."""
        return f"record {number}"

    def slices(self) -> Iterator[list[Usage]]:
        """Yield what the good ones say, some at a time: as many as are read in little time, since some take long."""
        found: list[Usage] = []
        until = perf_counter() + _SLICE_SECONDS
        for number, item in self._items:
            self.count += 1
            try:
                call = self._call(item)
                if call is None:
                    self.skipped += 1
                else:
                    found.append(self._checker.usage(number, self._event(call), call))
            except (ValueError, ArithmeticError, RecursionError) as error:
                self.refuse(number, error)
            if self.count % SLICE == 0 or perf_counter() > until:
                yield found
                found, until = [], perf_counter() + _SLICE_SECONDS
        yield found

    def refuse(self, number: int, error: Exception) -> None:
        """Leave a record out."""
        self.refused.append(Refusal(number, str(error)))

    def _event(self, call: Call) -> Event:
        found = self._find(call)
        return Event(
            id=call.id,
            feature=call.feature,
            team=call.team,
            engine=found.engine,
            provider=found.provider,
            model=found.model,
            input_tokens=call.input_tokens,
            cached_input_tokens=call.cached_input_tokens,
            output_tokens=call.output_tokens,
            at=None if call.second is None else _iso(call.second),
        )


def expect_few(what: str, count: int, most: int) -> None:
    """Raise TooManyError where a body has more of something than is read of one."""
    if count > most:
        raise TooManyError(f"expected at most {most} {what} in a body, found more")


def providers_of(name: str | None) -> tuple[str, ...]:
    """Return a provider as it is written, and as the price list writes it; nothing where there is none."""
    written = (name or "").lower()
    return tuple(dict.fromkeys((written, _PROVIDERS.get(written, written)))) if written else ()


def address(host: str, port: object) -> str:
    """Return HOST:PORT as it is compared: in small letters, and without brackets."""
    return f"{host.strip('[]')}:{port}".lower()


def addresses_of(url: str | None) -> tuple[str, ...]:
    """Return HOST:PORT of an http address; nothing where it is none."""
    try:
        parts = urlsplit(url or "")
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return ()
    return (address(parts.hostname, port),) if parts.hostname and port else ()


def tokens(what: str, count: object) -> int:
    """Return a count of tokens; raises ValueError."""
    whole = int(count) if isinstance(count, float) and count.is_integer() else count  # infinity is none
    if type(whole) is not int or not 0 <= whole <= MOST_TOKENS:
        raise ValueError(f"{what}: expected an integer from 0 to {MOST_TOKENS}, found {shown(count)}")
    return whole


def _is_public(address: str) -> bool:
    """Tell whether an address may be one of the internet: an IP address of it, or a name with a dot."""
    host = address.rpartition(":")[0]
    try:
        return ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith(_INSIDE)


def _iso(second: float) -> str:
    try:
        return datetime.fromtimestamp(second, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"end: expected Unix seconds, found {shown(second)}") from None
