"""Files of a LoRA adapter: pairs of matrices by the names of modules."""

import re
from pathlib import Path

import attrs
import torch

from tgi.plugins import ConfigError
from tgi.plugins.lora_config import LoraConfig

from .tensor_file import FileError, TensorFile, list_names, open_file, view

WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<half>[AB])\.(?:default\.)?weight")


@attrs.frozen(eq=False)
class LoraPair:
    """The change of a module's weight [out, in], as the product of two matrices."""

    module: str
    """Name of the module in its base model."""
    down: torch.Tensor
    """[rank, in] float32."""
    up: torch.Tensor
    """[out, rank] float32, times the adapter's factor."""


def read_lora(folder: Path) -> list[LoraPair]:
    """Read an adapter. Raises ConfigError."""
    config = LoraConfig.read(folder)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    strange = []
    for name, tensor in _tensors(folder).items():
        if (parts := _NAME.fullmatch(name)) and tensor.dim() == 2 and tensor.is_floating_point():
            halves.setdefault(parts["module"], {})[parts["half"]] = tensor
        else:
            strange.append(name)
    if strange:
        raise ConfigError(
            f"{folder}: {list_names(strange)} are no matrices of LoRA for a linear layer; an adapter that "
            "also changes embeddings, norms or the head must be merged into its base model"
        )
    if not halves:
        raise ConfigError(f"{folder} has no tensors")
    return [_pair(folder, config, module, pair) for module, pair in halves.items()]


def _pair(folder: Path, config: LoraConfig, module: str, halves: dict[str, torch.Tensor]) -> LoraPair:
    if len(halves) < 2:
        raise ConfigError(f"{folder}: {module!r} has lora_{next(iter(halves))} and not the other matrix")
    down, up = halves["A"], halves["B"]
    rank = len(down)
    if up.shape[1] != rank or not rank:
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        raise ConfigError(f"{folder}: {module!r} has matrices of shapes {shapes}, which cannot be multiplied")
    return LoraPair(module, down.float(), up.float() * config.scale(module, rank))


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors by name. Raises ConfigError."""
    path = folder / WEIGHTS
    if path.exists():
        try:
            file: TensorFile = open_file(path)
            return {name: view(file, name) for name in file.tensors}
        except (FileError, OSError) as error:
            raise ConfigError(f"{path} is not a complete safetensors file: {error}") from error
    path = folder / _PICKLED
    if not path.exists():
        raise ConfigError(f"{folder} has no {WEIGHTS}")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    except Exception as error:  # pickles fail in many ways
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
