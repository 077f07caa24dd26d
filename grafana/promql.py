"""What the variables choose, as selectors of PromQL, and the sums that several dashboards share."""

from typing import Final

FLEET: Final = 'cluster=~"$cluster", namespace=~"$namespace"'
ENGINE: Final = f'{FLEET}, engine=~"$engine"'
BUDGET: Final = f'{FLEET}, budget=~"$budget"'
RATE: Final = "$__rate_interval"
ONE: Final = "cluster, namespace, engine"  # what makes an engine one engine


def of(name: str, where: str = FLEET, *more: str) -> str:
    """Select a family of the exporter's page."""
    return f"llmcost_{name}{{{', '.join((where, *more))}}}"


def equal(label: str, value: str) -> str:
    """Return a matcher of one value."""
    return f'{label}="{value}"'


def like(label: str, pattern: str) -> str:
    """Return a matcher of a pattern."""
    return f'{label}=~"{pattern}"'


def increase(name: str, window: str, where: str = ENGINE, *more: str, by: str = "") -> str:
    """Return what a counter of a fleet moved in a window."""
    return f"sum{f' by ({by})' if by else ''} (increase({of(name, where, *more)}[{window}]))"


def per_hour(name: str, where: str = ENGINE, *more: str, by: str = "") -> str:
    """Return what a counter of a fleet moves an hour."""
    return f"sum{f' by ({by})' if by else ''} (rate({of(name, where, *more)}[{RATE}])) * 3600"


def ratio(over: str, under: str) -> str:
    """Divide, and return nothing where there is nothing to divide by."""
    return f"{over} / ({under} > 0)"


def threshold(alert: str) -> str:
    """Return what an alert compares with, one line for the fleet."""
    return f"max({of('alert_threshold', FLEET, equal('alert', alert))})"
