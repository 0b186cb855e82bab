"""Checks of reads and writes of a KV cache against the owners of its blocks (S22, S23)."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from .card import Card
from .operations import WHOLE_UPDATES, Operation
from .recording import storage_of
from .tensor import HpuTensor


@attrs.define(eq=False)
class KVGuard:
    """A watched KV cache. Made by `KVGuard.watch`; `own` names the owners before each step."""

    card: Card
    block_size: int
    """Tokens in a block."""
    pad_block: int
    """Number of the block that padding reads and writes."""
    _storages: dict[int, torch.Tensor] = attrs.field(factory=dict)
    """Tensors of the cache by storage."""
    _writable: frozenset[int] | None = None
    """Blocks that the step may write; None before the first `own`."""
    _readable: frozenset[int] = frozenset()
    """Blocks that the step may read."""

    @classmethod
    def watch(cls, card: Card, tensors: Sequence[torch.Tensor], block_size: int, pad_block: int) -> "KVGuard":
        """Watch keys and values [blocks * block_size, kv_heads, head_dim]; before any graph is captured."""
        guard = cls(card, block_size, pad_block)
        for tensor in tensors:
            assert isinstance(tensor, HpuTensor)
            guard._storages[storage_of(tensor.plain)] = tensor.plain
        card.guards["kv"] = guard
        return guard

    def own(self, writable: Mapping[object, Sequence[int]], shared: Sequence[int] = ()) -> None:
        """Set the blocks that each sequence of the next step may write, and `shared` ones to read."""
        owners: dict[int, object] = {}
        for owner, blocks in writable.items():
            for block in blocks:
                if owners.setdefault(block, owner) != owner:
                    problem = f"block {block} belongs to {owners[block]!r} and to {owner!r}"
                    self.card.ledger.violate("S22", "kv.own", problem)
        self._writable = frozenset(owners)
        self._readable = self._writable | frozenset(shared)

    def scramble(self) -> None:
        """Put finite rubbish into every block that no sequence may read, the pad block included.

        A result that then differs has read one of them.
        """
        free = set(range(self._blocks)) - (self._readable or frozenset())
        for plain in self._storages.values():
            blocks = plain.view(self._blocks, -1)
            with torch.inference_mode():
                blocks[sorted(free)] = 77.0

    def check_layout(
        self, block_list: Sequence[int], block_groups: Sequence[int], rows: int, contiguous: bool
    ) -> None:
        """Check the block list of a decode step.

        Groups are rows, or `rows` for padding; in the contiguous layout no block occurs twice.
        """
        if any(not 0 <= group <= rows for group in block_groups):
            self.card.ledger.violate("S16", "kv.check_layout", f"a group is beyond 0..{rows}")
        real = [block for block, group in zip(block_list, block_groups, strict=True) if group < rows]
        if contiguous and len(set(real)) != len(real):
            self.card.ledger.violate("S23", "kv.check_layout", "a block occurs twice")

    def watches(self, storage: int) -> bool:
        """Whether a storage belongs to the cache."""
        return storage in self._storages

    def check(self, info: Operation, args: Sequence[Any], indices: torch.Tensor) -> None:
        """Check an operation that reads or writes the cache by these indices, of slots or of blocks."""
        if self._writable is None:
            return
        slots = args[0].shape[0] == self._blocks * self.block_size
        blocks = set((indices // self.block_size if slots else indices).flatten().tolist()) - {self.pad_block}
        writes = info.name in WHOLE_UPDATES
        foreign = blocks - (self._writable if writes else self._readable)
        if foreign:
            problem = f"{'writes' if writes else 'reads'} the blocks {sorted(foreign)}"
            self.card.ledger.violate("S22", info.label, f"{problem}, which no sequence of the step owns")
        if writes and not bool(torch.isfinite(args[-1].float()).all()):
            self.card.ledger.violate("S22", info.label, "writes NaN or infinity into the cache")

    @property
    def _blocks(self) -> int:
        return next(iter(self._storages.values())).shape[0] // self.block_size
