"""All layers of a decoder as one call of the kernels."""

from collections.abc import Sequence

import attrs
import torch
from tgi_cpu_kernels import Kernels
from tgi_cpu_kernels.decoder import Decoder, Layer, LinearLayer

from tgi.device.batch import Batch
from tgi.device.decoder import DecoderLayer, Linear, Rotation

from .packed import PackedIntegers, PackedWeight


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
        linears = layer.qkv, layer.out, layer.up, layer.down
        return layer.kv.keys.dim() == 1 and all(_packed(linear) is not None for linear in linears)

    def __call__(self, x: torch.Tensor, batch: Batch, rotations: Sequence[Rotation]) -> torch.Tensor:
        """Return the output of the last layer for x [T, hidden]."""
        keys = self.layers[0].kv.keys
        if self._decoder is None or keys is not self._keys:
            self._decoder, self._keys = Decoder(self.kernels, [_layer(layer) for layer in self.layers]), keys
        assert isinstance(batch.plan, list)
        x = x.clone(memory_format=torch.contiguous_format)
        self._decoder.run(x, batch.plan, rotations)
        return x


def _packed(linear: Linear) -> LinearLayer | None:
    weight = linear.weight
    if isinstance(weight, PackedWeight):
        return LinearLayer(weight.packed, weight.rows, linear.bias)
    if isinstance(weight, PackedIntegers) and weight.order is None:
        return LinearLayer(weight.packed, weight.packed.n, linear.bias)
    return None


def _layer(layer: DecoderLayer) -> Layer:
    qkv, out, up, down = map(_packed, (layer.qkv, layer.out, layer.up, layer.down))
    assert qkv is not None
    assert out is not None
    assert up is not None
    assert down is not None
    query_norm, key_norm = layer.head_norms or (None, None)
    return Layer(
        epsilon=layer.epsilon,
        attention_norm=layer.attention_norm,
        mlp_norm=layer.mlp_norm,
        query_norm=query_norm,
        key_norm=key_norm,
        qkv=qkv,
        out=out,
        up=up,
        down=down,
        keys=layer.kv.keys,
        values=layer.kv.values,
        heads=layer.heads,
        kv_heads=layer.kv_heads,
        size=layer.head_dim,
        scale=layer.spec.scale,
        window=layer.spec.window or 0,
        softcap=layer.spec.softcap or 0.0,
        slopes=layer.spec.slopes,
        sinks=layer.spec.sinks,
        rows=layer.kv.group,
        rotation=-1 if layer.rotation is None else layer.rotation,
    )
