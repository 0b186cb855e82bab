"""Weights in 2 to 8 bits as GPTQ's tools write them (Frantar et al. 2022, arXiv 2210.17323).

For "x.weight" [out, in] a checkpoint has "x.qweight" [in, out] packed along in, "x.qzeros" [groups, out]
packed along out, "x.scales" [groups, out], and "x.g_idx" [in], the group of each input feature. In the older
of the versions zeros are stored less 1.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import attrs
import torch

from tgi.plugins import ConfigError, JsonReader
from tgi.weights.shard import TensorPart

from .auto_round import AUTO_ROUND, auto_round_fault, auto_round_layers, auto_round_packing
from .base import LinearWeight, Reader, WeightFormat
from .packed import read_packed
from .stored import fuse, group_columns

_VERSIONS = ("gptq", "gptq_v2", "gptq_p")
"""Values of "checkpoint_format"; numbers of 5, 6 or 7 bits exist in the last one only."""


@attrs.frozen
class Settings:
    """Settings of the rounding of a layer's weights."""

    bits: int
    group: int
    """Input features in a group; at most 0: all."""
    ordered: bool
    """Whether "g_idx" tells the groups, which are otherwise of neighbours."""
    symmetric: bool
    """Whether all zeros are the middle."""

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """Return the settings with those of a layer's own."""
        return Settings(
            changes.get("bits", self.bits),
            changes.get("group_size", self.group),
            changes.get("desc_act", self.ordered),
            changes.get("sym", self.symmetric),
        )


@attrs.frozen(slots=False)  # slots would need a second class, and both would be found
class Gptq(WeightFormat):
    """GPTQ's tensors, made by AutoGPTQ, GPTQModel or TGI."""

    name = "gptq"
    methods = frozenset({"gptq", *AUTO_ROUND})
    scope = "GPTQ of 2 to 8 bits"

    settings: Settings
    offset: int
    """Difference of a zero and its stored number."""
    planes: bool = False
    """Whether numbers are packed in planes."""
    layers: Sequence[tuple[str, Mapping[str, Any]]] = ()
    """Patterns of modules' names, and the settings of those that begin so."""

    @classmethod
    def means(cls, config: JsonReader) -> bool:
        """Return whether the method or AutoRound's packing is GPTQ."""
        return super().means(config) and auto_round_packing(config) != "auto_awq"

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the setting that asks for other tensors."""
        if fault := auto_round_fault(config):
            return fault
        if config.data.get("adapter"):
            return "'adapter' is set"
        version = _version(config)
        if version not in _VERSIONS:
            return f"'checkpoint_format' is {version!r}"
        if config.data.get("is_marlin_format"):
            return "'is_marlin_format' is set"
        if config.data.get("pack_dtype", "int32") != "int32":
            return f"'pack_dtype' is {config.data['pack_dtype']!r}"
        bits = [config(int, "bits"), *(each.get("bits", 8) for _, each in _layers(config))]
        return next((f"'bits' is {each!r}" for each in bits if each not in range(2, 9)), None)

    @classmethod
    def from_config(cls, config: JsonReader) -> Self:
        """Read the settings."""
        settings = Settings(
            config(int, "bits"),
            config(int, "group_size", -1),
            config(bool, "desc_act", False),
            config(bool, "sym", True),
        )
        layers = [(name, each) for name, each in _layers(config) if each]
        return cls(settings, int(_version(config) == "gptq"), _version(config) == "gptq_p", layers)

    def missing(self, reader: Reader, part: TensorPart) -> str | None:
        """Return the name of the packed weight if the checkpoint lacks it."""
        name = f"{part.module}.qweight"
        return None if part.index is None and name in reader else name

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read and unpack; zeros for a bias that the layer does not have are left out."""
        for part in parts:
            reader.skip_zeros(f"{part.module}.bias")
        return fuse(reader, self.name, parts, [self._read(reader, part) for part in parts])

    def _read(self, reader: Reader, part: TensorPart) -> LinearWeight:
        name, (out, size) = part.module, part.shape
        layer = self._settings(name)
        group = size if layer.group <= 0 else layer.group
        count = -(-size // group)
        rows = part.indices if part.dim == 0 else None

        def of_groups(kind: str) -> TensorPart:
            return TensorPart(f"{name}.{kind}", (count, out), 1, rows)

        numbers = TensorPart(f"{name}.qweight", (size, out), 1 - part.dim, part.indices)
        words = read_packed(reader, numbers, layer.bits, 0, self.planes)
        scales = reader.read_raw(of_groups("scales"), torch.float32, kept=False).T
        zeros = read_packed(reader, of_groups("qzeros"), layer.bits, 1, self.planes).T
        zeros = (zeros + self.offset) & (2**layer.bits - 1)
        columns = part.indices if part.dim == 1 else None
        groups = self._groups(reader, name, size, columns, layer.ordered and count > 1)
        middle = layer.symmetric and (zeros.is_meta or bool((zeros == 2 ** (layer.bits - 1)).all()))
        start = 0 if columns is None else columns.start
        return group_columns(words, scales, None if middle else zeros, layer.bits, group, start, groups)

    def _groups(
        self, reader: Reader, name: str, size: int, columns: slice | None, ordered: bool
    ) -> torch.Tensor | None:
        """Return the groups of a rank's columns; None: neighbours share them. Old files do not have them."""
        index = f"{name}.g_idx"
        if index not in reader:
            if ordered:
                raise ConfigError(f"the checkpoint has no tensor {index!r}, though 'desc_act' is set")
            return None
        groups = reader.read_raw(TensorPart(index, (size,), 0, columns), torch.int32, kept=False)
        return groups if ordered else None

    def _settings(self, name: str) -> Settings:
        for pattern, changes in self.layers:
            if re.match(pattern, name):
                return self.settings.changed(changes)
        return self.settings


def _version(config: JsonReader) -> str:
    return config(str, "checkpoint_format", config(str, "format", "gptq"))


def _layers(config: JsonReader) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the patterns of "dynamic"; those after "-:" are of dense layers, which need no settings."""
    dynamic = {**config(dict, "dynamic", {}), **auto_round_layers(config)}
    return [
        (pattern.removeprefix("+:"), changes or {})
        for pattern, changes in dynamic.items()
        if not pattern.startswith("-:")
    ]
