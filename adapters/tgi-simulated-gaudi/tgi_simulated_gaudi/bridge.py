"""Stand-ins for the modules of habana_frameworks and for `torch.hpu`, with the bridge's names and signatures.

Functions that a release lacks are missing: those of graphs exist in lazy mode only.
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
    """Generations of cards."""

    synDeviceGaudi2 = 4
    synDeviceGaudi3 = 5


class Metric:
    """Result of `metric_global`, or of `metric_localcontext` (`local`), which counts from its start."""

    def __init__(self, card: Card, name: str, local: bool = False) -> None:
        self._card, self._name = card, name
        self._before = dict(self._current()) if local else {}

    def _current(self) -> list[tuple[str, Any]]:
        counters, recipes = self._card.ledger.counters, self._card.recipes
        if self._name == "graph_compilation":
            return [("TotalNumber", recipes.number), ("TotalTime", int(recipes.seconds * 1e9))]
        if self._name == "cpu_fallback":
            return [("TotalNumber", counters["cpu_fallback"])]
        if self._name == "recipe_cache":
            return [("TotalHit", recipes.cache_hits), ("TotalMiss", recipes.number - recipes.cache_hits)]
        return [("TotalNumber", 0)]

    def stats(self) -> list[tuple[str, Any]]:
        """Return names and numbers."""
        numbers = [(name, value - self._before.get(name, 0)) for name, value in self._current()]
        values = dict(numbers)
        if self._name == "graph_compilation":
            numbers.append(("AvgTime", values["TotalTime"] / max(1, values["TotalNumber"])))
        if self._name == "cpu_fallback":
            prefix = "cpu_fallback "
            names = [name for name in self._card.ledger.counters if name.startswith(prefix)]
            numbers.append(("FallbackOps", ", ".join(sorted(name.removeprefix(prefix) for name in names))))
        return numbers


Members = dict[str, Any]


def build(card: Card) -> dict[str, ModuleType]:
    """Return all modules by their full names."""
    contents: dict[str, Members] = {
        "": {"__version__": card.profile.release},
        ".torch": {"__version__": card.profile.release},
        ".torch.core": _core(card),
        ".torch.hpu": _device(card) | _streams(card) | _memory(card) | (_graphs(card) if card.lazy else {}),
        ".torch.hpu.metrics": _metrics(card),
        ".torch.hpex": {},
        ".torch.hpex.kernels": {
            "FusedSDPA": kernels.FusedSDPA,
            "apply_rotary_pos_emb": kernels.apply_rotary_pos_emb,
            "RotaryPosEmbeddingMode": kernels.RotaryPosEmbeddingMode,
            "RotaryPosEmbeddingHelperV2": kernels.RotaryPosEmbeddingHelperV2,
        },
        ".torch.hpex.normalization": {"FusedRMSNorm": kernels.FusedRMSNorm},
        ".torch.distributed": {},
        ".torch.distributed.hccl": {"initialize_distributed_hpu": collectives.initialize_distributed_hpu},
        ".torch.utils": {},
        ".torch.utils.internal": {"is_lazy": lambda: card.lazy},
        ".torch.utils.experimental": _experimental(card),
    }
    modules: dict[str, ModuleType] = {}
    for path, members in contents.items():
        name = _ROOT + path
        made = modules[name] = ModuleType(name, f"Stands in for {name}.")
        made.__path__ = []
        vars(made).update(members)
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(modules[parent], leaf, made)
    return modules


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""


def _core(card: Card) -> Members:
    def mark_step(device_str: str = "", sync: bool = False) -> None:
        del device_str
        if not card.lazy:
            return
        if card.recorder is not None:
            card.recorder.mark_step()
            return
        card.cut()
        if sync:
            card.streams.host_waits_for_all()

    def initialize(model: Any = None, *_: Any, **__: Any) -> Any:
        return model

    environment = ("hpu_set_env", "hpu_reset_env", "hpu_set_inference_env", "hpu_inference_set_env")
    return {
        "mark_step": mark_step,
        **dict.fromkeys((*environment, "hpu_teardown_inference_env"), _nothing),
        **dict.fromkeys(("hpu_initialize", "hpu_inference_initialize"), initialize),
    }


def _device(card: Card) -> Members:
    def synchronize(device: Any = None) -> None:
        del device
        if card.recorder is not None:
            card.host_sync("synchronize")
        card.cut()
        card.streams.host_waits_for_all()

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: card.profile.generation.name.upper(),  # noqa: ARG005
        "synchronize": synchronize,
        "_is_in_bad_fork": lambda: card.forked,
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float32],
        "is_autocast_enabled": lambda: False,
        "set_autocast_enabled": _nothing,
        "get_autocast_dtype": lambda: torch.bfloat16,
        "set_autocast_dtype": _nothing,
        **dict.fromkeys(("init", "set_device", "manual_seed", "manual_seed_all"), _nothing),
    }


def _streams(card: Card) -> Members:
    streams = card.streams

    @contextmanager
    def stream(new: Stream | None) -> Iterator[None]:
        before, streams.current = streams.current, new or streams.current
        try:
            yield
        finally:
            streams.current = before

    def set_stream(new: Stream) -> None:
        streams.current = new

    return {
        "Stream": lambda device=None, priority=0: streams.new(),  # noqa: ARG005
        "Event": lambda enable_timing=False: Event(streams, enable_timing),
        "stream": stream,
        "set_stream": set_stream,
        "current_stream": lambda device=None: streams.current,  # noqa: ARG005
        "default_stream": lambda device=None: streams.default,  # noqa: ARG005
    }


def _memory(card: Card) -> Members:
    memory = card.memory

    def reset_peak(device: Any = None) -> None:
        del device
        memory.peak = memory.in_use

    def memory_stats(device: Any = None) -> dict[str, int]:
        del device
        return {
            "Limit": memory.limit,
            "InUse": memory.in_use,
            "MaxInUse": memory.peak,
            "NumAllocs": memory.allocations,
            "NumFrees": memory.frees,
            "ActiveAllocs": memory.allocations - memory.frees,
            "MaxAllocSize": memory.largest,
            "TotalSystemAllocs": 0,
        }

    return {
        "memory_stats": memory_stats,
        "mem_get_info": lambda device=None: (memory.limit - memory.in_use, memory.limit),  # noqa: ARG005
        "memory_allocated": lambda device=None: memory.in_use,  # noqa: ARG005
        "max_memory_allocated": lambda device=None: memory.peak,  # noqa: ARG005
        "memory_reserved": lambda device=None: memory.limit,  # noqa: ARG005
        "reset_peak_memory_stats": reset_peak,
    }


def _graphs(card: Card) -> Members:
    names = ("HPUGraph", "graph", "wrap_in_hpu_graph", "wrap_in_hpu_graph_func", "make_graphed_callables")
    return {
        **{name: getattr(graphs, name) for name in names},
        "is_current_stream_capturing": lambda: card.recorder is not None,
    }


def _metrics(card: Card) -> Members:
    @contextmanager
    def metric_localcontext(name: str) -> Iterator[Metric]:
        yield Metric(card, name, local=True)

    return {"metric_global": lambda name: Metric(card, name), "metric_localcontext": metric_localcontext}


def _experimental(card: Card) -> Members:
    second = card.profile.generation.name == "gaudi2"
    kind = synDeviceType.synDeviceGaudi2 if second else synDeviceType.synDeviceGaudi3
    return {"synDeviceType": synDeviceType, "_get_device_type": lambda: kind}


def put(modules: dict[str, ModuleType]) -> None:
    """Let `import habana_frameworks` find the modules."""
    sys.modules.update(modules)
    torch.hpu = sys.modules["torch.hpu"] = modules[f"{_ROOT}.torch.hpu"]  # type: ignore[attr-defined]


def remove() -> None:
    """Undo `put`."""
    for name in [name for name in sys.modules if name == _ROOT or name.startswith(f"{_ROOT}.")]:
        del sys.modules[name]
