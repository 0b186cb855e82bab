"""All faults of a checkpoint are named at once, before any number is read."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tgi.device.base import Device
from tgi.testing.driver import load_command
from tgi.testing.models import make_llama
from tgi.weights import CheckpointError, Shard
from tgi.worker.runner import Runner


@pytest.fixture
def spoilt(tmp_path):
    """A Llama whose checkpoint can be changed; gives what is said of it then, and how much was read."""

    def spoil(change):
        folder = make_llama(tmp_path)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        reports = []
        with pytest.raises(CheckpointError) as caught:
            Runner.load(load_command(folder), Shard(), Device(1), reports.append)
        assert not reports
        return str(caught.value)

    return spoil


def test_every_kind_of_fault_at_once(spoilt):
    def change(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["lm_head.weight"] = torch.ones(3, 4)
        tensors["model.layers.0.mlp.up_proj.extra"] = torch.ones(1)

    said = spoilt(change)
    assert "'lm_head.weight' has shape [3, 4], config.json says" in said
    missing = "no tensor 'model.layers.1.mlp.up_proj.weight', 'model.norm.weight', which this model needs"
    assert missing in said
    assert "no layer of this model reads: 'model.layers.0.mlp.up_proj.extra'" in said
    assert "\n" not in said


def test_many_faults_are_counted(spoilt):
    def rename(tensors):
        for name in list(tensors):
            tensors[f"transformer.{name}"] = tensors.pop(name)

    said = spoilt(rename)
    assert "has no tensor 'model.embed_tokens.weight', 'model.layers.0.input_layernorm.weight'" in said
    assert said.count(" more") == 2
    assert "reads: 'transformer." in said


def test_many_shapes_are_counted(spoilt):
    said = spoilt(lambda tensors: tensors.update({name: torch.ones(1) for name in tensors}))
    assert said.count("has shape") == 3
    assert "more tensors have other shapes too" in said
