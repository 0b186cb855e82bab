"""Loads a model and executes steps with it."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn

from tgi.device.base import Device
from tgi.device.batch import KVCache
from tgi.device.graphs import Counters
from tgi.footprint import graph_bytes, workspace_bytes
from tgi.layers import Batch, Head
from tgi.layers.loading import LoadedModel, Model, load_model
from tgi.plugins import ModelConfig, devices, load_plugins
from tgi.plugins.lookup import find_offer, import_named
from tgi.protocol import Described, Load, Loaded, Progress, Result, Step
from tgi.weights import Shard

from .inputs import make_inputs
from .kv_cache import KVCacheSpec
from .lanes import Lanes
from .layout import Sizes
from .program import Parts, Prompt
from .programs import Programs
from .sampler import Sampled, Sampler


@attrs.define(eq=False)
class Runner:
    """One rank's model. Made by `load`; `allocate` must come before `execute`."""

    device: Device
    config: ModelConfig
    model: Model
    dtype: torch.dtype
    spec: KVCacheSpec
    lanes: Lanes
    sampler: Sampler
    last_tokens: torch.Tensor
    """[lanes + 1]: the last sampled token of each lane."""
    workspace_bytes: int
    prefill_tokens: int
    """Query tokens, padding included, of the largest prefill step,"""
    top: int
    """and likeliest tokens of any: see `Load`."""
    cache: KVCache | None = None
    programs: Programs | None = None
    """Only on a device that compiles."""
    _ended: float = 0.0
    """When the last result was there."""
    _before: Counters = attrs.field(factory=Counters)

    @classmethod
    def load(
        cls, command: Load, shard: Shard, device: Device, report: Callable[[Progress], None] = lambda _: None
    ) -> "Runner":
        """Read the model. Raises ConfigError and CheckpointError for what a person can put right."""
        loaded = load_model(command, shard, device, lambda done, total: report(Progress(done, total)))
        return cls.of(loaded, command)

    @classmethod
    @torch.inference_mode()
    def of(cls, loaded: LoadedModel, command: Load) -> "Runner":
        """Around a model that is in memory."""
        model, config, build = loaded.model, loaded.config, loaded.build
        device, rows = build.device, command.lanes + 1
        if isinstance(model, nn.Module):
            device.prepare(model)
        cache_dtype = device.cache_dtype(command.kv_cache_dtype, build.dtype)
        sampler = Sampler(rows, config.vocab_size, device, command.watermark_gamma, command.watermark_delta)
        return cls(
            device=device,
            config=config,
            model=model,
            spec=KVCacheSpec.of(config, build.shard, cache_dtype, command.block_size),
            lanes=Lanes(command.lanes),
            sampler=sampler,
            last_tokens=torch.zeros(
                rows, dtype=torch.int32 if device.compiles else torch.int64, device=device.torch_device
            ),
            workspace_bytes=device.workspaces * _workspace_bytes(loaded.describe(cache_dtype), command),
            prefill_tokens=command.prefill_tokens,
            top=command.top,
            dtype=build.dtype,
        )

    @property
    def loaded(self) -> Loaded:
        """What the server plans the KV cache with."""
        return Loaded(
            free_bytes=self.device.free_bytes() - self.workspace_bytes,
            block_bytes=self.spec.block_bytes,
            dtype=str(self.dtype).removeprefix("torch."),
            total_bytes=self.device.total_bytes(),
            weight_bytes=self.device.counters().memory_bytes,
            workspace_bytes=self.workspace_bytes,
            graph_bytes=graph_bytes(self.config.num_layers) if self.device.keeps_graphs else 0,
        )

    @torch.inference_mode()
    def allocate(self, blocks: int) -> None:
        """Reserve the KV cache."""
        self.cache = self.spec.allocate(self.device, blocks)
        if self.device.compiles:
            head = next((m for m in _modules(self.model) if isinstance(m, Head)), None)
            self.programs = Programs(self._parts(self.cache), self.lanes, self.config.vocab_size, head)

    def seal(self) -> None:
        """The warm-up has ended."""
        self.device.seal()
        if self.programs is not None:
            self.programs.seal()

    def execute(self, step: Step) -> Result:
        """Carry out a step."""
        return self.launch(step)()

    @torch.inference_mode()
    def launch(self, step: Step) -> Callable[[], Result]:
        """Begin with a step; what is returned waits for the result, and may be called in another thread.

        Results must be waited for in order, one at most may be waited for when the next step is launched.
        """
        assert self.cache is not None, "a step before Allocate"
        began = time.perf_counter()
        self.lanes.update(step)
        if self.programs is None:
            columns = self._execute(step, self.cache)
            result = Result(number=step.number, seconds=time.perf_counter() - began, **columns)
            return lambda: result
        missed, wait = self.programs.launch(step)
        counters, before = self.device.counters(), self._before
        self._before = counters

        def finish() -> Result:
            results: dict[str, Any] = wait()
            now = time.perf_counter()
            seconds, self._ended = now - max(began, self._ended), now
            return Result(
                number=step.number,
                seconds=seconds,
                compilations=counters.compilations - before.compilations,
                cpu_fallbacks=counters.cpu_fallbacks - before.cpu_fallbacks,
                graph_misses=int(missed),
                memory_bytes=counters.memory_bytes,
                **results,
            )

        return finish

    def _parts(self, cache: KVCache) -> Parts:
        device, config = self.device, self.config
        words = -(-config.vocab_size // 32)
        return Parts(
            model=lambda batch: self.model(batch),
            sampler=self.sampler,
            cache=cache,
            last_tokens=self.last_tokens,
            prompt=Prompt.of(self.prefill_tokens, config.hidden_size, self.top, device, self.dtype),
            device=device,
            sizes=Sizes(self.spec.block_size, self.lanes.count, words, device.flat, self.spec.window),
            top=self.top,
        )

    def _execute(self, step: Step, cache: KVCache) -> dict[str, Any]:
        for params in step.params:
            self.sampler.start(params)
        inputs = make_inputs(step, self.lanes, self.device, self.spec, cache, self.last_tokens)
        logits = self.model(inputs.batch)
        sampled = self.sampler(logits, inputs.sampler)
        self.last_tokens.index_copy_(0, inputs.sampler.lanes, sampled.tokens)
        columns: dict[str, Any] = _result_columns(sampled, inputs.answers)
        return columns | _target_columns(inputs.batch, inputs.target_places)


def open_device(name: str, threads: int) -> Device:
    """The device of that name. Raises ConfigError where no plugin offers it."""
    spec = find_offer("device", name, devices(load_plugins()))
    device = import_named(spec.implementation)(threads)
    assert isinstance(device, Device)
    device.spec = spec
    return device


def _modules(model: Model) -> Iterable[nn.Module]:
    return model.modules() if isinstance(model, nn.Module) else ()


def _workspace_bytes(model: Described, command: Load) -> int:
    return workspace_bytes(
        model,
        lanes=command.lanes,
        prefill_tokens=command.prefill_tokens,
        block_size=command.block_size,
        gathered_blocks=command.gathered_blocks,
        listed_blocks=command.listed_blocks,
        prefill_pairs=command.prefill_pairs,
    )


def _target_columns(batch: Batch, places: "np.ndarray[Any, Any]") -> dict[str, bytes]:
    """What the head has answered to the step's targets."""
    names = {
        "prompt_logprobs": batch.target_logprobs,
        "prompt_top_tokens": batch.target_top_tokens,
        "prompt_top_logprobs": batch.target_top_logprobs,
    }
    return {
        name: (answer.cpu() if answer.is_floating_point() else answer.int().cpu()).numpy()[places].tobytes()
        for name, answer in names.items()
        if answer is not None
    }


def _result_columns(sampled: Sampled, answers: "np.ndarray[Any, Any]") -> dict[str, bytes]:
    """The sampled rows that the server asked for, read back in one copy."""
    parts = (
        sampled.tokens.int()[:, None],
        sampled.logprobs.view(torch.int32)[:, None],
        sampled.top_tokens.int(),
        sampled.top_logprobs.view(torch.int32),
    )
    table = torch.cat(parts, 1).cpu().numpy()[answers]
    top = sampled.top_tokens.shape[1]
    return {
        "tokens": table[:, 0].tobytes(),
        "logprobs": table[:, 1].tobytes(),
        "top_tokens": table[:, 2 : 2 + top].tobytes(),
        "top_logprobs": table[:, 2 + top :].tobytes(),
    }
