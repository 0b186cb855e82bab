"""LoRA: low-rank changes of linear layers, those of several adapters in one step (Hu et al. 2021, arXiv
2106.09685).

A rank has some slots, each for one adapter at a time. A row of a step names the slot of its adapter, or none.
An adapted weight adds to its product, for each row, the product with two small matrices of the row's slot.
The matrices of all slots are one table, and a mask hides what is not a token's own, so that a row's result
does not depend on others.

Both products are linear, so that the matrices are divided over the ranks as the weight is.
"""

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Self

import attrs
import torch

from tgi.device.base import Device
from tgi.plugins import ConfigError
from tgi.protocol import LoraSlots
from tgi.weights import TensorPart
from tgi.weights.formats import DenseWeight, LinearWeight, Operations, PreparedWeight
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

    mask: torch.Tensor | None = None
    """[T, slots * rank]: 1 in the columns that are a token's own, and 0 elsewhere; None: no row of the step
    has an adapter."""


@attrs.define(eq=False)
class LoraWeight(PreparedWeight):
    """A prepared weight of any format, to whose product the adapters add theirs."""

    base: LinearWeight
    pieces: Sequence[Piece]
    rows: LoraRows

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
        return y if self.rows.mask is None else self.add(device, x, y, self.rows.mask)

    @abstractmethod
    def add(self, device: Device, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return y [T, out] plus the adapters' products with x [T, in]; may change y.

        `mask` hides in between what is not a token's own.
        """

    @abstractmethod
    def put(self, device: Device, slot: int, matrices: Sequence[Matrices | None]) -> None:
        """Fill a slot with the matrices of each piece; None: the adapter has none for it."""


@attrs.define(eq=False)
class FixedTables(LoraWeight):
    """Adapters as tables that programs of fixed shape read, in which each slot has the same room."""

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

    def add(  # noqa: D102
        self,
        device: Device,  # noqa: ARG002
        x: torch.Tensor,
        y: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
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


@attrs.define(eq=False)
class PackedTables(LoraWeight):
    """Adapters as tables that are packed for the device again when one changes, up to the last full slot.

    A slot's place does not depend on others, and hidden columns add zeros: so a row's result does not either.
    """

    dtype: torch.dtype
    rank: int
    """Columns of a slot."""
    adapters: dict[int, Sequence[Matrices | None]] = attrs.field(factory=dict)
    """Matrices of each piece, by slot."""
    tables: tuple[LinearWeight, Sequence[LinearWeight]] | None = None
    """Weight [pieces * slots * rank, in], and the weights [out, slots * rank] of each piece."""

    def add(  # noqa: D102
        self, device: Device, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        if self.tables is None:
            return y
        down, ups = self.tables
        narrow = device.multiply(x, down).view(len(x), len(ups), -1)
        narrow = narrow * mask[:, None, : narrow.shape[2]]
        begin = 0
        for index, (piece, up) in enumerate(zip(self.pieces, ups, strict=True)):
            y[:, begin : begin + piece.outputs] += device.multiply(narrow[:, index].contiguous(), up)
            begin += piece.outputs
        return y

    def put(self, device: Device, slot: int, matrices: Sequence[Matrices | None]) -> None:
        """Pack all adapters again."""
        self.adapters.pop(slot, None)
        if any(matrices):
            self.adapters[slot] = matrices
        self.tables = None
        if not self.adapters:
            return
        columns = (max(self.adapters) + 1) * self.rank
        down = torch.zeros(len(self.pieces), columns, self.pieces[0].inputs, dtype=self.dtype)
        ups = [torch.zeros(piece.outputs, columns, dtype=self.dtype) for piece in self.pieces]
        for place, pairs in self.adapters.items():
            for index, pair in enumerate(pairs):
                if pair is not None:
                    own = slice(place * self.rank, place * self.rank + len(pair[0]))
                    down[index, own], ups[index][:, own] = pair
        flat = device.prepare_linear(DenseWeight(down.flatten(0, 1)))
        self.tables = flat, [device.prepare_linear(DenseWeight(up)) for up in ups]


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
            weight = FixedTables.of(base, pieces, self.rows, self.slots, like)
        else:
            weight = PackedTables(base, pieces, self.rows, self.dtype, self.slots.rank)
        self.weights.append(weight)
        return weight

    @property
    def bytes(self) -> int:
        """Bytes that full slots take; twice where they are packed."""
        numbers = sum(piece.inputs + piece.outputs for weight in self.weights for piece in weight.pieces)
        copies = 1 if self.device.compiles else 2
        return copies * self.slots.count * self.slots.rank * numbers * self.dtype.itemsize

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
    """Return the module whose name ends like `name`, if there is only one; either may lack leading parts."""
    if name in modules:
        return modules[name]
    known = [
        module
        for other, module in modules.items()
        if other.endswith(f".{name}") or name.endswith(f".{other}")
    ]
    return known[0] if len(known) == 1 else None
