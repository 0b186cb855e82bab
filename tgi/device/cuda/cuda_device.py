"""NVIDIA GPUs: each program is a CUDA graph, and copies have streams of their own.

The first call of a program runs it eagerly and captures it afterwards, so that no step is executed twice;
later calls replay it. All graphs share one pool of memory: the warm-up captures the largest first, and the
others fit into its memory. The host waits for nothing but results.
"""

import functools
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import attrs
import torch

from tgi.device.base import Array
from tgi.device.graphs import Program, Run
from tgi.device.meeting import local_place
from tgi.plugins import ConfigError
from tgi.weights import Shard

from .cuda_operations import CudaOperations

_BFLOAT16 = (8, 0)
"""First compute capability that has bfloat16."""
_event: Callable[[], torch.cuda.Event] = torch.cuda.Event
_stream: Callable[[], torch.cuda.Stream] = torch.cuda.Stream


class Reusable(Protocol):
    """Memory for copies."""

    size: int

    @property
    def free(self) -> bool:
        """Whether no copy and no reader uses it any more."""


B = TypeVar("B", bound=Reusable)


class Buffers(Generic[B]):
    """Buffers that are reused once they are free."""

    def __init__(self, make: Callable[[int], B]) -> None:
        self._make = make
        self._made: list[B] = []

    def take(self, size: int) -> B:
        """Return the smallest free buffer that is large enough, or a new one."""
        fitting = [buffer for buffer in self._made if buffer.size >= size and buffer.free]
        if fitting:
            return min(fitting, key=lambda buffer: buffer.size)
        self._made.append(self._make(1 << (size - 1).bit_length()))
        return self._made[-1]


@attrs.define(eq=False)
class _Pinned:
    """`Reusable` in pinned memory, which the GPU copies from and to by itself."""

    size: int
    numbers: torch.Tensor
    copied: torch.cuda.Event
    lent: bool = False
    """Whether it holds, or will hold, a result that has not been read."""

    @classmethod
    def of(cls, size: int) -> "_Pinned":
        return cls(size, torch.empty(size, dtype=torch.int32, pin_memory=True), _event())

    def part(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the first `count` numbers, int32 or float32."""
        return self.numbers[:count].view(dtype)

    @property
    def free(self) -> bool:
        return not self.lent and bool(self.copied.query())  # type: ignore[no-untyped-call]


@attrs.frozen(eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    """Tensors that the graph reads."""
    results: tuple[torch.Tensor, ...]
    """Tensors that the graph leaves its results in."""


class CudaDevice(CudaOperations):
    """One GPU: the one with the rank's number among the visible ones."""

    distributed_backend = "nccl"
    keeps_graphs = True
    workspaces = 2  # that of the graphs, and that of a step which will be captured
    asynchronous = True

    def __init__(self, threads: int = 0) -> None:
        super().__init__(threads)
        if not torch.cuda.is_available():
            raise ConfigError(f"no CUDA device can be used here: {_reason()}")
        self.torch_device = torch.device("cuda")
        self._sealed_bytes = 0
        """Memory in use when the warm-up ended, in bytes: torch takes long to tell, and it changes little."""
        self._buffers = Buffers(_Pinned.of)
        self._copied: torch.cuda.Event | None = None
        """Event after the last copy to the host."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype: for "auto" bfloat16, or float16 on a GPU that lacks it."""
        if name == "auto":
            name = "bfloat16" if torch.cuda.get_device_capability() >= _BFLOAT16 else "float16"
        return super().dtype(name)

    def free_bytes(self) -> int:
        """Return the free bytes that the driver reports, after torch has returned its cached memory."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def total_bytes(self) -> int:
        """Return the memory of the GPU in bytes."""
        return torch.cuda.mem_get_info()[1]

    def seal(self) -> None:
        """Take note of the memory in use."""
        self._sealed_bytes = torch.cuda.memory_allocated()

    def used_bytes(self) -> int:
        """Return the bytes that tensors take: after the warm-up, those that they took at its end."""
        return self._sealed_bytes or torch.cuda.memory_allocated()

    # ---- programs ------------------------------------------------------------------------------------------

    def graph(self, program: Program) -> Run:
        """Return the program as a CUDA graph; it runs once the results before have been copied."""
        captured: _Captured | None = None

        def run(*packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
            nonlocal captured
            if self._copied is not None:
                torch.cuda.current_stream().wait_event(self._copied)
            if captured is None:
                results: tuple[torch.Tensor, ...] = program(*packed)
                captured = self._capture(program, packed)
                return results
            for held, new in zip(captured.inputs, packed, strict=True):
                held.copy_(new, non_blocking=True)
            captured.graph.replay()
            return captured.results

        return run

    def _capture(self, program: Program, packed: tuple[torch.Tensor, ...]) -> _Captured:
        """Capture the program without executing it. Another thread may wait for a result meanwhile."""
        graph, inputs = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in packed]
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = program(*inputs)
        self.count("graph_compilations")
        return _Captured(graph, inputs, results)

    def upload(self, *packed: Array) -> list[torch.Tensor]:
        """Copy while the step before is computed. The arrays may be changed at once."""
        incoming, current = self._streams[0], torch.cuda.current_stream()
        uploaded = []
        for array in packed:
            buffer, source = self._buffers.take(array.size), torch.from_numpy(array)
            host = buffer.part(array.size, source.dtype).copy_(source)
            with torch.cuda.stream(incoming):
                there = host.to(self.torch_device, non_blocking=True)
                buffer.copied.record()
            current.wait_event(buffer.copied)
            there.record_stream(current)
            uploaded.append(there)
        return uploaded

    def fetch(self, *tensors: torch.Tensor) -> Callable[[], list[Array]]:
        """Copy while the next step is computed, until that would overwrite the results."""
        outgoing, fetched = self._streams[1], []
        outgoing.wait_stream(torch.cuda.current_stream())
        for tensor in tensors:
            buffer = self._buffers.take(tensor.numel())
            buffer.lent = True
            host = buffer.part(tensor.numel(), tensor.dtype).view(tensor.shape)
            with torch.cuda.stream(outgoing):
                host.copy_(tensor, non_blocking=True)
                buffer.copied.record()
            tensor.record_stream(outgoing)
            self._copied = buffer.copied
            fetched.append((buffer, host))

        def wait() -> list[Array]:
            arrays = []
            for buffer, host in fetched:
                buffer.copied.synchronize()
                arrays.append(host.numpy().copy())
                buffer.lent = False
            return arrays

        return wait

    @functools.cached_property
    def _streams(self) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
        """Streams for copies in and out, made once this rank's GPU is known."""
        return _stream(), _stream()

    @functools.cached_property
    def _pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    # ---- ranks ---------------------------------------------------------------------------------------------

    def connect(self, world: Shard, store: str, stages: int = 1) -> None:
        """Choose the rank's GPU, and find the other ranks."""
        (index, ranks), count = local_place(world), torch.cuda.device_count()
        if index >= count:
            raise ConfigError(f"{ranks} ranks need as many GPUs, and CUDA shows {count}")
        torch.cuda.set_device(index)
        super().connect(world, store, stages)


def _reason() -> str:
    """Return the reason why torch has no CUDA device."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA; install a build with it"
    return f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no GPU; check the driver"
