"""Engine that compiles the regions of programs one by one with `torch.compile`, in the bridge's eager mode.

Regions are each layer, each other child of the model, and a program's own `regions`. Between them Python runs
in every step. Each region of each program is a function with its own code object: torch keeps compiled
functions by code object, and searches all of one at every call.
"""

import types
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import nn

from tgi.device.graphs import Program, Run

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def compile_for_hpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function with the bridge, for the shapes of its first call."""
    options: dict[str, Any] = {"force_static_compile": True}
    return torch.compile(function, backend="hpu_backend", dynamic=False, options=options)


@attrs.define(eq=False)
class CompiledRegions:
    """Engine that compiles each region for each program."""

    compile: Compile = compile_for_hpu
    program: Program | None = None
    """Program that runs now."""

    def prepare(self, model: nn.Module) -> None:
        """Make regions of the layers and of the model's other children."""
        for child in model.children():
            for region in child if isinstance(child, nn.ModuleList) else (child,):
                region.forward = _Region(region.forward, self)

    def graph(self, program: Program) -> Run:
        """Return the program; its regions are compiled when they are first reached."""
        for name in program.regions:
            setattr(program, name, _Region(getattr(program, name), self))

        def run(*packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
            self.program = program
            return program(*packed)  # type: ignore[no-any-return]

        return run

    def border(self) -> None:
        """Do nothing: regions are parts already."""


class _Region:
    """A function that is compiled once for each program that calls it."""

    def __init__(self, function: Callable[..., Any], owner: CompiledRegions) -> None:
        self._function, self._owner = function, owner
        self._compiled: dict[Program | None, Callable[..., Any]] = {}

    def __call__(self, *args: Any) -> Any:
        program = self._owner.program
        compiled = self._compiled.get(program)
        if compiled is None:
            compiled = self._compiled[program] = self._owner.compile(_with_code_of_its_own(self._function))
        return compiled(*args)


def _with_code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    def region(*args: Any) -> Any:
        return function(*args)

    code = region.__code__.replace(co_name=getattr(function, "__name__", "region"))
    return types.FunctionType(code, region.__globals__, code.co_name, None, region.__closure__)
