"""The context in which a model's layers build themselves."""

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import attrs
import msgspec
import torch
import torch.nn.functional as F

from tgi.device.attention import AttentionSpec
from tgi.device.base import Device
from tgi.device.batch import KVLayer
from tgi.plugins import ConfigError
from tgi.protocol import CacheGroup, TensorInfo
from tgi.weights import LayerSizes, Shard, Stage, TensorPart, Weights
from tgi.weights.formats import Dense, DenseWeight, LinearWeight, Rounding, WeightFormat
from tgi.weights.formats.measured import MeasuredFp8

from .cache_layers import CacheLayer, group_layers
from .lora import Loras

_DENSE = Dense()
_PIECE = 4 << 20
"""Bytes of a weight that are read before the device gets them; they stay in a cache of the processor."""
Observe = Callable[[LinearWeight, Sequence[TensorPart]], LinearWeight]


@attrs.define(eq=False)
class Build:
    """Reads a rank's share of the weights for the layers, and keeps account of what they ask for."""

    weights: Weights
    shard: Shard
    device: Device
    dtype: torch.dtype
    format: WeightFormat = _DENSE
    """Format of the linear weights that are not dense."""
    measured: MeasuredFp8 | None = None
    """Scales that were measured, of which those of keys and values come before the checkpoint's."""
    expert_parallel: bool = False
    """Whether a rank has whole experts, instead of a part of every expert."""
    loras: Loras | None = None
    """LoRA adapters, if there can be any."""
    wide_scores: bool = True
    """`ModelConfig.wide_scores`."""
    observe: Observe | None = None
    """Wraps the weights of linear layers; see `tgi.worker.measure`."""
    stage: Stage = Stage()  # noqa: RUF009 (frozen)
    """Part of the model that is built; see `layers`."""
    whole: Mapping[int, CacheLayer] = attrs.field(factory=dict)
    """Attention layers of all stages by number; empty: those of `cache`."""
    tensors: list[TensorInfo] = attrs.field(factory=list)
    """Tensors that were read, in order, once for each time."""
    cache: dict[int, CacheLayer] = attrs.field(factory=dict)
    """Attention layers by number."""
    cached: dict[int, str] = attrs.field(factory=dict)
    """Names of attention layers, by number, whose keys and values may have scales."""
    kv: dict[int, KVLayer] = attrs.field(factory=lambda: defaultdict(KVLayer))
    """Keys and values of attention layers by number; those of `cache` get memory before the first step."""
    changes_scores: bool = False
    """Whether an attention layer has slopes or caps its scores."""
    tied: dict[str, LinearWeight] = attrs.field(factory=dict)
    """Weights that an embedding and a head share, by the name of the module."""
    widest: int = 0
    """Largest number of output features of a linear layer on this rank."""
    _marks: list[int] = attrs.field(factory=list)
    """Number of tensors before each layer, and before what comes after the layers."""
    _share: float = 1.0
    """Share of a step's tokens that go through the layers which are built now."""
    _of_experts: bool = False
    """Whether those are experts."""
    _spare: torch.Tensor | None = None
    """Memory of a weight that the device has copied, for the next one."""
    _shared: str = ""
    """Module whose weight both embedding and head have; "": they differ, or are on different ranks."""

    def __contains__(self, name: str) -> bool:
        return name in self.weights

    @contextlib.contextmanager
    def seen_by(self, share: float) -> Iterator[None]:
        """Take note that tensors read in the body are experts', for that share of a step's tokens."""
        self._share, self._of_experts = share, True
        yield
        self._share, self._of_experts = 1.0, False

    def layers(self, count: int) -> Iterator[int]:
        """Yield the numbers of the layers that this stage has, of a model with `count` layers.

        Each is built before the next is asked for. A model that may run in stages builds what comes before
        its layers if `stage.first`, and what comes after them if `stage.last`; its `forward` begins with
        `Batch.received` otherwise, and returns the features [T, hidden size] for the next stage.
        """
        for number in self.stage.numbers(count):
            self._marks.append(len(self.tensors))
            yield number
        self._marks.append(len(self.tensors))

    @property
    def sizes(self) -> LayerSizes | None:
        """Bytes of the tensors by place; None of a model that has not asked for `layers`."""
        if not self._marks:
            return None
        bounds = [0, *self._marks, len(self.tensors)]
        before, *layers, after = (
            sum(tensor.bytes for tensor in self.tensors[begin:end]) for begin, end in pairwise(bounds)
        )
        return LayerSizes(before=before, layers=layers, after=after)

    def tie(self, embedding: str, head: str, tied: bool) -> tuple[str, str]:
        """Return the modules whose "weight" are the embedding and the head of a model that may tie them.

        A checkpoint of a tied model may have one of them, or both: a head with other numbers is used, as
        transformers does, because fine-tuning has changed it.
        """
        first, second = f"{embedding}.weight", f"{head}.weight"
        if not tied:
            return embedding, head
        shared = embedding
        if first not in self and second in self:
            shared = head
        elif second in self and not self.weights.equal(first, second):
            return embedding, head
        else:
            self.weights.dismiss(second)
        self._shared = shared if self.stage.count == 1 else ""
        return shared, shared

    def has_shape(self, name: str, shape: list[int]) -> bool:
        """Whether the checkpoint's tensor has that shape."""
        return self.weights.fault(name, shape) is None

    def read(self, *parts: TensorPart, rows: int = 0) -> torch.Tensor:
        """Return parts of tensors, one below the other, on the device and in the model's dtype.

        The numbers go straight from the file to the device. Zeros fill up to `rows` rows.
        """
        sizes = [part.size for part in parts]
        count = sum(size[0] for size in sizes)
        whole = self._empty(max(rows, count), *sizes[0][1:])
        begin = 0
        for number, (part, size) in enumerate(zip(parts, sizes, strict=True), 1):
            end = begin + size[0]
            self.keep(part.name, part.stored, whole[begin : None if number == len(parts) else end])
            self._read(part, whole[begin:end])
            begin = end
        whole[begin:].zero_()
        self.device.settle()
        return whole

    def read_raw(self, part: TensorPart, dtype: torch.dtype, kept: bool = True) -> torch.Tensor:
        """Return a part of a tensor in the host's memory, where a format can change it.

        `kept`: whether the rank keeps it as it is.
        """
        on_device = self.device.torch_device
        place = on_device if on_device.type == "meta" else torch.device("cpu")
        out = torch.empty(part.size, dtype=dtype, device=place)
        if kept:
            self.keep(part.name, part.stored, out, self.format.name)
        return self._read(part, out)

    def read_bytes(self, name: str) -> bytes:
        """Return the bytes of a tensor whose shape only the file knows; none without a file."""
        self.dismiss(name)
        return self.weights.bytes_of(name)

    def read_wide(self, part: TensorPart) -> torch.Tensor:
        """Return a part of a dense tensor on the device, in float32."""
        out = torch.empty(part.size, dtype=torch.float32, device=self.device.torch_device)
        self.keep(part.name, part.stored, out)
        self._read(part, out)
        self.device.settle()
        return out

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the device, in the model's dtype."""
        return tensor.to(self.device.torch_device, self.dtype)

    @cached_property
    def on_first_rank(self) -> torch.Tensor:
        """[1]: 1 on the first rank and 0 on others.

        It is the factor of a summand that a sum over the ranks has once, so that all do the same operations.
        """
        return self.put(torch.tensor([float(self.shard.rank == 0)]))

    def linear(self, *parts: TensorPart, exact: bool = False) -> LinearWeight:
        """Return the weight of a linear layer, ready for `Device.multiply`.

        Its rows are those of all parts ("….weight", [out, in]), one below the other, stored in the
        checkpoint's format or dense; it is dense where some are. `exact`: neither `--quantize` nor LoRA
        adapters may change it. Raises ConfigError for numbers that are neither.
        """
        missing = [self.format.missing(self, part) for part in parts]
        lacking = [(part, name) for part, name in zip(parts, missing, strict=True) if name is not None]
        for part, name in lacking:
            if not self.weights.is_plain(part.name):
                raise ConfigError(f"the checkpoint has no tensor {name!r}, and {part.name!r} is not dense")
        if 0 < len(lacking) < len(parts):
            weight = self.prepare(DenseWeight(torch.cat([self.dense(part) for part in parts])))
        else:
            stored = _DENSE if lacking or (exact and isinstance(self.format, Dense)) else self.format
            weight = self._linear(stored, parts)
        self.widest = max(self.widest, sum(part.size[0] for part in parts))
        if self.loras is not None and not exact and not self._of_experts:
            weight = self.loras.adapt(weight, parts)
        return weight if self.observe is None or exact else self.observe(weight, parts)

    def head(self, part: TensorPart, rows: int, *, unit: bool = False) -> LinearWeight:
        """Return the weight that gives logits, filled up with zeros, ready for `Device.multiply`.

        Most checkpoints have it dense; it is rounded if other layers are (`--quantize`). `unit`: its rows are
        divided by their lengths.
        """
        if not unit and self.keeps_table(part, rows):
            return self.prepare(self.format.read(self, part))
        if not unit and not self._stores_table(part):
            return self._linear(self._head_format, (part,), rows)
        matrix = self.read_table(part, rows)
        return self._prepare_as(self._head_format, DenseWeight(F.normalize(matrix) if unit else matrix), 1)

    def keeps_table(self, part: TensorPart, rows: int) -> bool:
        """Whether an embedding or a head with that many rows stays as the checkpoint stores it."""
        return "tied" in self.device.keeps and rows == part.size[0] and self._stores_table(part)

    def read_table(self, part: TensorPart, rows: int) -> torch.Tensor:
        """Return an embedding or a head as numbers, filled up with zeros."""
        if not self._stores_table(part):
            return self.read(part, rows=rows)
        return F.pad(self.dense(part), (0, 0, 0, rows - part.size[0]))

    def joins_tied(self, embedding: str) -> bool:
        """Whether an embedding may read its rows from the weight of the head that it is tied with."""
        known = "tied" in self.device.keeps and self.dtype in (torch.float32, torch.bfloat16)
        return known and embedding == self._shared and not isinstance(self._head_format, Rounding)

    def dense(self, part: TensorPart) -> torch.Tensor:
        """Return the weight of a linear layer as numbers, from any format of the checkpoint."""
        if isinstance(self.format, Dense) or self.format.missing(self, part) is not None:
            return self.read(part)
        count = len(self.tensors)
        numbers = self.put(self.format.read(self, part).dense())
        del self.tensors[count:]  # what was read is not kept
        self.keep(part.name, part.stored, numbers, f"{self.format.name}, expanded")
        return numbers

    def prepare(self, weight: LinearWeight) -> LinearWeight:
        """Return a weight ready for `Device.multiply`.

        The argument must not be used afterwards: its memory may hold the next weight.
        """
        prepared = self.device.prepare_linear(weight)
        copied = not isinstance(prepared, DenseWeight) or prepared.matrix.is_mkldnn
        if isinstance(weight, DenseWeight) and copied:
            self._spare = torch.empty(0, dtype=self.dtype).set_(weight.matrix.untyped_storage())
        return prepared

    def attend(self, layer: int, spec: AttentionSpec, shape: CacheLayer) -> KVLayer:
        """Announce the attention of a layer, and return its keys and values, which have no memory yet."""
        self.cache[layer] = shape
        self.changes_scores |= spec.changes_scores
        self.device.use(layer, spec)
        return self.kv[layer]

    def scale_cache(self, layer: int, name: str) -> None:
        """Give the device the scales of the keys and values of layer `name`, if the checkpoint has them."""
        self.cached[layer] = name
        scales = self.measured and self.measured.cache_scales(self, name)
        if scales := scales or self.format.cache_scales(self, name):
            self.device.scale_cache(self.kv[layer], *scales)

    def cache_groups(self, item: int) -> list[CacheGroup]:
        """Return the groups of the layers, whose numbers have `item` bytes."""
        return group_layers(self.whole or self.cache, self.cache, item)

    def keep(
        self,
        name: str,
        shape: Sequence[int],
        tensor: torch.Tensor,
        stored: str = "dense",
        size: int | None = None,
    ) -> None:
        """Take note of a tensor that the rank keeps, of which the checkpoint has the whole in `shape`.

        It takes `size` bytes, or as many as it has itself.
        """
        held, size = list(tensor.shape), tensor.nbytes if size is None else size
        self.tensors.append(TensorInfo(name, list(shape), held, stored, size, self._share))

    def dismiss(self, name: str) -> None:
        """Let a tensor be left unread."""
        self.weights.dismiss(name)

    def _stores_table(self, part: TensorPart) -> bool:
        """Whether the checkpoint has an embedding or a head in its format, and not dense.

        Without files, they are dense in formats that do not say otherwise.
        """
        if isinstance(self.format, Dense | Rounding) or self.format.missing(self, part) is not None:
            return False
        dense = part.name in self and self.weights.is_plain(part.name)
        return self.format.has_tables or not dense

    def skip_zeros(self, name: str) -> None:
        """Let a tensor be left unread if it is there and all its numbers are 0."""
        if name in self and self.weights.is_zero(name):
            self.dismiss(name)

    def _linear(self, stored: WeightFormat, parts: Sequence[TensorPart], rows: int = 0) -> LinearWeight:
        """Read a linear weight in that format, filled up with zeros to `rows` rows if it is dense."""
        if isinstance(stored, Rounding) or type(stored) is Dense:
            weight = self._in_pieces(stored, parts, rows)
            if weight is not None:
                return weight
        read = DenseWeight(self.read(*parts, rows=rows)) if rows else stored.read(self, *parts)
        return self._prepare_as(stored, read, len(parts))

    def _in_pieces(self, stored: Dense, parts: Sequence[TensorPart], rows: int) -> LinearWeight | None:
        """Give the device a weight in pieces; None if it takes none, or the files have it otherwise."""
        count, columns = sum(part.size[0] for part in parts), parts[0].size[1]
        if rows > count or not all(part.has_rows for part in parts):
            return None
        rounding = stored if isinstance(stored, Rounding) else None
        weight = self.device.open_linear(count, columns, self.dtype, rounding)
        if weight is None:
            return None
        step = max(1, _PIECE // (columns * self.dtype.itemsize * weight.STEP)) * weight.STEP
        piece = self._empty(min(step, count), columns)
        first = filled = 0
        for part in parts:
            size = None if rounding is None else rounding.bytes(*part.size)
            held = torch.empty(part.size, dtype=self.dtype, device="meta")
            self.keep(part.name, part.stored, held, stored.name, size)
            begin, last = 0, part.size[0]
            while begin < last:
                end = min(last, begin + len(piece) - filled)
                self._read(part.rows(begin, end), piece[filled : filled + end - begin])
                begin, filled = end, filled + end - begin
                if filled == len(piece) or first + filled == count:
                    weight.put(first, piece[:filled])
                    first, filled = first + filled, 0
        self._spare = piece.flatten()
        return weight

    @property
    def _head_format(self) -> WeightFormat:
        return self.format.head if isinstance(self.format, Rounding) else _DENSE

    def _prepare_as(self, stored: WeightFormat, weight: LinearWeight, count: int) -> LinearWeight:
        """Prepare a weight of that format, which the last `count` tensors that were read make up."""
        if not isinstance(stored, Rounding):
            return self.prepare(weight)
        for place, info in list(enumerate(self.tensors))[-count:]:
            size = stored.bytes(*info.part)
            self.tensors[place] = msgspec.structs.replace(info, format=stored.name, bytes=size)
        assert isinstance(weight, DenseWeight)
        rounded = self.device.round(weight.matrix, stored)
        self._spare = weight.matrix.flatten()
        return rounded

    def _read(self, part: TensorPart, out: torch.Tensor) -> torch.Tensor:
        dim, there = (1 - part.dim, out.T) if part.transposed else (part.dim, out)
        if part.index is None:
            self.weights.read(part.name, part.stored, dim, part.indices, there)
            return out
        (whole,) = self.weights.read(part.name, part.stored, 0, slice(part.index, part.index + 1))
        if part.indices is not None:
            whole = whole[(slice(None),) * dim + (part.indices,)]
        there.copy_(whole)
        return out

    def _empty(self, *shape: int) -> torch.Tensor:
        size, spare = math.prod(shape), self._spare
        if spare is not None and len(shape) > 1:
            self._spare = None
            if len(spare) >= size:
                return spare[:size].view(shape)
            del spare
        return torch.empty(shape, dtype=self.dtype, device=self.device.torch_device)
