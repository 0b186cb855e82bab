"""Builds models: with their weights on a device, or without numbers on torch's device "meta"."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import msgspec
import torch

from tgi.device.base import Device
from tgi.device.batch import Batch
from tgi.plugins import ConfigError, JsonReader, ModelConfig, architectures, load_plugins
from tgi.plugins.lookup import find_offer, import_named, read_config_json
from tgi.protocol import Describe, Described, Load, LoraSlots
from tgi.weights import (
    Checkpoint,
    CheckpointError,
    DivisionError,
    DummyWeights,
    Outline,
    RecordingShard,
    Shard,
    Stage,
    Weights,
)
from tgi.weights.formats import EXPANDED, Dense, WeightFormat, read_format
from tgi.weights.formats.measured import MeasuredFp8
from tgi.weights.measurements import Measurements

from .build import Build, Observe
from .cache_layers import CacheLayer
from .lora import Loras

log = logging.getLogger(__name__)

_ONLY = Stage()
Model = Callable[[Batch], torch.Tensor]
_CACHE_ITEM = {"fp8_e4m3fn": 1}
"""Bytes of a number in a KV cache whose dtype is not the model's."""


@attrs.frozen
class Blueprint:
    """A model's class and settings, from which any rank's share is built."""

    name: str
    make: Callable[[Any, Build], Any]
    config: ModelConfig
    format: WeightFormat
    dtype: torch.dtype
    measured: MeasuredFp8 | None
    expert_parallel: bool
    loras: LoraSlots

    @classmethod
    def open(cls, command: Describe | Load, dtype: torch.dtype) -> "Blueprint":
        """Read config.json. Raises ConfigError."""
        folder = Path(command.folder)
        offered = find_offer("architecture", command.architecture, architectures(load_plugins()))
        data = read_config_json(folder) | dict(command.overrides)
        make, config = import_named(offered.model), offered.read(data)
        stored, measured = read_format(JsonReader(data), command.quantize), None
        if command.quant_config:
            measured = MeasuredFp8(Measurements.read(Path(command.quant_config)))
            if measured.measured.has_weights:
                if stored.name not in (Dense.name, measured.name) or not isinstance(stored, Dense):
                    raise ConfigError(
                        f"{command.quant_config} asks for layers in fp8, and they are {stored.name} already; "
                        'with "allowlist": {"types": ["KVCache"]} it serves the KV cache alone'
                    )
                stored = measured
        rest = measured, command.expert_parallel, command.loras
        return cls(command.architecture, make, config, stored, dtype, *rest)

    @torch.inference_mode()
    def build(
        self,
        weights: Weights,
        shard: Shard,
        device: Device,
        stage: Stage = _ONLY,
        whole: Mapping[int, CacheLayer] = MappingProxyType({}),
        observe: Observe | None = None,
    ) -> tuple[Model, Build]:
        """Build a rank's share; `whole` are the attention layers of all of several stages."""
        loras = Loras(device, self.dtype, self.loras) if self.loras.count else None
        kept = self.dtype, self.format, self.measured, self.expert_parallel, loras, self.config.wide_scores
        build = Build(weights, shard, device, *kept, observe=observe, stage=stage, whole=whole)
        return self.make(self.config, build).eval(), build

    def sketch(
        self,
        weights: Outline,
        shard: Shard,
        keeps: Iterable[str] = (),
        stage: Stage = _ONLY,
        whole: Mapping[int, CacheLayer] = MappingProxyType({}),
    ) -> Build:
        """Build a rank's share without numbers, and return what it asked for, on a device with `keeps`.

        `whole` is that of `build`. Raises ConfigError.
        """
        device = Device()
        device.keeps = frozenset(keeps)
        device.torch_device = torch.device("meta")
        try:
            return self.build(weights, shard, device, stage, whole)[1]
        except (NotImplementedError, RuntimeError) as error:
            reason = f"it looks at numbers while it is built: {error}"
            raise ConfigError(f"{self.name} cannot be planned for, because {reason}") from error

    def divide(self, whole: Build, stages: int) -> tuple[int, ...]:
        """Return the number of layers of each stage, for a sketch of the whole model. Raises ConfigError."""
        sizes = whole.sizes
        if sizes is None:
            raise ConfigError(
                f"{self.name} cannot be divided into stages, because its adapter builds all layers on every "
                "rank: leave out --pipeline-parallel-size"
            )
        if stages > len(sizes.layers):
            raise ConfigError(
                f"a model with {len(sizes.layers)} layers cannot be divided into {stages} stages; "
                f"--pipeline-parallel-size can be up to {len(sizes.layers)}"
            )
        return sizes.divide(stages)


@attrs.frozen(eq=False)
class LoadedModel:
    """A rank's share of a model, in memory."""

    model: Model
    config: ModelConfig
    build: Build

    def describe(self, cache_dtype: torch.dtype) -> Described:
        """Describe what this rank keeps, with a KV cache of that dtype."""
        return _describe(self.config, self.build, cache_dtype.itemsize, [])


def load_model(
    command: Load,
    shard: Shard,
    device: Device,
    on_read: Callable[[int, int], None],
    stage: Stage = _ONLY,
) -> LoadedModel:
    """Read a rank's share of a stage of a model; `on_read` is that of `Checkpoint`.

    Raises ConfigError, and before any number is read CheckpointError with all faults of the files.
    """
    folder, dtype = Path(command.folder), device.dtype(command.dtype)
    blueprint = Blueprint.open(command, dtype)
    weights = DummyWeights(dtype) if command.dummy else Checkpoint(folder, on_read)
    outline = Outline(weights if isinstance(weights, Checkpoint) else None)
    whole: Mapping[int, CacheLayer] = {}
    if isinstance(weights, Checkpoint) or stage.count > 1:
        sketch = blueprint.sketch(outline, shard)
        outline.check()
        whole = sketch.cache if stage.count > 1 else {}
    if isinstance(weights, Checkpoint) and stage.count > 1:
        mine = Outline(weights)
        blueprint.sketch(mine, shard, stage=stage, whole=whole)
        for name in outline.asked - mine.asked:  # other stages read them
            weights.dismiss(name)
    model, build = blueprint.build(weights, shard, device, stage, whole)
    if build.loras is not None and stage.count > 1 and sketch.loras is not None:
        build.loras.elsewhere = sketch.loras.modules
    if isinstance(weights, Checkpoint) and weights.unread:
        if strange := weights.strange():
            raise CheckpointError(weights.superfluous(strange))
        if shard.rank == 0:
            log.warning("%s; they are left out", weights.superfluous(weights.unread))
    if shard.rank == 0:
        _log_expanded(build)
    return LoadedModel(model, blueprint.config, build)


def describe(command: Describe) -> Described:
    """Describe a model from its config.json, and from the headers of its files if it has all of them.

    Raises CheckpointError, and ConfigError, which names the possible numbers of ranks if `command.ranks` is
    none of them.
    """
    dtype = torch.bfloat16 if command.dtype == "auto" else getattr(torch, command.dtype)
    folder = Path(command.folder)
    blueprint = Blueprint.open(command, dtype)
    config = blueprint.config
    outline = Outline(_open_files(command, folder))
    whole = RecordingShard()
    # Stages are as even as what each would read, and the last one reads a head of its own.
    keeps = [kind for kind in command.keeps if command.stages == 1 or kind != "tied"]
    possible: list[int] = []
    try:
        build = blueprint.sketch(outline, whole, keeps)
        possible = whole.possible_ranks(config.num_heads)
        if command.ranks != 1:
            build = blueprint.sketch(Outline(outline.checkpoint), Shard(0, command.ranks), keeps)
    except DivisionError:
        raise ConfigError(
            f"a model with {config.num_heads} heads and {config.num_kv_heads} key/value heads cannot be "
            f"divided over {command.ranks} ranks; --num-shard can be {', '.join(map(str, possible))}"
        ) from None
    if command.check:
        outline.check()
    item = _CACHE_ITEM.get(command.kv_cache_dtype, dtype.itemsize)
    described = _describe(config, build, item, possible)
    if command.stages == 1:
        return described
    layers, shard = blueprint.divide(build, command.stages), Shard(0, command.ranks)
    parts = []
    for number in range(command.stages):
        stage, source = Stage(number, layers), Outline(outline.checkpoint)
        part = blueprint.sketch(source, shard, keeps, stage, build.cache)
        parts.append(_describe(config, part, item, possible))
    return msgspec.structs.replace(described, stage_layers=layers, stages=parts)


def _log_expanded(build: Build) -> None:
    """Say how much memory the weights take that the device does not multiply as they are stored."""
    expanded = [tensor for tensor in build.tensors if tensor.format.endswith(EXPANDED)]
    if expanded:
        log.info(
            "%s weights are made dense while they are loaded, and take %.2f GiB on each rank",
            expanded[0].format.partition(",")[0],
            sum(tensor.bytes for tensor in expanded) / 2**30,
        )


def _describe(config: ModelConfig, build: Build, cache_item: int, possible_ranks: list[int]) -> Described:
    return Described(
        tensors=build.tensors,
        groups=build.cache_groups(cache_item),
        possible_ranks=possible_ranks,
        item=build.dtype.itemsize,
        vocab_size=config.vocab_size if build.stage.last else 0,
        hidden_size=config.hidden_size,
        heads=config.num_heads // build.shard.size,
        widest=build.widest,
        changes_scores=build.changes_scores,
        lora_bytes=0 if build.loras is None else build.loras.bytes,
        lora_columns=0 if build.loras is None else build.loras.columns,
    )


def _open_files(command: Describe, folder: Path) -> Checkpoint | None:
    """Open the files if they exist, or must be checked. Raises CheckpointError."""
    complete = command.check or Checkpoint.is_complete(folder)
    return Checkpoint(folder) if complete and not command.dummy else None
