"""A scheduler on rank processes, without HTTP, for tests and benchmarks."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from os import environ
from pathlib import Path
from types import MappingProxyType
from typing import Any

import trio

from tgi.device.costs import Costs
from tgi.errors import ApiError
from tgi.executor import open_executor
from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.planning.buckets import Bucketing, make_buckets
from tgi.plugins import devices, load_plugins
from tgi.protocol import Describe, Load, LoraSlots
from tgi.ranks import StartRanks, local_ranks
from tgi.scheduler import Scheduler, Token
from tgi.scheduler.allocator import BlockAllocator
from tgi.scheduler.blocks import BlockPool, Prefixes
from tgi.scheduler.loras import Loras
from tgi.text.detokenizer import Detokenizer
from tgi.text.tokenizer import Tokenizer

from .builders import generating, make_sequence

TEST_DEVICE = environ.get("TGI_TEST_DEVICE", "cpu")
"""Default device of an engine."""
GRAPHS = 16
"""Maximum buckets on a device that compiles, so that the warm-up is short."""
MAX_TOP = 28
"""Maximum most likely tokens that a step may ask for: 20, and room for ties."""


@asynccontextmanager
async def open_engine(
    folder: Path,
    limits: Limits,
    *,
    device: str = TEST_DEVICE,
    dtype: str = "float32",
    quantize: str = "",
    threads: int = 2,
    environment: Mapping[str, str] = MappingProxyType({}),
    ranks: int = 1,
    loras: Sequence[Path] = (),
    start: StartRanks = local_ranks,
    prefixes: Prefixes | None = None,
) -> AsyncIterator[Scheduler]:
    """Load the model of `folder`, warm up if the device compiles, and schedule while the body runs.

    `loras` are folders of LoRA adapters, by whose names requests know them. `environment` is added to the
    variables that the device wants for its ranks. The KV cache holds max_batch_size sequences of
    max_total_tokens, or `limits.max_batch_total_tokens`. Engines behind one router share their `prefixes`.
    """
    spec, slots = devices(load_plugins())[device], LoraSlots(len(loras), 16 if loras else 0)
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    load = Load(
        folder=str(folder),
        architecture=architecture,
        device=device,
        dtype=dtype,
        quantize=quantize,
        threads=threads,
        lanes=limits.max_batch_size,
        block_size=limits.block_size,
        max_tokens=limits.max_total_tokens,
        prefill_tokens=limits.max_batch_prefill_tokens,
        top=MAX_TOP,
        loras=slots,
    )
    tokens = limits.max_batch_total_tokens or limits.max_batch_size * limits.max_total_tokens
    blocks = tokens // limits.block_size
    async with open_executor(ranks, {**spec.environment, **environment}, start=start) as executor:
        described = await executor.describe(
            Describe(folder=str(folder), architecture=architecture, ranks=ranks, dtype=dtype, check=False)
        )
        await executor.load(load, lambda _: None)
        await executor.allocate(*[blocks + 1] * len(described.groups))
        costs = Costs.of(block_size=limits.block_size)
        shared = Prefixes() if prefixes is None else prefixes
        pools = [BlockPool(blocks, limits.block_size, group.window, shared) for group in described.groups]
        allocator = BlockAllocator(limits, pools)
        buckets = make_buckets(limits, spec, Bucketing(max_graphs=GRAPHS, costs=costs))
        scheduler = Scheduler(executor, limits, buckets, allocator, Metrics(), loras=Loras(slots))
        await scheduler.attach_loras()
        for lora in loras:
            await scheduler.loras.load(lora.name, str(lora), str(lora))
        if spec.compiles:
            await scheduler.warm_up(lambda *_: None)
            await executor.ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.run)
            yield scheduler
            nursery.cancel_scope.cancel()


async def generate(
    scheduler: Scheduler, tokenizer: Tokenizer, prompt: list[int], max_new_tokens: int, **changed: Any
) -> list[Token]:
    """Generate after `prompt` and return the tokens; `changed` are arguments of `make_sequence`.

    Raises the ApiError that ends a generation.
    """
    detokenizer = Detokenizer(tokenizer, prompt)
    sequence = make_sequence(prompt, max_new_tokens, **{"detokenizer": detokenizer, **changed})
    tokens = []
    with generating(scheduler, sequence) as events:
        async for event in events:
            if isinstance(event, ApiError):
                raise event
            tokens.append(event)
    return tokens
