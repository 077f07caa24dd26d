"""Which engine or API a call went to that somebody else recorded: never one that nobody asked."""

from decimal import Decimal
from typing import Any

import pytest

from exporter.config.model import Engine
from exporter.config.prices import ApiModel, ApiPrices
from exporter.core.api_prices import configured
from exporter.core.calls import Call, Found, providers_of
from exporter.core.calls import address as address_as_compared
from exporter.core.directory import Directory
from exporter.core.usage_body import Names


def price(model: str, provider: str | None) -> ApiModel:
    usd = Decimal(1)
    return ApiModel(model=model, provider=provider, input_usd_per_million=usd, output_usd_per_million=usd)


ENGINES = (
    Engine(name="chat", url="http://127.0.0.1:8000", models=("llama",), addresses=("Chat.llm.svc:80",)),
    Engine(name="red", url="https://gateway/red", models=("red-model",)),
    Engine(name="blue", url="https://gateway/blue", models=("blue-model",)),
)
PRICES = (price("gpt", "openai"), price("claude", "azure_ai"), price("claude", "aws"), price("any", None))
PRICED = configured(ApiPrices(models=PRICES))
DIRECTORY = Directory(ENGINES, {"chat": {"seen"}}, PRICED)


def call(*models: str, provider: str | None = None, addresses: tuple[str, ...] = ()) -> Call:
    return Call(
        form="test", id="1", feature="f", team=None, models=models, providers=providers_of(provider),
        addresses=addresses, input_tokens=1, cached_input_tokens=0, output_tokens=1, second=None,
    )  # fmt: skip


def found(*models: str, provider: str | None = None, address: str | None = None) -> Found:
    return DIRECTORY.find(call(*models, provider=provider, addresses=(address,) if address else ()))


@pytest.mark.parametrize(
    ("said", "engine"),
    [
        ({"address": "127.0.0.1:8000"}, "chat"),
        ({"address": "chat.llm.svc:80", "provider": "together_ai"}, "chat"),
        ({"address": "gateway:443"}, None),
    ],
)
def test_whoever_was_asked_did_it(said: dict[str, Any], engine: str | None):
    assert found("whatever", **said).engine == engine


def test_of_several_engines_at_an_address_it_is_the_one_that_has_the_model():
    assert found("blue-model", address="gateway:443").engine == "blue"
    assert found("red-model", address="gateway:443").engine == "red"


@pytest.mark.parametrize("provider", [None, "hosted_vllm", "openai", "vllm", "ollama"])
def test_an_engine_has_its_models_where_nothing_says_otherwise(provider: str | None):
    assert found("llama", provider=provider) == Found(None, None, "llama")
    assert found("seen", provider=provider, address="other.llm.svc:443") == Found(None, None, "seen")
    assert found("llama", provider=provider, address="10.0.0.7:8000") == Found(None, None, "llama")


@pytest.mark.parametrize(
    "said",
    [
        {"provider": "together_ai"},
        {"provider": "openai", "address": "openrouter.ai:443"},
        {"provider": "openai", "address": "104.18.6.192:443"},
        {"provider": "openai", "address": "2606:4700::6812:6c0:443"},
        {"provider": "nobody"},
    ],
)
def test_what_somebody_elses_api_did_claims_no_engine(said: dict[str, str]):
    """A fallback to an API under the same name was booked as tokens of our engine, and its money vanished."""
    went = found("llama", **said)
    names = Names("f", went.model, engine=went.engine, provider=went.provider)
    assert DIRECTORY.resolve(names) == ("", "other", "", None)


@pytest.mark.parametrize("address", ["litellm:4000", "api.openai.com:80", "api.openai.com:8443"])
def test_the_best_name_decides_and_a_public_name_is_an_apis_at_any_port(address: str):
    """An engine with the alias that was asked for took the call of a gateway whose answer named an API's model."""
    models = ("gpt-2026", "gpt") if address == "litellm:4000" else ("gpt",)
    prices = configured(ApiPrices(models=(*PRICES, price("gpt-2026", "openai"))))
    alias = Directory((Engine(name="own", url="http://e:1", models=("gpt",)),), {}, prices)
    assert alias.find(call(*models, provider="openai", addresses=(address,))) == Found(None, "openai", models[0])


@pytest.mark.parametrize("host", ["vllm.prod", "VLLM.prod.", "vllm.prod.svc", "vllm.prod.svc.cluster.local."])
@pytest.mark.parametrize("known", ["vllm.prod", "vllm.prod.svc.cluster.local"])
def test_a_service_of_a_cluster_has_long_and_short_names(host: str, known: str):
    engine = Engine(name="own", url=f"http://{known}:8000", models=("gpt",))
    found = Directory((engine,), {}, PRICED).find(
        call("gpt", provider="openai", addresses=(address_as_compared(host, 8000),))
    )
    assert found.engine == "own"


@pytest.mark.parametrize("asked", ["fd00::1:8000", "FD00::1:8000", "fd00::2:8000"])
def test_addresses_are_compared_without_brackets_and_in_small_letters(asked: str):
    engine = Engine(name="six", url="http://[fd00::1]:8000", addresses=("[fd00::2]:8000",))
    host, _, port = asked.rpartition(":")
    found = Directory((engine,), {}, {}).find(call("x", addresses=(address_as_compared(host, port),)))
    assert found.engine == "six"


@pytest.mark.parametrize(
    "address", ["10.0.0.7:443", "100.64.0.1:443", "fd00::7:443", "vllm:443", "vllm.llm.svc:443", "10.0.0.7:8000"]
)
def test_an_address_that_is_no_apis_is_an_engines_though_its_model_has_the_name_of_a_priced_one(address: str):
    """An alias of a model that an API has was booked as spend on the API, though a private address was asked."""
    alias = Directory((Engine(name="own", url="http://e:1", models=("gpt",)),), {}, PRICED)
    assert alias.find(call("gpt", provider="openai", addresses=(address,))) == Found(None, None, "gpt")
    for public in ((), ("api.openai.com:443",)):
        assert alias.find(call("gpt", provider="openai", addresses=public)) == Found(None, "openai", "gpt")


def test_of_the_likely_addresses_the_one_counts_that_an_engine_has():
    """A span without a port was taken for one of https, and its engine on port 80 was not found."""
    assert DIRECTORY.find(call("any", addresses=("chat.llm.svc:443", "chat.llm.svc:80"))).engine == "chat"


def test_only_the_price_of_the_provider_that_was_asked_counts():
    """A model that only another provider has a price for was booked at that."""
    assert found("gpt", provider="openai") == Found(None, "openai", "gpt")
    assert found("claude", provider="azure_ai") == Found(None, "azure_ai", "claude")
    assert found("claude", provider="bedrock") == Found(None, "aws", "claude")
    for provider in ("anthropic", "hosted_vllm"):
        went = found("gpt", provider=provider)
        assert DIRECTORY.resolve(Names("f", went.model, provider=went.provider)).price is None
    went = found("any", provider="anthropic")
    assert DIRECTORY.resolve(Names("f", went.model, provider=went.provider)).price is not None


def test_without_a_provider_the_one_price_of_a_model_counts():
    assert found("gpt", address="api.openai.com:443") == Found(None, "openai", "gpt")
    assert found("claude").provider == "unknown", "two have a price for it"


def test_the_best_name_of_those_that_are_known_counts():
    assert found("gpt-2026-01-01", "gpt", provider="openai") == Found(None, "openai", "gpt")
    assert found("llama-q4", "llama") == Found(None, None, "llama")
