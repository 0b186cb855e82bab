"""The plan of a server, as `tgi plan` shows it: a function of a model's config, a card and the limits."""

import functools
from collections.abc import Mapping
from typing import Any

import attrs

from tgi.footprint import block_bytes, first_block, graph_bytes, workspace_bytes
from tgi.limits import Limits
from tgi.plugins import ModelConfig
from tgi.protocol import Bucket, Loaded
from tgi.scheduler.buckets import Buckets

from .bucketing import Bucketing, attention_workspace, make_buckets, warm_up_seconds
from .cards import Target
from .memory import MemoryPlan, for_pool, plan_memory
from .roofline import Roofline
from .shapes import AttentionWorkspace, ShapeLimits
from .weights import described_by_config, rank_bytes, rank_numbers
from .workload import Workload

ITEM = {"auto": 2, "bfloat16": 2, "float32": 4}


@attrs.frozen(kw_only=True)
class Setup:
    """What a plan is made of."""

    model: str
    config: ModelConfig
    shapes: Mapping[str, tuple[int, ...]]
    """Of the tensors in the checkpoint, as far as they are known."""
    target: Target
    ranks: int
    dtype: str
    cache_item: int
    """Bytes of a number in the KV cache."""
    limits: Limits
    bucketing: Bucketing
    prefixes: bool
    memory_fraction: float | None = None
    graph_memory_fraction: float | None = None


@attrs.frozen(kw_only=True)
class Speed:
    """A step, or a prompt that takes several."""

    rows: int
    tokens: int
    """Of a row, with all before the step."""
    buckets: list[Bucket]
    seconds: float
    """Expected."""
    bound: float | None = None
    """Least seconds, at peak rates."""

    @property
    def computed(self) -> int:
        """Tokens: of all rows one each, or of the prompt."""
        return self.tokens if self.buckets[0].prefill else self.rows

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.computed / self.seconds


@attrs.frozen(kw_only=True)
class Plan:
    """All that is shown."""

    setup: Setup
    numbers: int
    """Weights that a rank keeps."""
    memory: MemoryPlan
    refusal: str | None
    buckets: list[Bucket]
    """That are warmed up."""
    warm_up_seconds: float
    """An estimate; a recipe cache that has everything makes it a fraction."""
    waste: dict[str, float]
    """Time that padding adds to steps of a kind, as a share, where all shapes are equally likely."""
    roofline: Roofline | None
    decode: list[Speed]
    prefill: list[Speed]


def make_plan(setup: Setup) -> Plan:
    """Raises ConfigError and OptionError."""
    config, limits, device = setup.config, setup.limits, setup.target.device
    config.check_ranks(setup.ranks)
    numbers = rank_numbers(config, dict(setup.shapes), setup.ranks)
    roofline = _roofline(setup, numbers)
    if roofline is not None:
        setup = attrs.evolve(setup, bucketing=attrs.evolve(setup.bucketing, costs=roofline.costs))
    buckets = _choose(setup)
    attention = attention_workspace(limits, buckets, prefixes=setup.prefixes)
    memory = _memory(setup, attention, len(buckets.to_warm_up()) if device.compiles else 0)
    if memory.fits:
        buckets = for_pool(
            buckets, limits, memory.blocks, functools.partial(_choose, setup, within=attention)
        )
    graphs = buckets.to_warm_up() if device.compiles else []
    decode: list[Speed] = []
    prefill: list[Speed] = []
    if roofline is not None:
        decode = [_decode(rows, limits, buckets, roofline) for rows in _doubling(limits.max_batch_size)]
        prefill = [_prefill(tokens, limits, buckets, roofline) for tokens in _prompts(limits)]
    return Plan(
        setup=setup,
        numbers=numbers,
        memory=memory,
        refusal=memory.refusal(limits),
        buckets=graphs,
        warm_up_seconds=warm_up_seconds(len(graphs), config.num_layers),
        waste=_waste(setup, buckets, roofline, memory) if roofline and graphs else {},
        roofline=roofline,
        decode=decode,
        prefill=prefill,
    )


def _choose(setup: Setup, graphs: int | None = None, **known: Any) -> Buckets:
    """At most so many; `known`: see `make_buckets`."""
    limits = [limit for limit in (setup.bucketing.max_graphs, graphs) if limit is not None]
    bucketing = attrs.evolve(setup.bucketing, max_graphs=min(limits, default=None))
    return make_buckets(setup.limits, setup.target.device, bucketing, prefixes=setup.prefixes, **known)


def _roofline(setup: Setup, numbers: int) -> Roofline | None:
    if setup.target.card is None:
        return None
    return Roofline.of(
        setup.config,
        setup.target.card,
        device=setup.target.device,
        link=setup.target.link,
        ranks=setup.ranks,
        numbers=numbers,
        weight_bytes=_weight_bytes(setup),
        item=ITEM[setup.dtype],
        cache_item=setup.cache_item,
        block_size=setup.limits.block_size,
    )


def _weight_bytes(setup: Setup) -> int:
    return rank_bytes(setup.config, dict(setup.shapes), setup.ranks, ITEM[setup.dtype])


def _memory(setup: Setup, attention: AttentionWorkspace, graphs: int) -> MemoryPlan:
    config, limits, target = setup.config, setup.limits, setup.target
    item = ITEM[setup.dtype]
    # Ranks without cards share the memory of the machine, so that more of them do not help.
    total = target.memory_bytes if target.card else target.memory_bytes // setup.ranks
    model = described_by_config(config, setup.ranks, item, setup.cache_item)
    workspace = workspace_bytes(
        model,
        lanes=limits.max_batch_size,
        prefill_tokens=limits.max_batch_prefill_tokens,
        block_size=limits.block_size,
        gathered_blocks=attention.blocks,
        listed_blocks=attention.listed,
        prefill_pairs=attention.pairs,
    )
    loaded = Loaded(
        free_bytes=total - _weight_bytes(setup) - workspace,
        block_bytes=block_bytes(model.groups, limits.block_size),
        dtype=setup.dtype,
        total_bytes=total,
        weight_bytes=_weight_bytes(setup),
        workspace_bytes=workspace,
        graph_bytes=graph_bytes(config.num_layers),
    )
    given = setup.memory_fraction
    return plan_memory(
        [loaded] * setup.ranks,
        limits,
        config=config if target.card else None,
        graphs=graphs,
        fraction=target.device.memory_fraction if given is None else given,
        graph_fraction=setup.graph_memory_fraction,
    )


def _decode(rows: int, limits: Limits, buckets: Buckets, roofline: Roofline) -> Speed:
    """One token for each of so many sequences of the greatest length."""
    context = limits.max_total_tokens
    blocks = -(-context // limits.block_size) - first_block(context - 1, limits.window, limits.block_size)
    bucket = buckets.decode(rows, blocks * (rows if buckets.flat else 1))
    return Speed(
        rows=rows,
        tokens=context,
        buckets=[bucket],
        seconds=roofline.seconds(bucket),
        bound=roofline.bound(rows, min(context, limits.window or context)),
    )


def _prefill(tokens: int, limits: Limits, buckets: Buckets, roofline: Roofline) -> Speed:
    """A prompt alone, in chunks if it is longer than one step may be."""
    chunks: list[Bucket] = []
    for start in range(0, tokens, buckets.longest_prefill):
        size = min(buckets.longest_prefill, tokens - start)
        known = start if buckets.flat else start + size
        blocks = -(-known // limits.block_size) - first_block(start, limits.window, limits.block_size)
        bucket = buckets.prefill(1, size, blocks)
        assert bucket is not None, "there is a bucket for every single row"
        chunks.append(bucket)
    return Speed(rows=1, tokens=tokens, buckets=chunks, seconds=sum(map(roofline.seconds, chunks)))


def _waste(setup: Setup, buckets: Buckets, roofline: Roofline, memory: MemoryPlan) -> dict[str, float]:
    """By the shapes that the buckets are chosen for."""
    blocks = memory.blocks if memory.fits else None
    space = ShapeLimits.from_limits(setup.limits, prefixes=setup.prefixes, blocks=blocks)
    workload = Workload.counted(setup.bucketing.counts, space)
    seconds = roofline.costs.seconds
    shares = {}
    for kind, shapes, weights in (
        ("prefill", workload.prefill, workload.prefill_weights),
        ("decode", workload.decode, workload.decode_weights),
    ):
        real = padded = 0.0
        for shape, weight in zip(shapes.tolist(), weights.tolist(), strict=True):
            if kind == "decode":
                rows, blocks = shape
                real += weight * seconds(Bucket(rows, 1, blocks))
                padded += weight * seconds(buckets.decode(rows, blocks))
                continue
            rows, tokens, context = shape
            together, alone = buckets.prefill(rows, tokens, context), buckets.prefill(1, tokens, context)
            assert alone is not None, "there is a bucket for every single row"
            apart = rows * seconds(alone)
            padded += weight * (min(seconds(together), apart) if together else apart)
            real += weight * seconds(Bucket(rows, tokens, context, prefill=True))
        shares[kind] = padded / real - 1
    return shares


def _doubling(most: int) -> list[int]:
    sizes = [1]
    while sizes[-1] * 2 <= most:
        sizes.append(sizes[-1] * 2)
    return sizes if sizes[-1] == most else [*sizes, most]


def _prompts(limits: Limits) -> list[int]:
    """Of prompts: whole blocks that double, and the longest."""
    sizes = [limits.block_size * size for size in _doubling(-(-limits.max_input_tokens // limits.block_size))]
    return sorted({min(size, limits.max_input_tokens) for size in sizes})
