"""Models over several real ranks: through the whole server, and what is said of a rank that fails.

A fault is planted by a plug-in that changes the code of one rank when this looks for plug-ins.
"""

import contextlib
import functools
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import trio
from hypercorn.config import Config, Sockets
from transformers import AutoModelForCausalLM, AutoTokenizer
from trio.testing import MockClock

from tgi.config import Options
from tgi.executor import EngineError, RankExecutor, open_executor
from tgi.limits import Limits
from tgi.scheduler import SamplingParams, Sequence
from tgi.server import serve
from tgi.testing.engine import open_engine
from tgi.testing.falcon import make_falcon
from tgi.testing.installed import install
from tgi.testing.models import make_llama, make_mistral
from tgi.testing.simulated_hpu import card_environment
from tgi.text.detokenizer import Detokenizer
from tgi.text.stopping import StoppingCriteria
from tgi.text.tokenizer import Tokenizer

PROMPTS = ("What is a violin?", "Deep learning", "The quick brown fox jumps over the lazy dog while the rain")
SMALL: dict[str, Any] = {"max_total_tokens": 128, "max_batch_size": 4, "max_batch_prefill_tokens": 32}


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("tgi")
    before = root.handlers, root.level, ours.level
    yield
    root.handlers = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    logging.captureWarnings(False)


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
    return [child for child in psutil.Process().children() if "tgi.worker" in child.cmdline()]


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
    "4 ranks, 2 key/value heads, odd vocabulary": (
        4,
        {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 509, "attention_bias": True},
        {},
        "",
    ),
    "2 simulated cards, 4 key/value heads, tied": (
        2,
        {"num_key_value_heads": 4, "tie_word_embeddings": True, "vocab_size": 331},
        {"device": "hpu-sim", "max_graphs": 4},
        "gaudi2-lazy",
    ),
}


@pytest.mark.parametrize(("ranks", "config", "options", "card"), CASES.values(), ids=CASES)
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tgi.engine.open_executor", None)  # nothing is started
        assert serving(Options(model_id=str(folder), num_shard=3, **SMALL), never) == 1
    assert capsys.readouterr().err == (
        "tgi: a model with 4 heads and 2 key/value heads cannot be divided over 3 ranks; "
        "--num-shard can be 1, 2, 4\n"
    )


FAULTY = """
import os
import signal
import time

import torch

from tgi.plugins import hookimpl

def after(calls, act, function):
    left = [calls]

    def wrapped(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            act()
        return function(*args, **kwargs)

    return wrapped

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def sleep():
    time.sleep(1000)

def fail():
    raise KeyError(f"planted, with {torch.get_num_threads()} of 2 threads")

if os.environ.get("RANK") == "1":
    from tgi.device.cpu import CpuDevice
    from tgi.worker import loop
    exec(os.environ["TEST_FAULT"])

@hookimpl
def tgi_architectures():
    return []
"""
COLLECTIVE = "CpuDevice.all_reduce = after({}, {}, CpuDevice.all_reduce)"


def arrived(*ranks: int) -> Callable[[RankExecutor], bool]:
    """Whether these ranks have, and no other."""
    return lambda executor: [rank.index for rank in executor._ranks if rank.arrived] == list(ranks)


def begun(number: int, *ranks: int) -> Callable[[RankExecutor], bool]:
    """Whether these ranks have begun with that step, no other has, and all have finished those before."""

    def look(executor: RankExecutor) -> bool:
        assert executor._agreement is not None
        step = next(iter(executor._agreement._steps), None)
        return step is not None and step.number == number and sorted(step.begun) == list(ranks)

    return look


FAULTS = {
    "fails before a collective": (
        COLLECTIVE.format(20, "fail"),
        r"^rank 1: KeyError: 'planted, with 1 of 2 threads'$",
    ),
    "gets another step": (
        "seen = []\n"
        "loop.Begun = lambda digest, begun=loop.Begun, seen=seen: "
        "begun(digest if seen.append(0) or len(seen) < 3 else b'another')",
        r"^ranks disagree: rank 1 has got another step 3 than was sent$",
    ),
    "gives another token": (
        "loop.Finished = lambda digest, finished=loop.Finished: finished(b'another')",
        r"^ranks disagree: step 1 gave other tokens on rank 1 than on rank 0$",
    ),
    "is one of another number": (
        "loop.Arrived = lambda rank, ranks, arrived=loop.Arrived: arrived(rank, 3)",
        r"^rank 1 \(process \d+\) has started as 1 of 3, not as 1 of 2$",
    ),
}
HANGS = {
    "leaves out a collective": (
        COLLECTIVE.format(20, "sleep"),
        begun(4, 0, 1),
        900,
        "no rank has finished step 4 within 900 s",
    ),
    "does not begin": (
        "loop.Begun = after(3, sleep, loop.Begun)",
        begun(3, 0),
        60,
        "rank 1 has not begun with step 3, which rank 0 has begun with more than 60 s ago",
    ),
    "does not start": (
        "loop.Arrived = after(1, sleep, loop.Arrived)",
        arrived(0),
        120,
        "rank 1 did not start within 120 s",
    ),
    "does not look for the others": (
        "CpuDevice.connect = lambda *args: sleep()",
        arrived(0, 1),
        120,
        "ranks 0, 1 did not reach each other within 120 s",
    ),
}
"""By when it can be seen, the seconds until it is, and what is said."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    install(tmp_path, "faulty", FAULTY)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    )
    return functools.partial(monkeypatch.setenv, "TEST_FAULT")


async def generate(folder: Path, within: float) -> None:
    """A few tokens, on two ranks."""
    limits = Limits(max_total_tokens=64, max_input_tokens=63, max_batch_size=2)
    with trio.fail_after(within):
        async with open_engine(folder, limits, threads=2, ranks=2) as scheduler:
            sequence = Sequence(
                prompt=list(range(9)),
                max_new_tokens=20,
                sampling=SamplingParams(),
                stopping=StoppingCriteria(20, frozenset()),
                detokenizer=Detokenizer(Tokenizer.from_folder(folder), list(range(9))),
            )
            with scheduler.generating(sequence) as events:
                async for _ in events:
                    pass
    raise AssertionError("it has generated all the same")


def check_failure(
    folder: Path, message: str, capfd: pytest.CaptureFixture[str], jump: float = 0, clock: Any = None
) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(generate, folder, 120 + jump, clock=clock)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, EngineError)
    assert error.kind == "error"
    assert re.match(message, str(error)), error
    assert not psutil.Process().children()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
def test_a_rank_that_fails_is_named(
    folder: Path, plant: Callable[[str], None], fault: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    plant(fault)
    check_failure(folder, message, capfd)


@pytest.mark.parametrize(("fault", "hangs", "seconds", "message"), HANGS.values(), ids=HANGS)
def test_a_rank_that_hangs_is_named_in_time(
    folder: Path,
    plant: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    hangs: Callable[[RankExecutor], bool],
    seconds: int,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The clock goes as others do, but for one jump when the rank hangs."""
    plant(fault)
    clock = MockClock(rate=1)

    @contextlib.asynccontextmanager
    async def open_watched(*given: Any) -> AsyncIterator[RankExecutor]:
        async with open_executor(*given) as executor, trio.open_nursery() as nursery:
            nursery.start_soon(jump, executor)
            yield executor

    async def jump(executor: RankExecutor) -> None:
        while not hangs(executor):
            assert trio.current_time() < 60
            await trio.sleep(0.02)
        clock.jump(seconds)

    monkeypatch.setattr("tgi.testing.engine.open_executor", open_watched)
    check_failure(folder, f"{message}$", capfd, seconds, clock)


def test_a_server_whose_rank_is_killed_says_so_and_leaves_nothing(
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

    options = Options(model_id=str(folder), dtype="float32", num_shard=2, **SMALL)
    assert serving(options, client) == 1
    assert answers[0].startswith(b"data: {")
    assert b"the engine is lost" in answers[1]
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"tgi: rank 1 (process {seen[1].pid}) was killed by SIGKILL"
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
