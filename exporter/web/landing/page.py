"""The frame: one HTML page that loads nothing, works without its script, and stays up to date with it."""

from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import quote

from exporter.core.cap import Override
from exporter.core.snapshot import Snapshot
from exporter.web.landing.budgets import budgets
from exporter.web.landing.economics import break_even, cascades
from exporter.web.landing.engines import engines
from exporter.web.landing.features import features
from exporter.web.landing.headline import cost_now, headline
from exporter.web.landing.machine import gpus, problems, sources
from exporter.web.landing.markup import Markup, element
from exporter.web.landing.words import hourly, moment

_NAME: Final = "llm-cost-exporter"
_LEAST_SECONDS: Final = 1.0  # between two updates of an open page
_LINKS: Final = (
    ("metrics", "Metrics"),
    ("v1/budgets", "Budgets (JSON)"),
    ("v1/snapshot", "Snapshot (JSON)"),
    ("-/healthy", "Healthy"),
    ("-/ready", "Ready"),
)


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_STYLE: Final = _read("page.css")
_SCRIPT: Final = _read("page.js")
_ICON: Final = "data:image/svg+xml," + quote(_read("icon.svg"))
_EDITION: Final = sha256((_STYLE + _SCRIPT).encode()).hexdigest()[:12]  # an open page of another one loads itself anew
POLICY: Final = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def render(snapshot: Snapshot, overrides: Mapping[str, Override], stands_seconds: float | None = None) -> str:
    """Return the page.

    Args:
        snapshot: what to show.
        overrides: those in force, by budget.
        stands_seconds: how old the snapshot is, where the beat stands; None while it goes on.
    """
    is_fresh = stands_seconds is None
    every = max(snapshot.interval_seconds, _LEAST_SECONDS)
    main = element(
        "main",
        _about(snapshot),
        problems(snapshot, stands_seconds),
        headline(snapshot, is_fresh=is_fresh),
        budgets(snapshot, overrides),
        engines(snapshot),
        features(snapshot),
        cascades(snapshot),
        break_even(snapshot),
        gpus(snapshot),
        sources(snapshot),
        id="main",
        tabindex="-1",
        data_every=f"{every * 1000:.0f}",
    )
    body = element("body", _skip(), _header(), main, Markup(f"<script>{_SCRIPT}</script>"))
    head = _head(snapshot, is_fresh=is_fresh)
    return "<!doctype html>" + element("html", head, body, lang="en", data_edition=_EDITION)


def _head(snapshot: Snapshot, *, is_fresh: bool) -> Markup:
    cost = cost_now(snapshot)
    said = [] if cost is None else [hourly(cost)]
    title = " – ".join([*(said if is_fresh else ["stopped"]), _NAME])  # noqa: RUF001 - a dash
    return element(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'),
        element("title", title),
        Markup(f'<link rel="icon" href="{_ICON}"><style>{_STYLE}</style>'),
    )


def _skip() -> Markup:
    return element("a", "Skip to the figures", href="#main", class_="skip")


def _about(snapshot: Snapshot) -> Markup:
    own = f"; version {snapshot.version}, role {snapshot.role}"
    return element("p", "As of ", moment(snapshot.at), own, class_="as-of")


def _header() -> Markup:
    links = (element("li", element("a", name, href=path)) for path, name in _LINKS)
    return element(
        "header",
        element("h1", _NAME),
        element("nav", element("ul", *links), aria_label="Pages"),
        element("p", "Without JavaScript: load the page again for new figures.", id="live", role="status"),
    )
