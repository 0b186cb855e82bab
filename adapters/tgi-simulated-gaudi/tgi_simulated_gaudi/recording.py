"""Graphs as recorded operations: each replay runs the operations of the capture again, on the same tensors.

Views cost nothing at a replay; operations write into the tensors of the capture through their out variants.
After the capture all intermediate results are laid out in one arena that all graphs share, by their times of
use, as the graph compiler does: the arena's size is the workspace, and later replays overwrite a result that
is still referred to.
"""

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NoReturn

import attrs
import torch

from . import costs
from .card import Allocation, Card
from .operations import WHOLE_UPDATES, Operation
from .rules import GaudiRuleError
from .tensor import HpuTensor, Lease, wrap

Step = tuple[Callable[..., Any], Sequence[Any], dict[str, Any], str]
"""Function, arguments, keyword arguments, and the operation's name for messages."""
_ALIGNMENT = 128
_RECIPES = 32
"""Number of recipes that cost a whole launch and the memory of a graph: a model's layers."""
_UNFILLED = ("empty", "new_empty")
_FILLED = ("zeros", "ones", "full", "new_ones", "new_full")
"""Beginnings of names of operations that fill a tensor without a value; the bridge has its own new_zeros."""
_BLANK = (*_UNFILLED, *_FILLED)
"""Beginnings of names of operations that make a tensor without a value."""
_COPIED_BYTES = 1 << 22
"""Maximum bytes of an input that is copied at a replay; tensors of a larger input are pointed to it."""


def storage_of(tensor: torch.Tensor) -> int:
    """Return the identity of a tensor's storage."""
    return int(tensor.untyped_storage()._cdata)


def size_of(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor's storage."""
    return tensor.untyped_storage().nbytes()


def _byte_offset(tensor: torch.Tensor) -> int:
    return int(tensor.storage_offset()) * tensor.element_size()


def _point(tensor: torch.Tensor, storage: torch.UntypedStorage, offset: int) -> None:
    """Move a tensor to `offset` bytes in another storage."""
    tensor.set_(storage, offset // tensor.element_size(), tensor.shape, tensor.stride())


@attrs.define(eq=False)
class Input:
    """An argument of a graph."""

    plain: torch.Tensor
    """Tensor that the captured code uses."""
    given: torch.Tensor
    """Tensor that the caller passed at the capture."""
    views: list[torch.Tensor] = attrs.field(factory=list)
    """Views of `plain` that the captured code made."""
    changed: bool = False
    """Whether the captured code changes it in place."""

    def bind(self, given: torch.Tensor) -> None:
        """Use this tensor, of the same shape and dtype, in the next replay."""
        if given.data_ptr() == self.plain.data_ptr() and storage_of(given) == storage_of(self.plain):
            return
        if not self.changed and given.numel() * given.element_size() <= _COPIED_BYTES:
            self.plain.copy_(given)
            return
        storage, old, new = given.untyped_storage(), _byte_offset(self.plain), _byte_offset(given)
        for tensor in (*self.views, self.plain):
            _point(tensor, storage, new + _byte_offset(tensor) - old)


@attrs.define(eq=False)
class Recorder:
    """A capture that is running."""

    card: Card
    name: str
    """Name of the graph, for messages."""
    copy_inputs: bool
    """Whether inputs get buffers of their own."""
    lease: Lease = attrs.field(factory=Lease)
    """Permission to use intermediate results."""
    input_lease: Lease = attrs.field(factory=Lease)
    """Permission to use the inputs that the captured code got."""
    stream: int = 0
    """Number of the stream on which the capture began."""
    steps: list[Step] = attrs.field(factory=list)
    """Recorded operations and checks."""
    touched: list[set[int]] = attrs.field(factory=list)
    """Storages that each step uses."""
    born: dict[int, list[torch.Tensor]] = attrs.field(factory=dict)
    """Tensors by storage, for storages that the capture made."""
    inputs: list[Input] = attrs.field(factory=list)
    _input_of: dict[int, Input] = attrs.field(factory=dict)
    """Inputs by the identity of plain tensors: their own, and those of views."""
    outside: dict[int, Allocation] = attrs.field(factory=dict)
    """Memory from outside that the graph uses, by identity."""
    written: dict[int, Allocation] = attrs.field(factory=dict)
    """Memory from outside that the graph writes, by identity."""
    segments: list[list[Hashable]] = attrs.field(factory=lambda: [[]])
    """Keys of the operations between two `mark_step`; each segment is compiled by itself."""
    collectives: list[str] = attrs.field(factory=list)
    """Names, shapes and dtypes of the collectives."""
    kept: int = 0
    """Bytes of tensors without a value that the graph keeps, in lazy mode."""
    _blank: dict[int, int] = attrs.field(factory=dict)
    """Bytes of the storages that the capture made without a value, and that nothing has written yet."""
    seconds: float = 0.0
    """Simulated seconds of one replay, without launch."""
    wrappers: list["weakref.ref[HpuTensor]"] = attrs.field(factory=list)
    """All tensors that the capture made."""

    def input(self, given: HpuTensor) -> HpuTensor:
        """Return the tensor that the captured code gets for an argument."""
        plain = given.plain
        if self.copy_inputs and plain.numel() * plain.element_size() <= _COPIED_BYTES:
            static = torch.empty_strided(plain.shape, plain.stride(), dtype=plain.dtype).copy_(plain)
        else:
            static = plain.detach()
        self.inputs.append(Input(static, plain))
        self._input_of[id(static)] = self.inputs[-1]
        return wrap(static, given.allocation, self.input_lease)

    def made(self, wrapper: HpuTensor) -> None:
        """Note a tensor that the capture made: a result or a view."""
        self.wrappers.append(weakref.ref(wrapper))

    def alive(self) -> list[HpuTensor]:
        """Return the tensors that the capture made and that are still referred to."""
        return [found for reference in self.wrappers if (found := reference()) is not None]

    def on_die(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is an intermediate result."""
        return storage_of(tensor) in self.born

    def see_view(self, base: torch.Tensor, views: Sequence[torch.Tensor]) -> None:
        """Note views of a tensor."""
        key = storage_of(base)
        if key in self.born:
            self.born[key] += views
        elif found := self._input_of.get(id(base)):
            found.views += views
            self._input_of.update((id(view), found) for view in views)

    def use(self, tensors: Sequence[HpuTensor]) -> None:
        """Note the use of tensors; the graph keeps those from outside alive."""
        for tensor in tensors:
            if tensor.allocation.memory is not None:
                self.outside[id(tensor.allocation)] = tensor.allocation
                tensor.allocation.graphed |= tensor.lease is not self.input_lease

    def write(self, targets: Sequence[torch.Tensor]) -> None:
        """Note a change in place (S7): in lazy mode a tensor without a value is an input then, and kept."""
        sizes = [self._blank.pop(storage_of(target), 0) for target in targets]
        self.kept += sum(sizes) if self.card.lazy else 0

    def change(self, info: Operation, target: HpuTensor) -> None:
        """Check a change in place (S21)."""
        plain = target.plain
        if storage_of(plain) in self.born:
            return
        given = self._input_of.get(id(plain))
        what = "an input" if given else "a tensor from outside of the graph"
        if plain.numel() * plain.element_size() != size_of(plain) or not plain.is_contiguous():
            self.card.ledger.violate(
                "S21", info.label, f"changes a part of {what}, of shape {tuple(plain.shape)}"
            )
        elif target.is_view:
            self.card.ledger.violate(
                "S21", info.label, f"changes {what} by a view of it, of shape {tuple(plain.shape)}"
            )
        elif given and info.name not in WHOLE_UPDATES:
            self.card.ledger.violate("S21", info.label, "changes an input of the graph")
        if given:
            given.changed = True
        self.written[id(target.allocation)] = target.allocation

    def add(
        self,
        info: Operation,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        results: Sequence[torch.Tensor],
        key: Hashable,
    ) -> None:
        """Record an operation that ran on plain tensors."""
        arguments = costs.tensors((*args, *kwargs.values()))
        self.seconds += costs.seconds(self.card.profile, info, arguments, results, self.on_die)
        if info.mutates or not results:
            step: Step = (info.call, args, kwargs, info.label)
        else:
            for result in results:
                self.born[storage_of(result)] = [result]
            step = _into(info, args, kwargs, results)
        if info.name.startswith(_BLANK):
            self._blank.update((storage_of(one), size_of(one)) for one in results if one.dim())
        if info.name.startswith(_FILLED):
            self.write(results)
        elif info.mutates:
            self.write([args[place] for place, _ in info.mutates if place < len(args)])
        if not info.name.startswith(_UNFILLED):
            self.segments[-1].append(key)
            self.append(step, [*arguments, *results])

    def append(self, step: Step, tensors: Sequence[torch.Tensor]) -> None:
        """Add a step that uses these tensors."""
        self.steps.append(step)
        self.touched.append({storage_of(tensor) for tensor in tensors})

    def mark_step(self) -> None:
        """Begin another recipe."""
        if self.segments[-1]:
            self.segments.append([])

    def finish(self, outputs: Sequence[torch.Tensor], keep_tensors: bool = False) -> "Recording":
        """End the capture, with these outputs.

        With `keep_tensors` intermediate results are not shared with other graphs.
        """
        card, profile = self.card, self.card.profile
        for changed in (item for item in self.inputs if item.changed):
            changed.given.copy_(changed.plain)
        kept = {storage_of(tensor) for tensor in outputs}
        static = self.kept + sum(size_of(self.born[key][0]) for key in kept if key in self.born)
        temporary = {key: tensors for key, tensors in self.born.items() if key not in kept}
        size = card_arena(card).lay_out(temporary, self.touched)
        static += sum(size_of(tensors[0]) for tensors in temporary.values()) if keep_tensors else 0
        card.memory.reserve_workspace(size)
        segments = [segment for segment in self.segments if segment]
        for segment in segments:
            card.compile(("graph", tuple(segment)), len(segment), self.name)
        share = min(len(segments) / _RECIPES, 1.0)
        if not card.lazy:
            shapes = tuple(tuple(given.plain.shape) for given in self.inputs)
            card.trace((shapes, *map(tuple, segments)), self.name)
        card.ledger.counters["graphs"] += 1
        card.ledger.counters["kept_bytes"] += self.kept
        return Recording(
            card=card,
            name=self.name,
            steps=self.steps,
            inputs=self.inputs,
            seconds=self.seconds,
            launch_seconds=profile.generation.launch_seconds * share,
            written=list(self.written.values()),
            outside=list(self.outside.values()),
            allocation=card.allocate(static + int(profile.graph_bytes * share), self.name),
            workspace=size,
            collectives=" ".join(self.collectives),
        )


@attrs.define(eq=False)
class Recording:
    """A captured graph."""

    card: Card
    name: str
    steps: list[Step]
    inputs: list[Input]
    seconds: float
    """Simulated seconds of one replay, without launch."""
    launch_seconds: float
    """Simulated seconds of launching it."""
    written: list[Allocation]
    """Memory from outside that a replay writes."""
    outside: list[Allocation]
    """Memory from outside, kept alive."""
    allocation: Allocation
    """Memory of the graph itself and its outputs."""
    workspace: int
    """Bytes of the intermediate results that are in use at once."""
    collectives: str
    """Names, shapes and dtypes of all collectives."""
    replays: int = 0

    def replay(self) -> None:
        """Run the steps again, on the tensors that are bound to the inputs."""
        card = self.card
        if card.recorder is not None:
            card.ledger.violate("S18", self.name, "a graph is replayed while another is captured")
        card.cut()
        if self.collectives and card.guards.get("collectives"):
            card.guards["collectives"](self.collectives)
        for allocation in self.written:
            card.streams.writes(allocation, self.name)
        step = None
        try:
            for step in self.steps:
                step[0](*step[1], **step[2])
        except GaudiRuleError:
            raise
        except (IndexError, RuntimeError) as error:
            refuse_index(card, step[3] if step else self.name, error)
        self.replays += 1
        card.ledger.counters["replays"] += 1
        card.clock.spend("compute", self.seconds)
        card.clock.spend("launch", self.launch_seconds)


class Arena:
    """Memory for the intermediate results of the running graph."""

    def __init__(self) -> None:
        self.storage = torch.empty(0, dtype=torch.uint8).untyped_storage()

    def lay_out(self, storages: dict[int, list[torch.Tensor]], touched: Sequence[set[int]]) -> int:
        """Move the tensors of these storages here; return the bytes that they need."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for number, keys in enumerate(touched):
            for key in keys & storages.keys():
                first.setdefault(key, number)
                last[key] = number
        live: list[tuple[int, int, int]] = []  # (offset, end, last step), by offset
        places, total = {}, 0
        for key in sorted(first, key=lambda key: first[key]):
            size = -(-max(1, size_of(storages[key][0])) // _ALIGNMENT) * _ALIGNMENT
            live = [place for place in live if place[2] >= first[key]]
            offset = 0
            for begin, end, _ in live:
                if begin - offset >= size:
                    break
                offset = max(offset, end)
            live = sorted([*live, (offset, offset + size, last[key])])
            places[key], total = offset, max(total, offset + size)
        if total > self.storage.nbytes():
            self.storage.resize_(total)
        for key, offset in places.items():
            for tensor in storages[key]:
                _point(tensor, self.storage, offset + _byte_offset(tensor))
        return total


def card_arena(card: Card) -> Arena:
    """Return the arena of a card."""
    arena = card.guards.get("arena")
    if arena is None:
        arena = card.guards["arena"] = Arena()
    return arena


def refuse_index(card: Card, label: str, error: Exception) -> NoReturn:
    """Raise the error of a plain operation, as S16 if it is about indices."""
    if isinstance(error, IndexError) or "out of bounds" in str(error) or "out of range" in str(error):
        card.ledger.violate("S16", label, str(error).splitlines()[0])
    raise error


def _into(
    info: Operation, args: Sequence[Any], kwargs: dict[str, Any], results: Sequence[torch.Tensor]
) -> Step:
    """Return a step that computes the results again, in place if the operation has an out variant."""
    if info.out is not None and len(info.out_names) == len(results):
        keywords = {name: value for name, value in kwargs.items() if name in info.out_keywords}
        keywords |= dict(zip(info.out_names, results, strict=True))
        try:
            info.out(*args, **keywords)
        except RuntimeError:
            pass
        else:
            return info.out, args, keywords, info.label
    return _copying, (info.call, args, kwargs, results), {}, info.label


def _copying(call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], results: Any) -> None:
    for old, new in zip(results, costs.tensors(call(*args, **kwargs)), strict=True):
        old.copy_(new)
