"""What a graph is here: the operations of one run with the tensors they worked on, carried out again at
each replay.

Views cost nothing at a replay, operations write into the tensors of the capture through their out variants.
After the capture all intermediate results are laid out in one arena that all graphs share, by when they are
in use, as the graph compiler does: the arena's size is the workspace, and a result that somebody kept is
overwritten.
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
"""What to call with what, and its name for messages."""
_ALIGNMENT = 128
_COPIED_BYTES = 1 << 22
"""Inputs up to this size are copied at a replay; the tensors of greater ones are pointed to them."""


def storage_of(tensor: torch.Tensor) -> int:
    """Which storage it is in."""
    return int(tensor.untyped_storage()._cdata)


def size_of(tensor: torch.Tensor) -> int:
    """Bytes of its storage."""
    return tensor.untyped_storage().nbytes()


def _byte_offset(tensor: torch.Tensor) -> int:
    return int(tensor.storage_offset()) * tensor.element_size()


def _point(tensor: torch.Tensor, storage: torch.UntypedStorage, offset: int) -> None:
    """Let it be in another storage, `offset` in bytes."""
    tensor.set_(storage, offset // tensor.element_size(), tensor.shape, tensor.stride())


@attrs.define(eq=False)
class Input:
    """A tensor that the graph gets at each replay."""

    plain: torch.Tensor
    """As the captured code sees it,"""
    given: torch.Tensor
    """and as the caller does."""
    views: list[torch.Tensor] = attrs.field(factory=list)
    changed: bool = False

    def bind(self, given: torch.Tensor) -> None:
        """Use this data, of the same shape and dtype, in the next replay."""
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
    """A capture that is going on."""

    card: Card
    name: str
    copy_inputs: bool
    """Whether inputs get buffers of their own."""
    lease: Lease = attrs.field(factory=Lease)
    """Of intermediate results,"""
    input_lease: Lease = attrs.field(factory=Lease)
    """and of the inputs as the captured code sees them."""
    stream: int = 0
    steps: list[Step] = attrs.field(factory=list)
    touched: list[set[int]] = attrs.field(factory=list)
    """Storages that each step uses."""
    born: dict[int, list[torch.Tensor]] = attrs.field(factory=dict)
    """Tensors in each storage that the capture made."""
    inputs: list[Input] = attrs.field(factory=list)
    _input_of: dict[int, Input] = attrs.field(factory=dict)
    """By the identity of plain tensors: the inputs themselves and views of them."""
    outside: dict[int, Allocation] = attrs.field(factory=dict)
    written: dict[int, Allocation] = attrs.field(factory=dict)
    segments: list[list[Hashable]] = attrs.field(factory=lambda: [[]])
    """What is compiled: operations between two mark_steps."""
    collectives: list[str] = attrs.field(factory=list)
    seconds: float = 0.0
    wrappers: list["weakref.ref[HpuTensor]"] = attrs.field(factory=list)
    """All that the capture made."""

    def input(self, given: HpuTensor) -> HpuTensor:
        """How the captured code sees an argument."""
        plain = given.plain
        if self.copy_inputs and plain.numel() * plain.element_size() <= _COPIED_BYTES:
            static = torch.empty_strided(plain.shape, plain.stride(), dtype=plain.dtype).copy_(plain)
        else:
            static = plain.detach()
        self.inputs.append(Input(static, plain))
        self._input_of[id(static)] = self.inputs[-1]
        return wrap(static, given.allocation, self.input_lease)

    def made(self, wrapper: HpuTensor) -> None:
        """A result or a view of one."""
        self.wrappers.append(weakref.ref(wrapper))

    def alive(self) -> list[HpuTensor]:
        """What the captured code made and somebody still has."""
        return [found for reference in self.wrappers if (found := reference()) is not None]

    def on_die(self, tensor: torch.Tensor) -> bool:
        """Whether it is an intermediate result."""
        return storage_of(tensor) in self.born

    def see_view(self, base: torch.Tensor, views: Sequence[torch.Tensor]) -> None:
        """Views of a tensor were made."""
        key = storage_of(base)
        if key in self.born:
            self.born[key] += views
        elif found := self._input_of.get(id(base)):
            found.views += views
            self._input_of.update((id(view), found) for view in views)

    def use(self, tensors: Sequence[HpuTensor]) -> None:
        """Tensors are read; what comes from outside is kept alive by the graph."""
        for tensor in tensors:
            if tensor.allocation.memory is not None:
                self.outside[id(tensor.allocation)] = tensor.allocation

    def change(self, info: Operation, target: HpuTensor) -> None:
        """A tensor is changed in place (S21)."""
        plain = target.plain
        if storage_of(plain) in self.born:
            return
        given = self._input_of.get(id(plain))
        if plain.numel() * plain.element_size() != size_of(plain) or not plain.is_contiguous():
            what = "an input" if given else "a tensor from outside of the graph"
            self.card.ledger.violate(
                "S21", info.label, f"changes a part of {what}, of shape {tuple(plain.shape)}"
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
        """An operation was carried out with plain tensors."""
        arguments = costs.tensors((*args, *kwargs.values()))
        self.seconds += costs.seconds(self.card.profile, info, arguments, results, self.on_die)
        if info.mutates or not results:
            step: Step = (info.call, args, kwargs, info.label)
        else:
            for result in results:
                self.born[storage_of(result)] = [result]
            step = _into(info, args, kwargs, results)
        if not info.name.startswith(("empty", "new_empty")):
            self.segments[-1].append(key)
            self.append(step, [*arguments, *results])

    def append(self, step: Step, tensors: Sequence[torch.Tensor]) -> None:
        """A step that uses these tensors."""
        self.steps.append(step)
        self.touched.append({storage_of(tensor) for tensor in tensors})

    def mark_step(self) -> None:
        """Later operations belong to another recipe."""
        if self.segments[-1]:
            self.segments.append([])

    def finish(
        self, outputs: Sequence[torch.Tensor], keep_tensors: bool = False, share: int = 1
    ) -> "Recording":
        """The capture has ended with these outputs.

        `keep_tensors`: intermediate results are not shared. `share`: it is such a part of a graph.
        """
        card, profile = self.card, self.card.profile
        for one in self.inputs:
            if one.changed:
                one.given.copy_(one.plain)
        kept = {storage_of(tensor) for tensor in outputs}
        static = sum(size_of(self.born[key][0]) for key in kept if key in self.born)
        temporary = {key: tensors for key, tensors in self.born.items() if key not in kept}
        size = card_arena(card).lay_out(temporary, self.touched)
        static += sum(size_of(tensors[0]) for tensors in temporary.values()) if keep_tensors else 0
        card.memory.reserve_workspace(size)
        for segment in filter(None, self.segments):
            card.compile(("graph", tuple(segment)), len(segment), self.name)
        card.ledger.counters["graphs"] += 1
        return Recording(
            card=card,
            name=self.name,
            steps=self.steps,
            inputs=self.inputs,
            seconds=self.seconds,
            written=list(self.written.values()),
            outside=list(self.outside.values()),
            allocation=card.allocate(static + profile.graph_bytes // share, self.name),
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
    """Simulated, of one replay, without launch."""
    written: list[Allocation]
    outside: list[Allocation]
    allocation: Allocation
    """What the graph keeps."""
    workspace: int
    """Bytes of intermediate results that are in use at once."""
    collectives: str
    replays: int = 0

    def replay(self, launch_seconds: float) -> None:
        """Carry it out again, with what is bound to the inputs."""
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
        card.clock.spend("launch", launch_seconds)


class Arena:
    """Memory for the intermediate results of whichever graph runs."""

    def __init__(self) -> None:
        self.storage = torch.empty(0, dtype=torch.uint8).untyped_storage()

    def lay_out(self, storages: dict[int, list[torch.Tensor]], touched: Sequence[set[int]]) -> int:
        """Move the tensors of these storages here; returns bytes needed."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for number, keys in enumerate(touched):
            for key in keys & storages.keys():
                first.setdefault(key, number)
                last[key] = number
        live: list[tuple[int, int, int]] = []  # offset, end, last step, in the order of offsets
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
    """The card's."""
    found = card.guards.get("arena")
    if found is None:
        found = card.guards["arena"] = Arena()
    return found


def refuse_index(card: Card, label: str, error: Exception) -> NoReturn:
    """Raise for an error of a plain operation: S16 if it is about indices, else as it is."""
    if isinstance(error, IndexError) or "out of bounds" in str(error) or "out of range" in str(error):
        card.ledger.violate("S16", label, str(error).splitlines()[0])
    raise error


def _into(
    info: Operation, args: Sequence[Any], kwargs: dict[str, Any], results: Sequence[torch.Tensor]
) -> Step:
    """A step that computes the results again, in place where there is a variant for it."""
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
