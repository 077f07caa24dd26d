"""Who has which model: what did the work of an event, or of a call that somebody else recorded."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from exporter.config.model import Engine
from exporter.core.api_prices import ApiPrice
from exporter.core.calls import Call, Found, address, addresses_of, short
from exporter.core.meter import SEVERAL_MODELS, UNKNOWN_MODEL
from exporter.core.refused import RefusedError, shown
from exporter.core.usage_body import OTHER, Names

_NO_NAMES: Final = frozenset({SEVERAL_MODELS, UNKNOWN_MODEL})  # that stand where a page names no one model
_NOBODY: Final = "unknown"  # the provider of what neither an engine nor a known API did


class Target(NamedTuple):
    """What did the work of an event: an engine ("" for none), or an API with a price, and the labels of it."""

    engine: str
    model: str
    tier: str
    price: ApiPrice | None = None


class Directory:
    """Who has which model."""

    def __init__(
        self,
        engines: Sequence[Engine],
        seen: Mapping[str, Collection[str]],
        prices: Mapping[tuple[str | None, str], ApiPrice],
        billed: Mapping[str, str] | None = None,
    ) -> None:
        """Look up in these.

        Args:
            engines: the config's.
            seen: by engine, the names of models that its page has ever told.
            prices: of APIs, by provider (None: none is named) and model.
            billed: by engine, the name that its spend has now.
        """
        self._billed = billed or {}
        self.engines = {engine.name: engine for engine in engines}
        self._seen = {engine.name: frozenset(seen.get(engine.name, ())) - _NO_NAMES for engine in engines}
        self._by_model: dict[str, list[Engine]] = {}
        for engine in engines:
            for model in dict.fromkeys((*engine.models, *self._seen[engine.name])):
                self._by_model.setdefault(model, []).append(engine)
        self._at: dict[str, list[str]] = {}
        for engine in engines:
            others = (address(*other.rsplit(":", 1)) for other in engine.addresses)
            for asked in dict.fromkeys(map(short, (*addresses_of(engine.url), *others))):
                self._at.setdefault(asked, []).append(engine.name)
        self._prices = prices
        self._prices_of: dict[str, list[ApiPrice]] = {}
        for (_, model), price in prices.items():
            self._prices_of.setdefault(model, []).append(price)

    def resolve(self, names: Names) -> Target:
        """Return what did the work of an event with these names.

        Raises:
            RefusedError: its engine is none of the config's.
        """
        engine = self._engine(names)
        if engine is not None:
            return Target(engine.name, self._canonical(engine, names.model), engine.tier or names.tier or "")
        price = self._price(names)
        return Target("", names.model if price else OTHER, names.tier or "", price)

    def find(self, call: Call) -> Found:
        """Return what did the work of a call: whoever was asked, an API with a price, or whoever has the model.

        At an address that is no API's the price of one says nothing: an engine may have an alias of that name.
        """
        engine = self._asked(call)
        if engine is not None:
            return Found(engine, None, call.models[0])
        is_of_an_engine = call.is_of_an_engine
        for model in call.models:
            if is_of_an_engine and model in self._by_model:
                return Found(None, None, model)
            provider = next((name for name in call.providers if (name, model) in self._prices), None)
            if provider is not None:
                return Found(None, provider, model)
        served = next((model for model in call.models if model in self._by_model), None)
        if served is not None and call.may_be_of_an_engine:
            return Found(None, None, served)
        return self._of_an_api(call)

    def _of_an_api(self, call: Call) -> Found:
        """Return the provider and the model of a call that no engine of ours did."""
        providers = call.providers or call.addresses[:1] or (_NOBODY,)
        for model in call.models:
            price = self._prices.get((None, model)) if call.providers else self._price(Names("", model))
            if price is not None:
                return Found(None, price.provider or providers[0], model)
        return Found(None, providers[0], call.models[0])

    def _asked(self, call: Call) -> str | None:
        """Return the engine at the address that was asked; of several there the one that has the model."""
        names = next((self._at[asked] for asked in map(short, call.addresses) if asked in self._at), [])
        if len(names) == 1:
            return names[0]
        having = {engine.name for model in call.models for engine in self._by_model.get(model, ())}
        return next((name for name in names if name in having), None)

    def _engine(self, names: Names) -> Engine | None:
        if names.engine is not None:
            if names.engine not in self.engines:
                raise RefusedError(f"engine: {one_of(self.engines)}, found {shown(names.engine)}")
            return self.engines[names.engine]
        if names.provider is not None:
            return None
        found = self._by_model.get(names.model, [])
        wanted = (engine for engine in found if names.tier is not None and engine.tier == names.tier)
        return next(wanted, found[0] if found else None)

    def _canonical(self, engine: Engine, model: str) -> str:
        """Return the one name that stands for what an engine serves: as it is billed, where that tells one."""
        seen, billed = self._seen[engine.name], self._billed.get(engine.name, UNKNOWN_MODEL)
        if billed not in _NO_NAMES:
            return billed
        if engine.models:
            return engine.models[0]
        if model in seen:
            return model
        return next(iter(seen)) if len(seen) == 1 else UNKNOWN_MODEL

    def _price(self, names: Names) -> ApiPrice | None:
        price = self._prices.get((names.provider, names.model)) or self._prices.get((None, names.model))
        found = self._prices_of.get(names.model, []) if names.provider is None else []
        return found[0] if price is None and len(found) == 1 else price


def one_of(names: Iterable[str]) -> str:
    """Say in words which names are expected."""
    return f"expected one of {', '.join(names) or '(none)'}"
