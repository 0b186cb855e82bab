"""The input of one forward pass, on the device."""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import attrs
import torch


@attrs.define(eq=False)
class FlatBlocks:
    """The blocks that the rows of a decode step see, one row's after another's; [n] each."""

    ids: torch.Tensor | None
    """Block ids, padded with 0. None: the first n blocks of the cache, in order, each at its id."""
    rows: torch.Tensor
    """Row that sees the block; the number of rows for padding."""
    tokens: torch.Tensor
    """Tokens of the row in the block or after it, the new one included; 1 for padding."""


@attrs.define(eq=False)
class GroupBatch:
    """Places of a step's tokens in the KV cache of one group of layers."""

    slots: torch.Tensor
    """[T]: slot that the token's key and value are written to. Padding goes to block 0."""
    tables: torch.Tensor
    """[rows, blocks]: block ids, padded with 0. On a device that compiles, the blocks that hold tokens of
    before the step and that some layer of the group sees, none where `flat` has them; on any other device,
    the blocks of the step too."""
    bases: torch.Tensor | None = None
    """[rows]: position of the first token of each row's table; None stands for 0."""
    flat: FlatBlocks | None = None
    """The blocks of all rows, in a decode step on a device with `Device.flat`."""


@attrs.define(eq=False)
class KVLayer:
    """Keys and values of all tokens in one layer, which the layer itself refers to.

    It has no number: a program that is compiled for a layer must serve all that are alike.
    """

    keys: torch.Tensor = attrs.field(factory=lambda: torch.empty(0))
    values: torch.Tensor = attrs.field(factory=lambda: torch.empty(0))
    group: int = 0
    """Group of the layer."""
    place: int = 0
    """Index of the layer in its group's cache, on a device that keeps that as one tensor; else 0."""
    latent: bool = False
    """Whether the values are the keys: one tensor."""
    key_scale: Any = None
    """Scale of keys in 8 bits, as the device keeps it; None if the checkpoint has none."""
    value_scale: Any = None
    """Scale of values in 8 bits, as the device keeps it; None if the checkpoint has none."""

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values."""
        return self.keys, self.values


@attrs.frozen(eq=False)
class KVCache:
    """Keys and values of all tokens in all layers. Their layout is the device's own affair."""

    layers: Sequence[KVLayer]
    wholes: Sequence[torch.Tensor | None]
    """Keys and values of each group as one tensor, on a device that keeps them so."""
    numbers: Sequence[int]
    """Number of each layer in the model, ascending."""

    @classmethod
    def of_group(
        cls, layers: Iterable[tuple[torch.Tensor, torch.Tensor]], whole: torch.Tensor | None = None
    ) -> "KVCache":
        """Return the cache of a model with one group of layers."""
        made = [KVLayer(keys, values, latent=keys is values) for keys, values in layers]
        if whole is not None:
            for place, layer in enumerate(made):
                layer.place = place
        return cls(made, [whole], range(len(made)))

    @classmethod
    def joined(
        cls,
        caches: Sequence["KVCache"],
        members: Sequence[Sequence[int]],
        layers: Mapping[int, KVLayer] | None = None,
    ) -> "KVCache":
        """Return the cache of a model from the caches of its groups, and the numbers of the layers in each.

        `layers` are those that the model's layers refer to, by number, and get their keys and values.
        """
        numbers = sorted(number for group in members for number in group)
        into = {number: KVLayer() for number in numbers} if layers is None else layers
        for group, (cache, own) in enumerate(zip(caches, members, strict=True)):
            for number, made in zip(own, cache.layers, strict=True):
                layer = into[number]
                layer.keys, layer.values = made.tensors
                layer.group, layer.place, layer.latent = group, made.place, made.latent
        return cls([into[number] for number in numbers], [cache.wholes[0] for cache in caches], numbers)


def pair(parts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values, which are the same tensor if one part has both."""
    return parts[0], parts[-1]


@attrs.define(eq=False)
class Batch:
    """Input of a model's `forward`. All tensors are on the device; integers are int32.

    The tokens of all rows follow one another in one dimension of length T. On a device that compiles, every
    row takes T / rows places, padded at its right, so that shapes depend on the bucket alone; on any other,
    rows take as many places as they have tokens, and padding comes after the last row.
    """

    tokens: torch.Tensor
    """[T]: token ids; padding has id 0."""
    positions: torch.Tensor
    """[T]: position in the sequence."""
    contexts: torch.Tensor
    """[T]: length of the sequence for a RoPE that depends on it: the length of the prompt for a token of the
    prompt, and its position + 1 for a generated one."""
    starts: torch.Tensor
    """[rows]: tokens of the row that were in the KV cache before the step."""
    lengths: torch.Tensor
    """[rows]: places of the row that have a token; 1 for a row of padding."""
    last: torch.Tensor
    """[n]: index among the T tokens of those that get logits. All of them, in order, if n is T."""
    cache: KVCache
    groups: Sequence[GroupBatch]
    """Places in the KV cache, one entry per group of layers."""
    features: torch.Tensor | None = None
    """[at least T, hidden size]: memory to which the head copies its input, for questions about the prompt.
    None if no question can come."""
    received: torch.Tensor | None = None
    """[T, hidden size]: features from the stage before; None in the first stage of a pipeline."""
    plan: object = None
    """Result of `Device.plan`, shared by all layers."""
    loras: Any = None
    """The result of `Device.lora_rows`; None if no row has a LoRA adapter."""

    def only(self, names: Set[str]) -> "Batch":
        """Return the batch for a part of a model that reads these fields; all others are None."""
        given: dict[str, Any] = {field.name: None for field in attrs.fields(Batch)}
        return Batch(**(given | {name: getattr(self, name) for name in names}))

    def of_group(self, number: int) -> "Batch":
        """Return the batch for a layer of that group: places and plans of others are None."""

        def own(values: Any) -> Any:
            return [one if index == number else None for index, one in enumerate(values)]

        plan = own(self.plan) if isinstance(self.plan, list) else self.plan
        return attrs.evolve(self, groups=own(self.groups), plan=plan)

    def plan_of(self, layer: KVLayer) -> Any:
        """Return the plan of the group that a layer is in, where `plan` is a list of those."""
        assert isinstance(self.plan, list)
        return self.plan[layer.group]

    def places_of(self, layer: KVLayer) -> GroupBatch:
        """Return the places of the group that a layer is in."""
        return self.groups[layer.group]
