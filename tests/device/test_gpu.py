"""Every kind of checkpoint of every family on an NVIDIA GPU, where there is one, against transformers.

And the kernels for weights of 4 and 8 bits, against the definitions of the weights.

`check_architecture` computes texts in every way in which a server may; each step is a CUDA graph here.
"""

from pathlib import Path

import pytest
import torch

from tests.device import packed_cases
from tests.falcon_models import VARIANTS, make_falcon
from tests.test_families import CONFIGS, write_checkpoint
from tgi.config import ROUNDINGS
from tgi.device.cuda.cuda_operations import CudaOperations
from tgi.testing.check_architecture import check_architecture
from tgi.worker.runner import open_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    reference = write_checkpoint(name, tmp_path, monkeypatch)
    check_architecture(tmp_path, reference=reference, cards=(), ranks=0, devices=[open_device("cuda", 1)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_falcon(tmp_path: Path, variant: str) -> None:
    folder = make_falcon(tmp_path, variant)
    check_architecture(folder, cards=(), ranks=0, devices=[open_device("cuda", 1)])


KINDS = pytest.mark.parametrize("name", packed_cases.KINDS)


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_with_packed_weights(name: str, dtype: torch.dtype) -> None:
    for rows in (1, 20, 150):
        packed_cases.check_product(open_cuda(), name, rows, dtype)


@pytest.mark.parametrize("name", packed_cases.EXPERTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_of_packed_weights(name: str, dtype: torch.dtype) -> None:
    for tokens in (1, 70):
        packed_cases.check_experts(open_cuda(), name, tokens, dtype)


@pytest.mark.parametrize("kind", packed_cases.CHECKPOINTS)
def test_a_quantized_checkpoint(tmp_path: Path, kind: str) -> None:
    packed_cases.check_checkpoint(open_cuda(), kind, tmp_path)


def test_a_checkpoint_in_fp8(tmp_path: Path) -> None:
    packed_cases.check_fp8(open_cuda(), tmp_path)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_checkpoint_that_is_rounded(tmp_path: Path, rounding: str) -> None:
    packed_cases.check_rounding(open_cuda(), rounding, tmp_path)


@pytest.mark.parametrize("name", packed_cases.BLOCKS)
def test_a_checkpoint_in_blocks(tmp_path: Path, name: str) -> None:
    packed_cases.check_blocks(open_cuda(), name, tmp_path)


def open_cuda() -> CudaOperations:
    device = open_device("cuda", 1)
    assert isinstance(device, CudaOperations)
    return device
