"""Programs as HPU graphs, in the bridge's lazy mode: captured by the first call, replayed by the others.

There is one graph per wrapped program, since each is called with tensors of one shape only.
"""

from typing import Any

import attrs
from torch import nn

from tgi.device.graphs import Program, Run

from .bridge import Bridge


@attrs.frozen
class LazyGraphs:
    """Implements `Graphs`."""

    bridge: Bridge

    def prepare(self, model: nn.Module) -> None:
        """Cut the graph at the borders of layers: all layers alike then share one recipe, compiled once."""
        for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
            for index, layer in enumerate(layers):
                if index == 0:
                    layer.register_forward_pre_hook(self._cut)
                layer.register_forward_hook(self._cut)

    def graph(self, program: Program) -> Run:
        """Results are in buffers, which the next replay overwrites."""
        hpu = self.bridge.hpu
        return hpu.wrap_in_hpu_graph(program, asynchronous=True, disable_tensor_cache=True)  # type: ignore[no-any-return]

    def border(self) -> None:
        """Within a capture a new sub-graph begins."""
        self.bridge.mark_step()

    def _cut(self, *_: Any) -> None:
        self.bridge.mark_step()
