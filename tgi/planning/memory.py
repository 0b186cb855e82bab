"""The division of a card's memory, before the KV cache is reserved for good.

total = in use + weights + LoRA adapters + workspace + reserve + graphs + KV cache + left over

Everything that a step can need is in it, so that nothing runs out later. All ranks get the same numbers of
blocks: those of the rank with the least room, whichever stage of a pipeline it is in.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import attrs
import msgspec

from tgi.limits import Limits
from tgi.protocol import CacheGroup, Loaded

MIB = 1 << 20
MAX_BLOCKS = 1 << 18
"""Number of blocks beyond which no prefixes are kept: the server takes some 100 bytes for each."""
MIN_GRAPHS = 2
"""One graph of each kind of step."""


@attrs.frozen(kw_only=True)
class GroupBudget:
    """KV blocks of one layer group, the padding block aside."""

    layers: int
    """Number of layers in the group."""
    window: int | None
    """Number of tokens that a token sees; None: all before it."""
    block_bytes: int
    """Bytes of a block in all layers of the group."""
    longest: int
    """Maximum blocks of one sequence at once."""
    wanted: int
    """Blocks that the batches which the cache may hold take, or that the options allow."""
    fitting: int
    """Blocks that fit."""

    @property
    def blocks(self) -> int:
        """Number of blocks that are used."""
        return min(self.wanted, self.fitting)


@attrs.frozen(kw_only=True)
class MemoryBudget:
    """The memory of one rank, in bytes."""

    rank: Loaded
    """Report of the rank with the least room."""
    limits: Limits
    reserve: int
    """Part of the free memory that stays unused."""
    graphs: int
    """Part of the free memory for graphs."""
    graph_count: int
    groups: tuple[GroupBudget, ...]
    fits: bool
    """Whether one sequence fits at least."""
    stage: int = 0
    """Number of the stage that this rank is in."""
    ranks_that_fit: int | None = None
    """Smallest number of ranks of a stage that would do where these do not, if it is known."""

    @property
    def widest(self) -> GroupBudget:
        """The group with the most blocks for a sequence."""
        return max(self.groups, key=lambda group: group.longest)

    @property
    def tokens(self) -> int:
        """Number of tokens that the KV cache holds."""
        return self.widest.blocks * self.limits.block_size

    @property
    def room(self) -> int:
        """Memory for the KV cache."""
        return self.rank.free_bytes - self.reserve - self.graphs

    def rows(self) -> Iterator[tuple[str, int]]:
        """Yield the rows of the table: a name and its bytes, which add up to the memory of the card."""
        rank, left = self.rank, self.room
        taken = rank.weight_bytes + rank.lora_bytes + rank.workspace_bytes
        used = rank.total_bytes - rank.free_bytes - taken
        shares = {
            "in use by others": max(used, 0) if rank.total_bytes else 0,
            "weights": rank.weight_bytes,
            "LoRA adapters": rank.lora_bytes,
            "workspace of the largest step": rank.workspace_bytes,
            "reserve": self.reserve,
            f"graphs, {self.graph_count:,}": self.graphs,
        }
        yield from ((name, size) for name, size in shares.items() if size)
        for group in self.groups:
            blocks = max(group.blocks if self.fits else group.longest, 0) + 1
            sees = "" if group.window is None else f" that see {group.window:,} tokens"
            name = "KV cache" if len(self.groups) == 1 else f"KV cache of {group.layers} layers{sees}"
            missing = "" if self.fits else ", more than there is room for"
            size = blocks * group.block_bytes
            yield f"{name}, {blocks:,} blocks of {self.limits.block_size} tokens{missing}", size
            left -= size
        yield "left over", left

    def __str__(self) -> str:
        rows = list(self.rows())
        if self.rank.total_bytes:
            rows.insert(0, ("memory of a card", self.rank.total_bytes))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}} {size / MIB:12,.0f} MiB" for name, size in rows)

    @property
    def refusal(self) -> str | None:
        """One line: why the memory is too small, and which flags would help; None if it is enough."""
        if self.fits:
            return None
        needed = sum((group.longest + 1) * group.block_bytes for group in self.groups)
        helps = ", ".join(self._remedies(needed - self.room))
        return (
            f"Not enough memory to handle `max_total_tokens={self.limits.max_total_tokens}`: its KV cache "
            f"takes {needed / MIB:,.0f} MiB, and {max(self.room, 0) / MIB:,.0f} MiB are left for it. "
            f"What helps: {helps}"
        )

    def _remedies(self, missing: int) -> Iterator[str]:
        limits, fitting = self.limits, self.widest.fitting
        if fitting > 0:
            yield f"--max-total-tokens {fitting * limits.block_size}"
        # Tokens of a prompt that a step could have besides the window.
        chunk = 0 if limits.window is None else (fitting - 1) * limits.block_size + 2 - limits.window
        if chunk >= limits.block_size:
            yield f"--max-batch-prefill-tokens {chunk}"
        if self.graph_count and missing < self.graphs:
            graphs = int((self.graphs - missing) * self.graph_count / self.graphs)
            if graphs >= MIN_GRAPHS:
                yield f"--max-graphs {graphs}"
        if missing <= self.reserve:
            yield f"a larger --memory-fraction than {1 - self.reserve / self.rank.free_bytes:.2g}"
        if missing <= self.rank.lora_bytes:
            yield "a lower --max-loras or --max-lora-rank"
        if missing <= self.rank.workspace_bytes:
            if chunk < limits.block_size:
                yield f"less than --max-batch-prefill-tokens {limits.max_batch_prefill_tokens}"
            yield f"less than --max-batch-size {limits.max_batch_size}"
        if self.ranks_that_fit is not None:
            yield f"more cards with --num-shard {self.ranks_that_fit}"


def budget_memory(
    ranks: Sequence[Loaded],
    groups: Sequence[CacheGroup],
    limits: Limits,
    *,
    graphs: int = 0,
    fraction: float = 1.0,
    graph_fraction: float | None = None,
    possible_ranks: Sequence[int] = (),
    batches: int = 1,
    stages: Sequence[Sequence[CacheGroup]] = (),
    replicas: int = 1,
) -> MemoryBudget:
    """Divide the memory of ranks that have loaded the model, and return the division of the fullest one.

    `stages` are the groups of each stage of a pipeline, whose first ranks are in the first one. `fraction` of
    what weights and workspace leave is used. `graph_fraction` of that is for graphs, which may be enough for
    fewer than `graphs`; None: what the ranks expect `graphs` to take. `possible_ranks` are the numbers of
    ranks that a stage can be divided over, to tell whether more would help. The KV cache holds up to
    `batches` full batches, unless the limits say how many tokens. Where ranks share the memory of the
    machine, the ranks of the other `replicas` are still to load the model.
    """
    stages = stages or [groups]
    shards = len(ranks) // len(stages)

    def budget(rank: Loaded, stage: int) -> MemoryBudget:
        count, usable = graphs, min(int(rank.free_bytes * fraction), rank.free_bytes)
        if graph_fraction is None:
            share = rank.graph_bytes * count
        else:
            share = int(usable * graph_fraction)
            if rank.graph_bytes:
                count = min(count, max(share, 0) // rank.graph_bytes)
        needs = [
            _need(group, size, limits, batches)
            for group, size in zip(stages[stage], rank.block_bytes, strict=True)
        ]
        room = usable - share - sum(rank.block_bytes)  # one block of each group is for padding
        rest = room - sum(need.longest * need.block_bytes for need in needs)
        return MemoryBudget(
            rank=rank,
            limits=limits,
            reserve=rank.free_bytes - usable,
            graphs=share,
            graph_count=count,
            groups=tuple(_share_room(needs, room, rest)),
            fits=rest >= 0,
            stage=stage,
        )

    def own(rank: Loaded) -> Loaded:
        if rank.total_bytes:
            return rank
        # The ranks share the memory of the machine.
        free = rank.free_bytes + rank.workspace_bytes - (replicas - 1) * len(ranks) * rank.weight_bytes
        room = free // (len(ranks) * replicas) - rank.workspace_bytes
        return msgspec.structs.replace(rank, free_bytes=room)

    budgets = [budget(own(rank), index // shards) for index, rank in enumerate(ranks)]
    budgeted = _least(budgets)
    rank, stage = budgeted.rank, budgeted.stage
    if budgeted.fits or not rank.total_bytes:
        return budgeted
    more = (number for number in possible_ranks if number > shards)
    helpful = (n for n in more if budget(_divide_over(rank, stages[stage], shards, n), stage).fits)
    return attrs.evolve(budgeted, ranks_that_fit=next(helpful, None))


def _least(budgets: Sequence[MemoryBudget]) -> MemoryBudget:
    """Return the budget with the least room, with no more blocks of any group than every other has."""
    least = min(budgets, key=lambda budget: (budget.fits, budget.widest.fitting, budget.room))
    fitting = [min(each) for each in zip(*([g.fitting for g in b.groups] for b in budgets), strict=True)]
    groups = zip(least.groups, fitting, strict=True)
    return attrs.evolve(least, groups=tuple(attrs.evolve(group, fitting=fits) for group, fits in groups))


def _divide_over(rank: Loaded, groups: Sequence[CacheGroup], count: int, more: int) -> Loaded:
    """Return what the rank would report among `more` ranks instead of `count`."""
    weights = rank.weight_bytes * count // more
    heads = [(-(-group.all_kv_heads // ranks) for ranks in (count, more)) for group in groups]
    return msgspec.structs.replace(
        rank,
        weight_bytes=weights,
        free_bytes=rank.free_bytes + rank.weight_bytes - weights,
        block_bytes=tuple(
            size * fewer // now for size, (now, fewer) in zip(rank.block_bytes, heads, strict=True)
        ),
    )


def _need(group: CacheGroup, block_bytes: int, limits: Limits, batches: int) -> GroupBudget:
    """Return a group with the blocks that it needs, before any room is divided."""
    longest = limits.group_blocks(group.window)
    wanted = longest * limits.max_batch_size * batches
    if limits.max_batch_total_tokens is not None:
        given = max(limits.max_batch_total_tokens // limits.block_size, longest)
        wanted = given if longest == limits.sequence_blocks else min(longest * limits.max_batch_size, given)
    return GroupBudget(
        layers=len(group.layers),
        window=None if group.window is None or group.window >= limits.max_total_tokens else group.window,
        block_bytes=block_bytes,
        longest=longest,
        wanted=wanted,
        fitting=0,
    )


def _share_room(needs: Sequence[GroupBudget], room: int, rest: int) -> Iterator[GroupBudget]:
    """Divide `room` bytes; `rest` is what one sequence of the longest kind leaves of them.

    Beyond that sequence, every group gets the same share of what it wants, so that none runs out long before
    the others. What is left when all are satisfied goes to the widest groups. If not even one sequence fits,
    the blocks are those of the longest one that does.
    """
    widest = max(need.longest for need in needs)
    if rest < 0:

        def size(blocks: int) -> int:
            return sum(min(blocks, need.longest) * need.block_bytes for need in needs)

        fitting = max(bisect_right(range(widest + 1), room, key=size) - 1, 0)
        yield from (attrs.evolve(need, fitting=min(fitting, need.longest)) for need in needs)
        return
    missing = sum((need.wanted - need.longest) * need.block_bytes for need in needs)
    kept = sum(need.wanted * need.block_bytes for need in needs if need.longest < widest)
    each = sum(need.block_bytes for need in needs if need.longest == widest)
    for need in needs:
        if rest < missing:
            fitting = need.longest + rest * (need.wanted - need.longest) // missing
        else:
            fitting = need.wanted if need.longest < widest or not each else (room - kept) // each
        yield attrs.evolve(need, fitting=fitting)
