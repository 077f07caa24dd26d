"""Features: who spends the money, as usage events claim it."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from exporter.config.model import Role
from exporter.core.attribution import UNATTRIBUTED, Claimant
from exporter.core.money import Kind
from exporter.core.snapshot import Snapshot
from exporter.web.landing.blocks import note, section, table
from exporter.web.landing.markup import Markup, element, joined
from exporter.web.landing.words import UNKNOWN, count, known, percent, several, usd_of

_MOST: Final = 20
_NOBODY: Final = (UNATTRIBUTED, "")


def features(snapshot: Snapshot) -> Markup:
    """Return the features that spend most; of a sidecar where they are to be found."""
    if snapshot.role == Role.SIDECAR:
        hub = f": {snapshot.hub_url}" if snapshot.hub_url else ""
        return section("features", "Features", note(f"Usage events and budgets are kept by the hub{hub}."))
    spent = _by_feature(snapshot, Kind.ATTRIBUTED)
    requests = _by_feature(snapshot, Kind.FEATURE_REQUESTS)
    if not any(requests.values()):
        hint = joined("No usage event yet: applications post them to ", element("code", "/v1/usage"), ".")
        return section("features", "Features", note(hint))
    ranked = _ranked(spent, requests)
    rows = [_row(snapshot, one, spent, requests) for one in ranked[:_MOST]]
    _once_a_feature(rows)
    rows += [_rest(ranked[_MOST:], spent, requests)] if ranked[_MOST:] else []
    rows += [_row(snapshot, _NOBODY, spent, None)] if _NOBODY in spent else []
    head = ("Feature", "Team", "Spend", "Share", "Requests", *(["Share of value"] if _has_values(snapshot) else []))
    shown = table("features", head, [row[: len(head)] for row in rows], words=2)
    return section("features", "Features by cost", shown, *map(note, _about(snapshot)))


def _by_feature(snapshot: Snapshot, kind: Kind) -> Counter[Claimant]:
    """Return an amount by feature and team, which are the first two labels of all that is kept by feature."""
    sums: Counter[Claimant] = Counter()
    for (feature, team, *_), amount in snapshot.totals.get(kind, {}).items():
        sums[feature, team] += amount
    return sums


def _ranked(spent: Counter[Claimant], requests: Counter[Claimant]) -> list[Claimant]:
    """Return those who spend, the dearest first; a feature that stands ready without a team, until a team comes."""
    everybody = {*spent, *requests} - {_NOBODY}
    busy = {one for one in everybody if spent[one] or requests[one]}
    features_at_work = {feature for feature, _ in busy}
    ready = {one for one in everybody - busy if one[0] not in features_at_work}
    return sorted(busy | ready, key=lambda one: (-spent[one], one))


def _once_a_feature(rows: list[tuple[str, ...]]) -> None:
    """Leave the value of a feature in its first row only: it is the feature's, not each team's."""
    seen: set[str] = set()
    for number, (feature, *cells, _) in enumerate(rows):
        if feature in seen:
            rows[number] = (feature, *cells, "")
        seen.add(feature)


def _has_values(snapshot: Snapshot) -> bool:
    return bool(snapshot.showback.value_ratios)


def _row(
    snapshot: Snapshot, claimant: Claimant, spent: Counter[Claimant], requests: Counter[Claimant] | None
) -> tuple[str, ...]:
    feature, team = claimant
    value = known(snapshot.showback.value_ratios.get(feature), percent)
    asked = UNKNOWN if requests is None else count(requests[claimant])
    return feature, team, usd_of(spent[claimant]), _share(spent[claimant], spent), asked, value


def _rest(rest: list[Claimant], spent: Counter[Claimant], requests: Counter[Claimant]) -> tuple[str, ...]:
    amount = sum(spent[one] for one in rest)
    asked = count(sum(requests[one] for one in rest))
    return f"and {count(len(rest))} more", "", usd_of(amount), _share(amount, spent), asked, ""


def _share(amount: int, spent: Counter[Claimant]) -> str:
    total = spent.total()
    return percent(amount / total) if total else UNKNOWN


def _about(snapshot: Snapshot) -> Iterator[str]:
    pending = sum(snapshot.showback.pending.values())
    if pending:
        yield f"{usd_of(pending)} of busy time is not shared out yet: its settling window is open."
    for (engine, window), ratio in snapshot.showback.coverage.items():
        if window == "1h":
            yield f"Events claim {percent(ratio)} of the tokens that {engine} counted in the last hour."
    theirs, ours = (sum(snapshot.totals.get(kind, {}).values()) for kind in (Kind.GATEWAY_SPEND, Kind.GATEWAY_BOOKED))
    if theirs or ours:
        yield f"LiteLLM says {usd_of(theirs)} for calls to APIs that are booked with {usd_of(ours)} here."
    overflow = sum(snapshot.totals.get(Kind.OVERFLOW_EVENTS, {}).values())
    if overflow:
        yield f"{several(overflow, 'event')} came under too many names, and are booked as other."
