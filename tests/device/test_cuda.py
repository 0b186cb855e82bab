"""Parts of the GPU device that need no GPU: buffers, and the error without one."""

import attrs
import pytest
import torch

from tgi.device.cuda.cuda_device import Buffers
from tgi.plugins import ConfigError
from tgi.worker.runner import open_device


@attrs.define(eq=False)
class Memory:
    size: int
    free: bool = False


def test_a_buffer_is_used_again_when_it_is_free_and_large_enough():
    buffers = Buffers(Memory)
    small, large = buffers.take(5), buffers.take(100)
    assert (small.size, large.size) == (8, 128)
    assert buffers.take(5) not in (small, large), "both are being copied"
    large.free = True
    assert buffers.take(5) is large
    small.free = True
    assert buffers.take(5) is small
    assert buffers.take(9) is large
    assert buffers.take(1000).size == 1024
    assert Buffers(Memory).take(1).size == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_has_the_reason():
    with pytest.raises(ConfigError, match=r"no CUDA device can be used here: torch .*(built without|no GPU)"):
        open_device("cuda", 1)
