"""GPTQ and AWQ: weights against the numbers that were packed, and logits against transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, MixtralConfig, Phi3Config, PreTrainedConfig

from tests.compiling import open_compiling
from tests.weights.quantized import (
    CUTS,
    PROMPT,
    KeepingDevice,
    Tensors,
    check_logits,
    groups_of,
    make_quantized,
    pack,
    pack_planes,
    read,
    rounded,
)
from tgi.device.base import Device
from tgi.layers.loading import describe
from tgi.plugins import ConfigError, JsonReader
from tgi.protocol import Describe
from tgi.testing.checkpoints import make_checkpoint
from tgi.testing.driver import make_driver
from tgi.testing.runs import transformers_logprobs, whole
from tgi.weights import TensorPart
from tgi.weights.formats import IntegerWeight, read_format


def gptq(
    weight: torch.Tensor,
    bits: int = 4,
    group: int = 32,
    order: bool = False,
    symmetric: bool = True,
    version: str = "gptq",
) -> tuple[Tensors, torch.Tensor]:
    """GPTQ's tensors of a weight, and the matrix that they stand for."""
    into = pack_planes if version == "gptq_p" else pack
    groups = groups_of(weight.shape[1], group, order)
    numbers, scales, zeros, matrix = rounded(weight, bits, groups, symmetric)
    return {
        "qweight": into(numbers, bits).T.contiguous(),
        "qzeros": into((zeros.T - int(version == "gptq")) % 2**bits, bits),
        "scales": scales.T.contiguous().half(),
        "g_idx": groups.int(),
    }, matrix


def awq(weight: torch.Tensor, group: int = 32, symmetric: bool = False) -> tuple[Tensors, torch.Tensor]:
    """AWQ's tensors: of eight neighbours a word has first 0, 2, 4, 6, and then 1, 3, 5, 7."""
    groups = groups_of(weight.shape[1], group)
    numbers, scales, zeros, matrix = rounded(weight, 4, groups, symmetric)

    def interleaved(columns: torch.Tensor) -> torch.Tensor:
        return columns.unflatten(1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1)

    return {
        "qweight": pack(interleaved(numbers.T), 4),
        "qzeros": pack(interleaved(zeros.T), 4),
        "scales": scales.T.contiguous().half(),
    }, matrix


def gptq_config(
    bits: int = 4, group: int = 32, order: bool = False, symmetric: bool = True, version: str = "gptq"
) -> dict[str, Any]:
    return {
        "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order, "sym": symmetric,
        "checkpoint_format": version,
    }  # fmt: skip


AWQ: dict[str, Any] = {
    "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
    "modules_to_not_convert": None,
}  # fmt: skip


def test_logits_of_layers_of_which_a_part_is_dense(tmp_path: Path) -> None:
    """Tools leave dense what they must not round, and we join layers that they round apart."""
    dense = make_quantized(tmp_path, gptq, gptq_config() | {"dynamic": {"-:.*k_proj": {}}})
    path = tmp_path / "model.safetensors"
    stored = {name: tensor for name, tensor in load_file(path).items() if "k_proj" not in name}
    known = load_file(dense / "model.safetensors")
    save_file(stored | {name: known[name] for name in known if "k_proj" in name}, path)
    check_logits(tmp_path, dense, None, groups_of, kernels=False)


@pytest.mark.parametrize("version", ["gptq", "gptq_v2", "gptq_p"])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [32, 40, -1])
@pytest.mark.parametrize("order", [False, True])
def test_gptq_weights_are_those_that_were_packed(
    tmp_path: Path, version: str, bits: int, group: int, order: bool
) -> None:
    """The weight, a rank's rows of it, and a rank's columns, of which one rank's begin within a group."""
    options = (bits, group, order, version == "gptq", version)
    tensors, matrix = gptq(torch.randn(64, 96, generator=torch.Generator().manual_seed(bits)), *options)
    for dim, cut in CUTS:
        for device in (Device, KeepingDevice):
            part = TensorPart("x.weight", (64, 96), dim, cut)
            got = read(tmp_path, tensors, gptq_config(*options), device(), part)
            assert torch.allclose(got.dense(), matrix[(slice(None),) * dim + (cut or slice(None),)])
            irregular = order and group > 0 and dim == 1
            assert isinstance(got, IntegerWeight) == (device is KeepingDevice and not irregular)


@pytest.mark.parametrize("device", [Device, KeepingDevice])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "cut", [(0, None), (0, slice(12, 56)), (1, slice(48, 96)), (1, slice(0, 40))], ids=str
)
def test_awq_weights_are_those_that_were_packed(
    tmp_path: Path, device: type[Device], symmetric: bool, cut: tuple[int, slice | None]
) -> None:
    """Of symmetric ones no zeros are kept."""
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    tensors, matrix = awq(weight, symmetric=symmetric)
    part, config = TensorPart("x.weight", (64, 96), *cut), AWQ | {"zero_point": not symmetric}
    got = read(tmp_path, tensors, config, device(), part)
    wanted = matrix if cut[1] is None else matrix[cut[1]] if cut[0] == 0 else matrix[:, cut[1]]
    assert torch.allclose(got.dense(), wanted, rtol=1e-6, atol=1e-7)
    assert isinstance(got, IntegerWeight) == (device is KeepingDevice)
    assert getattr(got, "zeros", None) is None or not symmetric


CASES = {
    "gptq": (gptq, gptq_config()),
    "gptq-8": (lambda weight: gptq(weight, 8), gptq_config(8)),
    "gptq-3": (lambda weight: gptq(weight, 3, 64), gptq_config(3, 64)),
    "gptq-ordered": (lambda weight: gptq(weight, order=True), gptq_config(order=True)),
    "gptq-v2": (
        lambda weight: gptq(weight, symmetric=False, version="gptq_v2"),
        gptq_config(symmetric=False, version="gptq_v2"),
    ),
    "awq": (awq, AWQ),
    "awq, symmetric": (lambda weight: awq(weight, symmetric=True), AWQ | {"zero_point": False}),
}


@pytest.mark.parametrize("kind", CASES)
def test_logits_are_those_of_the_dense_model(tmp_path: Path, kind: str) -> None:
    quantize, config = CASES[kind]
    dense = make_quantized(tmp_path, quantize, config)
    order = config.get("desc_act", False)
    check_logits(
        tmp_path, dense, config["bits"], lambda features: groups_of(features, config["group_size"], order)
    )


@pytest.mark.parametrize("kind", ["gptq", "gptq-ordered", "awq"])
@pytest.mark.parametrize("card", ["gaudi2-lazy", "gaudi3-compile"])
def test_on_a_card(tmp_path: Path, kind: str, card: str) -> None:
    """It expands weights in each step."""
    dense = make_quantized(tmp_path, *CASES[kind])
    (wanted,) = transformers_logprobs(dense, None, [PROMPT])
    with open_compiling(card) as device:
        assert device.keeps == {"fp8", "int4"}
        got = whole(make_driver(tmp_path, device), [*PROMPT, 0], len(PROMPT))
    assert (got - wanted[-1:]).abs().max() < 1e-3


def gptq_of_conv1d(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """GPTQ's tensors of a weight that the dense checkpoint has as [in, out]."""
    tensors, matrix = gptq(weight.T.contiguous())
    return tensors, matrix.T


GPT2 = GPT2Config(
    vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=1
)
PHI3 = Phi3Config(
    vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, pad_token_id=0, bos_token_id=0, eos_token_id=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("quantize", "model", "layers"),
    [(gptq_of_conv1d, GPT2, "c_"), (gptq, PHI3, "_proj.")],
    ids=["gpt2", "phi3"],
)
def test_layers_that_the_checkpoint_has_as_one(
    tmp_path: Path, quantize: Any, model: PreTrainedConfig, layers: str
) -> None:
    dense = make_quantized(
        tmp_path, quantize, gptq_config(), lambda folder: make_checkpoint(folder, model), layers
    )
    check_logits(tmp_path, dense, None, groups_of, kernels=False)


def test_experts(tmp_path: Path) -> None:
    """Their router is dense."""
    config = MixtralConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, sliding_window=None,
    )  # fmt: skip
    dense = make_quantized(
        tmp_path, gptq, gptq_config(), lambda folder: make_checkpoint(folder, config), ".experts."
    )
    check_logits(tmp_path, dense, None, groups_of, kernels=False)
    command = Describe(
        folder=str(tmp_path), architecture="MixtralForCausalLM", ranks=2, dtype="float32", keeps=["int4"]
    )
    kept = {info.name: (info.format, info.bytes) for info in describe(command).tensors}
    layer = "model.layers.1.block_sparse_moe"
    assert kept[f"{layer}.experts.2.w1.weight"] == ("gptq", 48 * (64 // 2 + 4 * 64 // 32))
    assert kept[f"{layer}.experts.2.w2.weight"] == ("gptq", 64 * (48 // 2 + 4 * 2))
    assert kept[f"{layer}.gate.weight"] == ("dense", 4 * 3 * 64)


def test_a_bias_of_zeros_that_the_model_does_not_have_is_left_out(tmp_path: Path) -> None:
    """AutoGPTQ's tools have written one for every layer."""
    tensors, matrix = gptq(torch.randn(64, 96))
    tensors["bias"] = torch.zeros(64)
    got = read(tmp_path, tensors, gptq_config(), Device(), TensorPart("x.weight", (64, 96)))
    assert torch.allclose(got.dense(), matrix)


def test_layers_may_have_settings_of_their_own(tmp_path: Path) -> None:
    config = gptq_config() | {"dynamic": {"-:lm_head": {}, "+:x": {"bits": 8, "group_size": 48}}}
    tensors, matrix = gptq(torch.randn(64, 96), 8, 48)
    got = read(tmp_path, tensors, config, Device(), TensorPart("x.weight", (64, 96)))
    assert torch.allclose(got.dense(), matrix)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (gptq_config(9), "'bits' is 9"),
        (gptq_config() | {"checkpoint_format": "marlin"}, "'checkpoint_format' is 'marlin'"),
        (gptq_config() | {"is_marlin_format": True}, "'is_marlin_format' is set"),
        (gptq_config() | {"pack_dtype": "int16"}, "'pack_dtype' is 'int16'"),
        (AWQ | {"version": "gemv"}, "'version' is 'gemv'"),
        (AWQ | {"bits": 3}, "'bits' is 3"),
    ],
)
def test_other_variants_are_refused(config: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        read_format(JsonReader({"quantization_config": config}))
