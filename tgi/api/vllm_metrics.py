"""The metrics under the names of vLLM's V1 engine, which its dashboards, autoscaling rules and gateways read.

Names, types, labels and units are vLLM's; the bucket bounds of histograms are ours. `engine` is the number of
a replica in metrics of a scheduler, and 0 in those of requests, which are counted together.
"""

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items

from tgi.metrics import Counter, Family, Gauge, Info, Metrics, escaped
from tgi.scheduler import Router, SchedulerStatistics

RENAMED = {
    "time_to_first_token_seconds": "request_time_to_first_token_duration",
    "inter_token_latency_seconds": "request_time_between_tokens_duration",
    "time_per_output_token_seconds": "request_time_between_tokens_duration",
    "request_time_per_output_token_seconds": "request_mean_time_per_token_duration",
    "e2e_request_latency_seconds": "request_duration",
    "request_queue_time_seconds": "request_queue_duration",
    "request_inference_time_seconds": "request_inference_duration",
    "request_prefill_time_seconds": "request_prefill_duration",
    "request_decode_time_seconds": "request_decode_duration",
    "request_prompt_tokens": "request_input_length",
    "request_generation_tokens": "request_generated_tokens",
    "request_params_max_tokens": "request_max_new_tokens",
    "request_max_num_generation_tokens": "request_max_new_tokens",
    "iteration_tokens_total": "batch_step_tokens",
}
"""vLLM's name of each histogram that is one of ours, by the attribute of `Metrics`."""

SCHEDULER: dict[str, tuple[type[Counter], str, Callable[[SchedulerStatistics], float]]] = {
    "num_requests_running": (Gauge, "Sequences in the running batch", lambda one: one.running),
    "num_requests_waiting": (Gauge, "Sequences in the queue", lambda one: one.waiting),
    "kv_cache_usage_perc": (Gauge, "Used share of the KV cache, from 0 to 1", lambda one: one.usage),
    "gpu_cache_usage_perc": (Gauge, "Former name of kv_cache_usage_perc", lambda one: one.usage),
    "prefix_cache_queries_total": (
        Counter, "Prompt tokens looked up in the prefix cache", lambda one: one.prefix_query_tokens,
    ),
    "prefix_cache_hits_total": (
        Counter, "Prompt tokens in the prefix cache", lambda one: one.prefix_hit_tokens,
    ),
    "num_preemptions_total": (
        Counter, "Sequences returned to the queue for lack of KV blocks", lambda one: one.preemptions,
    ),
}  # fmt: skip
"""Metrics of each scheduler: type, description, and value."""

REASONS = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}
"""vLLM's `finished_reason` for each reason of the end of a text."""
FAILURES = {"dropped": "abort", "deadline": "abort", "generation": "error", "incomplete": "error"}
"""vLLM's `finished_reason` for each label of a failure after which vLLM counts a request as finished."""


def vllm_families(
    metrics: Metrics, replicas: Items[SchedulerStatistics], model: str, block_size: int
) -> Iterator[Family]:
    """Yield the metrics; `replicas` are the statistics of the schedulers, in order."""
    named = f'model_name="{escaped(model)}"'
    for name, (kind, description, value) in SCHEDULER.items():
        family = kind(name, description, "engine")
        for engine, statistics in enumerate(replicas):
            family.set(value(statistics), engine=str(engine))
        yield family.renamed(f"vllm:{name}", named)
    for family in (*_totals(metrics), *_finished(metrics)):
        yield family.renamed(f"vllm:{family.name}", f'{named},engine="0"')
    cache = Info("vllm:cache_config_info", "Size and number of KV blocks")
    for engine, statistics in enumerate(replicas):
        cache.set(engine=engine, block_size=block_size, num_gpu_blocks=statistics.blocks.total)
    yield cache
    for name, attribute in RENAMED.items():
        ours: Family = getattr(metrics, attribute)
        yield ours.renamed(f"vllm:{name}", f'{named},engine="0"')


def lora_families(router: Router) -> Iterator[Family]:
    """Yield the metric by which gateways learn which LoRA adapters are in use, if there can be any."""
    if not router.loras.slots.count:
        return
    running, waiting = (",".join(sorted(counts)) for counts in router.count_loras())
    info = Info("vllm:lora_requests_info", "LoRA adapters of requests that run and that wait; the time")
    info.set(
        time.time(),
        max_lora=router.loras.slots.count,
        waiting_lora_adapters=waiting,
        running_lora_adapters=running,
    )
    yield info


def _totals(metrics: Metrics) -> Iterator[Counter]:
    prompts = Counter("prompt_tokens_total", "Tokens of prompts")
    prompts.inc(metrics.request_input_length.total())
    generated = Counter("generation_tokens_total", "Generated tokens")
    generated.inc(metrics.request_time_to_first_token_duration.count())
    generated.inc(metrics.request_time_between_tokens_duration.count())
    yield from (prompts, generated)


def _finished(metrics: Metrics) -> Iterator[Counter]:
    finished = Counter("request_success_total", "Texts by the reason of their end", "finished_reason")
    for reason in ("stop", "length", "abort", "error"):
        finished.inc(0, finished_reason=reason)
    for ours, reason in REASONS.items():
        finished.inc(metrics.generated_texts.value(finish_reason=ours), finished_reason=reason)
    for ours, reason in FAILURES.items():
        finished.inc(metrics.request_failure.value(err=ours), finished_reason=reason)
    yield finished
