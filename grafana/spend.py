"""Spend & budgets: what is spent, by whom, and whether it will hold."""

from typing import Final

from grafana.board import Board, Row
from grafana.panels import AMBER, GREEN, RED, Kind, Panel, Query
from grafana.promql import BUDGET, ENGINE, FLEET, RATE, increase, of, per_hour, ratio, threshold

_PERIOD: Final = "cluster, namespace, budget, period"  # what makes a budget one budget
_COMPUTE: Final = 'category=~"compute_.+"'
_NO_BUDGET: Final = "No budget: set budgets in the config"


def _budget(name: str, *more: str) -> str:
    return f"max by ({_PERIOD}) ({of(f'budget_{name}', BUDGET, *more)})"


def _course(period: str) -> Panel:
    """Return how a period's spend grows beside what it may be."""
    one = f'period="{period}"'
    spent, limit = _budget("spent_usd", one), _budget("limit_usd", one)
    return Panel(
        title=f"Spent this {period}, beside the even pace and the forecast",
        unit="currencyUSD",
        description=(
            f"budget_spent_usd of the {period}; even pace: budget_limit_usd x budget_elapsed_ratio, which uses exactly "
            "the limit; forecast: budget_forecast_usd, the whole period if it goes on like this."
        ),
        queries=(
            Query(spent, "{{budget}}"),
            Query(f"{limit} * {_budget('elapsed_ratio', one)}", "{{budget}}: even pace", line=True),
            Query(_budget("forecast_usd", one), "{{budget}}: forecast", line=True),
            Query(limit, "{{budget}}: limit", line=True),
        ),
        empty=_NO_BUDGET,
        runbooks=("LLMCostBudgetForecastOver",),
    )


def _burn(title: str, window: str, period: str, alert: str, name: str, what: str) -> Panel:
    return Panel(
        title=title,
        unit="short",
        description=(
            f"budget_burn_rate over {window} of the {period}: the pace of spending ÷ the pace that uses exactly the limit. "
            f"The dashed line is alert_threshold of {alert}, {what}."
        ),
        queries=(
            Query(_budget("burn_rate", f'period="{period}"', f'window="{window}"'), "{{budget}}"),
            Query(threshold(name), alert, line=True),
        ),
        width=8,
        empty=_NO_BUDGET,
        runbooks=(alert,),
    )


NOW: Final = Row(
    "Now",
    (
        Panel(
            "Cost an hour", "currencyUSD", "Sum of spend_usd_per_hour: GPUs and standing costs of the engines now.",
            (Query(f"sum({of('spend_usd_per_hour', ENGINE)})"),), Kind.STAT, 6, 4, "A price is not known", 2,
        ),
        Panel(
            "Spent in 24 hours", "currencyUSD", "Increase of spend_usd_total over a day, APIs included.",
            (Query(increase("spend_usd_total", "1d")),), Kind.STAT, 6, 4, decimals=2,
        ),
        Panel(
            "Idle part of it", "percentunit",
            "compute_idle ÷ all compute categories of spend_usd_total, over a day: GPUs that were paid and had nothing to do.",
            (Query(ratio(increase("spend_usd_total", "1d", ENGINE, 'category="compute_idle"'),
                         increase("spend_usd_total", "1d", ENGINE, _COMPUTE))),),
            Kind.STAT, 6, 4, "Nothing spent", 0, edges=((0.5, AMBER), (0.8, RED)), runbooks=("LLMCostIdleSpendHigh",),
        ),
        Panel(
            "Fullest budget", "percentunit", "The highest budget_consumed_ratio: spent ÷ limit of a day or a month.",
            (Query(f"max({of('budget_consumed_ratio', BUDGET)})"),),
            Kind.STAT, 6, 4, _NO_BUDGET, 0, edges=((0.8, AMBER), (1, RED)),
            runbooks=("LLMCostBudgetWarning", "LLMCostBudgetHardCap"),
        ),
    ),
)  # fmt: skip

BUDGETS: Final = Row(
    "Budgets",
    (
        Panel(
            "All budgets", "short",
            "budget_spent_usd and the others: consumed = spent ÷ limit; pace = consumed ÷ elapsed, above 1 is too fast; runway = what is left ÷ the "
            "pace of the last hour. What is not known has an empty cell.",
            (
                Query(_budget("spent_usd"), "Spent", "currencyUSD"),
                Query(_budget("limit_usd"), "Limit", "currencyUSD"),
                Query(_budget("consumed_ratio"), "Consumed", "percentunit"),
                Query(_budget("elapsed_ratio"), "Elapsed", "percentunit"),
                Query(ratio(_budget("consumed_ratio"), _budget("elapsed_ratio")), "Pace"),
                Query(_budget("forecast_usd"), "Forecast", "currencyUSD"),
                Query(_budget("runway_seconds"), "Runway", "s"),
                Query(_budget("overshoot_bound_usd"), "Unavoidable after the cap", "currencyUSD"),
            ),
            Kind.TABLE, 24, 7, _NO_BUDGET, 2,
            runbooks=("LLMCostBudgetWarning", "LLMCostBudgetExhaustionSoon", "LLMCostBudgetUnknown"),
        ),
        _course("month"),
        _course("day"),
        _burn("Pace of the last hour, month", "1h", "month", "LLMCostBudgetBurnFast", "LLMCostBudgetBurnFast",
              "which pages while the last five minutes are above it, too"),
        _burn("Pace of the last hour, day", "1h", "day", "LLMCostBudgetBurnFast", "LLMCostBudgetBurnFastDay",
              "which pages while the last five minutes are above it, too"),
        _burn("Pace of six hours, month", "6h", "month", "LLMCostBudgetBurnSlow", "LLMCostBudgetBurnSlow",
              "which warns while the last thirty minutes are above it, too, and the forecast is over the limit"),
    ),
)  # fmt: skip

WHERE: Final = Row(
    "Where it goes",
    (
        Panel(
            "By what it buys", "currencyUSD", "Rate of spend_usd_total an hour, by category.",
            (Query(per_hour("spend_usd_total", by="category"), "{{category}}"),), Kind.STACKED,
        ),
        Panel(
            "By engine", "currencyUSD", "Rate of spend_usd_total an hour, by engine; API spend has none.",
            (Query(per_hour("spend_usd_total", by="engine"), "{{engine}}"),), Kind.STACKED,
        ),
        Panel(
            "By feature", "currencyUSD",
            "Rate of attributed_spend_usd_total an hour, the ten dearest; unattributed is what no usage event claimed.",
            (Query(f"topk(10, {per_hour('attributed_spend_usd_total', by='feature')})", "{{feature}}"),), Kind.STACKED,
            empty="No showback yet: post usage events", step="15m",
        ),
        Panel(
            "By team", "currencyUSD", "Rate of attributed_spend_usd_total an hour, the ten dearest teams.",
            (Query(f"topk(10, {per_hour('attributed_spend_usd_total', by='team')})", "{{team}}"),), Kind.STACKED,
            empty="No showback yet: post usage events", step="15m",
        ),
    ),
)  # fmt: skip

CAP: Final = Row(
    "Hard cap and alerts",
    (
        Panel(
            "Hard cap", "short", "budget_capped: closed where the limit is spent and cap.mode is enforce.",
            (Query(_budget("capped"), "{{budget}}, {{period}}"),), Kind.STATES, empty=_NO_BUDGET,
            words={"0": ("open", GREEN), "1": ("closed", RED)}, runbooks=("LLMCostBudgetHardCap",),
        ),
        Panel(
            "Requests denied", "short",
            "Increase of budget_denied_total: checks that gateways were denied (enforce), or would have been (shadow).",
            (Query(f"sum by (budget, mode) (increase({of('budget_denied_total', BUDGET)}[{RATE}]))",
                   "{{budget}}, {{mode}}"),),
            Kind.BARS, empty="Nobody asked, or nobody was denied", runbooks=("LLMCostBudgetHardCap",),
        ),
        Panel(
            "Alerts that fire", "short", "ALERTS of Prometheus, where it has the rules of this exporter.",
            (Query(f'sum by (alertname, severity, namespace, engine, budget, period) '
                   f'(ALERTS{{{FLEET}, alertname=~"LLMCost.+", alertname!="LLMCostWatchdog", alertstate="firing"}})', "Alerts"),),
            Kind.TABLE, 24, 7, "None fires",
        ),
    ),
)  # fmt: skip

BOARD: Final = Board(
    "llmcost-spend", "LLM cost / Spend & budgets", "What LLM serving costs, who spends it, and whether the budget will hold.",
    (NOW, BUDGETS, WHERE, CAP),
)  # fmt: skip
