"""Definition of every operation that a model is made of, in plain torch and with static shapes.

It is right rather than fast. A device inherits from `Device` and overrides what it does faster; the tests
compare every override with this.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from tgi.plugins import ConfigError, DeviceSpec
from tgi.plugins.check import Check
from tgi.protocol import LoraSlots
from tgi.weights.formats import LinearWeight, PiecewiseWeight, Rounding
from tgi.weights.formats.fp8 import FP8_LIMIT

from . import cgroups, drawing
from .attention import AttentionSpec, Kind, change_scores, distances, weigh
from .batch import Batch, KVCache, KVLayer, pair
from .collectives import Collectives
from .decoder import DecoderLayer, RunLayers
from .experts import Experts
from .graphs import Program, Run
from .lora import LoraShape, LoraTable, SlotTable
from .ranking import most_likely

Array = npt.NDArray[np.generic]
PLAIN = DeviceSpec(
    name="plain",
    implementation="tgi.device.base:Device",
    block_size=16,
    batch_size=8,
    prefill_tokens=256,
    compiles=True,
    flat=False,
)
"""The definition as a device of its own, for tests."""


class Device(Collectives):
    """Plain torch on the CPU. An operation changes its arguments only if its description says so."""

    spec = PLAIN
    """Facts about the device that the server knows too."""
    keeps_graphs = False
    """Whether each program holds memory of its own."""
    workspaces = 1
    """Number of steps whose working memory exists at once."""
    asynchronous = False
    """Whether programs and `fetch` return before the device has done their work."""
    fp8_limit = FP8_LIMIT
    """Greatest number in 8 bits."""
    keeps: frozenset[str] = frozenset()
    """Bits of integer weights that are multiplied as they are; others are made dense at loading."""
    min_tokens = 1
    """Least number of tokens of a step, padding included."""

    def __init__(self, threads: int = 0) -> None:
        self.threads = threads
        self._kinds: dict[int, Kind] = {}
        """Kind of attention of each layer."""
        self._counts: dict[str, float] = defaultdict(float)
        if threads:
            torch.set_num_threads(threads)

    @property
    def compiles(self) -> bool:
        """Whether a step is a program of static shape; see `DeviceSpec`."""
        return self.spec.compiles

    @property
    def immediate(self) -> bool:
        """Whether the host reads what a step has left as soon as it has launched it."""
        return not (self.compiles or self.asynchronous)

    @property
    def flat(self) -> bool:
        """Whether decode steps list the blocks of all rows together, in `Batch.flat`; see `DeviceSpec`."""
        return self.spec.flat

    def probes(self) -> Mapping[str, Callable[[], Check]]:
        """Return probes of behaviour that this device alone has, by the names of their checks."""
        return {}

    def remarks(self) -> list[str]:
        """Return warnings about this device for the log of the server."""
        return []

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of that name; for "auto", the one in which this device computes fastest."""
        dtype = torch.float32 if name == "auto" else getattr(torch, name, None)
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ConfigError(f"{name!r} is not a dtype that a model can run in")
        return dtype

    def cache_dtype(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of keys and values for a model in `dtype`; "" means the model's own."""
        if name:
            raise ConfigError(f"a KV cache of {name!r} is not supported on this device")
        return dtype

    def free_bytes(self) -> int:
        """Return the bytes that can still be allocated, less a reserve for others."""
        return cgroups.free_bytes()

    def total_bytes(self) -> int:
        """Return the memory of the device in bytes; 0 if unknown."""
        return 0

    def used_bytes(self) -> int:
        """Return the memory that tensors take on the device, in bytes; 0 if unknown."""
        return 0

    # ---- programs, where shapes are fixed ----------------------------------------------------------------

    def prepare(self, model: nn.Module) -> None:
        """Prepare a model whose weights are loaded. Called once."""

    def graph(self, program: Program) -> Run:
        """Return a program that is fast from its second call on. Results are valid until the next call."""
        return program

    def upload(self, *packed: Array) -> list[torch.Tensor]:
        """Copy arrays to the device. They must not change before results that depend on them are fetched."""
        return [torch.from_numpy(array) for array in packed]

    def fetch(self, *tensors: torch.Tensor) -> Callable[[], list[Array]]:
        """Begin to copy results to the host, and return a function that waits for them."""
        arrays: list[Array] = [tensor.numpy() for tensor in tensors]
        return lambda: arrays

    def seal(self) -> None:
        """End the warm-up: nothing should be compiled from now on."""

    def count(self, metric: str, amount: float = 1) -> None:
        """Add to a counter of `tgi.metrics.Metrics`, by its name there.

        Called between programs: the Python code of a program may run only once.
        """
        self._counts[metric] += amount

    def counts(self) -> Mapping[str, float]:
        """Return what was counted since the device was opened, by metric."""
        return dict(self._counts)

    # ---- linear algebra ----------------------------------------------------------------------------------

    def prepare_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a linear layer's weight [out, in] in the form in which `linear` is fastest."""
        return weight.to(self.torch_device)

    def linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply x [n, in] by a prepared weight's transpose, and add bias [out] and residual [n, out]."""
        y = F.linear(x, weight, bias)
        return y if residual is None else residual + y

    def prepare_linear(self, weight: LinearWeight) -> LinearWeight:
        """Return a weight of any format in the form in which `multiply` is fastest."""
        return weight.prepare(self)

    def open_linear(
        self, rows: int, columns: int, dtype: torch.dtype, rounding: Rounding | None = None
    ) -> PiecewiseWeight | None:
        """Return a weight that gets its dense rows in pieces, and rounds them or keeps them as they are.

        None: `round` or `prepare_linear` takes all at once.
        """
        return None

    def round(self, matrix: torch.Tensor, rounding: Rounding) -> LinearWeight:
        """Return a dense weight [out, in] that is rounded, ready for `multiply`."""
        return self.prepare_linear(rounding.round(matrix if matrix.is_meta else matrix.cpu()))

    def multiply(
        self,
        x: torch.Tensor,
        weight: LinearWeight,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply x [n, in] by a prepared weight, and add bias [out] and residual [n, out]."""
        return weight.multiply(self, x, bias, residual)

    def lora_table(self, shape: LoraShape) -> LoraTable:
        """Return an empty table of adapters for a linear layer."""
        return SlotTable(self, shape)

    def lora_rows(self, slots: torch.Tensor, room: LoraSlots, dtype: torch.dtype) -> Any:
        """Return the adapters of a step's tokens as `LoraTable.add` takes them.

        `slots` [T] int32 are theirs, of as many as `room` says; -1: none. `dtype` is the model's.
        """
        return SlotTable.rows(slots)

    def prepare_experts(self, experts: Experts) -> Experts:
        """Return experts, whose weights are prepared, in the form in which `experts` is fastest."""
        return experts

    def experts(
        self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, experts: Experts
    ) -> torch.Tensor:
        """Return the sum of each token's experts on this rank, [T, hidden], for x [T, hidden].

        `chosen` [T, top] are the numbers of its experts, among all ranks', and `weights` [T, top] their
        factors. Here every expert computes every token.
        """
        y = x.new_zeros(x.shape)
        for index in range(len(experts.up)):
            weight = (weights * (chosen == experts.first + index)).sum(-1, keepdim=True)
            y = y + weight * experts.compute(self, index, x)
        return y

    def scale_cache(self, layer: KVLayer, key_scale: torch.Tensor, value_scale: torch.Tensor) -> None:
        """Take a layer's scales [] for an fp8 KV cache, if the checkpoint has them, before any step."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Divide x by the root mean square of its last dimension, in float32, and multiply by weight."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        return wide.to(x.dtype) * weight

    def gelu(self, x: torch.Tensor, tanh: bool = False) -> torch.Tensor:
        """Multiply x by the share of the normal distribution below it, or by its approximation by tanh."""
        return F.gelu(x, approximate="tanh" if tanh else "none")

    def sigmoid(self, x: torch.Tensor) -> torch.Tensor:
        """Return 1 / (1 + exp(-x))."""
        return x.sigmoid()

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up, where gate and up are the halves of the last dimension."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def join_layers(self, layers: Sequence[DecoderLayer]) -> RunLayers | None:
        """Return what runs these layers, all of a model's, faster than one by one; None: nothing does.

        The result is the same, bit for bit.
        """
        return None

    def cos_sin(self, angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines of angles float32."""
        return angles.cos(), angles.sin()

    def rotation(self, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin [T, r / 2] as `rotary` takes them, [T, 1, r]; here half of sin is negated."""
        return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]

    def rotary(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate the first r of the last dimension of x [T, heads, head_dim], halves paired (NeoX style).

        cos and sin [T, 1, r] are what `rotation` gave.
        """
        size = cos.shape[-1]
        turned = x[..., :size]
        swapped = turned.roll(size // 2, -1)
        turned = turned * cos + swapped * sin
        return turned if size == x.shape[-1] else torch.cat((turned, x[..., size:]), -1)

    # ---- the sampler, in which a row must not depend on how many there are ------------------------------

    def argmax(self, x: torch.Tensor) -> torch.Tensor:
        """Return the index [n] of the greatest value, or the first of equals, of each row [n, m] float32."""
        return x.argmax(-1)

    def log_softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of scores [n, m] float32."""
        return scores.log_softmax(-1)

    def greedy(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the index [n] that `argmax` gives for scores [n, m], and its log-probability [n] float32."""
        scores = scores.float()
        best = self.argmax(scores)
        return best, self.log_softmax(scores).gather(1, best[:, None].long())[:, 0]

    def draw(self, logprobs: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Draw an index [n] for each row [n, m] float32 by its random bits `keys` [n] int32.

        It is the one with the greatest log-probability - log(e), where each e is exponentially distributed
        and made of a hash of the row's bits and the index (the Gumbel-max trick). Where the probabilities of
        two rows with the same bits differ by the total variation d, the indices differ with a probability of
        at most 2 d / (1 + d). The inverse of a cumulative distribution, in which a rounding moves all that
        follows, makes them differ far more often. An index of probability 0 is never drawn.
        """
        return self.argmax(drawing.race(logprobs, keys))

    def top_cut(
        self, scores: torch.Tensor, top_k: torch.Tensor | None, top_p: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the least score [n, 1] that stays of each row [n, m] float32.

        That is of the best `top_k` [n] int32 (0: all), and of those of the fewest that have the share `top_p`
        [n] of their probability (1: all). None stands for rows without it.
        """
        return drawing.top_cut(scores, self.descending(scores), top_k, top_p, self.first_beyond)[0]

    def descending(self, x: torch.Tensor) -> torch.Tensor:
        """Return the values of each row of x [n, m] float32, the greatest first."""
        return x.sort(-1, descending=True).values

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of each row of x [n, m] float32, [n, 1]."""
        return x.cumsum(-1)[:, -1:]

    def first_beyond(self, ascending: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the index [n] of the first value above target [n, 1] in each row [n, m] int32."""
        return (ascending <= target).sum(-1, dtype=torch.int32)

    def most_likely(self, logprobs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and log-probabilities [n, count] of the best tokens in each row [n, vocab] float32.

        Among equals, the lower id comes first. Past the tokens that have a probability, the id is -1.
        """
        return most_likely(logprobs, count)

    # ---- the KV cache and attention ----------------------------------------------------------------------

    def allocate_cache(
        self, layers: int, slots: int, kv_heads: int, head_dim: int, dtype: torch.dtype, latent: bool = False
    ) -> KVCache:
        """Return a group of layers' keys and values, [slots, kv_heads, head_dim] each here, filled with 0.

        `latent`: they are one tensor, of which `attention` reads values as it reads keys.
        """
        shape = (layers, 1 if latent else 2, slots, kv_heads, head_dim)
        whole = torch.zeros(shape, dtype=dtype, device=self.torch_device)
        return KVCache.of_group([pair(layer.unbind(0)) for layer in whole], whole)

    def use(self, layer: int, spec: AttentionSpec) -> None:
        """Take note of a layer's attention while the model is built; `plan` prepares for these."""
        self._kinds[layer] = spec.kind

    def kinds(self, cache: KVCache, group: int) -> list[Kind]:
        """Return the kinds of the layers of a group."""
        numbered = zip(cache.numbers, cache.layers, strict=True)
        return list(dict.fromkeys(self._kinds[number] for number, layer in numbered if layer.group == group))

    def plan(self, batch: Batch, block_size: int) -> object:
        """Return what the attention of all layers shares in a step; it becomes `batch.plan`."""
        return block_size

    def store_kv(self, layer: KVLayer, key: torch.Tensor, value: torch.Tensor, batch: Batch) -> None:
        """Write key and value [T, kv_heads, head_dim] to the batch's slots of a layer's cache."""
        keys, values = layer.tensors
        slots = batch.places_of(layer).slots.long()
        keys.index_copy_(0, slots, key)
        if values is not keys:
            values.index_copy_(0, slots, value)

    def attention(
        self,
        layer: KVLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        batch: Batch,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        """Attend causally with query [T, heads, head_dim] over a layer's cache; the result has the same
        shape.

        Query head h reads key/value head h * kv_heads // heads. `key` and `value` are those of the T tokens,
        and are in the cache already. The result for padding is arbitrary but finite.

        Here a row reads the tokens before the step from the cache, and its own tokens from the arguments.
        """
        group, block_size = batch.places_of(layer), batch.plan
        rows = group.tables.shape[0]
        assert group.flat is None, "a device with DeviceSpec.flat has attention of its own; see StaticDevice"
        assert isinstance(block_size, int)
        within = torch.arange(block_size, device=query.device)
        slots = (group.tables[:, :, None] * block_size + within).flatten(1)  # [rows, context]
        (_, heads, head_dim), context = query.shape, slots.shape[1]
        groups = heads // key.shape[1]

        def known(cached: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            """Return [rows, heads, context + tokens, head_dim]."""
            both = torch.cat((cached[slots], new.view(rows, -1, *new.shape[1:])), 1)
            return both.repeat_interleave(groups, 2).transpose(1, 2)

        keys, values = map(known, layer.tensors, (key, value))
        queries = query.view(rows, -1, heads, head_dim).transpose(1, 2)
        distance, hidden = distances(batch.starts[:, None], group.bases, context, queries.shape[2])
        if spec.window is not None:
            places = torch.arange(queries.shape[2], device=query.device)
            hidden = hidden | spec.kind.hides(distance, batch.starts[:, None, None] + places[:, None])
        scores = change_scores((queries @ keys.transpose(2, 3)).float() * spec.scale, distance[:, None], spec)
        weights = weigh(scores.masked_fill(hidden[:, None], -torch.inf), spec).to(values.dtype)
        return (weights @ values).transpose(1, 2).reshape(query.shape)
