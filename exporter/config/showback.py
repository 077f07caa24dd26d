"""What the parts about usage events say together: features, cascades, settling, budgets of a feature or a team."""

from collections.abc import Iterator
from typing import Final

from exporter.config.model import CascadeSource, Config, Features, Match, Usage

_RESERVED: Final = ("unattributed", "other")  # labels of ours
_SETTLE_SECONDS: Final = (1.0, 3600.0)
_FEWEST_BEATS: Final = 12
_LONGEST_WINDOW_SECONDS: Final = 300.0
_ATTRIBUTED: Final = ("api", "compute", "compute_busy")  # what showback holds
_FEWEST_TIERS: Final = 2


def disagreements(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (path, problem) for what no single value shows."""
    least, most = _SETTLE_SECONDS
    if not least <= config.usage.settle <= most:
        yield "usage.settle", f"expected {least:g} s to {most:g} s, found {config.usage.settle:g} s"
    yield from _features(config.features)
    yield from _reserved("usage.litellm.default_feature", config.usage.litellm.default_feature)
    yield from _reserved("usage.traces.default_feature", config.usage.traces.default_feature)
    for said, feature in config.usage.litellm.features.items():
        yield from _reserved(f"usage.litellm.features[{said}]", feature)
    yield from _cascades(config)
    for index, budget in enumerate(config.budgets):
        yield from _match(f"budgets[{index}].match", budget.match)


def warnings(config: Config) -> list[str]:
    """Say where windows are so short that money and tokens of one beat often fall into different ones."""
    window, beats = min(config.usage.settle, _LONGEST_WINDOW_SECONDS), _FEWEST_BEATS * config.interval
    if window >= beats or config.usage == Usage():
        return []
    return [f"usage.settle: windows of {window:g} s are shorter than twelve beats, {beats:g} s: much is unattributed"]


def _features(features: Features) -> Iterator[tuple[str, str]]:
    for index, name in enumerate(features.known):
        yield from _reserved(f"features.known[{index}]", name)
        if name in features.known[:index]:
            yield f"features.known[{index}]", f"expected each feature once, found {name!r} again"
    total = sum(features.value_ratio.values())
    if total > 1:
        yield "features.value_ratio", f"expected shares that sum to at most 1, found {total}"


def _reserved(path: str, feature: str) -> Iterator[tuple[str, str]]:
    if feature in _RESERVED:
        yield path, f"expected another name, since {feature!r} is a label of ours, found it"


def _cascades(config: Config) -> Iterator[tuple[str, str]]:
    served = {engine.tier for engine in config.engines if engine.tier is not None}
    names = [cascade.name for cascade in config.cascades]
    for index, cascade in enumerate(config.cascades):
        path = f"cascades[{index}]"
        if cascade.name in names[:index]:
            yield f"{path}.name", f"expected one that no other has, found {cascade.name!r} again"
        if len(cascade.tiers) < _FEWEST_TIERS:
            yield f"{path}.tiers", f"expected at least two, found {len(cascade.tiers)}"
        for position, tier in enumerate(cascade.tiers):
            if tier in cascade.tiers[:position]:
                yield f"{path}.tiers[{position}]", f"expected each tier once, found {tier!r} again"
            elif cascade.source is CascadeSource.ENGINES and tier not in served:
                text = f"expected the tier of an engine, since source is engines, found {tier!r}"
                yield f"{path}.tiers[{position}]", text


def _match(path: str, match: Match) -> Iterator[tuple[str, str]]:
    if (match.feature or match.team) and match.category not in (None, *_ATTRIBUTED):
        wanted = ", ".join(_ATTRIBUTED)
        yield f"{path}.category", f"expected one of {wanted} beside a feature or a team, found {match.category!r}"
