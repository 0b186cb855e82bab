"""Numbers in 8 bits on a Gaudi: rounding, widening and products, by the kernels that the release has."""

import attrs
import torch

from tgi.weights.formats.fp8 import FP8, Scale

from .bridge import Bridge


@attrs.frozen
class Fp8Kernels:
    """Operations on e4m3 numbers, within the range of the card."""

    bridge: Bridge

    @property
    def multiplies(self) -> bool:
        """Whether the release multiplies such numbers as they are."""
        return self.bridge.fp8_gemm is not None

    def narrow(self, x: torch.Tensor, scale: Scale | None) -> torch.Tensor:
        """Round x divided by its scale."""
        limit, cast = self.bridge.fp8_limit, self.bridge.to_fp8
        if cast is None:
            return (x if scale is None else x.float() * scale.inverse).clamp(-limit, limit).to(FP8)
        if scale is None:
            return cast(x.clamp(-limit, limit), None, False, False, FP8)[0]
        limited = x.clamp(-limit * scale.value, limit * scale.value)
        return cast(limited, scale.inverse, False, False, FP8)[0]

    def widen(self, x: torch.Tensor, scale: Scale | None, dtype: torch.dtype) -> torch.Tensor:
        """Return the real numbers in `dtype`."""
        if self.bridge.from_fp8 is not None:
            return self.bridge.from_fp8(x, None if scale is None else scale.value, dtype)
        return x.to(dtype) if scale is None else (x.float() * scale.value).to(dtype)

    def product(
        self,
        left: torch.Tensor,
        right: torch.Tensor,
        scales: tuple[torch.Tensor | None, torch.Tensor | None],
        dtype: torch.dtype,
        *,
        transposed: bool = False,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return left @ right, each times its scale, in `dtype`; `right` is [out, in] if `transposed`."""
        gemm = self.bridge.fp8_gemm
        assert gemm is not None
        return gemm(left, False, right, transposed, None, dtype, *scales, bias, False)
