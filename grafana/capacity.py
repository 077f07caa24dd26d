"""Capacity & scaling: who waits, how busy the GPUs are, and what one more replica would cost."""

from typing import Final

from grafana.board import Board, Row
from grafana.panels import AMBER, GREEN, RED, Kind, Panel, Query
from grafana.promql import BUDGET, ENGINE, FLEET, ONE, RATE, equal, increase, like, of, per_hour, ratio, threshold

_ANSWERS: Final = of("source_up", FLEET, equal("source", "engine"), like("target", "$engine"))
_AFFORDABLE: Final = of("max_affordable_replicas", BUDGET, like("engine", "$engine"))
_BUSY: Final = f"rate({of('gpu_busy_seconds_total')}[{RATE}])"
_UNSERVED: Final = like("category", "compute_loading|compute_down")
_NO_GPU: Final = "No GPU is read, or none belongs to the engine"
_SIGNALS: Final = ("LLMCostQueueDepthHigh", "LLMCostGpuUtilizationHigh", "LLMCostTtftTargetMissed")


def _gpus(family: str) -> str:
    """Return a family of the GPUs of each engine."""
    return f"{of('engine_gpu_info', ENGINE)} * ignoring (engine) group_left () {family}"


def _edge(signal: str, edge: str) -> str:
    return f"max by ({ONE}) ({of('scaling_threshold', ENGINE, equal('signal', signal), equal('edge', edge))})"


SCALING: Final = Row(
    "When to scale",
    (
        Panel(
            "Signals beside their thresholds", "short",
            "scaling_signal_ratio: queue depth, GPU utilisation and p95 TTFT of the replica that has most of it, each ÷ its "
            "threshold for scaling up. Above 1 it asks for another replica; GPU utilisation only where requests wait.",
            (
                Query(f"max by ({ONE}, signal) ({of('scaling_signal_ratio', ENGINE)})", "{{engine}}: {{signal}}"),
                Query("vector(1)", "scale up above", line=True),
            ),
            width=16, height=9, runbooks=_SIGNALS,
        ),
        Panel(
            "Replicas", "short",
            "Replicas whose engine answers: source_up of source=engine; min_replicas: what the workload needs; "
            "max_affordable_replicas: what the tightest budget can keep until its period ends.",
            (
                Query(f"count by (cluster, namespace, target) ({_ANSWERS} == 1)",
                      "{{target}}"),
                Query(f"max by ({ONE}) ({of('min_replicas', ENGINE)})", "{{engine}}: at least", line=True),
                Query(f"min by ({ONE}) ({_AFFORDABLE})",
                      "{{engine}}: affordable", line=True),
            ),
            width=8, height=9, decimals=0, runbooks=("LLMCostInteractiveScaledToZero",),
        ),
        Panel(
            "Queue depth", "short",
            "Sum of requests_waiting, and of requests_running, over the engine's replicas; dashed: scaling_threshold for scaling "
            "up, which counts per replica.",
            (
                Query(f"sum by ({ONE}) ({of('requests_waiting', ENGINE)})", "{{engine}}: waiting"),
                Query(f"sum by ({ONE}) ({of('requests_running', ENGINE)})", "{{engine}}: running"),
                Query(_edge("queue_depth", "up"), "{{engine}}: up", line=True),
            ),
            runbooks=("LLMCostQueueDepthHigh", "LLMCostQueueDepthLow"),
        ),
        Panel(
            "Time to first token, p95", "s",
            "histogram_quantile(0.95) over the summed buckets of ttft_seconds; dashed: ttft_target_seconds, and where it scales up.",
            (
                Query(f"histogram_quantile(0.95, sum by ({ONE}, le) (rate({of('ttft_seconds_bucket', ENGINE)}[{RATE}])))",
                      "{{engine}}"),
                Query(f"max by ({ONE}) ({of('ttft_target_seconds', ENGINE)})", "{{engine}}: target", line=True),
                Query(_edge("ttft", "up"), "{{engine}}: up", line=True),
            ),
            empty="No requests", runbooks=("LLMCostTtftTargetMissed", "LLMCostTtftComfortable"),
        ),
        Panel(
            "KV cache", "percentunit",
            "kv_cache_usage_ratio of the replica that has used most; dashed: alert_threshold of LLMCostKvCacheFull. Full is only "
            "a fault while requests wait.",
            (
                Query(f"max by ({ONE}) ({of('kv_cache_usage_ratio', ENGINE)})", "{{engine}}"),
                Query(threshold("LLMCostKvCacheFull"), "full above", line=True),
            ),
            empty="The engine does not say", runbooks=("LLMCostKvCacheFull",),
        ),
        Panel(
            "Requests a minute", "short",
            "Rate of requests_total by outcome; abandoned: the client hung up. No signal for scaling: who waits is.",
            (Query(f"sum by (outcome) (rate({of('requests_total', ENGINE)}[{RATE}])) * 60", "{{outcome}}"),), Kind.STACKED,
            empty="No requests",
        ),
    ),
)  # fmt: skip

GPUS: Final = Row(
    "GPUs",
    (
        Panel(
            "GPUs busy", "percentunit",
            "Mean over the engine's GPUs of the rate of gpu_busy_seconds_total: the share of time in which any kernel ran. One "
            "request makes it high, so that it never says scale up by itself. Dashed: scaling_threshold.",
            (
                Query(f"avg by ({ONE}) ({_gpus(_BUSY)})", "{{engine}}"),
                Query(_edge("gpu_utilization", "up"), "{{engine}}: up", line=True),
                Query(_edge("gpu_utilization", "down"), "{{engine}}: down", line=True),
            ),
            width=8, empty=_NO_GPU, runbooks=("LLMCostGpuUtilizationHigh", "LLMCostGpuUtilizationLow"),
        ),
        Panel(
            "GPU memory", "percentunit",
            "gpu_memory_used_bytes ÷ gpu_memory_total_bytes of the engine's GPUs. Flat by design: engines take it when they start.",
            (Query(ratio(f"sum by ({ONE}) ({_gpus(of('gpu_memory_used_bytes'))})",
                         f"sum by ({ONE}) ({_gpus(of('gpu_memory_total_bytes'))})"), "{{engine}}"),),
            width=8, empty=_NO_GPU,
        ),
        Panel(
            "Power", "watt", "Sum of gpu_power_watts of the engine's GPUs.",
            (Query(f"sum by ({ONE}) ({_gpus(of('gpu_power_watts'))})", "{{engine}}"),), width=8, empty=_NO_GPU,
        ),
        Panel(
            "GPUs that answer", "short", "gpu_up of each GPU: 0 is a GPU that is paid for and lost.",
            (Query(f"min by (cluster, namespace, gpu, uuid) ({of('gpu_up')})", "{{gpu}} {{uuid}}"),), Kind.STATES,
            empty=_NO_GPU, words={"1": ("up", GREEN), "0": ("lost", RED)},
            runbooks=("LLMCostGpuLost", "LLMCostGpuMemoryErrors"),
        ),
        Panel(
            "Slowed down", "percentunit",
            "Rate of gpu_throttle_seconds_total by reason; a power cap is no fault. Dashed: alert_threshold of LLMCostGpuThrottled.",
            (
                Query(f"max by (gpu, reason) (rate({of('gpu_throttle_seconds_total')}[{RATE}]))", "{{gpu}}: {{reason}}"),
                Query(threshold("LLMCostGpuThrottled"), "warns above", line=True),
            ),
            empty=_NO_GPU, runbooks=("LLMCostGpuThrottled",),
        ),
    ),
)  # fmt: skip

MONEY: Final = Row(
    "What it costs",
    (
        Panel(
            "Idle dollars an hour", "currencyUSD", "Rate of spend_usd_total in compute_idle, an hour.",
            (Query(per_hour("spend_usd_total", ENGINE, equal("category", "compute_idle"), by=ONE), "{{engine}}"),), Kind.STACKED, 8,
            runbooks=("LLMCostIdleSpendHigh",),
        ),
        Panel(
            "One more replica, an hour", "currencyUSD",
            "Mean of spend_usd_per_hour over the engine's replicas: its GPUs and its part of standing costs.",
            (Query(f"avg by ({ONE}) ({of('spend_usd_per_hour', ENGINE)})", "{{engine}}"),), Kind.STAT, 8,
            empty="A price is not known", decimals=2,
        ),
        Panel(
            "Cold starts in 24 hours", "short", "Increase of cold_starts_total over a day.",
            (Query(increase("cold_starts_total", "1d", by=ONE), "{{engine}}"),), Kind.STAT, 8, decimals=0,
            edges=((4, AMBER),), runbooks=("LLMCostColdStartsFrequent",),
        ),
        Panel(
            "The last cold start", "s",
            "The longest cold_start_seconds: process start to first answer. Dashed: alert_threshold of LLMCostColdStartSlow.",
            (
                Query(f"max by ({ONE}) ({of('cold_start_seconds', ENGINE)})", "{{engine}}"),
                Query(threshold("LLMCostColdStartSlow"), "warns above", line=True),
            ),
            empty="None was seen yet", runbooks=("LLMCostColdStartSlow",),
        ),
        Panel(
            "What loading cost in 24 hours", "currencyUSD",
            "Increase of spend_usd_total in compute_loading and compute_down over a day: paid while nobody was served.",
            (Query(f"sum by ({ONE}, category) (increase({of('spend_usd_total', ENGINE, _UNSERVED)}[1d]))",
                   "{{engine}}: {{category}}"),),
            Kind.STACKED, step="5m",
        ),
    ),
)  # fmt: skip

BOARD: Final = Board(
    "llmcost-capacity", "LLM cost / Capacity & scaling",
    "Who waits, how busy the GPUs are, what is paid and idle, and what one more replica would cost.",
    (SCALING, GPUS, MONEY), since="now-6h",
)  # fmt: skip
