"""Checkpoints of the library compressed-tensors whose groups of layers have different kinds of numbers.

Integers of experts and fp8 of attention, for instance: each layer is read as the format of its own group.
"""

from collections.abc import Mapping
from typing import Self

import attrs

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .base import LinearWeight, Reader, WeightFormat
from .compressed import Group, fault_beside_weights, format_of, group_for, groups_of
from .compressed_integers import CompressedIntegers
from .fp8 import Fp8, ScaledCache
from .fp8_wide import WideFp8
from .micro import MicroFloats
from .stored import StackedWeight

_FORMATS: tuple[type[WeightFormat], ...] = (CompressedIntegers, Fp8, WideFp8, MicroFloats)


@attrs.frozen(slots=False)  # slots would need a second class, and both would be found
class CompressedMixed(ScaledCache, WeightFormat):
    """Groups in formats of their own."""

    name = "compressed-tensors"
    methods = frozenset({"compressed-tensors"})
    scope = "groups of these"

    groups: Mapping[str, Group]
    formats: Mapping[str, WeightFormat]
    """Format of each group, by its name."""

    @classmethod
    def means(cls, config: JsonReader) -> bool:
        """Return whether groups are packed differently."""
        packings = {format_of(config, group) for group in groups_of(config).values()}
        return super().means(config) and len(packings) > 1

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the first setting of a group that asks for something else."""
        found = _read_groups(config).values()
        return next((each for each in found if isinstance(each, str)), fault_beside_weights(config))

    @classmethod
    def from_config(cls, config: JsonReader) -> Self:
        """Read each group."""
        found = _read_groups(config).items()
        return cls(groups_of(config), {name: each for name, each in found if not isinstance(each, str)})

    def missing(self, reader: Reader, part: TensorPart) -> str | None:
        """Return the name of the tensor that the layer's group asks for if the checkpoint lacks it."""
        return self._format_of(part).missing(reader, part)

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read all parts as one weight, or parts of different formats one by one."""
        formats = [self._format_of(part) for part in parts]
        if all(each is formats[0] for each in formats):
            return formats[0].read(reader, *parts)
        pieces = [each.read(reader, part) for each, part in zip(formats, parts, strict=True)]
        return StackedWeight(pieces, [part.size[0] for part in parts])

    def _format_of(self, part: TensorPart) -> WeightFormat:
        chosen = group_for(self.groups, part.module)
        return next(self.formats[name] for name, group in self.groups.items() if group is chosen)


def _read_groups(config: JsonReader) -> dict[str, WeightFormat | str]:
    """Return the format of each group, or what is in the way."""
    found: dict[str, WeightFormat | str] = {}
    for name, group in groups_of(config).items():
        alone = {**config.data, "format": format_of(config, group), "config_groups": {name: group}}
        found[name] = _read_group(JsonReader(alone))
    return found


def _read_group(config: JsonReader) -> WeightFormat | str:
    faults = []
    for kind in _FORMATS:
        if kind.means(config):
            reason = kind.fault(config)
            if reason is None:
                return kind.from_config(config)
            faults.append(reason)
    return faults[0]
