"""All layers of a decoder in one call, which saves the time between the kernels."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

from .kernels import Kernels
from .lora import LoraRows, LoraTable
from .packed_ints import PackedInts

_Pointer, _Long, _Float = ctypes.c_void_p, ctypes.c_long, ctypes.c_float


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Weight(ctypes.Structure):
    """A linear layer as the functions of the library take it."""

    _fields_ = (
        *_fields(_Pointer, "numbers bias scales zeros shares minima table"),
        *_fields(_Long, "bits group span share_kind n"),
        *_fields(_Pointer, "next adapters"),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *_fields(_Pointer, "attention_norm mlp_norm query_norm key_norm"),
        *_fields(Weight, "qkv out up down"),
        *_fields(_Pointer, "keys values slopes sinks"),
        *_fields(_Long, "heads kv_heads size inner window group rotation"),
        *_fields(_Float, "epsilon scale softcap"),
    )


class _Places(ctypes.Structure):
    _fields_ = (*_fields(_Pointer, "slots tables bases"), *_fields(_Long, "width"))


class _Rotation(ctypes.Structure):
    _fields_ = (*_fields(_Pointer, "cos sin"), *_fields(_Long, "rotated"))


class _Step(ctypes.Structure):
    _fields_ = (
        *_fields(
            _Pointer, "x normal qkv attended gate_up gated places rotations offsets lengths starts loras"
        ),
        *_fields(_Long, "tokens rows hidden"),
    )


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A linear layer."""

    weight: torch.Tensor | Sequence[PackedInts]
    """The result of `Kernels.pack`; or those of `Kernels.pack_ints` and `Kernels.round_and_pack`, of the
    outputs one after another."""
    features: int
    """Number of output features."""
    bias: torch.Tensor | None
    loras: LoraTable | None = None

    @cached_property
    def structures(self) -> Sequence[Weight]:
        """The structure, and those that it points to."""
        bias, adapters = _place(self.bias), None if self.loras is None else self.loras.place
        weight = self.weight
        if isinstance(weight, torch.Tensor):
            return [Weight(weight.data_ptr(), bias, n=self.features, adapters=adapters)]
        made = [_integers(each) for each in weight]
        made[0].bias, made[0].adapters = bias, adapters
        for one, after in pairwise(made):
            one.next = ctypes.addressof(after)
        return made


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """RMS norm and attention, RMS norm and an MLP that SiLU gates, each pair added to its input."""

    epsilon: float
    """Epsilon of all norms."""
    attention_norm: torch.Tensor
    """Weight [hidden]."""
    mlp_norm: torch.Tensor
    query_norm: torch.Tensor | None
    """Weight [size] of the norm of each query before its rotation."""
    key_norm: torch.Tensor | None
    qkv: LinearLayer
    """Queries, then keys, then values."""
    out: LinearLayer
    up: LinearLayer
    """Gates, then what they multiply."""
    down: LinearLayer
    keys: torch.Tensor
    """The layer's cache, as in `Kernels.attention`, from which are also the arguments below."""
    values: torch.Tensor
    heads: int
    kv_heads: int
    size: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    slopes: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    rows: int = 0
    """Index of the layer's `Rows`."""
    rotation: int = -1
    """Index of the layer's rotation; -1: none."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a step in the cache of some layers, as in `Kernels.store_kv` and `Kernels.attention`."""

    slots: torch.Tensor
    tables: torch.Tensor
    offsets: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor
    bases: torch.Tensor | None


class Decoder:
    """Layers that run in one call, with the same bits as kernel by kernel."""

    def __init__(self, kernels: Kernels, layers: Sequence[Layer]) -> None:
        self._kernels, self._layers = kernels, layers
        self._structures = (_Layer * len(layers))(*map(_layer, layers))
        heads = max(layer.heads * layer.size for layer in layers)
        qkv = max((layer.heads + 2 * layer.kv_heads) * layer.size for layer in layers)
        inner = max(layer.up.features // 2 for layer in layers)
        hidden = layers[0].attention_norm.shape[0]
        self._widths = hidden, qkv, heads, 2 * inner, inner
        self._step = _Step()
        self._scratch = torch.empty(0)
        self._places = (_Places * 0)()
        self._rotations = (_Rotation * 0)()

    def run(
        self,
        x: torch.Tensor,
        rows: Sequence[Rows],
        rotations: Sequence[tuple[torch.Tensor, torch.Tensor]],
        loras: LoraRows | None = None,
    ) -> None:
        """Turn x [tokens, hidden], contiguous, into the output of the last layer.

        If layers see windows of different sizes, each has its `Rows` of the same tokens. rotations are
        cos and sin of `Kernels.rotary`.
        """
        assert x.is_contiguous()
        step, first = self._step, rows[0]
        if (step.tokens, len(self._places), len(self._rotations)) != (x.shape[0], len(rows), len(rotations)):
            self._make_room(x, len(rows), len(rotations))
        step.x, step.rows = x.data_ptr(), first.lengths.shape[0]
        step.offsets, step.lengths = first.offsets.data_ptr(), first.lengths.data_ptr()
        step.starts, step.loras = first.starts.data_ptr(), None if loras is None else loras.place
        for places, each in zip(self._places, rows, strict=True):
            places.slots, places.tables = each.slots.data_ptr(), each.tables.data_ptr()
            places.bases, places.width = _place(each.bases), each.tables.shape[1]
        for rotation, (cos, sin) in zip(self._rotations, rotations, strict=True):
            rotation.cos, rotation.sin, rotation.rotated = cos.data_ptr(), sin.data_ptr(), 2 * cos.shape[1]
        self._kernels.decode(x.dtype, self._structures, step)

    def _make_room(self, x: torch.Tensor, groups: int, rotations: int) -> None:
        """Make what a step shares with the next one, if that has as many tokens as x [tokens, hidden]."""
        tokens, hidden = x.shape
        step, places, turns = self._step, (_Places * groups)(), (_Rotation * rotations)()
        self._scratch = x.new_empty(sum(self._widths) * tokens)
        place = self._scratch.data_ptr()
        for name, width in zip(("normal", "qkv", "attended", "gate_up", "gated"), self._widths, strict=True):
            setattr(step, name, place)
            place += width * tokens * x.itemsize
        step.places, step.rotations = ctypes.addressof(places), ctypes.addressof(turns)
        step.tokens, step.hidden = tokens, hidden
        self._places, self._rotations = places, turns


def weight_of(linear: LinearLayer) -> Weight:
    """Return the structure of a layer, which must outlive it."""
    return linear.structures[0]


def _integers(weight: PackedInts) -> Weight:
    places = (weight.scales, weight.zeros, weight.shares, weight.minima, weight.table)
    return Weight(weight.numbers.data_ptr(), None, *map(_place, places), *weight.sizes, weight.n)


def _layer(layer: Layer) -> _Layer:
    return _Layer(
        *map(_place, (layer.attention_norm, layer.mlp_norm, layer.query_norm, layer.key_norm)),
        *map(weight_of, (layer.qkv, layer.out, layer.up, layer.down)),
        *map(_place, (layer.keys, layer.values, layer.slopes, layer.sinks)),
        layer.heads, layer.kv_heads, layer.size, layer.up.features // 2,
        layer.window, layer.rows, layer.rotation, layer.epsilon, layer.scale, layer.softcap,
    )  # fmt: skip


def _place(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
