"""Models over several real ranks, through the whole server; and how it ends with them."""

import itertools
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import trio
from hypercorn.config import Config, Sockets
from tgi_simulated_gaudi.device import card_environment
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.own_processes import children_running
from tgi.config import Options
from tgi.server import serve
from tgi.testing.models import make_llama, make_mistral

from .falcon_models import make_falcon

PROMPTS = ("What is a violin?", "Deep learning", "The quick brown fox jumps over the lazy dog while the rain")
SMALL: dict[str, Any] = {"max_total_tokens": 128, "max_batch_size": 4, "max_batch_prefill_tokens": 32}


pytestmark = pytest.mark.usefixtures("logging_as_before")


def serving(options: Options, client: Callable[[str], Awaitable[None]]) -> int:
    """Serve; call `client` with the address when the engine is ready, and end the server after it."""

    async def main() -> int:
        codes = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sockets = Sockets([], [listener], [])
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"

            async def live() -> None:
                codes.append(await serve(options, Config(), sockets, (signal.SIGUSR2,)))
                nursery.cancel_scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(live)
                while await trio.to_thread.run_sync(status, f"{address}/health") != 200:
                    await trio.sleep(0.05)
                await client(address)
                signal.raise_signal(signal.SIGUSR2)
        return codes[0]

    return trio.run(main)


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url) as response:
            return int(response.status)
    except OSError as error:
        return getattr(error, "code", 0)


def read(url: str) -> str:
    with urllib.request.urlopen(url) as response:
        return str(response.read(), "utf-8")


def ask(address: str, prompt: str, new_tokens: int) -> list[int]:
    parameters = {"max_new_tokens": new_tokens, "details": True}
    body = json.dumps({"inputs": prompt, "parameters": parameters}).encode()
    request = urllib.request.Request(f"{address}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return [token["id"] for token in json.load(response)["details"]["tokens"]]


async def ask_all(address: str, answers: dict[str, list[int]], new_tokens: int) -> None:
    """All prompts at once, so that they share steps."""

    async def one(prompt: str) -> None:
        answers[prompt] = await trio.to_thread.run_sync(ask, address, prompt, new_tokens)

    async with trio.open_nursery() as nursery:
        for prompt in PROMPTS:
            nursery.start_soon(one, prompt)


def generated(folder: Path, new_tokens: int) -> dict[str, list[int]]:
    """By transformers, greedily."""
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = {}
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        mask = torch.ones_like(ids)
        whole = model.generate(
            ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
        )
        texts[prompt] = whole[0, ids.shape[1] :].tolist()
    return texts


async def never(_address: str) -> None:
    raise AssertionError("the server is ready")


def ranks_here() -> list[psutil.Process]:
    return children_running("tgi.worker")


CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any], str]] = {
    "Falcon on 2 ranks, 2 key/value heads in one tensor with the queries": (
        2,
        {"make": make_falcon, "variant": "40b", "vocab_size": 509},
        {},
        "",
    ),
    "Mistral on 2 ranks, one key/value head, a window": (
        2,
        {"make": make_mistral, "num_key_value_heads": 1, "sliding_window": 20},
        {},
        "",
    ),
    "4 ranks, 2 key/value heads, odd vocabulary, tied": (
        4,
        {
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "vocab_size": 509,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        {},
        "",
    ),
    "2 stages of 2 ranks each, tied": (
        4,
        {"tie_word_embeddings": True, "num_hidden_layers": 3},
        {"num_shard": 2, "pipeline_parallel_size": 2},
        "",
    ),
    "2 stages on simulated cards, a window": (
        2,
        {"make": make_mistral, "sliding_window": 20},
        {"num_shard": 1, "pipeline_parallel_size": 2, "device": "hpu-sim", "max_graphs": 4},
        "gaudi3-compile",
    ),
    "2 stages on simulated cards in lazy mode": (
        2,
        {},
        {"num_shard": 1, "pipeline_parallel_size": 2, "device": "hpu-sim", "max_graphs": 4},
        "gaudi2-lazy",
    ),
    "2 simulated cards, 4 key/value heads, tied": (
        2,
        {"num_key_value_heads": 4, "tie_word_embeddings": True, "vocab_size": 331},
        {"device": "hpu-sim", "max_graphs": 4},
        "gaudi2-lazy",
    ),
}


SLOW = ("2 stages on simulated cards, a window",)


@pytest.mark.parametrize(
    ("ranks", "config", "options", "card"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, case in CASES.items()],
)
def test_a_server_on_ranks_gives_the_tokens_of_transformers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ranks: int,
    config: dict[str, Any],
    options: dict[str, Any],
    card: str,
) -> None:
    for name, value in (card_environment(card) if card else {}).items():
        monkeypatch.setenv(name, value)
    new_tokens = 6 if card else 24
    make = {"make": make_llama, **config}
    folder = make.pop("make")(tmp_path, **make)
    answers: dict[str, list[int]] = {}
    seen: list[psutil.Process] = []

    async def client(address: str) -> None:
        seen.extend(ranks_here())
        await ask_all(address, answers, new_tokens)

    chosen = {"model_id": str(folder), "dtype": "float32", "num_shard": ranks, **SMALL, **options}
    assert serving(Options(**chosen), client) == 0
    assert answers == generated(folder, new_tokens)
    assert len(seen) == ranks
    assert not any(process.is_running() for process in seen)


def test_ranks_that_heads_cannot_be_divided_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_llama(tmp_path)
    assert serving(Options(model_id=str(folder), num_shard=3, **SMALL), never) == 1
    assert capsys.readouterr().err == (
        "tgi: a model with 4 heads and 2 key/value heads cannot be divided over 3 ranks; "
        "--num-shard can be 1, 2, 4\n"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model"))


def generate_slowly(address: str, texts: dict[str, str], on_token: Callable[[int], None]) -> None:
    """Stream all prompts at once, into `texts`; call `on_token` with the number of tokens so far."""
    seen = itertools.count(1)

    def stream(prompt: str) -> None:
        parameters = {"max_new_tokens": 60, "do_sample": prompt == PROMPTS[1], "seed": 5}
        body = json.dumps({"inputs": prompt, "parameters": parameters}).encode()
        request = urllib.request.Request(
            f"{address}/generate_stream", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            events = [json.loads(line[5:]) for line in _noting(response, lambda: on_token(next(seen)))]
        tokens = [event["token"] for event in events]
        text = "".join(token["text"] for token in tokens if not token["special"])
        assert text == events[-1]["generated_text"]
        assert [event["index"] for event in events] == list(range(1, len(events) + 1))
        texts[prompt] = events[-1]["generated_text"]

    with ThreadPoolExecutor() as pool:
        list(pool.map(stream, PROMPTS))


def _noting(response: Any, note: Callable[[], None]) -> Iterator[bytes]:
    for line in response:
        if line.startswith(b"data:"):
            note()
            yield line


@pytest.mark.parametrize(("ranks", "how"), [(1, signal.SIGKILL), (2, signal.SIGSTOP)])
def test_streams_go_on_with_the_same_text_when_a_rank_is_lost(
    folder: Path, ranks: int, how: signal.Signals
) -> None:
    calm: dict[str, str] = {}
    disturbed: dict[str, str] = {}
    health: list[int] = []
    first: list[psutil.Process] = []

    async def client(address: str) -> None:
        first.extend(ranks_here())

        def disturb(tokens: int) -> None:
            if tokens == 50:
                first[-1].send_signal(how)
            if tokens == 51:
                health.append(status(f"{address}/health/live"))

        await trio.to_thread.run_sync(generate_slowly, address, calm, lambda _: None)
        metrics = await trio.to_thread.run_sync(read, f"{address}/metrics")
        assert "tgi_engine_restarts 0" in metrics.splitlines()
        await trio.to_thread.run_sync(generate_slowly, address, disturbed, disturb)
        health.append(await trio.to_thread.run_sync(status, f"{address}/health"))
        metrics = await trio.to_thread.run_sync(read, f"{address}/metrics")
        assert "tgi_engine_restarts 1" in metrics.splitlines()

    options = Options(model_id=str(folder), dtype="float32", num_shard=ranks, step_timeout=3, **SMALL)
    assert serving(options, client) == 0
    assert disturbed == calm
    assert len(calm) == len(PROMPTS)
    assert health == [200, 200]
    assert not any(process.is_running() for process in first)


def test_a_server_without_restarts_left_says_why_it_ends_and_leaves_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[psutil.Process] = []
    answers: list[bytes] = []

    def stream(address: str) -> None:
        body = json.dumps({"inputs": "What", "parameters": {"max_new_tokens": 100}}).encode()
        request = urllib.request.Request(
            f"{address}/generate_stream", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            answers.append(response.readline())
            seen[1].kill()
            answers.append(response.read())

    async def client(address: str) -> None:
        seen.extend(ranks_here())
        await trio.to_thread.run_sync(stream, address)
        await trio.sleep_forever()

    options = Options(model_id=str(folder), dtype="float32", num_shard=2, max_restarts=0, **SMALL)
    assert serving(options, client) == 1
    assert answers[0].startswith(b"data: {")
    assert b"the engine is lost" in answers[1]
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"tgi: rank 1 (process {seen[1].pid}) was killed by SIGKILL (out of memory?)"
    assert not any(process.is_running() for process in seen)


def test_no_rank_outlives_a_server_that_is_killed(folder: Path) -> None:
    """Whatever they are doing: here they start, or already wait for each other."""
    command = [sys.executable, "-m", "tgi", "serve", "--model-id", str(folder), "--num-shard", "2", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        process = psutil.Process(server.pid)
        while len(ranks := process.children()) < 2:
            assert server.poll() is None
            time.sleep(0.05)
        server.kill()
    assert not psutil.wait_procs(ranks, timeout=30)[1]
