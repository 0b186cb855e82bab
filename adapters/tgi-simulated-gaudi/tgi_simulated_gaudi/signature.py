"""Arguments of graphs: the tensors among them, and the key of the graph.

In lazy mode the bridge looks into lists, tuples and dicts only; anything else counts by its hash. Dynamo also
looks into objects, so in compile mode what is in attrs classes, dataclasses and modules is an argument, too.
"""

import copy
import dataclasses
from collections.abc import Callable, Hashable, Mapping
from types import FunctionType
from typing import Any

import attrs
import torch

from .rules import Ledger
from .tensor import HpuTensor

_OF_EVERY_MODULE = vars(torch.nn.Module()).keys() - {"_parameters", "_buffers", "_modules"}
_UNREAD = _OF_EVERY_MODULE | {"forward", "layer_idx"}
"""Attributes that a module's code does not read: transformers looks at a layer's number for its own caches
only, and Dynamo guards on what is read."""


@attrs.define
class Leaves:
    """Tensors and other values in the arguments of one call."""

    into_objects: bool
    """Whether to look into attrs classes, dataclasses and modules."""
    tensors: list[HpuTensor] = attrs.field(factory=list)
    scalars: dict[str, Hashable] = attrs.field(factory=dict)
    """Identities of values other than tensors, by their path."""
    structure: list[Hashable] = attrs.field(factory=list)
    """Paths and kinds of all values but scalars."""

    def walk(self, value: Any, path: str, inside: bool = False) -> None:
        """Add a value and all values in it; `inside` a module, where each kind of layer has a graph."""
        if isinstance(value, HpuTensor):
            self.structure.append((path, "tensor"))
            self.tensors.append(value)
        elif isinstance(value, torch.Tensor):
            self.structure.append((path, "host tensor", tuple(value.shape)))
        elif value is None:
            self.structure.append((path, None))
        elif (children := _children(value, self.into_objects)) is not None:
            self.structure.append((path, type(value).__name__, len(children)))
            inside = inside or isinstance(value, torch.nn.Module)
            for name, child in children.items():
                self.walk(child, f"{path}.{name}", inside)
        elif inside:
            self.structure.append((path, _kind(value)))
        else:
            self.scalars[path] = _identity(value)

    @property
    def key(self) -> Hashable:
        """Key that is equal for calls that may use the same graph."""
        return (tuple(self.structure), tuple(map(_tensor_key, self.tensors)), tuple(self.scalars.items()))


def replace(value: Any, kind: type, new: Callable[[Any], Any], into_objects: bool) -> Any:
    """Return a value with every object of class `kind` in it replaced by `new` of it."""
    if isinstance(value, kind):
        return new(value)
    children = _children(value, into_objects)
    if children is None:
        return value
    replaced = {name: replace(child, kind, new, into_objects) for name, child in children.items()}
    if all(replaced[name] is child for name, child in children.items()):
        return value
    if isinstance(value, dict):
        return replaced
    if isinstance(value, list):
        return list(replaced.values())
    if isinstance(value, tuple):
        return type(value)(*replaced.values()) if hasattr(value, "_fields") else tuple(replaced.values())
    made = copy.copy(value)
    for name, child in replaced.items():
        object.__setattr__(made, name, child)
    return made


@attrs.define
class Seen:
    """Arguments in earlier calls of one graph function (S2)."""

    name: str
    """Name of the function."""
    ledger: Ledger
    scalars: dict[str, Hashable] = attrs.field(factory=dict)
    """First value by path."""
    dtypes: dict[Hashable, Hashable] = attrs.field(factory=dict)
    """First dtypes by structure and shapes."""

    def check(self, leaves: Leaves) -> None:
        """Check that scalars keep their values, and shapes their dtypes."""
        for path, value in leaves.scalars.items():
            before = self.scalars.setdefault(path, value)
            if before != value:
                self.ledger.violate(
                    "S2", self.name, f"{path} is {value!r}, and was {before!r}: each value needs a graph"
                )
        shapes = (tuple(leaves.structure), tuple(tuple(t.shape) for t in leaves.tensors))
        dtypes = tuple(str(t.dtype) for t in leaves.tensors)
        before = self.dtypes.setdefault(shapes, dtypes)
        if before != dtypes:
            self.ledger.violate(
                "S2", self.name, f"the dtypes are {dtypes}, and were {before} with the same shapes"
            )


def _children(value: Any, into_objects: bool) -> Mapping[Any, Any] | None:
    if isinstance(value, dict):
        return value
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if into_objects and not isinstance(value, type):
        if attrs.has(type(value)):
            return {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
        if dataclasses.is_dataclass(value):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, torch.nn.Module):
            return {name: one for name, one in vars(value).items() if name not in _UNREAD}
    return None


def _identity(value: Any) -> Hashable:
    if isinstance(value, (bool, int, float, str, bytes)):
        return (type(value).__name__, value)
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    return (type(value).__name__, id(value))


def _kind(value: Any) -> Hashable:
    """Return what Dynamo guards on in a module: numbers, functions, and the class of any other object."""
    simple = isinstance(value, (bool, int, float, str, bytes, torch.dtype, torch.device, FunctionType))
    return _identity(value) if simple else type(value).__name__


def _tensor_key(tensor: HpuTensor) -> Hashable:
    plain = tensor.plain
    strides = tuple(step if size > 1 else 0 for size, step in zip(plain.shape, plain.stride(), strict=True))
    return (tuple(plain.shape), str(plain.dtype), strides)
