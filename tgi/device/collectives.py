"""The part of a device by which ranks find each other and exchange tensors."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from tgi.weights import Shard

from .meeting import local_place, open_store

NEVER = timedelta(days=1)
"""Time-out of collectives, which ranks must not end by themselves."""


class Collectives:
    """Exchange of tensors with other ranks, by torch.distributed."""

    torch_device = torch.device("cpu")
    distributed_backend = "gloo"
    threads: int
    """Threads of the CPU that operations use; 0: torch's own choice."""
    _group: dist.ProcessGroup | None = None
    """The ranks of this rank's stage; None: all."""
    _sending: tuple[Any, torch.Tensor] | None = None
    """The tensor that was sent last to the next stage, and the work of sending it."""

    def use_threads(self, count: int) -> None:
        """Use that many threads of the CPU."""
        self.threads = count
        torch.set_num_threads(count)

    def settle(self) -> None:
        """Finish pending copies to the device, so that they hold no memory. Called after each weight."""

    def connect(self, world: Shard, store: str, stages: int = 1) -> None:
        """Find the other ranks, wait for all of them, and divide the CPU threads among those of this machine.

        `world` are the ranks of all stages, those of the first one first. `store` is the URL for
        `open_store`. Called once if ranks are several, before any collective. It never times out: the
        process that started the ranks ends them if they wait too long. Raises ConfigError if the store cannot
        be reached.
        """
        if self.threads:
            self.use_threads(max(1, self.threads // local_place(world)[1]))
        dist.init_process_group(
            self.distributed_backend,
            store=open_store(store, world, NEVER),
            rank=world.rank,
            world_size=world.size,
            timeout=NEVER,
        )
        shards = world.size // stages
        if min(stages, shards) > 1:
            firsts = range(0, world.size, shards)  # every rank must take part in making each group
            groups = [dist.new_group(list(range(first, first + shards)), timeout=NEVER) for first in firsts]
            self._group = groups[world.rank // shards]
        self.meet(world)

    def meet(self, world: Shard) -> None:
        """Wait until every rank of every stage has called this."""
        if world.size == 1:
            return
        total = torch.ones(1, device=self.torch_device)
        self.settle()
        dist.all_reduce(total)
        assert total.tolist() == [world.size], f"the sum of {world.size} ones is {total.tolist()}"

    def all_reduce(self, x: torch.Tensor, shard: Shard) -> torch.Tensor:
        """Return the sum of x over the ranks of a stage; may change x."""
        if shard.size > 1:
            dist.all_reduce(x, group=self._group)
        return x

    def all_gather(self, x: torch.Tensor, shard: Shard) -> torch.Tensor:
        """Return the x of the ranks of a stage, joined along the last dimension."""
        if shard.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(shard.size)]
        dist.all_gather(parts, x.contiguous(), group=self._group)
        return torch.cat(parts, -1)

    def send_on(self, x: torch.Tensor, shard: Shard) -> None:
        """Begin to send x to the rank with the same share in the next stage, between two programs.

        x must not change. Waits until what was sent before has arrived.
        """
        if self._sending is not None:
            self._sending[0].wait()
        self._sending = dist.isend(x, dist.get_rank() + shard.size), x

    def receive(self, x: torch.Tensor, count: int, shard: Shard) -> None:
        """Overwrite the first `count` rows of x with what the rank with the same share in the stage before
        has sent.
        """
        dist.recv(x[:count], dist.get_rank() - shard.size)
