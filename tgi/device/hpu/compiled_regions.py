"""Engine that compiles the regions of programs one by one with `torch.compile`, in the bridge's eager mode.

Regions are each layer, each other part of the model, and a program's own `regions`. Between them Python runs
in every step. Parts of one class share what is compiled, for each shape of their arguments: the work of
compiling does not grow with the number of layers. Each class and shape has a function with its own code
object, since torch keeps compiled functions by code object, and searches all of one at every call.
"""

import inspect
import types
from collections.abc import Callable, Hashable, Iterator, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from torch import nn

from tgi.device.batch import Batch, KVCache, KVLayer
from tgi.device.graphs import Program, Run

_MANY = 1 << 14
"""Number of programs that torch may compile of a function, more than there are buckets."""
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def compile_for_hpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function with the bridge, for the shapes of its first call."""
    options: dict[str, Any] = {"force_static_compile": True}
    return torch.compile(function, backend="hpu_backend", dynamic=False, options=options)


@attrs.define(eq=False)
class CompiledRegions:
    """Engine that compiles each region for each of its shapes."""

    compile: Compile = compile_for_hpu
    program: Program | None = None
    """Program that runs now."""
    compiled: dict[Hashable, Callable[..., Any]] = attrs.field(factory=dict)
    """Compiled functions by what they serve: the method of a class and shapes, or the method of a program."""
    sealed: bool = False
    """Whether the warm-up has ended."""

    def prepare(self, model: nn.Module) -> None:
        """Make regions of the layers and of the model's other parts.

        A function of one class may be compiled for many steps, if not all of what it reads is an argument.
        """
        torch._dynamo.config.cache_size_limit = _MANY  # recompile_limit, by the name that torch 2.6 knows
        torch._dynamo.config.accumulated_cache_size_limit = _MANY
        for region in list(_regions(model)):
            region.forward = _Region(self, type(region).forward, region)

    def graph(self, program: Program) -> Run:
        """Return the program; its regions are compiled when they are first reached."""
        for name in program.regions:
            setattr(program, name, _Region(self, getattr(program, name)))

        def run(*packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
            self.program = program
            return program(*packed)  # type: ignore[no-any-return]

        return run

    def border(self) -> None:
        """Do nothing: regions are parts already."""

    def seal(self) -> None:
        """Check arguments no more: every region has run for each of its programs, whose shapes are fixed."""
        self.sealed = True
        torch.compiler.set_stance(skip_guard_eval_unsafe=True)

    def first_call(self, key: Hashable, method: Callable[..., Any]) -> AbstractContextManager[Any]:
        """Make the function of this key; in the context it may be compiled, also after `seal`."""
        if key not in self.compiled:
            self.compiled[key] = self.compile(_with_code_of_its_own(method))
        return torch.compiler.set_stance("default") if self.sealed else nullcontext()


class _Region:
    """A method of a program, or the `forward` of a part of the model, compiled."""

    def __init__(self, owner: CompiledRegions, method: Callable[..., Any], *part: nn.Module) -> None:
        self._owner, self._method, self._part = owner, method, part
        self._reads: Set[str] | None = getattr(part[0], "reads", None) if part else None
        self._kv: KVLayer | None = getattr(part[0], "kv", None) if part else None
        self._of_program: dict[Program | None, Callable[..., Any]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        owner, program = self._owner, self._owner.program
        if self._reads is not None:
            args = tuple(one.only(self._reads) if isinstance(one, Batch) else one for one in args)
        if self._kv is not None:
            group = self._kv.group
            args = tuple(one.of_group(group) if isinstance(one, Batch) else one for one in args)
        compiled = self._of_program.get(program)
        if compiled is not None:
            return compiled(*self._part, *args, **kwargs)
        own = inspect.ismethod(self._method)
        key = self._method, None if own else _shapes((args, kwargs))
        with owner.first_call(key, self._method):
            compiled = self._of_program[program] = owner.compiled[key]
            return compiled(*self._part, *args, **kwargs)


def _regions(model: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the members of the outermost lists of modules, and the children beside these lists."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif any(isinstance(module, nn.ModuleList) for module in child.modules()):
            yield from _regions(child)
        else:
            yield child


def _shapes(value: Any) -> Hashable:
    """Return what tells calls apart that need a program each: shapes, dtypes, classes, and numbers."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    if isinstance(value, dict):
        return tuple((key, _shapes(one)) for key, one in value.items())
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(_shapes, value))
    if attrs.has(type(value)) and not isinstance(value, KVCache):
        return type(value), tuple(_shapes(getattr(value, field.name)) for field in attrs.fields(type(value)))
    return value if isinstance(value, (bool, int, float, str)) else type(value).__qualname__


def _with_code_of_its_own(method: Callable[..., Any]) -> Callable[..., Any]:
    def region(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    code = region.__code__.replace(co_name=method.__qualname__.replace(".", "_"))
    return types.FunctionType(code, region.__globals__, code.co_name, None, region.__closure__)
