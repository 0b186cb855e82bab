"""Engine that makes HPU graphs of programs, in the bridge's lazy mode: the first call captures, others
replay.

Each wrapped program has one graph, since it is called with tensors of one shape only.
"""

from typing import Any

import attrs
from torch import nn

from tgi.device.graphs import Program, Run

from .bridge import Bridge


@attrs.frozen
class LazyGraphs:
    """Engine that captures each program whole."""

    bridge: Bridge

    def prepare(self, model: nn.Module) -> None:
        """Cut graphs between layers: equal layers then share one recipe, compiled once."""
        for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
            for index, layer in enumerate(layers):
                if index == 0:
                    layer.register_forward_pre_hook(self._cut)
                layer.register_forward_hook(self._cut)

    def graph(self, program: Program) -> Run:
        """Return the wrapped program; the next replay overwrites its results."""
        hpu = self.bridge.hpu
        return hpu.wrap_in_hpu_graph(program, asynchronous=True, disable_tensor_cache=True)  # type: ignore[no-any-return]

    def seal(self) -> None:
        """Do nothing: a graph checks nothing when it is replayed."""

    def border(self) -> None:
        """Begin a new sub-graph."""
        self.bridge.mark_step()

    def _cut(self, *_: Any) -> None:
        self.bridge.mark_step()
