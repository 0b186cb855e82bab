"""Who may write which block of the KV cache: checked where somebody tells (S22, S23)."""

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
    """`KVGuard.watch(card, ...)`, then `own` before each step."""

    card: Card
    block_size: int
    pad_block: int
    _storages: dict[int, torch.Tensor] = attrs.field(factory=dict)
    _writable: frozenset[int] | None = None
    _readable: frozenset[int] = frozenset()

    @classmethod
    def watch(cls, card: Card, tensors: Sequence[torch.Tensor], block_size: int, pad_block: int) -> "KVGuard":
        """Of keys and values [blocks * block_size, kv_heads, head_dim], before any graph is captured."""
        guard = cls(card, block_size, pad_block)
        for tensor in tensors:
            assert isinstance(tensor, HpuTensor)
            guard._storages[storage_of(tensor.plain)] = tensor.plain
        card.guards["kv"] = guard
        return guard

    def own(self, writable: Mapping[object, Sequence[int]], shared: Sequence[int] = ()) -> None:
        """The blocks that each sequence of the next step may write and read, and those it may read only."""
        owners: dict[int, object] = {}
        for owner, blocks in writable.items():
            for block in blocks:
                if owners.setdefault(block, owner) != owner:
                    problem = f"block {block} belongs to {owners[block]!r} and to {owner!r}"
                    self.card.ledger.violate("S22", "kv.own", problem)
        self._writable = frozenset(owners)
        self._readable = self._writable | frozenset(shared)

    def scramble(self) -> None:
        """Put finite rubbish into every block that nobody may read, the pad block included.

        A result that then differs has read what it must not.
        """
        free = set(range(self._blocks)) - (self._readable or frozenset())
        for plain in self._storages.values():
            blocks = plain.view(self._blocks, -1)
            with torch.inference_mode():
                blocks[sorted(free)] = 77.0

    def check_layout(
        self, block_list: Sequence[int], block_groups: Sequence[int], rows: int, contiguous: bool
    ) -> None:
        """The metadata of a decode step: groups are 0..rows (rows: padding), no block twice if contiguous."""
        if any(not 0 <= group <= rows for group in block_groups):
            self.card.ledger.violate("S16", "kv.check_layout", f"a group beyond 0..{rows}")
        real = [block for block, group in zip(block_list, block_groups, strict=True) if group < rows]
        if contiguous and len(set(real)) != len(real):
            self.card.ledger.violate("S23", "kv.check_layout", "a block is shared in the contiguous layout")

    def watches(self, storage: int) -> bool:
        """Whether it is the cache's."""
        return storage in self._storages

    def check(self, info: Operation, args: Sequence[Any], indices: torch.Tensor) -> None:
        """An operation reads or writes the cache by these indices, of slots or of blocks."""
        if self._writable is None:
            return
        slots = args[0].shape[0] == self._blocks * self.block_size
        blocks = set((indices // self.block_size if slots else indices).flatten().tolist()) - {self.pad_block}
        writes = info.name in WHOLE_UPDATES
        strange = blocks - (self._writable if writes else self._readable)
        if strange:
            problem = f"{'writes' if writes else 'reads'} the blocks {sorted(strange)}"
            self.card.ledger.violate("S22", info.label, f"{problem}, which no sequence of the step has")
        if writes and not bool(torch.isfinite(args[-1].float()).all()):
            self.card.ledger.violate("S22", info.label, "writes NaN or infinity into the cache")

    @property
    def _blocks(self) -> int:
        return next(iter(self._storages.values())).shape[0] // self.block_size
