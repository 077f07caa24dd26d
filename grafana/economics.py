"""Unit economics: what a token, a request and a feature cost, and whether an API would be cheaper."""

from typing import Final

from grafana.board import Board, Row
from grafana.panels import AMBER, GREEN, RED, Kind, Panel, Query
from grafana.promql import ENGINE, FLEET, ONE, increase, of, ratio, threshold

_OWN: Final = 'category!="api"'
_STEP: Final = "cluster, namespace, cascade, from_tier, to_tier"
_NO_API: Final = "Nothing to compare with: set prices.api.compare_with in the config"
_NO_EVENTS: Final = "No usage events yet"
_NO_CASCADE: Final = "No cascade in the config, or too few requests"


def _tokens(window: str, by: str = "") -> str:
    """Return prompt and output tokens; cached ones are a part of the prompt."""
    return f"({increase('prompt_tokens_total', window, by=by)} + {increase('output_tokens_total', window, by=by)})"


def _own(window: str, by: str = "") -> str:
    return increase("spend_usd_total", window, ENGINE, _OWN, by=by)


def _api(window: str, by: str = "") -> str:
    return increase("api_equivalent_usd_total", window, by=by)


def _saved(title: str, window: str) -> Panel:
    return Panel(
        title, "currencyUSD",
        f"api_equivalent_usd_total - spend_usd_total without APIs, over {window}: below 0 the API would have been cheaper.",
        (Query(f"{_api(window)} - {_own(window)}"),), Kind.STAT, 6, 4, _NO_API, 2,
        edges=((-1e12, RED), (0, GREEN)), runbooks=("LLMCostCostAboveBreakEven",),
    )  # fmt: skip


def _escalation() -> str:
    """Return requests that a tier handed over per request that it received, over an hour."""
    received = increase("cascade_requests_total", "1h", FLEET, by="cluster, namespace, cascade, tier")
    named = f'label_replace({received}, "from_tier", "$1", "tier", "(.*)")'
    return (
        f"{increase('escalations_total', '1h', FLEET, by=_STEP)}"
        f" / on (cluster, namespace, cascade, from_tier) group_left () ({named} > 0)"
    )


def _feature(name: str, window: str = "1d") -> str:
    return increase(name, window, FLEET, by="feature")


TOKENS: Final = Row(
    "A million tokens",
    (
        Panel(
            "Output tokens", "currencyUSD",
            "Spend without APIs ÷ output_tokens_total x 1,000,000, over an hour. Dear with little load: GPUs cost the same.",
            (Query(f"1e6 * {ratio(_own('1h'), increase('output_tokens_total', '1h'))}"),), Kind.STAT, 6, 4, "No tokens", 2,
        ),
        Panel(
            "Prompt and output tokens", "currencyUSD",
            "Spend without APIs ÷ (prompt_tokens_total + output_tokens_total) x 1,000,000, over an hour.",
            (Query(f"1e6 * {ratio(_own('1h'), _tokens('1h'))}"),), Kind.STAT, 6, 4, "No tokens", 2,
        ),
        _saved("Saved in 24 hours", "1d"),
        _saved("Saved in 30 days", "30d"),
        Panel(
            "A million tokens: self-hosted and at the API", "currencyUSD",
            "Spend without APIs, and api_equivalent_usd_total of the same tokens, each ÷ (prompt + output tokens) x 1,000,000, "
            "over an hour.",
            (
                Query(f"1e6 * {ratio(_own('1h', ONE), _tokens('1h', ONE))}", "{{engine}}"),
                Query(f"1e6 * {ratio(_api('1h', ONE), _tokens('1h', ONE))}", "{{engine}}: at the API", line=True),
            ),
            empty="No tokens", step="1m", runbooks=("LLMCostCostAboveBreakEven",),
        ),
        Panel(
            "Self-hosted per dollar at the API", "short",
            "Spend without APIs ÷ api_equivalent_usd_total, over six hours; below 1 self-hosting wins. The dashed line is "
            "alert_threshold of LLMCostCostAboveBreakEven.",
            (
                Query(ratio(_own("6h", ONE), _api("6h", ONE)), "{{engine}}"),
                Query(threshold("LLMCostCostAboveBreakEven"), "warns above", line=True),
            ),
            empty=_NO_API, step="1m", runbooks=("LLMCostCostAboveBreakEven",),
        ),
    ),
)  # fmt: skip

LOAD: Final = Row(
    "Load and what is missing of it",
    (
        Panel(
            "Requests a day, and how many would pay", "short",
            "Increase of requests_total over a day, and break_even_requests_per_day: from there on self-hosting costs less than "
            "the API, at today's tokens per request.",
            (
                Query(increase("requests_total", "1d", by=ONE), "{{engine}}"),
                Query(f"max by ({ONE}) ({of('break_even_requests_per_day', ENGINE)})", "{{engine}}: break-even", line=True),
            ),
            width=8, empty="No requests yet", decimals=0, step="5m",
        ),
        Panel(
            "Load", "percentunit",
            "engine_load_ratio of each replica over an hour: output tokens/s ÷ the best five minutes of seven days, or what the "
            "config says it can do. The dashed line is alert_threshold of LLMCostRightSizingCandidate.",
            (
                Query(of("engine_load_ratio", ENGINE, 'window="1h"'), "{{engine}} {{pod}}"),
                Query(threshold("LLMCostRightSizingCandidate"), "a smaller one would do below", line=True),
            ),
            width=8, empty="No output yet", runbooks=("LLMCostRightSizingCandidate",),
        ),
        Panel(
            "Dollars an hour for load that is missing", "currencyUSD",
            "Sum of underused_spend_usd_per_hour: spend x (1 - load of five minutes). The dashed line is alert_threshold of "
            "LLMCostIdleSpendHigh.",
            (
                Query(f"sum by ({ONE}) ({of('underused_spend_usd_per_hour', ENGINE)})", "{{engine}}"),
                Query(threshold("LLMCostIdleSpendHigh"), "warns above", line=True),
            ),
            width=8, empty="No output yet", runbooks=("LLMCostIdleSpendHigh",),
        ),
        Panel(
            "Tokens for a dollar", "short", "output_tokens_total ÷ spend_usd_total without APIs, over an hour.",
            (Query(ratio(increase("output_tokens_total", "1h", by=ONE), _own("1h", ONE)), "{{engine}}"),),
            width=8, empty="No spend", step="1m",
        ),
        Panel(
            "Tokens for a joule", "short",
            "Output tokens ÷ gpu_energy_joules_total of the engine's GPUs (joined by engine_gpu_info), over an hour.",
            (Query(
                f"{increase('output_tokens_total', '1h', by=ONE)} / (sum by ({ONE}) ({of('engine_gpu_info', ENGINE)} "
                f"* ignoring (engine) group_left () increase({of('gpu_energy_joules_total')}[1h])) > 0)", "{{engine}}",
            ),),
            width=8, empty="No energy is measured", step="1m",
        ),
        Panel(
            "Prompt tokens from the cache", "percentunit",
            "cached_prompt_tokens_total ÷ prompt_tokens_total, over an hour: they cost next to nothing to compute.",
            (Query(ratio(increase("cached_prompt_tokens_total", "1h", by=ONE),
                         increase("prompt_tokens_total", "1h", by=ONE)), "{{engine}}"),),
            width=8, empty="The engine does not count them, or there are no prompts", step="1m",
        ),
    ),
)  # fmt: skip

CASCADES: Final = Row(
    "Cascades",
    (
        Panel(
            "Escalation rate", "percentunit",
            "escalations_total ÷ cascade_requests_total of the tier they came from, over an hour. Dashed: alert_threshold (30 % and "
            "40 % unless the config says otherwise), and escalation_break_even_ratio, 1 - c_from ÷ c_to: above it the bigger tier "
            "alone is cheaper.",
            (
                Query(_escalation(), "{{cascade}}: {{from_tier}} to {{to_tier}}"),
                Query(f"max by ({_STEP}) ({of('escalation_break_even_ratio')})", "{{cascade}}: break-even", line=True),
                Query(threshold("LLMCostEscalationRateHigh"), "warns above", line=True),
                Query(threshold("LLMCostEscalationRateCritical"), "pages above", line=True),
            ),
            width=16, empty=_NO_CASCADE, step="1m",
            runbooks=("LLMCostEscalationRateHigh", "LLMCostEscalationRateCritical", "LLMCostEscalationAboveBreakEven"),
        ),
        Panel(
            "First tries that were thrown away", "currencyUSD",
            "Increase of escalation_spend_usd_total over a day: escalations x what a request of the smaller tier costs.",
            (Query(increase("escalation_spend_usd_total", "1d", FLEET, by=_STEP), "{{cascade}}: {{from_tier}}"),),
            width=8, empty=_NO_CASCADE, step="5m",
        ),
    ),
)  # fmt: skip

FEATURES: Final = Row(
    "Features",
    (
        Panel(
            "Cost beside value, 24 hours", "short",
            "Cost: increase of attributed_spend_usd_total; its part: ÷ that of all features; value: feature_value_ratio, your own "
            "estimate. A feature that costs much more than it is worth deserves a smaller model.",
            (
                Query(_feature("attributed_spend_usd_total"), "Cost", "currencyUSD"),
                Query(
                    f"{_feature('attributed_spend_usd_total')} / on () group_left () "
                    f"({increase('attributed_spend_usd_total', '1d', FLEET)} > 0)", "Part of the cost", "percentunit",
                ),
                Query(f"max by (feature) ({of('feature_value_ratio')})", "Part of the value", "percentunit"),
                Query(_feature("feature_requests_total"), "Requests", "short"),
                Query(ratio(_feature("attributed_spend_usd_total"), _feature("feature_requests_total")), "A request",
                      "currencyUSD"),
                Query(_feature("feature_output_tokens_total"), "Output tokens", "short"),
            ),
            Kind.TABLE, 16, 9, _NO_EVENTS,
        ),
        Panel(
            "How much is claimed", "percentunit",
            "attribution_coverage_ratio of an hour: tokens of usage events ÷ tokens that the engine counted. Below 1 the rest is "
            "unattributed; the dashed line is alert_threshold of LLMCostUsageOverclaimed.",
            (
                Query(of("attribution_coverage_ratio", ENGINE, 'window="1h"'), "{{engine}}"),
                Query(threshold("LLMCostUsageOverclaimed"), "warns above", line=True),
            ),
            width=8, height=9, empty=_NO_EVENTS, runbooks=("LLMCostUsageOverclaimed",),
        ),
        Panel(
            "Not in the bill", "short",
            "Increase over a day of unpriced_tokens_total (usage events whose model has no price) and of unpriced_gpu_seconds_total.",
            (
                Query(f"sum by (model) (increase({of('unpriced_tokens_total')}[1d]))", "tokens of {{model}}"),
                Query(f"sum by (gpu) (increase({of('unpriced_gpu_seconds_total')}[1d]))", "seconds of GPU {{gpu}}"),
            ),
            width=24, height=5, empty="All has a price", edges=((0.001, AMBER),), runbooks=("LLMCostUnpricedTokens",),
            kind=Kind.STAT,
        ),
    ),
)  # fmt: skip

BOARD: Final = Board(
    "llmcost-economics", "LLM cost / Unit economics",
    "What a token, a request and a feature cost, and whether an API or another model would be cheaper.",
    (TOKENS, LOAD, CASCADES, FEATURES),
)  # fmt: skip
