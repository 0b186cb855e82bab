"""All stages of a pipeline in this process, over which `check_architecture` divides a model."""

from collections import deque

import attrs
import torch

from tgi.device.cpu.cpu_device import CpuDevice
from tgi.protocol import Load, Result, Step
from tgi.weights import Shard, Stage
from tgi.worker.runner import Runner

Queue = deque[torch.Tensor]


class _StageDevice(CpuDevice):
    """The CPU of one stage."""

    def __init__(self, before: Queue, after: Queue) -> None:
        super().__init__(1)
        self._before, self._after = before, after

    def send_on(self, x: torch.Tensor, shard: Shard) -> None:  # noqa: ARG002
        """Leave features for the next stage."""
        self._after.append(x)

    def receive(self, x: torch.Tensor, count: int, shard: Shard) -> None:  # noqa: ARG002
        """Take the oldest features of the stage before."""
        x[:count].copy_(self._before.popleft())


@attrs.define(eq=False)
class StagedRunner(Runner):
    """The runner of the last stage, which carries out a step after those of all stages before it."""

    before: list[Runner] = attrs.field(factory=list)

    @classmethod
    def open(cls, command: Load, layers: tuple[int, ...]) -> "StagedRunner":
        """Read the model into stages with that many layers each."""
        queues: list[Queue] = [deque() for _ in range(len(layers) + 1)]
        devices = [_StageDevice(*queues[number : number + 2]) for number in range(len(layers))]
        *others, last = (Stage(number, layers) for number in range(len(layers)))
        made = cls.load(command, Shard(), devices[-1], stage=last)
        assert isinstance(made, StagedRunner)
        made.before = [Runner.load(command, Shard(), devices[one.number], stage=one) for one in others]
        return made

    def allocate(self, *blocks: int) -> None:
        """Reserve the KV cache of every stage."""
        for runner in self.before:
            runner.allocate(*blocks)
        super().allocate(*blocks)

    def execute(self, step: Step) -> Result:
        """Carry out a step in every stage."""
        for runner in self.before:
            runner.execute(step)
        return super().execute(step)
