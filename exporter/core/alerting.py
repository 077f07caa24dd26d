"""Thresholds of the alert rules: the config is the only place where a number lives, and the page hands them on."""

from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple

from exporter.config.model import Alerts


class Threshold(NamedTuple):
    """What one alert compares with; `value` is None where the config switches it off."""

    alert: str  # without the prefix that all have
    severity: str
    value: float | None


def thresholds(config: Alerts) -> Iterator[Threshold]:
    """Yield the threshold of every alert that has one of its own.

    Scaling signals, TTFT targets and budgets have theirs in `scaling_threshold`, `ttft_target_seconds` and `budget_*`.
    """
    rows: tuple[tuple[str, str, Decimal | float | None], ...] = (
        ("KvCacheFull", "warning", config.kv_cache_ratio),
        ("BudgetBurnFast", "critical", config.burn_rate.fast_month),
        ("BudgetBurnFastDay", "critical", config.burn_rate.fast_day),
        ("BudgetBurnSlow", "warning", config.burn_rate.slow_month),
        ("BudgetForecastOver", "warning", config.forecast_ratio),
        ("BudgetExhaustionSoon", "critical", config.exhaustion),
        ("EscalationRateHigh", "warning", config.escalation_ratio.warning),
        ("EscalationRateCritical", "critical", config.escalation_ratio.critical),
        ("CostAboveBreakEven", "warning", config.break_even_ratio),
        ("IdleSpendHigh", "warning", config.idle_usd_per_hour),
        ("ColdStartsFrequent", "warning", config.cold_starts_per_hour),
        ("ColdStartSlow", "warning", config.cold_start),
        ("RightSizingCandidate", "info", config.right_sizing_load_ratio),
        ("UsageOverclaimed", "warning", config.overclaimed_ratio),
        ("SourceStale", "warning", config.stale_intervals),
        ("GpuThrottled", "warning", config.throttled_ratio),
    )
    for alert, severity, value in rows:
        yield Threshold(f"LLMCost{alert}", severity, None if value is None else float(value))
