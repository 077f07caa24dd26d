"""Exporter health: whether what the other dashboards show can be believed."""

from typing import Final

from grafana.board import Board, Row
from grafana.panels import AMBER, GREEN, RED, Kind, Panel, Query
from grafana.promql import FLEET, RATE, like, of

_OURS: Final = f"{FLEET}, {like('job', '.*llm-?cost.*')}"
_SOURCE: Final = "cluster, namespace, source, target"


def _age(name: str, by: str) -> str:
    return f"max by ({by}) (time() - {of(name)})"


SOURCES: Final = Row(
    "Sources",
    (
        Panel(
            "Exporters", "short", "build_info: one for each exporter, by version and role.",
            (Query(f"count by (version, role) ({of('build_info')})", "{{version}}, {{role}}"),), Kind.STAT, 6, 5,
            empty="No exporter is scraped", runbooks=("LLMCostExporterAbsent", "LLMCostExporterDown"),
        ),
        Panel(
            "Last load of the config", "short", "config_last_reload_successful of the exporter that is worst off.",
            (Query(f"min({of('config_last_reload_successful')})"),), Kind.STAT, 6, 5,
            words={"1": ("good", GREEN), "0": ("failed", RED)}, runbooks=("LLMCostConfigReloadFailed",),
        ),
        Panel(
            "Accounts go back to", "dateTimeFromNow", "The youngest accounting_start_timestamp_seconds, x 1000.",
            (Query(f"max({of('accounting_start_timestamp_seconds')}) * 1000"),), Kind.STAT, 6, 5,
        ),
        Panel(
            "Not charged in 30 days", "s",
            "Increase of unobserved_seconds_total: time in which the exporter was away for longer than max_gap.",
            (Query(f"sum(increase({of('unobserved_seconds_total')}[30d]))"),), Kind.STAT, 6, 5, edges=((1, AMBER),),
        ),
        Panel(
            "Sources", "short", "source_up of each source.",
            (Query(f"min by ({_SOURCE}) ({of('source_up')})", "{{source}} {{target}}"),), Kind.STATES,
            words={"1": ("up", GREEN), "0": ("down", RED)}, runbooks=("LLMCostSourceDown",),
        ),
        Panel(
            "Age of the last reading", "s",
            "time() - source_last_success_timestamp_seconds: a few intervals are fine. Dashed: the longest "
            "source_interval_seconds.",
            (
                Query(_age("source_last_success_timestamp_seconds", _SOURCE), "{{source}} {{target}}"),
                Query(f"max({of('source_interval_seconds')})", "interval", line=True),
            ),
            runbooks=("LLMCostSourceStale",),
        ),
        Panel(
            "Failed reads", "short", "Increase of source_errors_total by reason.",
            (Query(f"sum by (source, target, reason) (increase({of('source_errors_total')}[{RATE}]))",
                   "{{source}} {{target}}: {{reason}}"),),
            Kind.BARS, runbooks=("LLMCostSourceDown",),
        ),
        Panel(
            "Time that a read takes", "s", "source_read_seconds of the slowest exporter.",
            (Query(f"max by ({_SOURCE}) ({of('source_read_seconds')})", "{{source}} {{target}}"),),
        ),
    ),
)  # fmt: skip

BOOKS: Final = Row(
    "Books",
    (
        Panel(
            "Waits for the ledger", "currencyUSD",
            "Sum of ledger_uncommitted_usd: booked and not on the disk yet; the counters leave it out.",
            (Query(f"sum({of('ledger_uncommitted_usd')})", "not on the disk"),), width=8, empty="No ledger: no --storage.path",
            runbooks=("LLMCostLedgerWriteFailed",),
        ),
        Panel(
            "Ledger", "short",
            "Increase of ledger_write_errors_total, and time() - ledger_last_commit_timestamp_seconds in seconds.",
            (
                Query(f"sum(increase({of('ledger_write_errors_total')}[{RATE}]))", "failed writes"),
                Query(f"max(time() - {of('ledger_last_commit_timestamp_seconds')})", "seconds since the last"),
            ),
            width=8, empty="No ledger: no --storage.path", runbooks=("LLMCostLedgerWriteFailed",),
        ),
        Panel(
            "Usage events", "short", "Rate of usage_events_total a minute, by what became of them.",
            (Query(f"sum by (result) (rate({of('usage_events_total')}[{RATE}])) * 60", "{{result}}"),), Kind.STACKED, 8,
        ),
        Panel(
            "Prices in force", "currencyUSD", "gpu_price_usd_per_hour by GPU and by the form of the config it comes from.",
            (Query(f"max by (gpu, source) ({of('gpu_price_usd_per_hour')})", "{{gpu}} {{source}}"),), width=8,
            empty="No price is known", runbooks=("LLMCostUnpricedTokens",),
        ),
        Panel(
            "Claimed by usage events", "percentunit",
            "attribution_coverage_ratio of an hour: tokens claimed ÷ tokens that the engine counted.",
            (Query(of("attribution_coverage_ratio", FLEET, 'window="1h"'), "{{engine}}"),), width=8,
            empty="No usage events yet", runbooks=("LLMCostUsageOverclaimed",),
        ),
        Panel(
            "GPUs: seen and charged", "short", "gpus_visible: what the source shows; gpus_expected: what the config charges for.",
            (
                Query(f"sum({of('gpus_visible')})", "visible"),
                Query(f"sum({of('gpus_expected')})", "charged", line=True),
            ),
            width=8, empty="No GPU is read",
        ),
    ),
)  # fmt: skip

SELF: Final = Row(
    "The exporter itself",
    (
        Panel(
            "CPU", "percentunit", "Rate of process_cpu_seconds_total, of one core.",
            (Query(f"rate(process_cpu_seconds_total{{{_OURS}}}[{RATE}])", "{{instance}} {{pod}}"),),
            runbooks=("LLMCostExporterDown",),
        ),
        Panel(
            "Memory", "bytes", "process_resident_memory_bytes.",
            (Query(f"process_resident_memory_bytes{{{_OURS}}}", "{{instance}} {{pod}}"),),
        ),
    ),
)  # fmt: skip

BOARD: Final = Board(
    "llmcost-health", "LLM cost / Exporter health", "Whether what the other dashboards show can be believed.",
    (SOURCES, BOOKS, SELF), since="now-6h",
)  # fmt: skip
