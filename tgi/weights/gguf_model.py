"""The settings and the tensors of a file of llama.cpp."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf import dequantize

Settings = dict[str, Any]
_LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Settings that all models with Llama 3's RoPE have in common, and a file does not tell."""


class GgufModel:
    """The settings and the shapes of tensors of a file."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.architecture = self.field("general.architecture")
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    def field(self, name: str) -> Any:
        """Return a setting by its whole name; None: there is none."""
        found = self.reader.get_field(name)
        return None if found is None else found.contents()

    def __getitem__(self, name: str) -> Any:
        return self.field(f"{self.architecture}.{name}")

    def shape(self, end: str) -> list[int] | None:
        """Return the shape [in, out, …] of the first tensor whose name ends so."""
        shapes = (each.shape for name, each in self.tensors.items() if name.endswith(end))
        found = next(shapes, None)
        return None if found is None else [int(size) for size in found]

    def settings(self, names: Mapping[str, str]) -> Settings:
        """Return the settings that the file has, by transformers' names."""
        found = ((ours, self[name]) for name, ours in names.items())
        return {name: value for name, value in found if value is not None}


def rope_parameters(given: GgufModel, before: Settings) -> Settings:
    """Return a config's RoPE with the scaling that a file tells. Raises ValueError for an unknown one."""
    tensors = {
        name: dequantize(tensor.data, tensor.tensor_type)
        for name, tensor in given.tensors.items()
        if "rope_f" in name
    }
    original = given["rope.scaling.original_context_length"]
    changes: dict[str, Any] = {}
    if (factors := tensors.get("rope_freqs.weight")) is not None:
        changes = {"rope_type": "llama3", "factor": float(round(factors.max())), **_LLAMA_3}
        expected = _llama_3(len(factors), before["rope_theta"], changes)
        if not np.allclose(factors, expected, rtol=1e-4):
            raise ValueError("its RoPE has other factors (rope_freqs.weight) than Llama 3's")
    elif "rope_factors_long.weight" in tensors:
        raise ValueError("its RoPE is LongRoPE, which is not read: serve the model that it was made of")
    elif (kind := given["rope.scaling.type"]) not in (None, "none"):
        changes = {"rope_type": kind, "factor": given["rope.scaling.factor"]}
        if original is not None:
            changes["original_max_position_embeddings"] = original
    if "full_attention" in before:
        return {**before, "full_attention": {**before["full_attention"], **changes}}
    return {**before, **changes}


def _llama_3(count: int, theta: float, settings: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return by what Llama 3 divides each frequency."""
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    lengths = 2 * math.pi * theta ** (np.arange(count) / count)
    smooth = (settings["original_max_position_embeddings"] / lengths - low) / (high - low)
    smooth = smooth.clip(0, 1)
    result: np.ndarray[Any, Any] = 1 / ((1 - smooth) / settings["factor"] + smooth)
    return result
