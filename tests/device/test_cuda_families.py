"""Prompts and decode steps of every family on the operations of GPUs, in Triton's interpreter on the CPU.

test_gpu.py checks families in more ways, which the interpreter is too slow for.
"""

from pathlib import Path
from typing import Any

import pytest

import tests.device.interpreted  # noqa: F401 (before Triton is imported)

# isort: split
from tests.falcon_models import VARIANTS, make_falcon
from tests.test_families import CONFIGS, write_checkpoint
from tgi.device.cpu.cpu_device import CpuDevice
from tgi.device.cuda.cuda_operations import CudaOperations
from tgi.testing.driver import make_driver
from tgi.testing.runs import generate, random_prompt, together, transformers_logprobs

pytestmark = pytest.mark.slow
LENGTHS = (37, 5)
"""Lengths of prompts in tokens."""


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    check(tmp_path, write_checkpoint(name, tmp_path, monkeypatch))


@pytest.mark.parametrize("variant", VARIANTS)
def test_falcon(tmp_path: Path, variant: str) -> None:
    check(make_falcon(tmp_path, variant))


def check(folder: Path, reference: Any = None) -> None:
    """Compare rows together, padded in every way, with transformers."""
    vocab = make_driver(folder, CpuDevice(1)).runner.config.vocab_size
    prompts = [random_prompt(vocab, length, seed) for seed, length in enumerate(LENGTHS)]
    texts = [prompt + generate(make_driver(folder, CpuDevice(1)), prompt) for prompt in prompts]
    got = together(make_driver(folder, CudaOperations(1)), texts, LENGTHS, (3, 5, 2))
    wanted = transformers_logprobs(folder, reference, texts)
    for mine, theirs, length in zip(got, wanted, LENGTHS, strict=True):
        assert (mine - theirs[length - 1 : -1]).abs().max() < 1e-4
