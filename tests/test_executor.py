"""Rank processes: how they start, how they end, and what the error says."""

import os
import signal
from pathlib import Path

import psutil
import pytest
import trio

from tests.own_processes import children_running
from tgi.executor import EngineError, RankExecutor, open_executor
from tgi.protocol import Describe, Load, Progress
from tgi.testing.models import make_llama


def command(folder: Path) -> Load:
    return Load(
        folder=str(folder),
        architecture="LlamaForCausalLM",
        device="cpu",
        dtype="float32",
        threads=1,
        lanes=2,
        block_size=16,
        max_tokens=128,
    )


def only_error(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        (group,) = group.exceptions
    return group


async def load(executor: RankExecutor, folder: Path) -> list[Progress]:
    seen: list[Progress] = []
    (loaded,) = await executor.load(command(folder), lambda ranks: seen.extend(ranks))
    assert loaded.dtype == "float32"
    # K and V of 2 layers, 16 tokens, 2 heads of 16 float32 each
    assert loaded.block_bytes == (2 * 2 * 16 * 2 * 16 * 4,)
    assert 0 < loaded.free_bytes < psutil.virtual_memory().total
    return seen


def children() -> list[psutil.Process]:
    return children_running("tgi.worker")


async def test_several_ranks_load_at_once_and_leave_when_they_are_told_to(tmp_path: Path) -> None:
    make_llama(tmp_path)
    seen: list[list[Progress]] = []

    async with open_executor(2) as executor:
        described = await executor.describe(
            Describe(folder=str(tmp_path), architecture="LlamaForCausalLM", ranks=2, dtype="float32")
        )
        loaded = await executor.load(command(tmp_path), seen.append)
        # one of 2 key/value heads each
        assert [rank.block_bytes for rank in loaded] == [(2 * 2 * 16 * 16 * 4,)] * 2
        assert [16 * group.token_bytes for group in described.groups] == [2 * 2 * 16 * 16 * 4]
        await executor.allocate(10)

    total = seen[-1][0].total
    assert seen[-1] == [Progress(total, total)] * 2
    assert seen[0] in ([seen[0][0], Progress(0, 0)], [Progress(0, 0), seen[0][1]])
    for rank in (0, 1):
        done = [ranks[rank].done for ranks in seen]
        assert done == sorted(done)
        assert len(set(done)) > 5
    assert children() == []


async def load_and_kill(folder: Path, seen: list[Progress]) -> None:
    async with open_executor() as executor:
        seen.extend(await load(executor, folder))
        await executor.allocate(10)
        os.kill(children()[0].pid, signal.SIGKILL)
        await executor.receive()


async def test_a_rank_loads_and_is_named_with_its_signal_when_it_is_killed(tmp_path: Path) -> None:
    make_llama(tmp_path)
    seen: list[Progress] = []

    with pytest.raises(BaseExceptionGroup) as caught:
        await load_and_kill(tmp_path, seen)

    assert isinstance(error := only_error(caught.value), EngineError)
    assert "rank 0" in str(error)
    assert "was killed by SIGKILL" in str(error)
    assert seen[-1].done == seen[-1].total > 0
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert children() == []


async def test_a_rank_that_cannot_load_says_why(tmp_path: Path) -> None:
    make_llama(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_executor() as executor:
            await load(executor, tmp_path)

    assert isinstance(error := only_error(caught.value), EngineError)
    assert error.kind == "model"
    assert weights.name in str(error)
    assert "\n" not in str(error)
    assert children() == []


async def raise_in_the_body() -> None:
    async with open_executor():
        assert len(children()) == 1
        raise KeyError("from the body")


async def test_an_error_in_the_body_takes_the_rank_along() -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        await raise_in_the_body()

    assert isinstance(only_error(caught.value), KeyError)
    assert children() == []


async def test_cancellation_takes_the_rank_along() -> None:
    with trio.move_on_after(0.05):
        async with open_executor():
            await trio.sleep_forever()

    assert children() == []
