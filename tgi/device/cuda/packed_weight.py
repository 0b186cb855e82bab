"""Weights of 4 or 8 bits in the order in which a kernel reads them, which expands them as it multiplies.

Inputs of integers and of fp8 in blocks are not rounded; those of other fp8 are, as `Fp8Weight` defines.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import attrs
import torch
import torch.nn.functional as F

from tgi.device.experts import Experts
from tgi.weights.formats import IntegerWeight, LinearWeight, Operations, PreparedWeight
from tgi.weights.formats.fp8 import FP8, FP8_LIMIT, Fp8Weight, Scale, row_scale
from tgi.weights.formats.fp8_blocks import BLOCK, Fp8BlockWeight

if TYPE_CHECKING:
    from .triton_experts import Pairs

_DEPTH = 128
"""Most input features of a block."""
_LEAST = 32
"""Fewest, which the tensor cores multiply at once in fp8."""
_FP8_PRODUCTS = (8, 9)
"""First compute capability whose tensor cores multiply fp8."""
_TILES = ((16, 32, 4), (64, 64, 4), (128, 64, 8))
"""Rows, output features and warps of a tile; the first is taken whose rows suffice, or the last. Registers
suffice for all but float32, which always takes the first."""


@attrs.frozen
class Layout:
    """The way in which numbers are packed, and which of them share a scale."""

    size: int
    """Input features."""
    group: int
    """Input features that share a scale."""
    bits: int
    floats: bool = False
    """Whether numbers are e4m3."""
    offset: int = 0
    """Number of input features of the first group that are on other ranks."""

    @property
    def groups(self) -> int:
        """Number of groups."""
        return -(-(self.offset + self.size) // self.group)

    @property
    def _even(self) -> int:
        """Largest power of 2, at most _DEPTH, into which groups divide evenly."""
        return _DEPTH if self.groups == 1 else math.gcd(self.group, self.offset, _DEPTH)

    @property
    def whole(self) -> bool:
        """Whether a block lies in one group."""
        return self._even >= _LEAST

    @property
    def depth(self) -> int:
        """Input features of a block."""
        return max(_LEAST, min(self._even, 1 << (self.size - 1).bit_length()))

    def pack(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return numbers [out, in] uint8 as bytes [blocks, out, depth * bits / 8], filled up with zeros.

        Two numbers of 4 bits in a byte are half a block apart, the first in the low half.
        """
        parts = 8 // self.bits
        padded = F.pad(numbers, (0, -self.size % self.depth))
        blocks = padded.view(len(numbers), -1, parts, self.depth // parts).transpose(0, 1)
        octets = blocks[:, :, 0]
        return (octets if parts == 1 else octets | (blocks[:, :, 1] << self.bits)).contiguous()


@attrs.frozen(eq=False)
class PackedWeight(PreparedWeight):
    """The weight of a linear layer; or those of experts, with one more dimension before the others."""

    octets: torch.Tensor
    """[blocks, out, bytes] uint8."""
    scales: torch.Tensor
    """[groups, out] float32."""
    zeros: torch.Tensor | None
    """Integers [groups, out] uint8 that stand for 0; None: 2^(bits - 1)."""
    layout: Layout
    order: torch.Tensor | None = None
    """Input features [in] in the order of the weight's columns; None: their own."""
    rounds: bool = False
    """Whether inputs are rounded to fp8."""
    input: Scale | None = None
    """Scale by which they are; None: each row is, by its own greatest number."""

    @classmethod
    def of(cls, weight: LinearWeight, place: torch.device) -> Self | None:
        """Pack a weight, and put it on the GPU; None if the kernel does not take it."""
        if isinstance(weight, IntegerWeight):
            nested = weight.shares, weight.minima, weight.table
            if weight.bits not in (4, 8) or any(each is not None for each in nested):
                return None
            layout = Layout(weight.numbers.shape[1], weight.group, weight.bits)
            packed = cls._placed(layout, weight.numbers, weight.scales, place)
            zeros = None if weight.zeros is None else weight.zeros.T.contiguous().to(place)
            order = None if weight.order is None else weight.order.to(place)
            return attrs.evolve(packed, zeros=zeros, order=order)
        if isinstance(weight, Fp8Weight):
            size, scale = weight.numbers.shape[1], weight.input and weight.input.to(place)
            numbers, layout = weight.numbers.view(torch.uint8), Layout(size, size, 8, floats=True)
            packed = cls._placed(layout, numbers, weight.scales[:, None], place)
            return attrs.evolve(packed, rounds=True, input=scale)
        if isinstance(weight, Fp8BlockWeight):
            layout = Layout(weight.numbers.shape[1], BLOCK, 8, floats=True, offset=weight.offset)
            return cls._placed(layout, weight.numbers.view(torch.uint8), weight.scales, place)
        return None

    @classmethod
    def _placed(
        cls, layout: Layout, numbers: torch.Tensor, scales: torch.Tensor, place: torch.device
    ) -> Self:
        return cls(layout.pack(numbers).to(place), scales.T.contiguous().to(place), None, layout)

    @classmethod
    def stack(cls, weights: Sequence[LinearWeight]) -> "PackedWeight | None":
        """Return the weights of experts as one; None if they are not alike.

        Inputs that are rounded are each by their own greatest number.
        """
        packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
        layouts = {weight.layout for weight in packed}
        if len(packed) < len(weights) or len(layouts) > 1 or any(each.order is not None for each in packed):
            return None
        zeros = None
        if any(each.zeros is not None for each in packed):
            zeros = torch.stack([each._zeros_or_middle for each in packed])
        octets = torch.stack([each.octets for each in packed])
        scales = torch.stack([each.scales for each in packed])
        return attrs.evolve(packed[0], octets=octets, scales=scales, zeros=zeros, input=None)

    def parts(self) -> "list[PackedWeight]":
        """Return the weight of each expert."""
        zeros = [None] * len(self.octets) if self.zeros is None else list(self.zeros)
        parts = zip(self.octets, self.scales, zeros, strict=True)
        return [attrs.evolve(self, octets=one, scales=two, zeros=three) for one, two, three in parts]

    @property
    def _zeros_or_middle(self) -> torch.Tensor:
        middle = torch.full_like(self.scales, 2 ** (self.layout.bits - 1), dtype=torch.uint8)
        return middle if self.zeros is None else self.zeros

    def multiply(
        self,
        device: Operations,  # noqa: ARG002
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply, add in float32, and round once."""
        out = x.new_empty(len(x), self.scales.shape[1])
        fitting = [tile for tile in _TILES if len(x) <= tile[0] or x.dtype == torch.float32]
        tile = (fitting or _TILES[-1:])[0]
        places = (self.octets,) * 4  # unread
        self._launch(-(-len(x) // tile[0]), tile, x, out, bias, residual, places, PAIRS=False, TOP=0)
        return out

    def multiply_pairs(
        self, x: torch.Tensor, biases: torch.Tensor | None, pairs: "Pairs", top: int = 0
    ) -> torch.Tensor:
        """Compute `triton_experts.multiply_pairs`."""
        out = x.new_zeros(len(pairs.order), self.scales.shape[2])
        tile = (pairs.rows, *_TILES[1][1:])
        places = pairs.order, pairs.experts, pairs.begins, pairs.ends
        self._launch(len(pairs.experts), tile, x, out, biases, None, places, PAIRS=True, TOP=top)
        return out

    def _launch(
        self,
        tiles: int,
        tile: tuple[int, int, int],
        x: torch.Tensor,
        out: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        places: tuple[torch.Tensor, ...],
        **kinds: Any,
    ) -> None:
        """Compute `out`, in `tiles` times the rows of a tile."""
        from .triton_packed import multiply_packed

        layout, factors, step = self.layout, self.scales, 0
        rows, columns, warps = tile
        if self.order is not None:
            x = x.index_select(1, self.order)
        if self.rounds:
            scale = self.input or row_scale(x, FP8_LIMIT)
            x = (x.float() * scale.inverse).clamp(-FP8_LIMIT, FP8_LIMIT).to(FP8)
            # Sums of fp8 products have fewer bits than float32 on some GPUs.
            if out.dtype == torch.float32 or not has_fp8_products():
                x = x.to(out.dtype)
            factors, step = scale.value, int(scale.value.dim() > 0)
        multiply_packed[tiles, -(-out.shape[1] // columns)](
            x.contiguous(), self.octets, self.scales, self.octets if self.zeros is None else self.zeros,
            factors, self.scales if bias is None else bias,
            out if residual is None else residual.contiguous(), out, *places,
            *out.shape, layout.size, layout.group, layout.offset, layout.groups, step,
            BITS=layout.bits, FLOATS=layout.floats, WHOLE=layout.whole, DEPTH=layout.depth,
            ZEROS=self.zeros is not None, FACTORS=self.rounds, BIAS=bias is not None,
            RESIDUAL=residual is not None, ROWS=rows, COLUMNS=columns, num_warps=warps, **kinds,
        )  # fmt: skip


def has_fp8_products() -> bool:
    """Whether the GPU multiplies fp8; the interpreter does."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= _FP8_PRODUCTS


@attrs.frozen(eq=False, kw_only=True)
class PackedExperts(Experts):
    """Experts in one packed weight each for `up` and for `down`, of which those are parts."""

    ups: PackedWeight
    downs: PackedWeight

    @classmethod
    def of(cls, experts: Experts) -> Self | None:
        """Stack the weights; None if they are not packed alike."""
        ups, downs = PackedWeight.stack(experts.up), PackedWeight.stack(experts.down)
        if ups is None or downs is None:
            return None
        fields = attrs.asdict(experts, recurse=False) | {"up": ups.parts(), "down": downs.parts()}
        return cls(**fields, ups=ups, downs=downs)
