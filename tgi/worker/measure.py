"""The child process of `tgi calibrate`: finds how great inputs of linear layers, keys and values become.

It reads an `Order` from its standard input and writes what it found to its standard output, both in JSON.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import msgspec
import torch

from tgi.device.base import Device
from tgi.device.batch import Batch, GroupBatch, KVCache, KVLayer
from tgi.layers.loading import Blueprint
from tgi.plugins import ConfigError
from tgi.protocol import Describe
from tgi.weights import Checkpoint, CheckpointError, Shard, TensorPart
from tgi.weights.formats import LinearWeight, Operations, PreparedWeight

from .runner import open_device

_BLOCK = 16
"""Tokens of a block of the KV cache."""


class Order(msgspec.Struct):
    """A model and the prompts to measure it with."""

    folder: str
    architecture: str
    prompts: list[list[int]]
    """Token ids, none of them empty."""


@attrs.frozen(eq=False)
class Observed(PreparedWeight):
    """A weight that takes note of its greatest input."""

    base: LinearWeight
    names: Sequence[str]
    greatest: dict[str, float]

    def multiply(
        self,
        device: Operations,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply as the base does."""
        if x.numel():
            most = float(x.abs().amax())
            self.greatest.update({name: max(most, self.greatest[name]) for name in self.names})
        return device.multiply(x, self.base, bias, residual)


@torch.inference_mode()
def measure(order: Order) -> Mapping[str, float]:
    """Return the greatest inputs by the names of linear layers, and of `….k_cache` and `….v_cache`.

    Raises ConfigError and CheckpointError.
    """
    device, greatest = open_device("cpu", 0), defaultdict[str, float](float)

    def observe(weight: LinearWeight, parts: Sequence[TensorPart]) -> LinearWeight:
        return Observed(weight, [part.module for part in parts], greatest)

    asked = Describe(folder=order.folder, architecture=order.architecture, ranks=1, dtype="auto", check=False)
    blueprint = Blueprint.open(asked, device.dtype("auto"))
    model, build = blueprint.build(Checkpoint(Path(order.folder)), Shard(), device, observe=observe)
    if not build.cached:
        raise ConfigError(f"{order.architecture} has no keys and values that can be in 8 bits")
    layers = {id(build.kv[layer]): name for layer, name in build.cached.items()}
    store = device.store_kv

    def observe_kv(layer: KVLayer, key: torch.Tensor, value: torch.Tensor, batch: Batch) -> None:
        if name := layers.get(id(layer)):
            for kind, tensor in (("k", key), ("v", value)):
                cache = f"{name}.{kind}_cache"
                greatest[cache] = max(greatest[cache], float(tensor.abs().amax()))
        store(layer, key, value, batch)

    device.store_kv = observe_kv  # type: ignore[method-assign]
    longest = max(map(len, order.prompts))
    groups = build.cache_groups(build.dtype.itemsize)
    slots = (-(-longest // _BLOCK) + 1) * _BLOCK
    sizes = [(len(one.layers), slots, one.kv_heads, one.head_dim, build.dtype, one.latent) for one in groups]
    caches = [device.allocate_cache(*size) for size in sizes]
    cache = KVCache.joined(caches, [one.layers for one in groups], build.kv)
    for number, prompt in enumerate(order.prompts, 1):
        model(_batch(prompt, cache, len(groups), device))
        if number * 10 // len(order.prompts) > (number - 1) * 10 // len(order.prompts):
            print(f"{number} of {len(order.prompts)} texts", file=sys.stderr, flush=True)
    return greatest


def _batch(prompt: list[int], cache: KVCache, groups: int, device: Device) -> Batch:
    """Return the step that computes a prompt whole."""
    count = len(prompt)
    numbers = torch.arange(count, dtype=torch.int32)
    table = torch.arange(1, -(-count // _BLOCK) + 1, dtype=torch.int32)[None]
    batch = Batch(
        tokens=torch.tensor(prompt, dtype=torch.int32),
        positions=numbers,
        contexts=torch.full((count,), count, dtype=torch.int32),
        starts=torch.zeros(1, dtype=torch.int32),
        lengths=torch.tensor([count], dtype=torch.int32),
        last=numbers[-1:],
        cache=cache,
        groups=[GroupBatch(numbers + _BLOCK, table)] * groups,
    )
    batch.plan = device.plan(batch, _BLOCK)
    return batch


def main() -> int:
    """Measure what the standard input asks for; return the exit code."""
    try:
        measured = measure(msgspec.json.decode(sys.stdin.buffer.read(), type=Order))
    except (ConfigError, CheckpointError, OSError) as error:
        print(f"tgi: {error}", file=sys.stderr)
        return 1
    print(json.dumps(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
