"""Calls to models as others record them: who may have been asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, NamedTuple
from urllib.parse import urlsplit

_PORTS: Final = {"http": 80, "https": 443}
_HTTPS: Final = ":443"
_INSIDE: Final = (".svc", ".local", ".internal", ".lan", ".localhost", ".home.arpa")  # names that no API has
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


def providers_of(name: str | None) -> tuple[str, ...]:
    """Return a provider as it is written, and as the price list writes it; nothing where there is none."""
    written = (name or "").lower()
    return tuple(dict.fromkeys((written, _PROVIDERS.get(written, written)))) if written else ()


def address(host: str, port: object) -> str:
    """Return HOST:PORT in small letters, without brackets and the dot of a name that is whole."""
    return f"{host.strip('[]').removesuffix('.')}:{port}".lower()


def short(address: str) -> str:
    """Return an address as it is compared: a Service of a cluster has longer and shorter names."""
    host, _, port = address.rpartition(":")
    return f"{host.removesuffix('.cluster.local').removesuffix('.svc')}:{port}"


def addresses_of(url: str | None) -> tuple[str, ...]:
    """Return HOST:PORT of an http address; nothing where it is none."""
    try:
        parts = urlsplit(url or "")
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return ()
    return (address(parts.hostname, port),) if parts.hostname and port else ()


def _is_public(address: str) -> bool:
    """Tell whether an address may be one of the internet: an IP address of it, or a name with a dot."""
    host = address.rpartition(":")[0]
    try:
        return ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith(_INSIDE)
