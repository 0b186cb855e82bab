"""The plan of a model on a device: its buckets and its memory, for the running server and for `tgi plan`."""

import logging
import math
from collections.abc import Mapping, Sequence

import attrs

from tgi.config import OptionError
from tgi.device.costs import Costs, ModelSize
from tgi.limits import Limits, seen_blocks
from tgi.plugins import Card
from tgi.plugins.device import REFERENCE
from tgi.protocol import AttentionWorkspace, Bucket, Described, Loaded
from tgi.scheduler.buckets import Buckets

from .buckets import SECONDS_PER_LAYER, Bucketing, attention_workspace, make_buckets
from .memory import MAX_BLOCKS, MemoryBudget, budget_memory
from .optimal import TooFewGraphs
from .setup import Setup
from .workload import ShapeCounts

log = logging.getLogger(__name__)
MOST_ROWS = 256
"""Greatest default of --max-batch-size: about as many rows as a card multiplies by a weight of 16 bits while
it reads it (176 to 500 on the cards of `tgi plan`). With more, steps take longer, and are padded more."""


@attrs.frozen(kw_only=True)
class Planner:
    """Chooses buckets and divides memory."""

    setup: Setup
    described: Described
    limits: Limits
    costs: Costs
    """Costs of the steps of the slowest stage."""
    counts: Mapping[Bucket, int] = attrs.field(factory=dict)
    """Recorded shapes of steps, which the buckets are chosen for."""

    @classmethod
    def open(cls, setup: Setup, described: Described, card: Card) -> "Planner":
        """Plan for a model of a card. Reads --bucket-shapes. Raises OptionError."""
        device, path = setup.device, setup.options.bucket_shapes
        rates = card if card.flops else REFERENCE
        costs = [device.step_costs(model_size(part), rates, device.block_size) for part in described.parts]
        counts: Mapping[Bucket, int] = {}
        if path is not None and device.compiles:
            counts = ShapeCounts.read(path, device.block_size).counts
        return cls(
            setup=setup,
            described=described,
            limits=setup.limits(described.groups, default_batch_size(setup, described, card)),
            costs=max(costs, key=lambda of: of.weights),
            counts=counts,
        )

    def choose(
        self,
        graphs: int | None = None,
        *,
        blocks: int | None = None,
        within: AttentionWorkspace | None = None,
    ) -> Buckets:
        """Choose buckets, at most `graphs` of them if given; `blocks` and `within` are `make_buckets`'.

        Takes up to a second. Raises TooFewGraphs.
        """
        options = self.setup.options
        maxima = [number for number in (options.max_graphs, graphs) if number is not None]
        bucketing = Bucketing(
            max_graphs=min(maxima, default=None),
            max_waste=options.max_waste,
            counts=self.counts,
            costs=self.costs,
        )
        return make_buckets(
            self.limits, self.setup.device, bucketing, prefixes=self.prefixes, blocks=blocks, within=within
        )

    def choose_few(self, graphs: int, blocks: int, within: AttentionWorkspace) -> Buckets:
        """Choose `graphs` buckets at most, for --warmup-budget, or as few as are possible."""
        level = logging.INFO
        try:
            buckets = self.choose(graphs, blocks=blocks, within=within)
        except TooFewGraphs as error:
            level = logging.WARNING
            buckets = self.choose(error.needed, blocks=blocks, within=within)
        count = len(buckets.to_warm_up())
        log.log(level, "--warmup-budget is enough for %d buckets, and %d are needed", graphs, count)
        return buckets

    def choose_again(self, buckets: Buckets, memory: MemoryBudget, within: AttentionWorkspace) -> Buckets:
        """Choose buckets for the present memory; they need no more of it.

        They may be fewer than `buckets`, because of --graph-memory-fraction, and the KV blocks fewer than
        the sequences of the limits can have. Raises OptionError if the memory is enough for too few graphs.
        """
        limits, count = self.limits, len(buckets.to_warm_up())
        blocks = memory.widest.blocks
        scarce = blocks < limits.max_batch_size * limits.sequence_blocks
        fewer = self.setup.device.compiles and memory.graph_count < count
        if not fewer and not (buckets.flat and scarce):
            return buckets
        try:
            return self.choose(
                min(count, memory.graph_count), blocks=blocks if scarce else None, within=within
            )
        except TooFewGraphs as error:
            if not fewer:
                return buckets
            raise OptionError(
                f"--graph-memory-fraction {self.setup.options.graph_memory_fraction:g} is enough for "
                f"{memory.graph_count} graphs, and {error.needed} are needed"
            ) from error

    def attention(self, buckets: Buckets) -> AttentionWorkspace:
        """Return the workspace of attention that these buckets need."""
        return attention_workspace(self.limits, buckets, prefixes=self.prefixes)

    def divide_memory(self, ranks: Sequence[Loaded], buckets: Buckets) -> MemoryBudget:
        """Divide the memory of ranks that have loaded the model."""
        setup, described = self.setup, self.described
        return budget_memory(
            ranks,
            described.groups,
            self.limits,
            graphs=len(buckets.to_warm_up()) if setup.device.compiles else 0,
            fraction=setup.memory_fraction,
            graph_fraction=setup.options.graph_memory_fraction,
            possible_ranks=described.possible_ranks,
            batches=self._batches(),
            stages=[part.groups for part in described.parts],
            replicas=setup.replicas,
        )

    def _batches(self) -> int:
        """Return how many full batches the KV cache may hold."""
        full = self.limits.max_batch_size * self.limits.sequence_blocks
        return max(MAX_BLOCKS // full, 1) if self.setup.device.fills_memory and self.prefixes else 1

    def warm_up_seconds(self, buckets: Buckets) -> float | None:
        """Estimate the time of the warm-up; None if nothing is compiled.

        A compile cache that has everything makes it a fraction.
        """
        if not self.setup.device.compiles:
            return None
        programs = len(buckets.to_warm_up()) * (2 if self.setup.loras.count else 1)
        return programs * self.described.layers * SECONDS_PER_LAYER

    @property
    def prefixes(self) -> bool:
        """Whether sequences share blocks."""
        return self.setup.prefix_limit != 0


def default_batch_size(setup: Setup, described: Described, card: Card) -> int:
    """Return the default of --max-batch-size: as many texts of half the longest length as a card keeps.

    A decode step reads all weights, however many rows it has, so that further rows cost little as long as
    their keys and values fit: with fewer, memory lies idle; with more, sequences are preempted. It is a power
    of two, at least the device's `batch_size`, since most texts are shorter, and at most MOST_ROWS. It never
    exceeds --max-concurrent-requests. A device whose KV cache does not fill the memory has its
    `batch_size`.
    """
    device, options = setup.device, setup.options
    if not device.fills_memory or not card.memory_bytes:
        return device.batch_size
    limits = setup.limits(described.groups)
    typical = max(limits.max_total_tokens // 2, 1)
    tokens = math.inf if limits.max_batch_total_tokens is None else limits.max_batch_total_tokens

    def rows(part: Described) -> float:
        room = (card.memory_bytes - part.weight_bytes - part.lora_bytes) * setup.memory_fraction
        blocks = [
            seen_blocks(typical, 1, group.window, limits.block_size) * group.token_bytes
            for group in part.groups
        ]
        return min(room / (sum(blocks) * limits.block_size), tokens / typical)

    fitting = max(int(min(map(rows, described.parts))), 1)
    by_memory = min(max(1 << fitting.bit_length() - 1, device.batch_size), MOST_ROWS)
    return min(by_memory, options.max_concurrent_requests)


def model_size(model: Described) -> ModelSize:
    """Return the sizes of a rank's part of a model, for the costs of steps."""
    return ModelSize(
        parameters=model.active_parameters,
        weight_bytes=model.weight_bytes,
        expert_bytes=sum(tensor.bytes for tensor in model.experts),
        expert_share=min((tensor.share for tensor in model.experts), default=1.0),
        kv_bytes=sum(group.token_bytes for group in model.groups),
        width=sum(len(group.layers) * group.head_dim for group in model.groups) * model.heads,
        vocabulary=model.vocab_size,
    )
