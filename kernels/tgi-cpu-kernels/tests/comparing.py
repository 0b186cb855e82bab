"""Random numbers for kernels, and how near their results are to those of float64."""

import pytest
import torch

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-8}
"""Share of the largest result: half a unit in the last place of bfloat16, some rounding errors of float32."""


def close(result: torch.Tensor, expected: torch.Tensor, roundings: int = 1) -> None:
    bound = roundings * TOLERANCE[result.dtype] * max(1.0, expected.abs().max().item())
    assert (result.double() - expected).abs().max().item() <= bound


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
