"""The decoder of Llama and of families that resemble it: `LlamaConfig` says in what they differ.

`tgi.plugins.llama_config` reads its config.json.
"""

from functools import cached_property
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import nn

from tgi.device import decoder
from tgi.device.activation import activate, gate
from tgi.device.batch import Batch
from tgi.device.decoder import Rotation, RunLayers
from tgi.plugins.llama_config import LlamaConfig, Names
from tgi.weights import TensorPart

from .attention import Attention, alibi_slopes
from .build import Build
from .latent import LatentAttention
from .linear import ColumnLinear, Embedding, GroupedQKV, Head, RowLinear
from .moe import MixtureOfExperts
from .norm import HeadNorm, describe_norm, make_norm
from .rotary import Rotations


class SelfAttention(nn.Module):
    """Attention with its projections, which are modules below `name`."""

    def __init__(self, build: Build, name: str, layer: int, config: LlamaConfig) -> None:
        super().__init__()
        names, bias, rope = config.names, config.qkv_bias, config.ropes[layer]
        heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
        fused = [f"{name}.{part}" for part in names.qkv]
        self.qkv: ColumnLinear | GroupedQKV
        if config.qkv_by_group:
            self.qkv = GroupedQKV(build, fused[0], config.hidden_size, heads, kv_heads, size, bias)
        else:
            pieces = [heads, kv_heads, kv_heads]
            sizes = [count * size for count in pieces]
            self.qkv = ColumnLinear(build, fused, config.hidden_size, sizes, bias, pieces, config.transposed)
        build.scale_cache(layer, name)
        sinks = None
        if config.sinks:
            part = TensorPart(f"{name}.sinks", (heads,), 0, build.shard.cut(heads))
            sinks = build.read(part).float()
        norms = None
        if config.head_norm is not None and (rope or config.head_norm != "plain"):
            query_norm = HeadNorm(build, f"{name}.{names.query_norm}", heads, config)
            norms = query_norm, HeadNorm(build, f"{name}.{names.key_norm}", kv_heads, config)
        self.attention = Attention(
            build,
            layer,
            heads,
            kv_heads,
            size,
            scale=config.attention_scale,
            window=config.windows[layer],
            chunked=config.chunked,
            slopes=alibi_slopes(heads) if config.alibi else None,
            softcap=config.attention_softcap,
            sinks=sinks,
            norms=norms,
            interleaved=rope.dim if rope and config.interleaved else 0,
            clip=config.clip_qkv,
            temperature=config.temperature if rope is None else None,
        )
        out, hidden = f"{name}.{names.out}", config.hidden_size
        self.out = RowLinear(build, out, heads * size, hidden, config.out_bias, config.transposed)

    def forward(
        self, x: torch.Tensor, batch: Batch, rotation: Rotation | None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[T, hidden_size] to the same, plus the residual."""
        return self.out(self._attend(x, batch, rotation), residual)  # type: ignore[no-any-return]

    def partial(
        self, x: torch.Tensor, batch: Batch, rotation: Rotation | None, residual: torch.Tensor
    ) -> torch.Tensor:
        """Return this rank's summand of the result."""
        return self.out.partial(self._attend(x, batch, rotation), residual)

    def _attend(self, x: torch.Tensor, batch: Batch, rotation: Rotation | None) -> torch.Tensor:
        return self.attention(self.qkv(x), batch, rotation)  # type: ignore[no-any-return]

    def describe(self) -> decoder.SelfAttention | None:
        """Return the attention for `Device.join_layers`; None if it is of a less common kind."""
        out = self.out.describe()
        return None if out is None else self.attention.describe(self.qkv.describe(), out)


class MLP(nn.Module):
    """Two linear layers with an activation between them, and, if it is gated, a third beside the first.

    down(silu(gate(x)) * up(x)) is called SwiGLU (Shazeer 2020, arXiv 2002.05202).
    """

    def __init__(self, build: Build, name: str, inner: int, config: LlamaConfig) -> None:
        super().__init__()
        self._device, self._kind, self._gated = build.device, config.activation, config.gated
        names, hidden, bias = config.names, config.hidden_size, config.mlp_bias
        up, sizes = [f"{name}.{part}" for part in names.up], [inner] * (2 if config.gated else 1)
        self.up = ColumnLinear(build, up, hidden, sizes, bias, transposed=config.transposed)
        self.down = RowLinear(build, f"{name}.{names.down}", inner, hidden, bias, config.transposed)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, partial: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[T, hidden] to the same, plus the residual, or plus the ranks' partial results."""
        return self.down(self._inner(x), residual, partial)  # type: ignore[no-any-return]

    def partial(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to this rank's summand of the same."""
        return self.down.partial(self._inner(x))

    def describe(self) -> decoder.GatedMLP | None:
        """Return the MLP for `Device.join_layers`; None if it is of a less common kind."""
        down = self.down.describe()
        if down is None or not self._gated or self._kind != "silu":
            return None
        return decoder.GatedMLP(self.up.describe(), down)

    def _inner(self, x: torch.Tensor) -> torch.Tensor:
        return (gate if self._gated else activate)(self._device, self._kind, self.up(x))


class LlamaLayer(nn.Module):
    """Attention and an MLP, which the decoder makes, each between norms and added to its input."""

    def __init__(self, decoder: "LlamaDecoder", config: LlamaConfig, build: Build, layer: int) -> None:
        super().__init__()
        names, name = config.names, config.names.layer.format(layer)

        def norm(which: str | None) -> nn.Module | None:
            return make_norm(build, f"{name}.{which}", config.hidden_size, config) if which else None

        self.before_attention = norm(names.before_attention)
        self.attention: Any = decoder.make_attention(config, build, layer)
        self.after_attention, self.before_mlp = map(norm, (names.after_attention, names.before_mlp))
        self.mlp = decoder.make_mlp(config, build, layer)
        self.after_mlp = norm(names.after_mlp)
        self.kv = build.kv[layer]
        """Keys and values, whose group is all that a program compiled for the layer sees of the batch's."""
        self._parallel, self._scale = config.parallel, config.residual_scale

    def forward(self, x: torch.Tensor, batch: Batch, rotation: Rotation | None) -> torch.Tensor:
        """[T, hidden_size] to the same."""
        normal = _apply(self.before_attention, x)
        if self._parallel:
            partial = self.attention.partial(normal, batch, rotation, residual=x)
            normal = normal if self.before_mlp is None else self.before_mlp(x)
            return self.mlp(normal, partial=partial)  # type: ignore[no-any-return]
        if self.after_attention is None and self._scale == 1:
            x = self.attention(normal, batch, rotation, residual=x)
        else:
            x = x + _apply(self.after_attention, self.attention(normal, batch, rotation)) * self._scale
        normal = _apply(self.before_mlp, x)
        if self.after_mlp is None and self._scale == 1:
            return self.mlp(normal, residual=x)  # type: ignore[no-any-return]
        return x + _apply(self.after_mlp, self.mlp(normal)) * self._scale

    def describe(self, rotation: int | None) -> decoder.DecoderLayer | None:
        """Return the layer, which has that rotation, for `Device.join_layers`; None if it is less common."""
        if self._parallel or self._scale != 1 or self.after_attention or self.after_mlp:
            return None
        if not isinstance(self.attention, SelfAttention) or not isinstance(self.mlp, MLP):
            return None
        attention, mlp = self.attention.describe(), self.mlp.describe()
        attention_norm, mlp_norm = describe_norm(self.before_attention), describe_norm(self.before_mlp)
        if attention is None or mlp is None or attention_norm is None or mlp_norm is None:
            return None
        return decoder.DecoderLayer(
            attention_norm=attention_norm, attention=attention, rotation=rotation, mlp_norm=mlp_norm, mlp=mlp
        )


class LlamaDecoder(nn.Module):
    """The whole model. A family whose layers have another attention or MLP overrides what makes it."""

    def __init__(self, config: LlamaConfig, build: Build) -> None:
        super().__init__()
        names = _names(config, build)
        config = attrs.evolve(config, names=names)
        self._device = build.device
        ropes = list(dict.fromkeys(rope for rope in config.ropes if rope is not None))
        self.rotary = Rotations(build, ropes) if ropes else None
        embedding, head = build.tie(names.embedding, names.head, config.tie_word_embeddings)
        if build.stage.first:
            self._build_embedding(config, build, embedding)
        numbers = build.layers(config.num_layers)
        self.layers = nn.ModuleList(LlamaLayer(self, config, build, number) for number in numbers)
        self._rotations = [
            None if (rope := config.ropes[number]) is None else ropes.index(rope)
            for number in build.stage.numbers(config.num_layers)
        ]
        self._last = build.stage.last
        if self._last:
            self._build_head(config, build, head)

    def _build_embedding(self, config: LlamaConfig, build: Build, embedding: str) -> None:
        """Build what comes before the layers; `embedding` is the name of the module."""
        names, hidden = config.names, config.hidden_size
        self.embed = Embedding(build, embedding, config.vocab_size, hidden)
        self._embedding_scale = None
        if config.embedding_scale != 1:
            self._embedding_scale = build.put(torch.tensor([config.embedding_scale]))
        self.positions = None
        if names.positions is not None:
            shape = (config.learned_positions or config.max_position, hidden)
            self.positions = build.read(TensorPart(f"{names.positions}.weight", shape))
        norm = names.embedding_norm
        self.embedding_norm = make_norm(build, norm, hidden, config) if norm else None

    def _build_head(self, config: LlamaConfig, build: Build, head: str) -> None:
        """Build what comes after the layers; `head` is the name of the module that has the weight."""
        names, hidden = config.names, config.hidden_size
        self.norm = make_norm(build, names.norm, hidden, config)
        self.head = Head(
            build,
            head,
            config.vocab_size,
            hidden,
            names.head if config.head_bias else None,
            scale=config.logit_scale,
            softcap=config.logit_softcap,
            unit=config.unit_head,
        )

    def make_attention(self, config: LlamaConfig, build: Build, layer: int) -> nn.Module:
        """Build the attention of a layer, which is called as `SelfAttention`."""
        if config.latent is not None:
            name = f"{config.names.layer}.{config.names.attention}".format(layer)
            return LatentAttention(build, name, layer, config, config.latent)
        return SelfAttention(
            build, f"{config.names.layer}.{config.names.attention}".format(layer), layer, config
        )

    def make_mlp(self, config: LlamaConfig, build: Build, layer: int) -> nn.Module:
        """Build the MLP of a layer, which is called as `MLP`."""
        name, experts = config.names.layer.format(layer), config.experts
        if experts is None or not experts.layers[layer]:
            return MLP(build, f"{name}.{config.names.mlp}", config.intermediate_size, config)
        shared = None
        if experts.shared:
            names = attrs.evolve(config.names, up=experts.shared_up, down=experts.shared_down)
            like = attrs.evolve(config, names=names)
            shared = MLP(build, f"{name}.{experts.shared_name}", experts.shared, like)
        return MixtureOfExperts(build, f"{name}.{experts.name}", config, shared)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of `batch.last`, [n, vocab_size]; of a stage before the last one, [T, hidden_size]."""
        x = self._embed(batch) if batch.received is None else batch.received
        rotations = [] if self.rotary is None else self.rotary(batch)
        if self._joined is not None:
            x = self._joined(x, batch, rotations)
        else:
            for layer, rotation in zip(self.layers, self._rotations, strict=True):
                x = layer(x, batch, None if rotation is None else rotations[rotation])
        return self.head(self.norm(x), batch) if self._last else x

    def _embed(self, batch: Batch) -> torch.Tensor:
        x: torch.Tensor = self.embed(batch.tokens)
        if self._embedding_scale is not None:
            x = x * self._embedding_scale
        if self.positions is not None:
            places = batch.positions.clamp_max(len(self.positions) - 1)  # beyond only in padding
            x = x + F.embedding(places, self.positions)
        return _apply(self.embedding_norm, x)

    @cached_property
    def _joined(self) -> RunLayers | None:
        """All layers in one call, if the device has that for them."""
        pairs = zip(self.layers, self._rotations, strict=True)
        every = [layer.describe(rotation) for layer, rotation in pairs]  # type: ignore[operator]
        layers = [layer for layer in every if layer is not None]
        return self._device.join_layers(layers) if len(layers) == len(every) else None


def _apply(norm: nn.Module | None, x: torch.Tensor) -> torch.Tensor:
    return x if norm is None else norm(x)


def _names(config: LlamaConfig, build: Build) -> Names:
    """Return the names that the checkpoint has, perhaps without the first word, as those of bare decoders."""
    bare = config.names.moved(config.names.layer.partition(".")[0] + ".", "")
    all_names = (config.names, *config.other_names, bare)
    return next((names for names in all_names if f"{names.norm}.weight" in build), config.names)
