"""LoRA on a device: the adapters' matrices, and what they add to a linear layer (Hu et al. 2021, arXiv
2106.09685).

A token of a step names the slot of its adapter, or none. `Device.lora_rows` says once a step which tokens
have which; each adapted layer has a `LoraTable`, which `Device.lora_table` makes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import attrs
import torch

from tgi.protocol import LoraSlots
from tgi.weights.formats import DenseWeight, LinearWeight, Operations, PreparedWeight

Matrices = tuple[torch.Tensor, torch.Tensor]
"""The two matrices of an adapter, [rank, in] and [out, rank]."""


@attrs.frozen(eq=False)
class LoraShape:
    """The sizes of a table."""

    slots: LoraSlots
    inputs: int
    """Input features of the layer on this rank."""
    outputs: Sequence[int]
    """Output features of each of its pieces, which adapters change apart from one another."""
    dtype: torch.dtype

    @property
    def columns(self) -> int:
        """Features between the matrices of a slot, of all pieces together."""
        return len(self.outputs) * self.slots.rank

    @property
    def bytes(self) -> int:
        """Bytes of the matrices of full slots."""
        numbers = len(self.outputs) * self.inputs + sum(self.outputs)
        return self.slots.count * self.slots.rank * numbers * self.dtype.itemsize


class LoraTable(ABC):
    """The matrices of all slots for one linear layer."""

    bytes: int
    """Bytes that full slots take."""
    columns: int
    """Features that a token has between the matrices."""

    @abstractmethod
    def put(self, slot: int, matrices: Sequence[Matrices | None]) -> None:
        """Fill a slot with the matrices of each piece; None: the adapter has none for it."""

    @abstractmethod
    def add(self, x: torch.Tensor, y: torch.Tensor, rows: Any) -> torch.Tensor:
        """Return y [T, out] plus the adapters' products with x [T, in]; may change y.

        `rows` is what `Device.lora_rows` gave.
        """


@attrs.define(eq=False)
class LoraRows:
    """The adapters of the step that runs, at which all adapted weights look."""

    value: Any = None
    """`Batch.loras`."""


@attrs.frozen(eq=False)
class LoraWeight(PreparedWeight):
    """A prepared weight of any format, to whose product adapters add theirs."""

    base: LinearWeight
    table: LoraTable
    rows: LoraRows

    def multiply(
        self,
        device: Operations,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply as the base does, and add what the adapters of the step's rows give."""
        y = device.multiply(x, self.base, bias, residual)
        return y if self.rows.value is None else self.table.add(x, y, self.rows.value)


class Preparing(Operations, Protocol):
    """The part of a `Device` that tables use."""

    def prepare_linear(self, weight: LinearWeight) -> LinearWeight:
        """Return a weight ready for `multiply`."""


class SlotTable(LoraTable):
    """The definition: each slot's tokens are multiplied with its matrices."""

    def __init__(self, device: Preparing, shape: LoraShape) -> None:
        self._device, self._shape = device, shape
        self._adapters: dict[int, tuple[LinearWeight, list[tuple[slice, slice, LinearWeight]]]] = {}
        """Weight [columns, in] of each slot; columns, outputs, and weight [out, rank] of each piece."""
        self.bytes, self.columns = shape.bytes, shape.columns

    @staticmethod
    def rows(slots: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        """Return the slots that tokens have, and the indices of theirs."""
        return [(slot, (slots == slot).nonzero()[:, 0]) for slot in sorted(set(slots.tolist())) if slot >= 0]

    def put(self, slot: int, matrices: Sequence[Matrices | None]) -> None:
        """Prepare the matrices."""
        downs, ups, column, first = [], [], 0, 0
        for pair, size in zip(matrices, self._shape.outputs, strict=True):
            if pair is not None:
                down, up = (matrix.to(self._shape.dtype) for matrix in pair)
                columns = slice(column, column + len(down))
                ups.append((columns, slice(first, first + size), self._prepare(up)))
                downs.append(down)
                column += len(down)
            first += size
        self._adapters.pop(slot, None)
        if downs:
            self._adapters[slot] = self._prepare(torch.cat(downs)), ups

    def add(self, x: torch.Tensor, y: torch.Tensor, rows: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
        """Add slot by slot."""
        for slot, tokens in rows:
            if slot in self._adapters:
                down, ups = self._adapters[slot]
                narrow = self._device.multiply(x.index_select(0, tokens), down)
                for columns, outputs, up in ups:
                    wide = self._device.multiply(narrow[:, columns].contiguous(), up)
                    y[:, outputs].index_add_(0, tokens, wide)
        return y

    def _prepare(self, matrix: torch.Tensor) -> LinearWeight:
        return self._device.prepare_linear(DenseWeight(matrix.contiguous()))


@attrs.define(eq=False)
class MaskedTable(LoraTable):
    """Tables that programs of fixed shape read: all tokens are multiplied with the matrices of all slots.

    A mask hides in between what is not a token's own, so that a row's result does not depend on others.
    """

    slots: int
    rank: int
    down: torch.Tensor
    """[pieces * slots * rank, in]"""
    ups: Sequence[torch.Tensor]
    """[slots * rank, out] of each piece."""
    bytes: int
    columns: int

    @classmethod
    def of(cls, shape: LoraShape, place: torch.device) -> "MaskedTable":
        """Make empty tables."""
        columns = shape.slots.count * shape.slots.rank

        def empty(*sizes: int) -> torch.Tensor:
            return torch.zeros(sizes, dtype=shape.dtype, device=place)

        down = empty(len(shape.outputs) * columns, shape.inputs)
        ups = [empty(columns, size) for size in shape.outputs]
        return cls(shape.slots.count, shape.slots.rank, down, ups, shape.bytes, len(down))

    @staticmethod
    def rows(slots: torch.Tensor, room: LoraSlots, dtype: torch.dtype) -> torch.Tensor:
        """Return the mask [T, slots * rank] of tokens whose slots [T] are given: 1 in their own columns."""
        every = torch.arange(room.count, dtype=torch.int32, device=slots.device)
        return (slots[:, None] == every).to(dtype).repeat_interleave(room.rank, 1)

    def put(self, slot: int, matrices: Sequence[Matrices | None]) -> None:
        """Write the slot's part of the tables, filled up with zeros."""
        for index, (pair, table) in enumerate(zip(matrices, self.ups, strict=True)):
            down = torch.zeros(self.rank, self.down.shape[1])
            up = torch.zeros(self.rank, table.shape[1])
            if pair is not None:
                down[: len(pair[0])], up[: len(pair[0])] = pair[0], pair[1].t()
            _write(self.down, index * self.slots + slot, down)
            _write(table, slot, up)

    def add(self, x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Add for all tokens at once."""
        narrow = (x @ self.down.t()).view(len(x), len(self.ups), -1) * rows[:, None]
        wide = [narrow[:, index] @ up for index, up in enumerate(self.ups)]
        return y + (wide[0] if len(wide) == 1 else torch.cat(wide, 1))


def _write(table: torch.Tensor, place: int, rows: torch.Tensor) -> None:
    """Overwrite the part of a table that is as high as `rows` and has number `place`."""
    places = torch.arange(place * len(rows), (place + 1) * len(rows))
    table.index_copy_(0, places.to(table.device), rows.to(table.dtype).to(table.device))
