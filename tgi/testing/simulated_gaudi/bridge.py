"""The modules that stand in for habana_frameworks, and `torch.hpu`: names and signatures are the bridge's.

What a release does not have is not there: the graph functions exist in lazy mode only.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import ModuleType
from typing import Any

import torch

from . import collectives, graphs, kernels
from .card import Card
from .streams import Event, Stream

_ROOT = "habana_frameworks"


class synDeviceType(Enum):
    """Generations."""

    synDeviceGaudi2 = 4
    synDeviceGaudi3 = 5


class Metric:
    """What `metric_global` gives; counts from when it was made if `local`."""

    def __init__(self, card: Card, name: str, local: bool = False) -> None:
        self._card, self._name = card, name
        self._before = dict(self._now()) if local else {}

    def _now(self) -> list[tuple[str, Any]]:
        counters, recipes = self._card.ledger.counters, self._card.recipes
        if self._name == "graph_compilation":
            return [("TotalNumber", recipes.number), ("TotalTime", int(recipes.seconds * 1e9))]
        if self._name == "cpu_fallback":
            return [("TotalNumber", counters["cpu_fallback"])]
        if self._name == "recipe_cache":
            return [("TotalHit", recipes.cache_hits), ("TotalMiss", recipes.number - recipes.cache_hits)]
        return [("TotalNumber", 0)]

    def stats(self) -> list[tuple[str, Any]]:
        """Names and numbers."""
        numbers = [(name, value - self._before.get(name, 0)) for name, value in self._now()]
        found = dict(numbers)
        if self._name == "graph_compilation":
            numbers.append(("AvgTime", found["TotalTime"] / max(1, found["TotalNumber"])))
        if self._name == "cpu_fallback":
            prefix = "cpu_fallback "
            names = [name for name in self._card.ledger.counters if name.startswith(prefix)]
            numbers.append(("FallbackOps", ", ".join(sorted(name.removeprefix(prefix) for name in names))))
        return numbers


def build(card: Card) -> dict[str, ModuleType]:
    """All modules by their full names; `torch.hpu` is "habana_frameworks.torch.hpu"."""
    streams, memory = card.streams, card.memory

    def mark_step(device_str: str = "", sync: bool = False) -> None:
        del device_str
        if not card.lazy:
            return
        if card.recorder is not None:
            card.recorder.mark_step()
            return
        card.cut()
        if sync:
            streams.host_waits_for_all()

    def environment(*_: Any, **__: Any) -> None:
        """Without effect here."""

    def initialize(model: Any = None, *_: Any, **__: Any) -> Any:
        return model

    def synchronize(device: Any = None) -> None:
        del device
        if card.recorder is not None:
            card.host_sync("synchronize")
        card.cut()
        streams.host_waits_for_all()

    @contextmanager
    def stream(new: Stream | None) -> Iterator[None]:
        before, streams.current = streams.current, new or streams.current
        try:
            yield
        finally:
            streams.current = before

    def set_stream(new: Stream) -> None:
        streams.current = new

    def reset_peak(device: Any = None) -> None:
        del device
        memory.most = memory.in_use

    def memory_stats(device: Any = None) -> dict[str, int]:
        del device
        return {
            "Limit": memory.limit,
            "InUse": memory.in_use,
            "MaxInUse": memory.most,
            "NumAllocs": memory.allocations,
            "NumFrees": memory.frees,
            "ActiveAllocs": memory.allocations - memory.frees,
            "MaxAllocSize": memory.largest,
            "TotalSystemAllocs": 0,
        }

    @contextmanager
    def metric_localcontext(name: str) -> Iterator[Metric]:
        yield Metric(card, name, local=True)

    modules: dict[str, ModuleType] = {}

    def module(name: str, **members: Any) -> ModuleType:
        made = ModuleType(name, f"Stands in for {name}.")
        made.__path__ = []
        vars(made).update(members)
        modules[name] = made
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(modules[parent], leaf, made)
        return made

    module(_ROOT, __version__=card.profile.release)
    module(f"{_ROOT}.torch", __version__=card.profile.release)
    module(
        f"{_ROOT}.torch.core",
        mark_step=mark_step,
        **dict.fromkeys(("hpu_set_env", "hpu_reset_env", "hpu_set_inference_env"), environment),
        **dict.fromkeys(("hpu_inference_set_env", "hpu_teardown_inference_env"), environment),
        **dict.fromkeys(("hpu_initialize", "hpu_inference_initialize"), initialize),
    )
    generation = card.profile.generation
    hpu = module(
        f"{_ROOT}.torch.hpu",
        is_available=lambda: True,
        is_initialized=lambda: True,
        init=environment,
        device_count=lambda: 1,
        current_device=lambda: 0,
        set_device=environment,
        get_device_name=lambda device=None: generation.name.upper(),  # noqa: ARG005
        synchronize=synchronize,
        Stream=lambda device=None, priority=0: streams.new(),  # noqa: ARG005
        Event=lambda enable_timing=False: Event(streams, enable_timing),
        stream=stream,
        set_stream=set_stream,
        current_stream=lambda device=None: streams.current,  # noqa: ARG005
        default_stream=lambda device=None: streams.default,  # noqa: ARG005
        memory_stats=memory_stats,
        mem_get_info=lambda device=None: (memory.limit - memory.in_use, memory.limit),  # noqa: ARG005
        memory_allocated=lambda device=None: memory.in_use,  # noqa: ARG005
        max_memory_allocated=lambda device=None: memory.most,  # noqa: ARG005
        memory_reserved=lambda device=None: memory.limit,  # noqa: ARG005
        reset_peak_memory_stats=reset_peak,
        manual_seed=environment,
        manual_seed_all=environment,
        _is_in_bad_fork=lambda: card.forked,
    )
    module(
        f"{_ROOT}.torch.hpu.metrics",
        metric_global=lambda name: Metric(card, name),
        metric_localcontext=metric_localcontext,
    )
    if card.lazy:
        for name in (
            "HPUGraph",
            "graph",
            "wrap_in_hpu_graph",
            "wrap_in_hpu_graph_func",
            "make_graphed_callables",
        ):
            setattr(hpu, name, getattr(graphs, name))
        hpu.is_current_stream_capturing = lambda: card.recorder is not None  # type: ignore[attr-defined]
    module(f"{_ROOT}.torch.hpex")
    module(
        f"{_ROOT}.torch.hpex.kernels",
        FusedSDPA=kernels.FusedSDPA,
        apply_rotary_pos_emb=kernels.apply_rotary_pos_emb,
        RotaryPosEmbeddingMode=kernels.RotaryPosEmbeddingMode,
        RotaryPosEmbeddingHelperV2=kernels.RotaryPosEmbeddingHelperV2,
    )
    module(f"{_ROOT}.torch.hpex.normalization", FusedRMSNorm=kernels.FusedRMSNorm)
    module(f"{_ROOT}.torch.distributed")
    module(
        f"{_ROOT}.torch.distributed.hccl", initialize_distributed_hpu=collectives.initialize_distributed_hpu
    )
    module(f"{_ROOT}.torch.utils")
    module(f"{_ROOT}.torch.utils.internal", is_lazy=lambda: card.lazy)
    kind = synDeviceType.synDeviceGaudi2 if generation.name == "gaudi2" else synDeviceType.synDeviceGaudi3
    module(f"{_ROOT}.torch.utils.experimental", synDeviceType=synDeviceType, _get_device_type=lambda: kind)
    return modules


def put(modules: dict[str, ModuleType]) -> None:
    """Let `import habana_frameworks` find them."""
    sys.modules.update(modules)
    torch.hpu = sys.modules["torch.hpu"] = modules[f"{_ROOT}.torch.hpu"]  # type: ignore[attr-defined]


def remove() -> None:
    """Take them out again."""
    for name in [name for name in sys.modules if name == _ROOT or name.startswith(f"{_ROOT}.")]:
        del sys.modules[name]
