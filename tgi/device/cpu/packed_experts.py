"""The experts of a layer as one call of the kernels."""

from typing import Self

import attrs
from tgi_cpu_kernels import Kernels, experts

from tgi.device.experts import Experts

from .packed import packed_layer


@attrs.frozen(eq=False, kw_only=True)
class PackedExperts(Experts):
    """Experts whose weights are in the kernels' order, and which SiLU gates."""

    packed: experts.Experts

    @classmethod
    def of(cls, kernels: Kernels, plain: Experts) -> Self | None:
        """Return experts that the kernel takes; None if it does not."""
        if plain.kind != "silu":
            return None
        parts = (plain.up, plain.up_bias), (plain.down, plain.down_bias)
        up, down = (
            [packed_layer(weight, None if bias is None else bias[index]) for index, weight in enumerate(part)]
            for part, bias in parts
        )
        ups, downs = ([layer for layer in part if layer is not None] for part in (up, down))
        if len(ups) + len(downs) < len(up) + len(down):
            return None
        made = experts.Experts(kernels, ups, downs, plain.first)
        return cls(**attrs.asdict(plain, recurse=False), packed=made)
