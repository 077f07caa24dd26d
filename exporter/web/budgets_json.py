"""Budgets as JSON. Money is in US dollars, exact to the nano-dollar; what is not known is null."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from exporter.core.budgets import BudgetView, PeriodView
from exporter.core.cap import Decision, Override
from exporter.core.money import NANO

encode = msgspec.json.Encoder(decimal_format="number").encode


def decision(told: Decision) -> dict[str, Any]:
    """Return the answer to a gateway."""
    return {
        "allowed": told.allowed,
        "reason": told.reason,
        "budget": told.budget,
        "period": told.period,
        "state": told.state,
        "spent_usd": usd(told.spent),
        "limit_usd": usd(told.limit),
        "remaining_usd": usd(told.remaining),
        "overshoot_bound_usd": usd(told.overshoot_bound),
        "max_affordable_replicas": told.max_affordable_replicas,
        "retry_after_seconds": told.retry_after_seconds,
        "age_seconds": round(told.age_seconds, 3),
        "denied_by": [{"budget": name, "mode": mode} for name, mode in told.denied],
    }


def budget(view: BudgetView, in_force: Override | None) -> dict[str, Any]:
    """Return one budget with its override; the limits are the config's."""
    config = view.budget
    return {
        "name": config.name,
        "state": view.state,
        "timezone": config.timezone,
        "match": {key: value for key, value in msgspec.structs.asdict(config.match).items() if value is not None},
        "warn_ratios": view.warn_ratios,
        "cap": {
            "mode": view.mode,
            "deny_status": config.cap.deny_status,
            "max_age_seconds": config.cap.max_age,
            "on_unknown": config.cap.on_unknown,
            "exempt_features": config.cap.exempt_features,
        },
        "override": in_force and override(in_force),
        "periods": {name: _period(period) for name, period in view.periods.items()},
    }


def override(told: Override) -> dict[str, Any]:
    """Return an override."""
    return {
        "amount_usd": usd(told.amount_nano_usd),
        "until": utc(told.until_ns),
        "at": utc(told.at_ns),
        "reason": told.reason,
    }


def _period(view: PeriodView) -> dict[str, Any]:
    return {
        "state": view.state,
        "start": utc(view.period.start),
        "end": utc(view.period.end),
        "limit_usd": usd(view.limit),
        "spent_usd": usd(view.spent),
        "consumed_ratio": view.consumed_ratio,
        "elapsed_ratio": view.elapsed_ratio,
        "forecast_usd": usd(view.forecast),
        "runway_seconds": view.runway_seconds,
        "burn_rate": view.burn_rate,
        "history_complete_ratio": view.history_complete_ratio,
        "capped": view.capped,
        "overshoot_bound_usd": usd(view.overshoot_bound),
        "max_affordable_replicas": view.max_affordable_replicas,
    }


def usd(nano: int | None) -> Decimal | None:
    """Return nano-dollars as dollars."""
    return None if nano is None else Decimal(nano) / NANO


def utc(at: int) -> str:
    """Return an instant (Unix nanoseconds) as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(at // NANO, UTC).isoformat().replace("+00:00", "Z")
