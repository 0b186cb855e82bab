"""Errors about one of two ranks that fails or hangs: the text, and that it comes in time.

A plugin plants the fault: it changes the code of one rank when that loads plugins.
"""

import contextlib
import functools
import math
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.installed import install
from tests.own_processes import children_running
from tgi.engine import loss_in
from tgi.executor import RankExecutor, open_executor
from tgi.limits import Limits
from tgi.testing.engine import generate, open_engine
from tgi.testing.models import make_llama
from tgi.text.tokenizer import Tokenizer

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
    from tgi.device.cpu.cpu_device import CpuDevice
    from tgi.worker import loop
    exec(os.environ["TEST_FAULT"])

@hookimpl
def tgi_architectures():
    return []
"""
COLLECTIVE = "CpuDevice.all_reduce = after({}, {}, CpuDevice.all_reduce)"


def arrived(*ranks: int) -> Callable[[RankExecutor], bool]:
    """Return whether exactly these ranks have arrived."""
    return lambda executor: [rank.index for rank in executor._ranks if rank.arrived] == list(ranks)


def begun(number: int, *ranks: int) -> Callable[[RankExecutor], bool]:
    """Return whether exactly these ranks have begun that step, and all have finished those before."""

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
"""Fault, condition by which it shows, seconds until it is noticed, and the error, by name."""


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


async def generate_on_two_ranks(folder: Path, within: float) -> None:
    """Generate a few tokens on two ranks."""
    limits = Limits(max_total_tokens=64, max_input_tokens=63, max_batch_size=2)
    with trio.fail_after(within):
        async with open_engine(folder, limits, threads=2, ranks=2) as scheduler:
            await generate(scheduler, Tokenizer.from_folder(folder), list(range(9)), 20)
    raise AssertionError("it has generated all the same")


def check_failure(
    folder: Path, message: str, capfd: pytest.CaptureFixture[str], jump: float = 0, clock: Any = None
) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(generate_on_two_ranks, folder, 120 + jump, clock=clock)
    error = loss_in(caught.value)  # two may notice it in the same turn
    assert error is not None
    assert error.kind == "error"
    assert re.match(message, str(error)), error
    assert not children_running("tgi.worker")
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
    """The clock runs at its usual rate, except for one jump when the rank hangs."""
    for module in ("tgi.executor", "tgi.scheduler.loop"):  # the jump stands for time in which the server ran
        monkeypatch.setattr(f"{module}.STILL_SECONDS", math.inf)
    plant(fault)
    clock = MockClock(rate=1)

    @contextlib.asynccontextmanager
    async def open_watched(*given: Any, **more: Any) -> AsyncIterator[RankExecutor]:
        async with open_executor(*given, **more) as executor, trio.open_nursery() as nursery:
            nursery.start_soon(jump, executor)
            yield executor

    async def jump(executor: RankExecutor) -> None:
        while not hangs(executor):
            assert trio.current_time() < 60
            await trio.sleep(0.02)
        clock.jump(seconds)

    monkeypatch.setattr("tgi.testing.engine.open_executor", open_watched)
    check_failure(folder, f"{message}$", capfd, seconds, clock)
