"""Loads a model and executes steps with it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from tgi.device.base import Device
from tgi.device.batch import KVCache, KVLayer
from tgi.device.costs import graph_bytes, workspace_bytes
from tgi.layers import Head
from tgi.layers.loading import LoadedModel, Model, load_model
from tgi.layers.lora import Loras
from tgi.plugins import ConfigError, ModelConfig, devices, load_plugins
from tgi.plugins.lookup import find_offer, import_named
from tgi.protocol import (
    NO_LORAS,
    CacheGroup,
    Load,
    Loaded,
    LoadLora,
    LoraLoaded,
    Progress,
    Result,
    Step,
)
from tgi.weights import Shard, Stage
from tgi.weights.lora_file import read_lora

from .lanes import Lanes
from .launching import Programs
from .layout import Sizes
from .programs import StepContext
from .sampler import Sampler

_ONLY = Stage()


@attrs.define(eq=False)
class Runner:
    """One rank's model. Made by `load`; `allocate` must come before `execute`."""

    device: Device
    config: ModelConfig
    model: Model
    dtype: torch.dtype
    groups: Sequence[CacheGroup]
    """Groups of layers with block tables of their own."""
    kv: Mapping[int, KVLayer]
    """Keys and values of the model's layers, by number."""
    cache_dtype: torch.dtype
    block_size: int
    contiguous: bool
    """`Load.contiguous`."""
    shard: Shard
    stage: Stage
    lanes: Lanes
    sampler: Sampler | None
    """Chooses tokens in the last stage."""
    workspace_bytes: int
    prefill_tokens: int
    """Query tokens of the largest prefill step, padding included."""
    top: int
    """Maximum number of most likely tokens that a step reports; see `Load.top`."""
    cache: KVCache | None = None
    programs: Programs | None = None
    loras: Loras | None = None
    """LoRA adapters, if there can be any."""
    _ended: float = 0.0
    """Time when the last result arrived."""
    _counted: Mapping[str, float] = attrs.field(factory=dict)
    """Counts of the device up to the last step."""

    @classmethod
    def load(
        cls,
        command: Load,
        shard: Shard,
        device: Device,
        report: Callable[[Progress], None] = lambda _: None,
        stage: Stage = _ONLY,
    ) -> "Runner":
        """Read the model. Raises ConfigError and CheckpointError for faults of the options or the files."""
        loaded = load_model(command, shard, device, lambda done, total: report(Progress(done, total)), stage)
        return cls.of(loaded, command)

    @classmethod
    @torch.inference_mode()
    def of(cls, loaded: LoadedModel, command: Load) -> "Runner":
        """Make a runner around a model that is in memory."""
        model, config, build = loaded.model, loaded.config, loaded.build
        device, rows = build.device, command.lanes + 1
        if isinstance(model, nn.Module):
            device.prepare(model)
        cache_dtype = device.cache_dtype(command.kv_cache_dtype, build.dtype)
        groups = build.cache_groups(cache_dtype.itemsize)
        sampler = None
        if build.stage.last:
            watermark = command.watermark_gamma, command.watermark_delta
            sampler = Sampler(rows, config.vocab_size, device, *watermark)
        return cls(
            device=device,
            config=config,
            model=model,
            groups=groups,
            kv=build.kv,
            cache_dtype=cache_dtype,
            block_size=command.block_size,
            contiguous=command.contiguous,
            shard=build.shard,
            stage=build.stage,
            lanes=Lanes(command.lanes, -(-command.max_tokens // command.block_size), len(groups)),
            sampler=sampler,
            workspace_bytes=device.workspaces * workspace_bytes(loaded.describe(cache_dtype), command),
            prefill_tokens=command.prefill_tokens,
            top=command.top,
            dtype=build.dtype,
            loras=build.loras,
        )

    @property
    def loaded(self) -> Loaded:
        """Answer to `Load`, from which the server plans the KV cache."""
        loras, slots = (0, NO_LORAS) if self.loras is None else (self.loras.bytes, self.loras.slots)
        taken = loras if self.device.compiles else 0  # elsewhere an adapter takes memory when it comes
        return Loaded(
            free_bytes=self.device.free_bytes() - self.workspace_bytes - (loras - taken),
            block_bytes=tuple(group.token_bytes * self.block_size for group in self.groups),
            dtype=str(self.dtype).removeprefix("torch."),
            total_bytes=self.device.total_bytes(),
            weight_bytes=max(self.device.used_bytes() - taken, 0),
            lora_bytes=loras,
            workspace_bytes=self.workspace_bytes,
            remarks=tuple(self.device.remarks()),
            graph_bytes=graph_bytes(len(self.kv), slots) if self.device.keeps_graphs else 0,
        )

    @property
    def answers(self) -> bool:
        """Whether this rank reports results."""
        return self.stage.last and self.shard.rank == 0

    @torch.inference_mode()
    def allocate(self, *blocks: int) -> None:
        """Reserve the KV cache: that many blocks for each layer group."""
        caches = [
            self.device.allocate_cache(
                len(group.layers),
                count * self.block_size,
                group.kv_heads,
                group.head_dim,
                self.cache_dtype,
                group.latent,
            )
            for group, count in zip(self.groups, blocks, strict=True)
        ]
        self.cache = KVCache.joined(caches, [group.layers for group in self.groups], self.kv)
        self.programs = self._open_programs(self.cache)
        if self.loras is not None and self.device.compiles:
            self.loras.put(0, ())  # compiles what an adapter that comes later needs

    def load_lora(self, command: LoadLora) -> LoraLoaded:
        """Put a LoRA adapter into a slot."""
        assert self.loras is not None, "an adapter without slots"
        try:
            self.loras.put(command.slot, read_lora(Path(command.folder)))
        except ConfigError as error:
            return LoraLoaded(command.number, str(error))
        return LoraLoaded(command.number)

    def seal(self) -> None:
        """End the warm-up."""
        self.device.seal()
        if self.programs is not None:
            self.programs.seal()

    def execute(self, step: Step) -> Result:
        """Carry out a step."""
        return self.launch(step)()

    @torch.inference_mode()
    def launch(self, step: Step) -> Callable[[], Result]:
        """Begin a step, and return a function that waits for its result, in any thread.

        Results are waited for in order.
        """
        assert self.programs is not None, "a step before Allocate"
        began = time.perf_counter()
        self.lanes.update(step)
        wait = self.programs.launch(step)
        statistics = self._statistics()

        def finish() -> Result:
            results: dict[str, Any] = wait()
            now = time.perf_counter()
            seconds, self._ended = now - max(began, self._ended), now
            return Result(
                number=step.number,
                seconds=seconds,
                statistics=statistics,
                **results,
            )

        return finish

    def _statistics(self) -> dict[str, float]:
        """Return what the device has counted since the last call, and its memory if that is known."""
        counts, before = self.device.counts(), self._counted
        self._counted = counts
        used = self.device.used_bytes()
        statistics: dict[str, float] = {"device_memory_bytes": used} if used else {}
        for name, count in counts.items():
            if added := count - before.get(name, 0):
                statistics[name] = added
        return statistics

    def _open_programs(self, cache: KVCache) -> Programs:
        device, config = self.device, self.config
        positions = self.prefill_tokens if device.compiles else 0
        samples = self.lanes.count if device.compiles else 0
        head = next((module for module in _modules(self.model) if isinstance(module, Head)), None)
        size = config.hidden_size if head is None else head.size

        def features(count: int, size: int = config.hidden_size) -> torch.Tensor:
            return torch.zeros(count, size, dtype=self.dtype, device=device.torch_device)

        passed, stage = max(positions, samples), self.stage
        context = StepContext(
            model=lambda batch: self.model(batch),
            head=head,
            sampler=self.sampler,
            cache=cache,
            last_tokens=torch.zeros(self.lanes.count + 1, dtype=torch.int32, device=device.torch_device),
            device=device,
            block_size=self.block_size,
            features=features(positions if stage.last else 0, size),
            outputs=torch.zeros(samples, config.vocab_size, device=device.torch_device)
            if stage.last
            else features(passed),
            received=None if stage.first else features(passed),
            loras=self.loras,
        )
        windows = tuple(group.window for group in self.groups)
        sizes = Sizes(self.block_size, self.lanes.count, config.vocab_size, windows, self.contiguous)
        return Programs(context, self.lanes, sizes, self.top, self.shard, stage)


def open_device(name: str, threads: int) -> Device:
    """Open the device of that name. Raises ConfigError if no plugin offers it."""
    spec = find_offer("device", name, devices(load_plugins()))
    device = import_named(spec.implementation)(threads)
    assert isinstance(device, Device)
    device.spec = spec
    return device


def _modules(model: Model) -> Iterable[nn.Module]:
    return model.modules() if isinstance(model, nn.Module) else ()
