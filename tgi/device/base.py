"""The definition of every operation that a model is made of, in plain torch and with static shapes.

It is right rather than fast. A device inherits from `Device` and overrides what it does faster; the tests
compare every override with this.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from tgi.plugins import ConfigError, DeviceSpec
from tgi.plugins.check import Check
from tgi.weights import Shard
from tgi.weights.formats import LinearWeight
from tgi.weights.formats.fp8 import FP8_LIMIT

from . import cgroups
from .attention import AttentionSpec, Kind, change_scores, distances
from .batch import Batch, KVCache
from .graphs import Counters, Program, Run
from .ranking import most_likely

Array = npt.NDArray[np.generic]
_LONG = timedelta(days=1)
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


class Device:
    """Plain torch on the CPU. Tensor arguments are not changed unless the description says so."""

    torch_device = torch.device("cpu")
    distributed_backend = "gloo"
    spec = PLAIN
    """Facts about the device that the server knows too."""
    keeps_graphs = False
    """Whether each program takes memory of its own."""
    workspaces = 1
    """The working memory of how many steps it holds at once."""
    asynchronous = False
    """Whether work goes on after `graph`ed programs and `fetch` have returned."""
    fp8_limit = FP8_LIMIT
    """The greatest number of 8 bits."""
    least_tokens = 1
    """Tokens that a step is padded to at least."""

    def __init__(self, threads: int = 0) -> None:
        self.threads = threads
        self._kinds: dict[int, Kind] = {}
        """Kind of each layer's attention."""
        if threads:
            torch.set_num_threads(threads)

    @property
    def compiles(self) -> bool:
        """Whether a step is a program of static shape; see `DeviceSpec`."""
        return self.spec.compiles

    @property
    def flat(self) -> bool:
        """Whether decode steps list the blocks of all rows together, in `Batch.flat`; see `DeviceSpec`."""
        return self.spec.flat

    def probes(self) -> Mapping[str, Callable[[], Check]]:
        """Return probes of behaviour that this device alone has, by the names of their checks."""
        return {}

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of that name; for "auto" the one this device computes fastest in."""
        found = torch.float32 if name == "auto" else getattr(torch, name, None)
        if found not in (torch.float32, torch.bfloat16, torch.float16):
            raise ConfigError(f"{name!r} is not a dtype that a model can run in")
        return found

    def cache_dtype(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """The dtype of keys and values for a model in `dtype`; "" is the model's own."""
        if name:
            raise ConfigError(f"a KV cache of {name!r} is not supported on this device")
        return dtype

    def free_bytes(self) -> int:
        """Memory that can still be allocated, in bytes, less a reserve for others."""
        return cgroups.free_bytes()

    def total_bytes(self) -> int:
        """Memory of the device; 0: not known."""
        return 0

    def settle(self) -> None:
        """Finish pending copies to the device, so that they hold no memory. Called after each weight."""

    # ---- programs, where shapes are fixed ----------------------------------------------------------------

    def prepare(self, model: nn.Module) -> None:
        """Called once with a model whose weights are loaded."""

    def graph(self, program: Program) -> Run:
        """Return the program, fast from its second call on. Results are valid until the next call."""
        return program

    def upload(self, *packed: Array) -> list[torch.Tensor]:
        """Copy arrays to the device. They must not be changed before what uses them has been fetched."""
        return [torch.from_numpy(array) for array in packed]

    def fetch(self, *tensors: torch.Tensor) -> Callable[[], list[Array]]:
        """Begin to copy results to the host; what is returned waits for them."""
        arrays: list[Array] = [tensor.numpy() for tensor in tensors]
        return lambda: arrays

    def seal(self) -> None:
        """From now on nothing should have to be compiled."""

    def counters(self) -> Counters:
        """What has been done so far."""
        return Counters()

    # ---- linear algebra ----------------------------------------------------------------------------------

    def prepare_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Take a linear layer's weight [out, in] in the form in which `linear` is fastest."""
        return weight.to(self.torch_device)

    def linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [n, in] times the prepared weight's transpose, plus bias [out] and residual [n, out]."""
        y = F.linear(x, weight, bias)
        return y if residual is None else residual + y

    def prepare_linear(self, weight: LinearWeight) -> LinearWeight:
        """Take a weight of any format in the form in which `multiply` is fastest."""
        return weight.prepare(self)

    def multiply(
        self,
        x: torch.Tensor,
        weight: LinearWeight,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [n, in] times a weight that `prepare_linear` gave, plus bias [out] and residual [n, out].

        A device overrides it for the formats that it has a kernel for.
        """
        return weight.multiply(self, x, bias, residual)

    def scale_cache(self, layer: int, key_scale: torch.Tensor, value_scale: torch.Tensor) -> None:
        """Called while the model is built, where the checkpoint has scales [] for an fp8 KV cache."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """x over the root of its mean square along the last dimension (in float32), times weight."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        return wide.to(x.dtype) * weight

    def layer_norm(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """x less its mean along the last dimension, over its standard deviation, times weight, plus bias."""
        return F.layer_norm(x, weight.shape, weight, bias, epsilon)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """x times the share of the normal distribution below it."""
        return F.gelu(x)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up, where gate and up are the halves of the last dimension."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def rotation(self, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [T, r / 2] as `rotary` takes them, [T, 1, r]; here the first half of sin is negated."""
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
        """Index of the greatest of each row of x [n, m] float32, the first of equals; [n] integers."""
        return x.argmax(-1)

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of each row of x [n, m] float32, [n, 1]."""
        return x.cumsum(-1)[:, -1:]

    def first_beyond(self, ascending: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Index of the first in each row of `ascending` [n, m] int32 that exceeds target [n, 1]; [n]."""
        return (ascending <= target).sum(-1, dtype=torch.int32)

    def most_likely(self, logprobs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and log-probabilities [rows, count] of the best of each row of [rows, vocab] float32.

        The lower id comes first among equals. Where fewer have a probability the id is -1.
        """
        return most_likely(logprobs, count)

    # ---- the KV cache and attention ----------------------------------------------------------------------

    def allocate_cache(
        self, layers: int, slots: int, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> KVCache:
        """Return a group of layers' keys and values, [slots, kv_heads, head_dim] each here, filled with 0."""
        shape = (layers, 2, slots, kv_heads, head_dim)
        whole = torch.zeros(shape, dtype=dtype, device=self.torch_device)
        return KVCache.of_group([(layer[0], layer[1]) for layer in whole], whole)

    def use(self, layer: int, spec: AttentionSpec) -> None:
        """Take note of a layer's attention while the model is built; `plan` prepares for these."""
        self._kinds[layer] = spec.kind

    def kinds(self, cache: KVCache, group: int) -> list[Kind]:
        """Return the kinds of the layers of a group."""
        used = (self._kinds[layer] for layer, of in enumerate(cache.groups) if of == group)
        return list(dict.fromkeys(used))

    def plan(self, batch: Batch, block_size: int) -> object:  # noqa: ARG002
        """What can be worked out once per step for the attention of all layers; kept as `batch.plan`."""
        return block_size

    def store_kv(self, layer: int, key: torch.Tensor, value: torch.Tensor, batch: Batch) -> None:
        """Write key and value [T, kv_heads, head_dim] to the batch's slots of a layer's cache."""
        keys, values = batch.cache.layers[layer]
        slots = batch.groups[batch.cache.groups[layer]].slots.long()
        keys.index_copy_(0, slots, key)
        values.index_copy_(0, slots, value)

    def attention(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        batch: Batch,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        """Causal attention of query [T, heads, head_dim] over a layer's cache, in the same shape.

        Query head h reads key/value head h * kv_heads // heads. `key` and `value` are those of the T tokens;
        they are in the cache already. What comes out for padding is arbitrary but finite.

        Here a row reads from the cache what was there before the step, and its own tokens from the arguments.
        """
        group, block_size = batch.groups[batch.cache.groups[layer]], batch.plan
        rows = group.tables.shape[0]
        assert isinstance(block_size, int)
        within = torch.arange(block_size, device=query.device)
        slots = (group.tables[:, :, None] * block_size + within).flatten(1)  # [rows, context]
        (_, heads, head_dim), context = query.shape, slots.shape[1]
        groups = heads // key.shape[1]

        def known(cached: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            """[rows, heads, context + tokens, head_dim]"""
            both = torch.cat((cached[slots], new.view(rows, -1, *new.shape[1:])), 1)
            return both.repeat_interleave(groups, 2).transpose(1, 2)

        keys, values = map(known, batch.cache.layers[layer], (key, value))
        queries = query.view(rows, -1, heads, head_dim).transpose(1, 2)
        distance, hidden = distances(batch.starts[:, None], group.bases, context, queries.shape[2])
        if spec.window is not None:
            hidden = hidden | (distance <= -spec.window)
        scores = change_scores((queries @ keys.transpose(2, 3)).float() * spec.scale, distance[:, None], spec)
        weights = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1).to(values.dtype)
        return (weights @ values).transpose(1, 2).reshape(query.shape)

    # ---- ranks -------------------------------------------------------------------------------------------

    def connect(self, shard: Shard, store: Path) -> None:
        """Find the other ranks, by a file that only they know, and hear of each. They share CPU threads.

        Called once, before any collective, where there are several. Whoever started the ranks knows how long
        they may wait for each other.
        """
        if self.threads:
            self.threads = max(1, self.threads // shard.size)
            torch.set_num_threads(self.threads)
        dist.init_process_group(
            self.distributed_backend,
            init_method=f"file://{store}",
            rank=shard.rank,
            world_size=shard.size,
            timeout=_LONG,
        )
        self.meet(shard)

    def meet(self, shard: Shard) -> None:
        """Wait until every rank is here."""
        heard = self.all_reduce(torch.ones(1, device=self.torch_device), shard).cpu()
        assert heard.tolist() == [shard.size], f"the sum of {shard.size} ones is {heard.tolist()}"

    def all_reduce(self, x: torch.Tensor, shard: Shard) -> torch.Tensor:
        """The sum of x over all ranks; may change x."""
        if shard.size > 1:
            dist.all_reduce(x)
        return x

    def all_gather(self, x: torch.Tensor, shard: Shard) -> torch.Tensor:
        """The ranks' x one after another along the last dimension."""
        if shard.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(shard.size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, -1)
