"""Graphs: HPUGraph and its wrappers (lazy mode), and `torch.compile(backend="hpu_backend")` (compile mode).

In both the Python body of a function runs once per signature and is replayed afterwards. Dynamo itself is not
simulated: nothing breaks a graph, and a graph has no guards on values other than its arguments.
"""

import functools
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import dispatch
from .card import Allocation, Card
from .recording import Recorder, Recording
from .signature import Leaves, Seen, replace
from .streams import Stream
from .tensor import HpuTensor, Lease, wrap


@contextmanager
def capturing(name: str, copy_inputs: bool = False) -> Iterator[Recorder]:
    """Record the body; the caller must finish the recorder."""
    card = dispatch.active()
    if card.recorder is not None:
        card.ledger.violate("S18", name, f"a capture begins while {card.recorder.name} is captured")
    card.cut()
    before = card.recorder
    card.recorder = Recorder(card, name, copy_inputs, stream=card.streams.current.number)
    try:
        yield card.recorder
    finally:
        card.recorder = before


class HPUGraph:
    """`torch.hpu.HPUGraph`: tensors of the capture that are still referred to afterwards are static."""

    def __init__(self) -> None:
        self._capture: Any = None
        self._recording: Recording | None = None

    def capture_begin(self, dry_run: bool = False) -> None:  # noqa: ARG002
        """Record from now on."""
        self._capture = capturing("HPUGraph")
        self._recorder = self._capture.__enter__()

    def capture_end(self) -> None:
        """Stop recording."""
        card, recorder = dispatch.active(), self._recorder
        self._capture.__exit__(None, None, None)
        if card.streams.current.number != recorder.stream:
            card.ledger.violate("S18", "HPUGraph", "the capture ends on another stream than it began on")
        self._recording = recorder.finish([tensor.plain for tensor in recorder.alive()])

    def replay(self, asynchronous: bool = False) -> None:  # noqa: ARG002
        """Run the graph again, on the same tensors."""
        if self._recording is None:
            raise RuntimeError("HPUGraph: replay() before a capture")
        with torch.inference_mode():
            self._recording.replay()

    def reset(self) -> None:
        """Forget the graph."""
        self._recording = None

    def clear_inputs(self) -> None:
        """Do nothing: inputs are the caller's tensors."""

    def mark_user_inputs(self, tensors: list[torch.Tensor]) -> None:
        """Do nothing."""

    def mark_user_outputs(self, tensors: list[torch.Tensor]) -> None:
        """Do nothing."""


@contextmanager
def graph(hpu_graph: HPUGraph, stream: Stream | None = None, dry_run: bool = False) -> Iterator[None]:
    """`torch.hpu.graph`: capture the body."""
    streams = dispatch.active().streams
    before = streams.current
    streams.current = stream or before
    hpu_graph.capture_begin(dry_run)
    try:
        yield
    except BaseException:
        hpu_graph._capture.__exit__(None, None, None)
        raise
    else:
        hpu_graph.capture_end()
    finally:
        streams.current = before


class GraphFunction:
    """A function with a graph per signature."""

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        *,
        lazy: bool,
        keep_tensors: bool = False,
        max_graphs: int | None = None,
    ) -> None:
        self._function, self._name, self._lazy = function, name, lazy
        self._keep_tensors, self._max_graphs = keep_tensors, max_graphs
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: Seen | None = None
        self._methods: weakref.WeakKeyDictionary[Any, GraphFunction] = weakref.WeakKeyDictionary()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replay the graph of these arguments, or capture it."""
        card = dispatch.active()
        if kwargs.pop("bypass_hpu_graphs", False) or (not self._lazy and card.recorder is not None):
            return self._function(*args, **kwargs)
        for name in ("warmup_mode", "cache_tensors_list"):
            kwargs.pop(name, None)
        leaves = Leaves(into_objects=not self._lazy)
        leaves.walk((args, kwargs), self._name)
        if self._seen is None:
            self._seen = Seen(self._name, card.ledger)
        self._seen.check(leaves)
        for tensor in leaves.tensors:
            dispatch.usable(card, tensor, self._name)
            card.streams.reads(tensor.allocation, self._name)
        key = (leaves.key, torch.is_autocast_enabled())
        graph = self._graphs.get(key)
        if graph is None:
            if self._max_graphs is not None and len(self._graphs) >= self._max_graphs:
                return self._function(*args, **kwargs)
            return self._capture(card, key, args, kwargs)
        return graph.run(leaves.tensors)

    def __get__(self, instance: Any, owner: Any) -> Any:
        """Return the method of an object, which has graphs of its own."""
        if instance is None:
            return self
        if instance not in self._methods:
            method = functools.partial(self._function, instance)
            self._methods[instance] = GraphFunction(method, self._name, lazy=self._lazy)
        return self._methods[instance]

    def clear_cache(self) -> None:
        """Forget all graphs."""
        self._graphs.clear()

    def clear_inputs(self) -> None:
        """Do nothing."""

    def _capture(self, card: Card, key: Hashable, args: Any, kwargs: Any) -> Any:
        if card.sealed:
            card.ledger.violate("S1", self._name, f"a new graph after seal(): {key!r}"[:600])
        with capturing(self._name, copy_inputs=True) as recorder:
            deep = not self._lazy
            args, kwargs = replace((args, kwargs), HpuTensor, recorder.input, deep)
            result = self._function(*args, **kwargs)
        outputs: list[HpuTensor] = []
        template = replace(result, HpuTensor, lambda tensor: _Slot(outputs, tensor), deep)
        recorder.input_lease.end("S9", f"an input of the graph {self._name} is used after its capture")
        for tensor in outputs:
            if tensor.lease is not recorder.input_lease:
                dispatch.usable(card, tensor, self._name)
        recording = recorder.finish([tensor.plain for tensor in outputs], self._keep_tensors)
        recorder.lease.end("S10", f"a tensor computed within the graph {self._name} is used outside of it")
        made = self._graphs[key] = _Graph(card, recording, template, outputs, self._lazy)
        return made.results()


class _Slot:
    """Place of a tensor in a result."""

    def __init__(self, tensors: list[HpuTensor], tensor: HpuTensor) -> None:
        self.number = len(tensors)
        tensors.append(tensor)


class _Graph:
    """The graph of one signature."""

    def __init__(
        self, card: Card, recording: Recording, template: Any, outputs: list[HpuTensor], static: bool
    ) -> None:
        self._card, self._recording, self._template, self._static = card, recording, template, static
        self._plain = [tensor.plain for tensor in outputs]
        self._allocations = [
            tensor.allocation if tensor.allocation.memory is not None else Allocation(None, 0)
            for tensor in outputs
        ]
        recording.written += self._allocations
        self._lease = Lease()

    def run(self, tensors: list[HpuTensor]) -> Any:
        with torch.inference_mode():
            for slot, tensor in zip(self._recording.inputs, tensors, strict=True):
                slot.bind(tensor.plain)
            self._recording.replay()
        return self.results()

    def results(self) -> Any:
        """Return static tensors that the next call invalidates, or new ones in compile mode."""
        if self._static:
            self._lease.end(
                "S8", f"an output of the graph {self._recording.name} is used after its next replay"
            )
            lease = self._lease = Lease()
            made = [wrap(p, a, lease) for p, a in zip(self._plain, self._allocations, strict=True)]
        else:
            made = [self._fresh(plain) for plain in self._plain]
        return replace(self._template, _Slot, lambda slot: made[slot.number], not self._static)

    def _fresh(self, plain: torch.Tensor) -> HpuTensor:
        card = self._card
        return dispatch.new_tensor(card, self._recording.name, plain.clone())


def wrap_in_hpu_graph(
    module: torch.nn.Module,
    asynchronous: bool = False,  # noqa: ARG001
    disable_tensor_cache: bool = False,
    dry_run: bool = False,  # noqa: ARG001
    max_graphs: int | None = None,
) -> torch.nn.Module:
    """Return the module itself, with a `forward` that captures and replays."""
    name = type(module).__name__
    graphs = GraphFunction(
        module.forward, name, lazy=True, keep_tensors=not disable_tensor_cache, max_graphs=max_graphs
    )
    module.forward = graphs
    module.clear_cache = graphs.clear_cache  # type: ignore[assignment]
    module.clear_inputs = graphs.clear_inputs  # type: ignore[assignment]
    return module


def wrap_in_hpu_graph_func(
    func: Callable[..., Any],
    asynchronous: bool = False,  # noqa: ARG001
    disable_tensor_cache: bool = False,
    dry_run: bool = False,  # noqa: ARG001
    max_graphs: int | None = None,
) -> Callable[..., Any]:
    """Return a function that captures and replays."""
    name = getattr(func, "__name__", "function")
    return GraphFunction(func, name, lazy=True, keep_tensors=not disable_tensor_cache, max_graphs=max_graphs)


class CompiledModule(torch.nn.Module):
    """A compiled module, like torch's OptimizedModule: everything but calls goes to the module itself."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._orig_mod = module
        self._graphs = GraphFunction(module.__call__, type(module).__name__, lazy=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph of these arguments, or compile it."""
        return self._graphs(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_orig_mod"), name)


def compile_for_hpu(model: Any = None, **options: Any) -> Any:
    """`torch.compile(model, backend="hpu_backend", …)`; other options are accepted and change nothing."""
    if model is None:
        return functools.partial(compile_for_hpu, **options)
    if isinstance(model, torch.nn.Module):
        return CompiledModule(model)
    return functools.wraps(model)(GraphFunction(model, getattr(model, "__name__", "function"), lazy=False))


def make_graphed_callables(
    callables: Any,
    sample_args: Any,
    warmups: int = 0,
    allow_unused_input: bool = False,
    asynchronous: bool = False,
    disable_tensor_cache: bool = False,
    dry_run: bool = False,
) -> Any:
    """Return one callable or several, each captured with its sample arguments."""
    del warmups, allow_unused_input
    several = isinstance(callables, tuple)
    made = []
    for function, args in zip(
        callables if several else (callables,), sample_args if several else (sample_args,), strict=True
    ):
        wrapper = wrap_in_hpu_graph if isinstance(function, torch.nn.Module) else wrap_in_hpu_graph_func
        graphed = wrapper(function, asynchronous, disable_tensor_cache, dry_run)
        graphed(*args)
        made.append(graphed)
    return tuple(made) if several else made[0]
