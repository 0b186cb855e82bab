"""All layers of a decoder as one call of the kernels."""

from collections.abc import Sequence

import attrs
import torch
from tgi_cpu_kernels import Kernels
from tgi_cpu_kernels.decoder import Decoder, Layer, LinearLayer

from tgi.device.attention import AttentionSpec
from tgi.device.batch import Batch
from tgi.device.decoder import DecoderLayer, Linear, Rotation
from tgi.device.lora import LoraWeight

from .packed import PackedTable, packed_layer


@attrs.define(eq=False)
class JoinedLayers:
    """Runs layers whose weights and caches are in the kernels' order."""

    kernels: Kernels
    layers: Sequence[DecoderLayer]
    _decoder: Decoder | None = None
    _keys: torch.Tensor | None = None
    """Keys of the first layer in the cache that `_decoder` is for."""

    @staticmethod
    def takes(layer: DecoderLayer) -> bool:
        """Return whether the kernels have such a layer, whose cache has been allocated."""
        attention, mlp = layer.attention, layer.mlp
        linears = attention.qkv, attention.out, mlp.up, mlp.down
        norms = layer.attention_norm, layer.mlp_norm, *(attention.head_norms or ())
        return (
            attention.kv.keys.dim() == 1
            and len({norm.epsilon for norm in norms}) == 1
            and all(_packed(linear) is not None for linear in linears)
        )

    def __call__(self, x: torch.Tensor, batch: Batch, rotations: Sequence[Rotation]) -> torch.Tensor:
        """Return the output of the last layer for x [T, hidden]."""
        keys = self.layers[0].attention.kv.keys
        if self._decoder is None or keys is not self._keys:
            self._decoder, self._keys = Decoder(self.kernels, [_layer(layer) for layer in self.layers]), keys
        assert isinstance(batch.plan, list)
        x = x.clone(memory_format=torch.contiguous_format)
        self._decoder.run(x, batch.plan, rotations, batch.loras)
        return x


def kernel_window(spec: AttentionSpec) -> int:
    """Return the window as the kernels take it."""
    return -(spec.window or 0) if spec.chunked else spec.window or 0


def _packed(linear: Linear) -> LinearLayer | None:
    weight, loras = linear.weight, None
    if isinstance(weight, LoraWeight):
        if not isinstance(weight.table, PackedTable):
            return None
        loras, weight = weight.table.table, weight.base
    return packed_layer(weight, linear.bias, loras)


def _layer(layer: DecoderLayer) -> Layer:
    attention, mlp = layer.attention, layer.mlp
    qkv, out, up, down = map(_packed, (attention.qkv, attention.out, mlp.up, mlp.down))
    assert qkv is not None
    assert out is not None
    assert up is not None
    assert down is not None
    query_norm, key_norm = (
        (norm.weight for norm in attention.head_norms) if attention.head_norms else (None, None)
    )
    spec = attention.spec
    return Layer(
        epsilon=layer.attention_norm.epsilon,
        attention_norm=layer.attention_norm.weight,
        mlp_norm=layer.mlp_norm.weight,
        query_norm=query_norm,
        key_norm=key_norm,
        qkv=qkv,
        out=out,
        up=up,
        down=down,
        keys=attention.kv.keys,
        values=attention.kv.values,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        size=attention.head_dim,
        scale=spec.scale,
        window=kernel_window(spec),
        softcap=spec.softcap or 0.0,
        slopes=spec.slopes,
        sinks=spec.sinks,
        rows=attention.kv.group,
        rotation=-1 if layer.rotation is None else layer.rotation,
    )
