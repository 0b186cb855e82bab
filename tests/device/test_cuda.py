"""Parts of the GPU device that need no GPU: buffers, packed weights, and the error without one."""

import attrs
import pytest
import torch

from tests.device import packed_cases
from tgi.device.cuda.cuda_device import Buffers
from tgi.device.cuda.packed_weight import Layout, PackedWeight
from tgi.plugins import ConfigError
from tgi.weights.formats import DenseWeight, IntegerWeight
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


@pytest.mark.parametrize(
    ("layout", "depth", "whole"),
    [
        (Layout(4096, 128, 4), 128, True),
        (Layout(4096, 4096, 8), 128, True),
        (Layout(4096, 32, 4), 32, True),
        (Layout(4096, 96, 4), 32, True),
        (Layout(4096, 24, 8), 32, False),
        (Layout(4096, 128, 8, offset=64), 64, True),
        (Layout(4096, 128, 8, offset=72), 32, False),
        (Layout(48, 128, 8, offset=72), 64, True),
    ],
    ids=str,
)
def test_a_block_has_one_scale_where_groups_allow_it(layout: Layout, depth: int, whole: bool) -> None:
    assert (layout.depth, layout.whole) == (depth, whole)


@pytest.mark.parametrize("group", [128, 40])
def test_numbers_of_4_bits_are_half_a_block_apart(group: int) -> None:
    numbers = torch.randint(16, (6, 200), dtype=torch.uint8)
    layout = Layout(200, group, 4)
    octets = layout.pack(numbers)
    half = layout.depth // 2
    assert octets.shape == (-(-200 // layout.depth), 6, half)
    for row in range(6):
        for feature in range(200):
            block, place = divmod(feature, layout.depth)
            octet = int(octets[block, row, place % half])
            assert (octet >> 4 if place >= half else octet & 15) == numbers[row, feature]


@pytest.mark.parametrize("name", ["4 bits, groups of 128", "4 bits, groups of 64, zeros", "8 bits, by row"])
def test_a_packed_weight_takes_what_the_plan_counts(name: str) -> None:
    weight = packed_cases.KINDS[name][0](32, 512, 0)
    assert isinstance(weight, IntegerWeight)
    packed = PackedWeight.of(weight, torch.device("cpu"))
    assert packed is not None
    tensors = (packed.octets, packed.scales, packed.zeros)
    assert sum(each.nbytes for each in tensors if each is not None) == 32 * weight.row_bytes


def test_weights_that_the_kernel_does_not_take_stay_as_they_are() -> None:
    assert PackedWeight.of(packed_cases.integers(2, 64)(8, 64, 0), torch.device("cpu")) is None
    assert PackedWeight.of(DenseWeight(torch.ones(8, 64)), torch.device("cpu")) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_has_the_reason():
    with pytest.raises(ConfigError, match=r"no CUDA device can be used here: torch .*(built without|no GPU)"):
        open_device("cuda", 1)
