"""Weights that no file has: the same for every reader, of a size that no layer chokes on."""

import pytest
import torch

from tgi.device.base import Device
from tgi.testing.driver import load_command
from tgi.testing.models import make_llama
from tgi.weights import DummyWeights, Shard
from tgi.worker.runner import Runner


@pytest.mark.parametrize("shape", [(6, 8), (4, 6, 3), (2, 4, 6, 2)])
def test_parts_are_those_of_the_whole(shape):
    whole = DummyWeights(torch.float32).read("a.weight", shape)
    assert whole.shape == shape
    weights = DummyWeights(torch.float32)
    weights.read("b.weight", (3, 1000))
    for dim, length in enumerate(shape):
        part = slice(length // 2, length)
        wanted = whole.narrow(dim, length // 2, length - length // 2)
        assert torch.equal(weights.read("a.weight", shape, dim, part), wanted)
        out = torch.empty(wanted.shape, dtype=torch.bfloat16)
        weights.read("a.weight", shape, dim, part, out)
        assert torch.equal(out, wanted.bfloat16())


def test_numbers_are_small_and_unlike():
    weights = DummyWeights(torch.float32)
    a, b = weights.read("a.weight", (200, 300)), weights.read("b.weight", (200, 300))
    assert 0.019 < a.std() < 0.021
    assert a.abs().max() < 0.12
    assert abs(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]) < 0.02
    assert torch.corrcoef(a).triu(1).abs().max() < 0.35, "no two rows are alike"
    assert torch.equal(weights.read("norm.weight", (4,)), torch.ones(4))
    assert torch.equal(weights.read("norm.bias", (4,)), torch.zeros(4))


def test_a_model_of_a_description_alone(tmp_path):
    folder = make_llama(tmp_path)
    (folder / "model.safetensors").unlink()
    runner = Runner.load(load_command(folder, dummy=True), Shard(), Device(1))
    assert runner.loaded.block_bytes
    again = Runner.load(load_command(folder, dummy=True), Shard(), Device(1))
    for one, other in zip(runner.model.modules(), again.model.modules(), strict=True):
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, vars(other)[name])
                assert value.isfinite().all()
