"""Names of engines' own metrics: what vLLM exports, and what it no longer does."""

from collections.abc import Iterator, Mapping
from typing import Final

_GAUGES: Final = (
    "num_requests_running num_requests_waiting num_requests_waiting_by_reason kv_cache_usage_perc engine_sleep_state"
    " lora_requests_info cache_config_info"
)
_COUNTERS: Final = (
    "prompt_tokens generation_tokens request_success num_preemptions prefix_cache_hits prefix_cache_queries"
    " external_prefix_cache_hits external_prefix_cache_queries mm_cache_hits mm_cache_queries prompt_tokens_by_source"
    " prompt_tokens_cached prompt_tokens_cached_by_source estimated_flops_per_gpu estimated_read_bytes_per_gpu"
    " estimated_write_bytes_per_gpu admission_rejections corrupted_requests spec_decode_num_accepted_tokens"
    " spec_decode_num_accepted_tokens_per_pos spec_decode_num_draft_tokens spec_decode_num_drafts"
)
_HISTOGRAMS: Final = (
    "time_to_first_token_seconds e2e_request_latency_seconds inter_token_latency_seconds iteration_tokens_total"
    " request_time_per_output_token_seconds request_queue_time_seconds request_inference_time_seconds"
    " request_prefill_time_seconds request_decode_time_seconds request_prompt_tokens request_generation_tokens"
    " request_max_num_generation_tokens request_num_preemptions request_params_n request_params_max_tokens"
    " request_prefill_kv_computed_tokens kv_block_idle_before_evict_seconds kv_block_lifetime_seconds"
    " kv_block_reuse_gap_seconds"
)
_ROUTERS_COUNTERS: Final = (  # of the router in front, which speaks the same prefix
    "num_incoming_requests_total input_tokens_total output_tokens_total request_errors_total routing_decisions_total"
    " request_latency_seconds_bucket request_latency_seconds_sum request_latency_seconds_count"
)
_ROUTERS_GAUGES: Final = (
    "current_qps avg_decoding_length avg_ttft avg_latency avg_itl num_prefill_requests num_decoding_requests"
    " healthy_pods_total deployment_replicas"
)
_ROUTERS: Final = frozenset((*_ROUTERS_COUNTERS.split(), *_ROUTERS_GAUGES.split()))
_OTHERS: Final = (  # seen in the source alone
    "diffusion_num_canvas_positions diffusion_num_committed_tokens diffusion_num_denoising_steps"
    " num_requests_kv_fetch_by_stage watermark_requests"
)
GONE: Final[Mapping[str, str]] = {
    "gpu_cache_usage_perc": "vllm:kv_cache_usage_perc",
    "cpu_cache_usage_perc": "vllm:kv_cache_usage_perc",
    "num_requests_swapped": "rate(vllm:num_preemptions_total[5m])",
    "avg_prompt_throughput_toks_per_s": "rate(vllm:prompt_tokens_total[5m])",
    "avg_generation_throughput_toks_per_s": "rate(vllm:generation_tokens_total[5m])",
    "gpu_prefix_cache_hits_total": "vllm:prefix_cache_hits_total",
    "gpu_prefix_cache_queries_total": "vllm:prefix_cache_queries_total",
    "gpu_prefix_cache_hit_rate": "vllm:prefix_cache_hits_total and vllm:prefix_cache_queries_total",
    "cpu_prefix_cache_hit_rate": "vllm:prefix_cache_hits_total and vllm:prefix_cache_queries_total",
    "time_in_queue_requests": "vllm:request_queue_time_seconds",
    "time_per_output_token_seconds": "vllm:inter_token_latency_seconds",
    "model_execute_time_milliseconds": "vllm:request_inference_time_seconds",
    "model_forward_time_milliseconds": "vllm:request_inference_time_seconds",
    "tokens_total": "vllm:prompt_tokens_total and vllm:generation_tokens_total",
}
_SUFFIXES: Final = ("_bucket", "_sum", "_count", "_created")

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"


def _samples() -> Iterator[tuple[str, str]]:
    for name in (*_GAUGES.split(), *_ROUTERS_GAUGES.split()):
        yield name, GAUGE
    for name in _ROUTERS_COUNTERS.split():
        yield name, COUNTER
    for name in _COUNTERS.split():
        yield f"{name}_total", COUNTER
        yield f"{name}_created", GAUGE
    for name in _HISTOGRAMS.split():
        yield from histogram(name)
        yield f"{name}_created", GAUGE
    for name in _OTHERS.split():
        yield name, ""


def histogram(name: str) -> Iterator[tuple[str, str]]:
    """Yield the series of a histogram; all of them only rise."""
    for suffix in ("_bucket", "_sum", "_count"):
        yield f"{name}{suffix}", COUNTER


VLLM: Final[Mapping[str, str]] = dict(_samples())
VLLM_PREFIX: Final = "vllm:"


def colon(name: str) -> str:
    """Return a name as the engine has it: an adapter of the custom metrics API writes its colon as an underscore."""
    return f"vllm:{name[5:]}" if name.startswith("vllm_") and name[5:] in {*VLLM, *GONE} else name


def replacement(bare: str) -> str | None:
    """Return what stands for a name of vLLM that is gone, the suffixes of its samples cut off."""
    for suffix in ("", *_SUFFIXES):
        base = bare.removesuffix(suffix) if suffix else bare
        if base in GONE:
            return GONE[base] + (suffix if GONE[base].endswith("_seconds") else "")
    return None


def is_on_the_engines_page(name: str) -> bool:
    """Tell whether a metric ends with the pod that it tells of; the router's go on without one."""
    if name.removeprefix(VLLM_PREFIX) in _ROUTERS:
        return False
    own = name.startswith("llmcost_") and not name.startswith(("llmcost_budget_", "llmcost_feature_"))
    return own or name.startswith(("vllm:", "sglang:", "tgi_", "llamacpp:", "nv_", "DCGM_"))
