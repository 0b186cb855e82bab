"""guidellm loads the server; every request succeeds and has the length that was asked for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tgi.config import DEMO_MODEL

REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 16, 32, 16


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_benchmark(run_client: Callable[..., str], url: str, tmp_path: Path, route: str) -> None:
    report = tmp_path / "report.json"
    run_client(
        *("-m", "guidellm", "run"),
        *("--backend", f"kind=openai_http,target={url},request_format={route}"),
        *("--profile", "kind=concurrent,streams=4"),
        *("--constraint", f"kind=max_requests,count={REQUESTS}"),
        *("--tokenizer", f"kind=huggingface_auto,model={DEMO_MODEL}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}"),
        *("--output", f"kind=json,path={report}", "--disable-console"),
        cwd=tmp_path,
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        HF_DATASETS_CACHE=str(tmp_path / "cache"),
    )
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    state = benchmark["scheduler_state"]
    assert (state["successful_requests"], state["errored_requests"]) == (REQUESTS, 0)
    requests = benchmark["requests"]["successful"]
    assert [request["output_metrics"]["text_tokens"] for request in requests] == [OUTPUT_TOKENS] * REQUESTS
    assert all(request["input_metrics"]["text_tokens"] >= PROMPT_TOKENS for request in requests)
