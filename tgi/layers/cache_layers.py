"""The shape of what attention layers keep of a token, and the groups of layers for which it is the same."""

from collections.abc import Container, Mapping

import attrs

from tgi.protocol import CacheGroup


@attrs.frozen
class CacheLayer:
    """Shape of the keys and values of one attention layer."""

    window: int | None
    kv_heads: int
    """Key/value heads on this rank."""
    all_kv_heads: int
    """Key/value heads of all ranks."""
    head_dim: int
    latent: bool = False
    """Whether values are a part of the keys, and not kept apart."""


def group_layers(layers: Mapping[int, CacheLayer], here: Container[int], item: int) -> list[CacheGroup]:
    """Group layers by number whose keys and values have the same shape and window, numbers of `item` bytes.

    Every stage has the groups of the whole model, with the layers that are `here`.
    """
    groups: dict[CacheLayer, list[int]] = {}
    for layer, shape in sorted(layers.items()):
        members = groups.setdefault(shape, [])
        if layer in here:
            members.append(layer)
    return [
        CacheGroup(
            window=shape.window,
            layers=members,
            kv_heads=shape.kv_heads,
            all_kv_heads=shape.all_kv_heads,
            head_dim=shape.head_dim,
            token_bytes=(1 if shape.latent else 2) * len(members) * shape.kv_heads * shape.head_dim * item,
            latent=shape.latent,
        )
        for shape, members in groups.items()
    ]
