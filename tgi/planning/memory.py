"""How the memory of a card is divided, before the KV cache is reserved for good.

    total = in use + weights + workspace + reserve + graphs + KV cache + left over

Everything a step can need is in it, so that nothing runs out later. All ranks get the same number of blocks:
the plan is that of the rank with the least room.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

import attrs
import msgspec

from tgi.config import Options
from tgi.executor import EngineError
from tgi.limits import Limits
from tgi.plugins import DeviceSpec, ModelConfig
from tgi.protocol import Loaded
from tgi.scheduler.buckets import Buckets

from .bucketing import GraphsError

log = logging.getLogger(__name__)
MIB = 1 << 20
FEWEST_GRAPHS = 2
"""One of each kind."""


@attrs.frozen(kw_only=True)
class MemoryPlan:
    """Bytes, where nothing else is said."""

    total: int
    """0 where it is not known."""
    weights: int
    workspace: int
    """Of the largest step."""
    free: int
    """What these two and others leave."""
    reserve: int
    """The part of it that is not planned with."""
    graphs: int
    graph_count: int
    block_bytes: int
    block_size: int
    """Tokens in a block."""
    longest: int
    """Most blocks that one sequence has at once,"""
    wanted: int
    """as many as can ever be in use, or as the options say,"""
    fitting: int
    """and as many as there is room for, beside the padding block."""
    shards: int | None = None
    """The least number of cards that would do where these do not, as far as can be told."""

    @property
    def blocks(self) -> int:
        """That are used."""
        return min(self.wanted, self.fitting)

    @property
    def fits(self) -> bool:
        """Whether one sequence can be served at least."""
        return self.fitting >= self.longest

    def rows(self) -> Iterator[tuple[str, int]]:
        """The table: what for, and how many bytes; in all they are `total`."""
        used = self.total - self.free - self.weights - self.workspace
        if self.total and used > 0:
            yield "in use by others", used
        if self.weights:
            yield "weights", self.weights
        if self.workspace:
            yield "workspace of the largest step", self.workspace
        if self.reserve:
            yield "reserve", self.reserve
        if self.graphs:
            yield f"graphs, {self.graph_count:,}", self.graphs
        blocks = max(self.blocks if self.fits else self.longest, 0) + 1
        cache = blocks * self.block_bytes
        missing = "" if self.fits else ", of which there is no room for all"
        yield f"KV cache, {blocks:,} blocks of {self.block_size} tokens{missing}", cache
        yield "left over", self.free - self.reserve - self.graphs - cache

    def __str__(self) -> str:
        rows = list(self.rows())
        if self.total:
            rows.insert(0, ("memory of a card", self.total))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}} {size / MIB:12,.0f} MiB" for name, size in rows)

    def refusal(self, limits: Limits) -> str | None:
        """Why it does not do, and which flags would help, in one line; None where it does."""
        if self.fits:
            return None
        room = self.free - self.reserve - self.graphs
        needed = (self.longest + 1) * self.block_bytes
        helps = ", ".join(self._remedies(limits, needed - room))
        return (
            f"Not enough memory to handle `max_total_tokens={limits.max_total_tokens}`: its KV cache takes "
            f"{needed / MIB:,.0f} MiB, and {max(room, 0) / MIB:,.0f} MiB are left for it. What helps: {helps}"
        )

    def _remedies(self, limits: Limits, missing: int) -> Iterator[str]:
        if self.fitting > 0:
            yield f"--max-total-tokens {self.fitting * self.block_size}"
        chunk = self._chunk(limits)
        if chunk >= self.block_size:
            yield f"--max-batch-prefill-tokens {chunk}"
        if self.graph_count and missing < self.graphs:
            graphs = int((self.graphs - missing) * self.graph_count / self.graphs)
            if graphs >= FEWEST_GRAPHS:
                yield f"--max-graphs {graphs}"
        if missing <= self.reserve:
            yield f"a larger --memory-fraction than {1 - self.reserve / self.free:.2g}"
        if missing <= self.workspace:
            if chunk < self.block_size:
                yield f"less than --max-batch-prefill-tokens {limits.max_batch_prefill_tokens}"
            yield f"less than --max-batch-size {limits.max_batch_size}"
        if self.shards is not None:
            yield f"more cards with --num-shard {self.shards}"

    def _chunk(self, limits: Limits) -> int:
        """Tokens of a prompt that a step could have beside a window."""
        return 0 if limits.window is None else (self.fitting - 1) * self.block_size + 2 - limits.window


def for_pool(buckets: Buckets, limits: Limits, blocks: int, choose: Callable[..., Buckets]) -> Buckets:
    """Those, or better ones now that it is known that there are so many blocks in the KV cache.

    `choose(graphs, blocks=)` gives at most so many; none of them needs more memory.
    """
    if not buckets.flat or blocks >= limits.max_batch_size * limits.sequence_blocks:
        return buckets
    try:
        return choose(len(buckets.to_warm_up()), blocks=blocks)
    except GraphsError:
        return buckets


def plan_blocks(
    loaded: Sequence[Loaded],
    device: DeviceSpec,
    limits: Limits,
    buckets: Buckets,
    options: Options,
    config: ModelConfig | None = None,
) -> int:
    """How many KV blocks to use beside the padding block; logs the plan of the memory.

    Raises EngineError where not even the longest request fits.
    """
    fraction = device.memory_fraction if options.memory_fraction is None else options.memory_fraction
    graphs = len(buckets.to_warm_up()) if device.compiles else 0
    plan = plan_memory(
        loaded, limits, config=config,
        graphs=graphs, fraction=fraction, graph_fraction=options.graph_memory_fraction,
    )  # fmt: skip
    refusal = plan.refusal(limits)
    log.log(logging.INFO if refusal is None else logging.ERROR, "Memory\n%s", plan)
    if refusal is not None:
        raise EngineError(refusal, "memory")
    if limits.max_batch_total_tokens is not None and plan.blocks < plan.wanted:
        log.warning(
            "--max-batch-total-tokens %d: there is memory for %d only",
            limits.max_batch_total_tokens, plan.blocks * limits.block_size,
        )  # fmt: skip
    return plan.blocks


def plan_memory(
    ranks: Sequence[Loaded],
    limits: Limits,
    *,
    graphs: int = 0,
    fraction: float = 1.0,
    graph_fraction: float | None = None,
    config: ModelConfig | None = None,
) -> MemoryPlan:
    """For ranks that have loaded the model and will have so many graphs.

    `fraction`: of what weights and workspace leave, the share that is planned with. `graph_fraction`: of
    that, the share that is for graphs; None: as much as the ranks expect of each. `config`: tells whether
    more ranks would help.
    """

    def plan(rank: Loaded) -> MemoryPlan:
        return _plan(rank, limits, graphs, fraction, graph_fraction)

    count, rank = len(ranks), min(ranks, key=lambda rank: plan(rank).fitting)
    if not rank.total_bytes:  # they share the memory of this machine
        room = (rank.free_bytes + rank.workspace_bytes) // count - rank.workspace_bytes
        return plan(msgspec.structs.replace(rank, free_bytes=room))
    planned = plan(rank)
    if planned.fits or config is None:
        return planned
    more = (shards for shards in range(count + 1, config.num_heads + 1) if config.divides(shards))
    helpful = (shards for shards in more if plan(_divided(rank, config, count, shards)).fits)
    return attrs.evolve(planned, shards=next(helpful, None))


def _divided(rank: Loaded, config: ModelConfig, count: int, shards: int) -> Loaded:
    """What the rank would say if there were so many instead of `count`: its weights would be fewer."""
    weights = rank.weight_bytes * count // shards
    kept, others = (-(-config.num_kv_heads // ranks) for ranks in (count, shards))
    return msgspec.structs.replace(
        rank,
        weight_bytes=weights,
        free_bytes=rank.free_bytes + rank.weight_bytes - weights,
        block_bytes=rank.block_bytes * others // kept,
    )


def _plan(
    rank: Loaded, limits: Limits, graphs: int, fraction: float, graph_fraction: float | None
) -> MemoryPlan:
    longest = limits.sequence_blocks
    wanted = longest * limits.max_batch_size
    if limits.max_batch_total_tokens is not None:
        wanted = max(limits.max_batch_total_tokens // limits.block_size, longest)
    usable = min(int(rank.free_bytes * fraction), rank.free_bytes)
    share = rank.graph_bytes * graphs if graph_fraction is None else int(usable * graph_fraction)
    return MemoryPlan(
        total=rank.total_bytes,
        weights=rank.weight_bytes,
        workspace=rank.workspace_bytes,
        free=rank.free_bytes,
        reserve=rank.free_bytes - usable,
        graphs=share,
        graph_count=graphs,
        block_bytes=rank.block_bytes,
        block_size=limits.block_size,
        longest=longest,
        wanted=wanted,
        fitting=(usable - share) // rank.block_bytes - 1,
    )
