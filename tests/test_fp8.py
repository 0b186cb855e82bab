"""Checkpoints in fp8: settings in config.json, and logits of transformers with rounded layers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.compiling import open_compiling
from tgi.device.base import Device
from tgi.device.cpu.cpu_device import CpuDevice
from tgi.layers import Build
from tgi.plugins import ConfigError, JsonReader
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.rank_threads import on_threads
from tgi.testing.runs import decoded, random_prompt, transformers_logprobs, whole
from tgi.weights import Checkpoint, CheckpointError, Shard
from tgi.weights.formats import Dense, read_format
from tgi.weights.formats.fp8 import Fp8

FP8 = torch.float8_e4m3fn
PART: dict[str, Any] = {
    "num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True,
}  # fmt: skip
GROUPS: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": PART, "input_activations": PART}},
    "ignore": ["lm_head"],
    "kv_cache_scheme": PART,
}
STATIC: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "static"}
INPUTS = {
    "q_proj": (0.04, 0.05),
    "k_proj": (0.05, 0.05),
    "v_proj": (0.03, 0.05),
    "o_proj": (0.03, 0.03),
    "gate_proj": (0.07, 0.07),
    "up_proj": (0.07, 0.07),
    "down_proj": (0.06, 0.06),
}
"""The scales of inputs in the checkpoint, and those that count: layers that are one have the greatest."""
PROMPT = random_prompt(512, 25, 0)


class Keeping(Device):
    """The plain device, which multiplies numbers of 8 bits as they are stored."""

    keeps = frozenset({"fp8"})


class Rounded(nn.Module):
    """A linear layer whose weight, and input if it has a scale, are rounded to 8 bits in the plainest way."""

    def __init__(self, numbers: torch.Tensor, scale: float, input_scale: float | None) -> None:
        super().__init__()
        self.weight = numbers.float() * scale
        self.input_scale = input_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.input_scale is not None:
            x = (x / self.input_scale).clamp(-448, 448).to(FP8).float() * self.input_scale
        return x @ self.weight.t()


def make_fp8(
    folder: Path, config: dict[str, Any], shape: tuple[int, ...] = (1,), *, inputs: bool = True
) -> nn.Module:
    """A Llama whose layers have fp8 weights in scales of a tensor each, and transformers' model of it.

    `inputs`: whether that rounds inputs as well.
    """
    make_llama(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tensors, file = {}, folder / "model.safetensors"
    for name, tensor in load_file(file).items():
        tensors[name] = tensor
        if "_proj." not in name:
            continue
        layer = name.removesuffix(".weight")
        kind, scale = layer.rsplit(".")[-1], float(tensor.abs().max()) / 448
        input_scale, used = INPUTS[kind]
        numbers = (tensor / scale).clamp(-448, 448).to(FP8)
        tensors |= {
            name: numbers,
            f"{layer}.weight_scale": torch.full(shape, scale),
            f"{layer}.input_scale": torch.full(shape, input_scale),
        }
        scale = float(tensors[f"{layer}.weight_scale"].reshape(()))
        parent, attribute = layer.rsplit(".", 1)
        setattr(reference.get_submodule(parent), attribute, Rounded(numbers, scale, used if inputs else None))
    if "kv_cache_scheme" in config:
        for index in range(reference.config.num_hidden_layers):
            for kind in "kv":
                tensors[f"model.layers.{index}.self_attn.{kind}_scale"] = torch.full(shape, 0.01)
    save_file(tensors, file)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    return reference


def assert_near(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Nearly all logits are equal; a number halfway between two of 8 bits may go to the other one."""
    error = (got - wanted).abs()
    assert error.median() < 1e-4
    assert error.max() < 0.05


@pytest.mark.parametrize(("config", "shape"), [(GROUPS, (1,)), (STATIC, ())], ids=["groups", "static"])
def test_logits_are_those_of_rounded_layers(tmp_path: Path, config: dict[str, Any], shape: Any) -> None:
    reference = make_fp8(tmp_path, config, shape)
    (wanted,) = transformers_logprobs(tmp_path, reference, [PROMPT])
    got = whole(make_driver(tmp_path, Keeping(1)), [*PROMPT, 0], len(PROMPT))
    assert_near(got, wanted[-1:])
    make_llama(tmp_path / "whole")
    (exact,) = transformers_logprobs(tmp_path / "whole", None, [PROMPT])
    assert (exact[-1] - wanted[-1]).abs().median() > 0.01


def test_scales_under_the_names_of_transformers(tmp_path: Path) -> None:
    """Mistral publishes such files."""
    reference = make_fp8(tmp_path, STATIC, (1, 1))
    (wanted,) = transformers_logprobs(tmp_path, reference, [PROMPT])
    path, ours = tmp_path / "model.safetensors", ("weight_scale", "input_scale")
    tensors = load_file(path)
    for old, new in zip(ours, ("weight_scale_inv", "activation_scale"), strict=True):
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(tensors, path)
    assert_near(whole(make_driver(tmp_path, Keeping(1)), [*PROMPT, 0], len(PROMPT)), wanted[-1:])


@pytest.mark.parametrize("card", ["gaudi2-lazy", "gaudi3-compile"])
def test_on_a_card(tmp_path: Path, card: str) -> None:
    """Gaudi2 has a narrower range than the checkpoint was made for."""
    reference = make_fp8(tmp_path, GROUPS)
    (wanted,) = transformers_logprobs(tmp_path, reference, [PROMPT])
    with open_compiling(card) as device:
        assert_near(whole(make_driver(tmp_path, device), [*PROMPT, 0], len(PROMPT)), wanted[-1:])


def test_inputs_of_weights_that_are_made_dense_are_not_rounded(tmp_path: Path) -> None:
    reference = make_fp8(tmp_path, GROUPS, inputs=False)
    (wanted,) = transformers_logprobs(tmp_path, reference, [PROMPT])
    got = whole(make_driver(tmp_path, CpuDevice(1)), [*PROMPT, 0], len(PROMPT))
    assert (got - wanted[-1:]).abs().max() < 1e-4


def test_on_two_ranks(tmp_path: Path) -> None:
    """Scales are of whole tensors."""
    reference = make_fp8(tmp_path, GROUPS, inputs=False)
    (wanted,) = transformers_logprobs(tmp_path, reference, [PROMPT])
    got = on_threads(tmp_path, 2, lambda driver: [whole(driver, [*PROMPT, 0], len(PROMPT))], range(1, 9))
    assert_near(got[0], wanted[-1:])


def test_keys_and_values_in_fp8_by_the_scales_of_the_checkpoint(tmp_path: Path) -> None:
    """They are near those of a cache that rounds nothing; with scales that are far too small, far from it."""
    make_fp8(tmp_path, GROUPS)
    found = []
    for kv_cache_dtype, scale in (("", 0.01), ("fp8_e4m3fn", 0.01), ("fp8_e4m3fn", 1e-4)):
        set_cache_scales(tmp_path, scale)
        with open_compiling("gaudi2-lazy") as device:
            driver = make_driver(tmp_path, device, kv_cache_dtype=kv_cache_dtype)
            found.append(decoded(driver, 0, [*PROMPT, 5, 6, 7], len(PROMPT)))
    exact, good, bad = found
    assert 0 < 4 * (good - exact).abs().mean() < (bad - exact).abs().mean()


def test_weights_that_are_made_up(tmp_path: Path) -> None:
    """A card gives the results of the plain device."""
    make_fp8(tmp_path, GROUPS)
    wanted = whole(make_driver(tmp_path, Keeping(1), dummy=True), [*PROMPT, 0], len(PROMPT))
    with open_compiling("gaudi3-lazy") as device:
        assert_near(whole(make_driver(tmp_path, device, dummy=True), [*PROMPT, 0], len(PROMPT)), wanted)


@pytest.mark.parametrize("kinds", ["k", "qkv"])
def test_numbers_without_their_scale_are_named(tmp_path: Path, kinds: str) -> None:
    """Of a part of a joined layer, or of all of it."""
    make_fp8(tmp_path, GROUPS)
    path, lost = tmp_path / "model.safetensors", tuple(f"{kind}_proj.weight_scale" for kind in kinds)
    save_file({n: t for n, t in load_file(path).items() if not n.endswith(lost)}, path)
    with pytest.raises(ConfigError, match=r"no tensor '.*_proj\.weight_scale', and '.*weight' is not dense"):
        make_driver(tmp_path, CpuDevice(1))


def set_cache_scales(folder: Path, scale: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {
        name: torch.full_like(t, scale) if name.endswith(("k_scale", "v_scale")) else t
        for name, t in tensors.items()
    }
    save_file(kept, folder / "model.safetensors")


def groups(**changes: Any) -> dict[str, Any]:
    """GROUPS with another first group."""
    group = GROUPS["config_groups"]["group_0"] | changes
    return GROUPS | {"config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (GROUPS | {"format": "pack-quantized"}, "'format' is 'pack-quantized'"),
        (GROUPS | {"kv_cache_scheme": PART | {"num_bits": 4}}, "'kv_cache_scheme' is"),
        (GROUPS | {"config_groups": {"group_0": 5}}, "'weights' of 'group_0' is None"),
        (groups(output_activations=PART), "'output_activations' of 'group_0' is set"),
    ],
)
def test_any_other_quantization_is_refused(config: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as caught:
        read_format(JsonReader({"quantization_config": config}))
    assert "e4m3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_configs_without_quantization() -> None:
    for config in ({}, {"quantization_config": None}, {"quantization_config": {}}):
        assert isinstance(read_format(JsonReader(config)), Dense)


def test_a_scale_that_is_missing_is_named(tmp_path: Path) -> None:
    make_fp8(tmp_path, STATIC)
    for name in ("model.layers.0.self_attn.k_proj.weight_scale", "model.layers.1.mlp.down_proj.input_scale"):
        tensors = load_file(tmp_path / "model.safetensors")
        kept = {each: tensor for each, tensor in tensors.items() if each != name}
        save_file(kept, tmp_path / "model.safetensors")
        with pytest.raises((ConfigError, CheckpointError), match=name):
            make_driver(tmp_path, CpuDevice(1))
        save_file(tensors, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"k_scale": [], "v_scale": [1]}, (2.0, 2.0)),
        ({"kv_scale": [1, 1]}, (2.0, 2.0)),
        ({"k_proj.output_scale": [], "v_proj.output_scale": []}, (2.0, 2.0)),
        ({"q_scale": [], "prob_output_scale": []}, None),
    ],
    ids=str,
)
def test_scales_of_the_cache_under_other_names(
    tmp_path: Path, names: dict[str, list[int]], expected: tuple[float, float] | None
) -> None:
    layer = "model.layers.0.self_attn"
    scales = {f"{layer}.{name}": torch.full(shape, 2.0) for name, shape in names.items()}
    save_file({f"{layer}.q_proj.weight": torch.ones(2, 2), **scales}, tmp_path / "model.safetensors")
    weights = Checkpoint(tmp_path)
    read = Fp8().cache_scales(Build(weights, Shard(), Device(1), torch.float32), layer)
    assert (None if read is None else tuple(scale.item() for scale in read)) == expected
    assert weights.unread == [f"{layer}.q_proj.weight"]
