"""LoRA: low-rank changes of linear layers, those of several adapters in one step (Hu et al. 2021, arXiv
2106.09685).

A rank has some slots, each for one adapter at a time. A row of a step names the slot of its adapter, or none.
An adapted weight adds to its product, for each row, the product with two small matrices of the row's slot.
Where shapes are fixed, the matrices of all slots are one table, and a mask hides what is not a token's own.
On other devices, the rows of each slot are multiplied apart: a row's result does not depend on others.

Both products are linear, so that the matrices are divided over the ranks as the weight is.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Self

import attrs
import numpy as np
import torch

from tgi.device.base import Device
from tgi.plugins import ConfigError
from tgi.protocol import LoraSlots
from tgi.weights import TensorPart
from tgi.weights.formats import DenseWeight, LinearWeight, Operations
from tgi.weights.lora_file import LoraPair
from tgi.weights.tensor_file import list_names

Matrices = tuple[torch.Tensor, torch.Tensor]
_LANGUAGE = "language_model."
"""Part of the names of modules in models that see and read; the text model alone may lack it."""


@attrs.frozen(eq=False)
class Piece:
    """The output features of a weight that one module of the checkpoint gives."""

    module: str
    """Name of the module."""
    parts: Sequence[TensorPart]
    """This rank's parts of its weight, one below the other."""

    @property
    def inputs(self) -> int:
        """Input features on this rank."""
        return self.parts[0].size[1]

    @property
    def outputs(self) -> int:
        """Output features on this rank."""
        return sum(part.size[0] for part in self.parts)

    def cut(self, pair: LoraPair) -> Matrices:
        """Return this rank's share of an adapter's matrices, [rank, in] and [out, rank].

        Raises ConfigError.
        """
        first = self.parts[0]
        (out, into), given = first.shape, [pair.up.shape[0], pair.down.shape[1]]
        if given != [out, into]:
            raise ConfigError(
                f"{pair.module!r} is for a layer of shape {given}, and here it is {[out, into]}"
            )
        whole = slice(None)
        down = pair.down[:, first.indices or whole] if first.dim else pair.down
        rows = [pair.up if part.dim else pair.up[part.indices or whole] for part in self.parts]
        return down.contiguous(), torch.cat(rows)


@attrs.define(eq=False)
class LoraRows:
    """The adapters of a step's tokens, which all adapted weights look at."""

    tokens: torch.Tensor | None = None
    """Where shapes are fixed, the mask [T, slots * rank] of the columns that are a token's own; elsewhere,
    the slot of each token [T], -1 for none. None: no row of the step has an adapter."""
    groups: Sequence[tuple[int, torch.Tensor | None]] = ()
    """Slots of the step and the tokens of each; None: all. Only where shapes are not fixed."""

    def group(self, slots: torch.Tensor) -> None:
        """Find the tokens of each slot in a step."""
        owners = slots.numpy()
        used = [int(slot) for slot in np.unique(owners)]
        self.groups = [
            (slot, torch.from_numpy(np.flatnonzero(owners == slot)) if len(used) > 1 else None)
            for slot in used
            if slot >= 0
        ]
        self.tokens = slots


@attrs.frozen(eq=False)
class LoraWeight(LinearWeight):
    """A weight of any format to whose product the adapters add theirs."""

    base: LinearWeight
    pieces: Sequence[Piece]
    rows: LoraRows

    def prepare(self, device: Operations) -> Self:  # noqa: ARG002
        """Return the weight itself, whose base is prepared."""
        return self

    def multiply(
        self,
        device: Operations,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
    ) -> torch.Tensor:
        """Multiply as the base does, and add what the adapters of the step's rows give."""
        assert isinstance(device, Device)
        y = device.multiply(x, self.base, bias, residual)
        return y if self.rows.tokens is None else self.add(device, x, y)

    def add(self, device: Device, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y [T, out] plus the adapters' products with x [T, in]; may change y."""
        raise NotImplementedError

    def put(self, device: Device, slot: int, matrices: Sequence[Matrices | None]) -> None:
        """Fill a slot with the matrices of each piece; None: the adapter has none for it."""
        raise NotImplementedError


@attrs.frozen(eq=False)
class StackedWeight(LoraWeight):
    """Adapters as tables, in which each slot has the same room."""

    slots: int
    down: torch.Tensor
    """[pieces * slots * rank, in]"""
    ups: Sequence[torch.Tensor]
    """[slots * rank, out] of each piece."""

    @classmethod
    def of(
        cls, base: LinearWeight, pieces: Sequence[Piece], rows: LoraRows, slots: LoraSlots, like: torch.Tensor
    ) -> Self:
        """Make empty tables, with the dtype of a tensor, and on its device."""
        columns = slots.count * slots.rank
        down = like.new_zeros(len(pieces) * columns, pieces[0].inputs)
        ups = [like.new_zeros(columns, piece.outputs) for piece in pieces]
        return cls(base, pieces, rows, slots.count, down, ups)

    def add(self, device: Device, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Multiply with the tables of all slots, and hide what is not a token's own in between."""
        mask = self.rows.tokens
        assert mask is not None
        narrow = (x @ self.down.t()).view(len(x), len(self.ups), -1) * mask[:, None]
        wide = [narrow[:, index] @ up for index, up in enumerate(self.ups)]
        return y + (wide[0] if len(wide) == 1 else torch.cat(wide, 1))

    def put(self, device: Device, slot: int, matrices: Sequence[Matrices | None]) -> None:  # noqa: ARG002
        """Write the slot's part of the tables, filled up with zeros."""
        rank = len(self.ups[0]) // self.slots
        for index, (pair, table) in enumerate(zip(matrices, self.ups, strict=True)):
            down = torch.zeros(rank, self.down.shape[1])
            up = torch.zeros(rank, table.shape[1])
            if pair is not None:
                down[: len(pair[0])], up[: len(pair[0])] = pair[0], pair[1].t()
            _write(self.down, index * self.slots + slot, down)
            _write(table, slot, up)


def _write(table: torch.Tensor, place: int, rows: torch.Tensor) -> None:
    """Overwrite the part of a table that is as high as `rows` and has number `place`."""
    places = torch.arange(place * len(rows), (place + 1) * len(rows))
    table.index_copy_(0, places.to(table.device), rows.to(table.dtype).to(table.device))


@attrs.frozen(eq=False)
class _Factors:
    """Matrices of an adapter for the pieces of a weight that it changes."""

    down: LinearWeight
    """The first matrices, one below the other."""
    ups: Sequence[tuple[slice, slice, LinearWeight]]
    """Columns of the first result and of the output, and the second matrix between them, of each piece."""


@attrs.frozen(eq=False)
class GroupedWeight(LoraWeight):
    """Adapters apart, each as large as it is."""

    dtype: torch.dtype
    adapters: dict[int, _Factors] = attrs.field(factory=dict)
    """Matrices by slot."""

    def add(self, device: Device, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Multiply the rows of each adapter."""
        for slot, places in self.rows.groups:
            factors = self.adapters.get(slot)
            if factors is None:
                continue
            narrow = device.multiply(x if places is None else x.index_select(0, places), factors.down)
            for columns, output, weight in factors.ups:
                wide, into = device.multiply(narrow[:, columns].contiguous(), weight), y[:, output]
                if places is None:
                    into.add_(wide)
                else:
                    into.index_add_(0, places, wide)
        return y

    def put(self, device: Device, slot: int, matrices: Sequence[Matrices | None]) -> None:
        """Prepare the matrices for the device."""

        def prepare(matrix: torch.Tensor) -> LinearWeight:
            return device.prepare_linear(DenseWeight(matrix.to(self.dtype)))

        self.adapters.pop(slot, None)
        downs, ups, begin, column = [], [], 0, 0
        for piece, pair in zip(self.pieces, matrices, strict=True):
            if pair is not None:
                downs.append(pair[0])
                end = column + len(pair[0])
                ups.append((slice(column, end), slice(begin, begin + piece.outputs), prepare(pair[1])))
                column = end
            begin += piece.outputs
        if downs:
            self.adapters[slot] = _Factors(prepare(torch.cat(downs)), ups)


@attrs.define(eq=False)
class Loras:
    """The adapters of a rank."""

    device: Device
    dtype: torch.dtype
    slots: LoraSlots
    weights: list[LoraWeight] = attrs.field(factory=list)
    """Weights that adapters may change."""
    rows: LoraRows = attrs.field(factory=LoraRows)
    elsewhere: Collection[str] = ()
    """Modules of other stages."""

    @property
    def modules(self) -> set[str]:
        """Names of the modules that adapters may change here."""
        return {piece.module for weight in self.weights for piece in weight.pieces}

    def adapt(self, base: LinearWeight, parts: Iterable[TensorPart]) -> LoraWeight:
        """Return a weight, made of these parts, that adapters may change."""
        pieces = [
            Piece(name.removesuffix(".weight"), list(group))
            for name, group in groupby(parts, key=lambda part: part.name)
        ]
        weight: LoraWeight
        if self.device.compiles:
            like = torch.empty(0, dtype=self.dtype, device=self.device.torch_device)
            weight = StackedWeight.of(base, pieces, self.rows, self.slots, like)
        else:
            weight = GroupedWeight(base, pieces, self.rows, self.dtype)
        self.weights.append(weight)
        return weight

    @property
    def bytes(self) -> int:
        """Bytes that full slots take."""
        numbers = sum(piece.inputs + piece.outputs for weight in self.weights for piece in weight.pieces)
        return self.slots.count * self.slots.rank * numbers * self.dtype.itemsize

    @property
    def columns(self) -> int:
        """Largest number of features between the two matrices of a weight, those of all slots together."""
        pieces = max((len(weight.pieces) for weight in self.weights), default=0)
        return pieces * self.slots.count * self.slots.rank

    def mask(self, slots: torch.Tensor) -> torch.Tensor:
        """Return the mask of tokens whose slots [T] are given, int32; -1: none."""
        every = torch.arange(self.slots.count, dtype=torch.int32, device=slots.device)
        return (slots[:, None] == every).to(self.dtype).repeat_interleave(self.slots.rank, 1)

    @torch.inference_mode()
    def put(self, slot: int, pairs: Sequence[LoraPair]) -> None:
        """Put an adapter into a slot. Raises ConfigError, and then changes nothing.

        Without pairs, a slot becomes one that changes nothing.
        """
        widest = max((len(pair.down) for pair in pairs), default=0)
        if widest > self.slots.rank:
            raise ConfigError(f"the adapter has rank {widest}, and --max-lora-rank is {self.slots.rank}")
        found = self._find(pairs)
        cut: list[tuple[LoraWeight, list[Matrices | None]]] = []
        for weight in self.weights:
            cut.append(
                (
                    weight,
                    [
                        piece.cut(found[piece.module]) if piece.module in found else None
                        for piece in weight.pieces
                    ],
                )
            )
        for weight, matrices in cut:
            weight.put(self.device, slot, matrices)
        self.device.settle()

    def _find(self, pairs: Sequence[LoraPair]) -> dict[str, LoraPair]:
        """Return the pairs by the names that this model has for their modules. Raises ConfigError."""
        modules = {name.replace(_LANGUAGE, ""): name for name in (*self.modules, *self.elsewhere)}
        found: dict[str, LoraPair] = {}
        unknown = []
        for pair in pairs:
            module = _match(pair.module.replace(_LANGUAGE, ""), modules)
            if module is None:
                unknown.append(pair.module)
            elif module in found:
                raise ConfigError(f"{pair.module!r} and {found[module].module!r} are both for {module!r}")
            else:
                found[module] = pair
        if unknown:
            kinds = sorted({module.rpartition(".")[2] for module in modules})
            raise ConfigError(
                f"the adapter changes {list_names(unknown)}, and adapters of this model can change "
                f"{', '.join(kinds) or 'no module'} of its layers only"
            )
        return found


def _match(name: str, modules: Mapping[str, str]) -> str | None:
    """Return the module of that name, or of one that lacks its first parts, or of which it lacks them."""
    if name in modules:
        return modules[name]
    known = [
        module
        for other, module in modules.items()
        if other.endswith(f".{name}") or name.endswith(f".{other}")
    ]
    return known[0] if len(known) == 1 else None
