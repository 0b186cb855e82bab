"""`--metrics-names`: names, types and labels are those of vLLM's V1 engine and its page on metrics."""

import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from tgi.config import Options

from .serving import INFO, saying, serving

DASHBOARD = {
    "e2e_request_latency_seconds": "histogram", "prompt_tokens": "counter", "generation_tokens": "counter",
    "inter_token_latency_seconds": "histogram", "num_requests_running": "gauge",
    "num_requests_waiting": "gauge", "time_to_first_token_seconds": "histogram",
    "kv_cache_usage_perc": "gauge", "request_prompt_tokens": "histogram",
    "request_generation_tokens": "histogram", "request_success": "counter",
    "request_queue_time_seconds": "histogram", "request_prefill_time_seconds": "histogram",
    "request_decode_time_seconds": "histogram", "request_max_num_generation_tokens": "histogram",
}  # fmt: skip
"""Metrics that vLLM's Grafana dashboard shows (docs/design/metrics.md in its repository), less `_total`."""
OTHERS = {
    "request_inference_time_seconds": "histogram", "request_params_max_tokens": "histogram",
    "iteration_tokens_total": "histogram", "num_preemptions": "counter", "prefix_cache_queries": "counter",
    "prefix_cache_hits": "counter", "cache_config_info": "gauge", "gpu_cache_usage_perc": "gauge",
    "time_per_output_token_seconds": "histogram", "request_time_per_output_token_seconds": "histogram",
}  # fmt: skip
"""Others of vLLM's (docs/usage/metrics.md), two of them former names that older rules have."""
VLLM = {f"vllm:{name}": kind for name, kind in (DASHBOARD | OTHERS).items()}
LORA = {"vllm:lora_requests_info": "gauge"}
"""Served where there are adapters."""
PAGE = Path(__file__).parents[2] / "docs" / "observability.md"


async def scraped(options: Options = Options(metrics_names="vllm"), path: str = "/metrics") -> dict[str, Any]:  # noqa: B008
    """The families after a text that ends by itself, one that is as long as it may be, and one refused."""
    async with serving(saying("Hello"), options=options) as server:
        for tokens in (20, 1):
            answer = await server.ask(
                "POST", "/v1/completions", {"prompt": "world, what", "max_tokens": tokens}
            )
            assert answer.status == 200
        assert (await server.generate({"top_k": 0})).status == 422
        text = (await server.ask("GET", path)).body.decode()
        return {family.name: family for family in text_string_to_metric_families(text)}


def values(family: Any, label: str = "") -> dict[str, float]:
    return {
        one.labels.get(label, ""): one.value
        for one in family.samples
        if not one.name.endswith(("_bucket", "_sum"))
    }


async def test_every_name_has_vllms_type_and_labels() -> None:
    families = await scraped()
    assert {name: family.type for name, family in families.items()} == VLLM
    for name, family in families.items():
        for one in family.samples:
            labels = set(one.labels) - {"le"}
            if name == "vllm:cache_config_info":
                assert one.labels == {"engine": "0", "block_size": "16", "num_gpu_blocks": "256"}
            elif name == "vllm:request_success":
                assert labels == {"model_name", "engine", "finished_reason"}
            else:
                assert labels == {"model_name", "engine"}
                assert one.labels["model_name"] == "some/model"


async def test_counts_are_those_of_the_requests() -> None:
    families = await scraped()
    tokens = values(families["vllm:generation_tokens"])[""]
    histogram = {one.name: one.value for one in families["vllm:request_generation_tokens"].samples}
    assert tokens == histogram["vllm:request_generation_tokens_sum"]
    prompts = {one.name: one.value for one in families["vllm:request_prompt_tokens"].samples}
    assert values(families["vllm:prompt_tokens"])[""] == prompts["vllm:request_prompt_tokens_sum"] > 0
    for name in ("time_to_first_token", "e2e_request_latency", "request_prefill_time", "request_decode_time"):
        assert values(families[f"vllm:{name}_seconds"])[""] == 2
    reasons = values(families["vllm:request_success"], "finished_reason")
    assert reasons == {"stop": 1, "length": 1, "abort": 0, "error": 0}
    assert values(families["vllm:num_requests_running"]) == {"": 0}


async def test_queue_rows_and_cache_while_requests_run() -> None:
    options, limits = Options(metrics_names="vllm"), {"max_new_tokens": 40}
    async with serving(step_seconds=0.02, options=options) as server, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(server.generate, limits)
        assert server.service.engine is not None
        while server.service.engine.scheduler.statistics().running < 3:
            await trio.sleep(0.001)
        text = await server.metrics()
        assert 'vllm:num_requests_running{model_name="some/model",engine="0"} 3\n' in text
        assert 'vllm:num_requests_waiting{model_name="some/model",engine="0"} 0\n' in text
        usage = re.search(
            r'^vllm:kv_cache_usage_perc\{model_name="some/model",engine="0"\} (\S+)$', text, re.M
        )
        assert usage is not None
        assert float(usage[1]) * 256 in range(3, 40)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("names", "path", "tgi", "vllm"),
    [
        ("tgi", "/metrics", True, False),
        ("vllm", "/metrics", False, True),
        ("both", "/metrics", True, True),
        ("vllm", "/metrics?names=tgi", True, False),
        ("tgi", "/metrics?names=vllm", False, True),
    ],
)
async def test_the_option_and_the_query_choose(names: Any, path: str, tgi: bool, vllm: bool) -> None:
    families = await scraped(Options(metrics_names=names), path)
    assert any(name.startswith("tgi_") for name in families) == tgi
    assert any(name.startswith("vllm:") for name in families) == vllm


async def test_a_models_name_is_written_as_prometheus_reads_it() -> None:
    info, options = attrs.evolve(INFO, served_name='a "b" \\c'), Options(metrics_names="vllm")
    async with serving(info=info, options=options) as server:
        families = text_string_to_metric_families(await server.metrics())
        (running,) = [family for family in families if family.name == "vllm:num_requests_running"]
    assert running.samples[0].labels["model_name"] == 'a "b" \\c'


async def test_the_documentation_has_every_name() -> None:
    rows = re.findall(r"^\| `(vllm:\w+)` \| (\w+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert {
        name.removesuffix("_total") if kind == "counter" else name: kind for name, kind in rows
    } == VLLM | LORA
