"""LoRA adapters of a real server: loaded while texts are generated, on several ranks, and on new ranks."""

import json
import os
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.peft_adapters import make_adapter

LONG = {"max_new_tokens": 120, "details": False}


@pytest.fixture(scope="module")
def adapters(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(folder / str(seed), checkpoint, seed) for seed in range(3)]


def options(adapters: list[Path], **more: Any) -> dict[str, Any]:
    named = ",".join(f"a{number}={folder}" for number, folder in enumerate(adapters[:2]))
    return {"lora_adapters": named, "max_loras": 3, "max_batch_size": 8, "max_total_tokens": 512, **more}


def text_of(server: Any, adapter: str | None, **more: Any) -> str:
    return str(server.generate("violin", adapter_id=adapter, **{**LONG, **more})["generated_text"])


def change(server: Any, verb: str, body: dict[str, str]) -> int:
    """Load or unload an adapter, and return the status of the answer, which is no JSON."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/v1/{verb}_lora_adapter",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return int(answer.status)


def test_streams_are_not_disturbed(start: Any, adapters: list[Path]) -> None:
    """Loading and unloading while others generate changes no text."""
    environment = {"ALLOW_RUNTIME_LORA_UPDATING": "true"}
    server = start("tgi serve", environment, **options(adapters)).wait_ready()
    names = [None, "a0", "a1"]
    wanted = [text_of(server, name) for name in names]
    assert len(set(wanted)) == 3
    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(text_of, server, name) for name in names * 2]
        for _ in range(3):
            body = {"lora_name": "new", "lora_path": str(adapters[2])}
            assert change(server, "load", body) == 200
            assert text_of(server, "new", max_new_tokens=5)
            assert change(server, "unload", {"lora_name": "new"}) == 200
        assert [one.result() for one in running] == wanted * 2
    server.end()


@pytest.mark.slow
@pytest.mark.parametrize(
    "division",
    [{"num_shard": 2}, {"pipeline_parallel_size": 2}, {"replicas": 2}, {"quantize": "int4"}],
    ids=["ranks", "stages", "replicas", "rounded"],
)
def test_divided_models_and_new_ranks(start: Any, adapters: list[Path], division: dict[str, Any]) -> None:
    """However the model is divided, texts are the same, also when a rank is killed in the middle."""
    rounding = {name: value for name, value in division.items() if name == "quantize"}
    alone = start("tgi serve", **options(adapters, **rounding)).wait_ready()
    names = [None, "a0", "a1"]
    wanted = [text_of(alone, name, max_new_tokens=30) for name in names]
    alone.end()
    server = start("tgi serve", **options(adapters, **division)).wait_ready()
    assert [text_of(server, name, max_new_tokens=30) for name in names] == wanted
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(text_of, server, name) for name in names]
        server.wait_for(lambda: server.metric("tgi_batch_current_size") > 0)
        os.kill(server.ranks()[0], signal.SIGKILL)
        texts = [one.result() for one in running]
    assert [text.startswith(first) for text, first in zip(texts, wanted, strict=True)] == [True] * 3
    assert server.metric("tgi_engine_restarts") == 1
    server.end()
