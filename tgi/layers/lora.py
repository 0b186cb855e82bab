"""The LoRA adapters of a rank: which weights they change, and this rank's share of their matrices.

A rank has some slots, each for one adapter at a time. Products with the matrices are linear, so that they are
divided over the ranks as the weight is. `tgi.device.lora` multiplies.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import attrs
import torch

from tgi.device.base import Device
from tgi.device.lora import LoraRows, LoraShape, LoraWeight, Matrices
from tgi.plugins import ConfigError
from tgi.protocol import LoraSlots
from tgi.weights import TensorPart
from tgi.weights.formats import LinearWeight
from tgi.weights.lora_file import LoraPair
from tgi.weights.tensor_file import list_names

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
class Loras:
    """The adapters of a rank."""

    device: Device
    dtype: torch.dtype
    slots: LoraSlots
    weights: list[tuple[LoraWeight, Sequence[Piece]]] = attrs.field(factory=list)
    """Weights that adapters may change, and their pieces."""
    rows: LoraRows = attrs.field(factory=LoraRows)
    elsewhere: Collection[str] = ()
    """Modules of other stages."""

    @property
    def modules(self) -> set[str]:
        """Names of the modules that adapters may change here."""
        return {piece.module for _, pieces in self.weights for piece in pieces}

    def adapt(self, base: LinearWeight, parts: Iterable[TensorPart]) -> LoraWeight:
        """Return a weight, made of these parts, that adapters may change."""
        pieces = [
            Piece(module, list(group)) for module, group in groupby(parts, key=lambda part: part.module)
        ]
        outputs = [piece.outputs for piece in pieces]
        shape = LoraShape(self.slots, pieces[0].inputs, outputs, self.dtype)
        weight = LoraWeight(base, self.device.lora_table(shape), self.rows)
        self.weights.append((weight, pieces))
        return weight

    @property
    def bytes(self) -> int:
        """Bytes that full slots take."""
        return sum(weight.table.bytes for weight, _ in self.weights)

    @property
    def columns(self) -> int:
        """Largest number of features that a token has between the two matrices of a weight."""
        return max((weight.table.columns for weight, _ in self.weights), default=0)

    def place(self, slots: torch.Tensor) -> Any:
        """Return the adapters of tokens whose slots [T] int32 are given, as `Batch.loras`."""
        return self.device.lora_rows(slots, self.slots, self.dtype)

    @torch.inference_mode()
    def put(self, slot: int, pairs: Sequence[LoraPair]) -> None:
        """Put an adapter into a slot. Raises ConfigError, and then changes nothing.

        Without pairs, a slot becomes one that changes nothing.
        """
        widest = max((len(pair.down) for pair in pairs), default=0)
        if widest > self.slots.rank:
            raise ConfigError(f"the adapter has rank {widest}, and --max-lora-rank is {self.slots.rank}")
        found = self._find(pairs)
        cut = [
            [piece.cut(found[piece.module]) if piece.module in found else None for piece in pieces]
            for _, pieces in self.weights
        ]
        self.device.settle()  # what is pending would make another program of the writes below
        for (weight, _), matrices in zip(self.weights, cut, strict=True):
            weight.table.put(slot, matrices)
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
    """Return the module whose name ends like `name`, if only one does; either may lack leading parts."""
    if name in modules:
        return modules[name]
    known = [
        module
        for other, module in modules.items()
        if other.endswith(f".{name}") or name.endswith(f".{other}")
    ]
    return known[0] if len(known) == 1 else None
