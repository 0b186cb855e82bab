"""Ranks that are threads of this process, over which `check_architecture` divides a model.

Starting processes would take longer than all of their work. Ranks exchange tensors through a list; everything
else is as in rank processes on a CPU.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tgi.device.cpu.cpu_device import CpuDevice
from tgi.weights import Shard
from tgi.worker.runner import Runner

from .driver import Driver, load_command

WAIT_SECONDS = 60.0
"""Seconds after which a rank is taken to wait for a tensor that another one never sends."""
_END = torch.empty(0)


class RanksApartError(Exception):
    """A rank is in a collective that another rank has not called."""


class _Meeting:
    """An exchange of tensors: each rank hands in one, and gets those of all ranks."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks, timeout=WAIT_SECONDS)
        self._tensors: list[torch.Tensor] = [_END] * ranks

    def exchange(self, rank: int, x: torch.Tensor) -> list[torch.Tensor]:
        try:
            self._tensors[rank] = x.clone()  # its rank may change it as soon as it has gone on
            self.barrier.wait()
            tensors = list(self._tensors)
            self.barrier.wait()
        except threading.BrokenBarrierError:
            raise RanksApartError(f"rank {rank} waits for one that has failed") from None
        shapes = [list(tensor.shape) for tensor in tensors]
        if any(shape != shapes[0] for shape in shapes):
            each = ", ".join(str(shape) if sum(shape) else "none" for shape in shapes)
            raise RanksApartError(f"the ranks hand in tensors of different shapes: {each}")
        return tensors

    def end(self, rank: int) -> None:
        """Note that this rank sends nothing more, and check that no other does."""
        self.exchange(rank, _END)


class _RankThread(CpuDevice):
    """The CPU as one rank of several in a process."""

    def __init__(self, meeting: _Meeting) -> None:
        super().__init__(1)
        self._meeting = meeting

    def connect(self, world: Shard, store: str, stages: int = 1) -> None:
        """Do nothing: threads need not find each other."""

    def all_reduce(self, x: torch.Tensor, shard: Shard) -> torch.Tensor:
        """Return the sum, added in the order of the ranks."""
        return torch.stack(self._meeting.exchange(shard.rank, x)).sum(0)

    def all_gather(self, x: torch.Tensor, shard: Shard) -> torch.Tensor:
        """Return the tensors of all ranks, one after another."""
        return torch.cat(self._meeting.exchange(shard.rank, x), -1)


def on_threads(
    folder: Path,
    ranks: int,
    run: Callable[[Driver], list[torch.Tensor]],
    blocks: Iterable[int],
    **load: Any,
) -> list[torch.Tensor]:
    """Run `run` on every rank of the model of `folder`; return the result of rank 0.

    `load` are fields of the command that loads the model.
    """
    meeting, order = _Meeting(ranks), list(blocks)

    def live(rank: int) -> list[torch.Tensor]:
        try:
            runner = Runner.load(load_command(folder, **load), Shard(rank, ranks), _RankThread(meeting))
            result = run(Driver(runner, order))
            meeting.end(rank)
            return result
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        futures = [pool.submit(live, rank) for rank in range(ranks)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, RanksApartError)):
        raise error
    return futures[0].result()
