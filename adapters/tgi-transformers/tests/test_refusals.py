"""Configs, models, checkpoints and ranks that are refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tgi_transformers.plugin import read_config
from tgi_transformers.trial import Trial, make_mask
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from tgi.device.base import Device
from tgi.device.cpu.cpu_device import CpuDevice
from tgi.plugins import ConfigError, JsonReader
from tgi.testing.driver import load_command, make_driver
from tgi.weights import CheckpointError, Shard
from tgi.worker.runner import Runner

from .random_models import FAMILIES, GENERAL, NEW, SMALL, make_model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["NoSuchModel"]},
            r"NoSuchModel is not supported: no adapter offers it .*, and transformers [45]\S+ has no",
        ),
        (
            {"architectures": ["NoSuchModel"], "auto_map": {"AutoModelForCausalLM": "a.b"}},
            "code that comes with a model is never run",
        ),
        ({"architectures": ["T5ForConditionalGeneration"]}, "T5ForConditionalGeneration is not supported"),
        ({"is_encoder_decoder": True}, "has an encoder"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ({"num_attention_heads": None}, "no 'num_attention_heads'"),
        ({"architectures": None, "model_type": None}, "no 'architectures'"),
        ({"architectures": ["WhisperForConditionalGeneration"]}, "it is a speech model"),
        (
            {"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}},
            "model of images and text",
        ),
        (
            {"architectures": ["RobertaForMaskedLMs", "BertModel"]},
            "and this server continues texts|no causal",
        ),
    ],
)
def test_configs_that_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        read_config(JsonReader({**GENERAL, **change}))


GROUPED = {**SMALL, "num_key_value_heads": 2}
REFUSED = {
    "Bloom": (
        {"config": "BloomConfig", "hidden_size": 48, "n_layer": 2, "n_head": 4},
        "BloomForCausalLM cannot be run by way of transformers: its attention does not go through",
    ),
    "a state": (
        {
            "config": "FalconH1Config",
            **SMALL,
            "num_key_value_heads": 2,
            "mamba_d_ssm": 48,
            "mamba_n_heads": 4,
        },
        "cannot be run by way of transformers",
    ),
    "layers without attention": (
        {
            "config": "Lfm2Config",
            **SMALL,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention"],
        },
        "no attention that others can compute in layer 0",
    ),
    "sinks": (
        {
            "config": "GptOssConfig",
            **GROUPED,
            "head_dim": 12,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
        "its attention needs s_aux",
    ),
    "later tokens": (
        {**FAMILIES["Gemma 2"], "config": "Gemma3TextConfig", "use_bidirectional_attention": True},
        "sees others than those just before it",
    ),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_models_that_are_refused(tmp_path, settings, message):
    if not NEW and "use_bidirectional_attention" in settings:
        pytest.skip("transformers 4 has no such field, and so refuses it before")
    with pytest.raises(ConfigError, match=message):
        make_driver(make_model(tmp_path, **settings), CpuDevice(1))


@pytest.mark.parametrize("window", [1, 8, 511])
def test_the_window_is_what_the_mask_says(window):
    trial = Trial(read_config(JsonReader(GENERAL)))
    assert trial.window(make_mask(sliding_window_causal_mask_function(window), None)) == window
    assert trial.window(make_mask(causal_mask_function, None)) is None
    chunks = chunked_causal_mask_function(*(window + 1, torch.zeros(1, dtype=torch.int64))[: 1 + NEW])
    with pytest.raises(ConfigError, match="sees others than those just before it"):
        trial.window(make_mask(chunks, None))


def test_several_ranks_are_refused(tmp_path):
    folder = make_model(tmp_path, **FAMILIES["Qwen3"])
    with pytest.raises(ConfigError, match=r"one rank only; --num-shard 2 needs an adapter of its own"):
        Runner.load(load_command(folder), Shard(0, 2), Device(1))


NORM = "model.layers.0.self_attn.q_norm.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop(NORM), f"no tensor .*{NORM}"),
        (lambda tensors: tensors.update({"model.layers.0.odd": torch.ones(3)}), r"model\.layers\.0\.odd"),
        (lambda tensors: tensors.update({NORM: torch.ones(3)}), rf"{NORM}.* shape .*config.json says"),
    ],
    ids=["missing", "unexpected", "of another shape"],
)
def test_tensors_that_do_not_fit(tmp_path, edit, message):
    folder = make_model(tmp_path, **FAMILIES["Qwen3"])
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        make_driver(folder, CpuDevice(1))
