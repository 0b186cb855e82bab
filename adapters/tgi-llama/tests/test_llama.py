"""Logits against transformers for every shape feature and every kind of RoPE."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tgi_llama.llama4 import read_llama4
from tgi_llama.plugin import read_config, tgi_architectures
from transformers import Llama4ForCausalLM, Llama4TextConfig, LlamaConfig

from tgi.device.cpu.cpu_device import CpuDevice
from tgi.plugins import ConfigError, JsonReader
from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import describe_config, make_checkpoint
from tgi.testing.driver import make_driver
from tgi.testing.models import llama_config, llama_tensors, make_llama
from tgi.testing.runs import random_prompt, transformers_logprobs

SHAPES = {
    "grouped queries": {},
    "one key/value head": {"num_key_value_heads": 1},
    "every head its own": {"num_key_value_heads": None},
    "head apart from hidden/heads": {"head_dim": 24},
    "tied head": {"tie_word_embeddings": True},
    "attention biases": {"attention_bias": True},
    "all biases": {"attention_bias": True, "mlp_bias": True},
    "odd sizes": {"hidden_size": 60, "intermediate_size": 77, "head_dim": 10, "vocab_size": 333},
}


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def fine_tune_head(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()


def store_twice(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def store_as_head(tensors):
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


@pytest.mark.parametrize("change", [fine_tune_head, store_twice, store_as_head])
def test_tied_head_in_the_files(tmp_path, change):
    """A head with other numbers is used; of two alike one is kept; one alone is both."""
    folder = make_llama(tmp_path, tie_word_embeddings=True)
    edit_tensors(folder, change)
    check_architecture(folder, ranks=2, lengths=[20], cards=[])


def test_tensors_of_no_layer_are_left_out_with_a_warning(tmp_path, caplog):
    folder = make_llama(tmp_path)
    edit_tensors(folder, lambda tensors: tensors.update({"v_head.summary.weight": torch.ones(1, 64)}))
    check_generation(folder, [12], tokens=4)
    assert "'v_head.summary.weight'; they are left out" in caplog.text


LAZY, COMPILED = "gaudi2-lazy", "gaudi3-compile"
CARDS = {"grouped queries": [LAZY, COMPILED], "all biases": [LAZY], "odd sizes": [COMPILED]}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(tmp_path, name):
    check_architecture(make_llama(tmp_path, **SHAPES[name]), ranks=0, cards=CARDS.get(name, []))


def test_two_ranks_and_sharded_files(tmp_path):
    folder = make_llama(tmp_path, shards=3, attention_bias=True, mlp_bias=True, vocab_size=511)
    assert len(list(folder.glob("*.safetensors"))) == 3
    check_architecture(folder, ranks=2, lengths=[20], cards=[])


@pytest.mark.parametrize(("ranks", "kv_heads"), [(2, 1), (2, 2), (2, 8), (4, 1), (4, 2), (4, 4), (4, 8)])
def test_ranks_and_key_value_heads(tmp_path, ranks, kv_heads):
    """Fewer, as many, and more; and a vocabulary that is divided unevenly."""
    shape = {"num_attention_heads": 8, "num_key_value_heads": kv_heads, "vocab_size": 333}
    folder = make_llama(tmp_path, attention_bias=True, tie_word_embeddings=kv_heads == 2, **shape)
    check_architecture(folder, ranks=ranks, lengths=[20], cards=())


@pytest.mark.parametrize("name", ["grouped queries", "all biases"])
def test_text_is_that_of_transformers(tmp_path, name):
    check_generation(make_llama(tmp_path, **SHAPES[name]), cards=CARDS[name])


FACTORS = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn with mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "mscale": 0.8,
        "mscale_all_dim": 0.3,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "yarn with attention_factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.3,
    },
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 32, **FACTORS},
    "longrope with factor": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 32,
        "factor": 2.0,
        **FACTORS,
    },
    "llama3": {"rope_type": "llama3", "original_max_position_embeddings": 32, **LLAMA3},
}

LLAMA4 = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 48,
    "intermediate_size_mlp": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "attention_chunk_size": 24,
    "floor_scale": 8,
    "pad_token_id": 0,
}
SCOUT = ROPES["llama3"] | {"high_freq_factor": 1.0, "rope_theta": 5e5}
CONFIGS = {
    "1 and 2": LlamaConfig(**llama_config(num_key_value_heads=4)),
    "3": LlamaConfig(**llama_config(rope_theta=5e5)),
    "3.1": LlamaConfig(**llama_config(rope_parameters=ROPES["llama3"] | {"rope_theta": 5e5})),
    "3.2 with a tied head": LlamaConfig(**llama_config(tie_word_embeddings=True, head_dim=24)),
    "with all biases": LlamaConfig(**llama_config(**SHAPES["all biases"])),
    "4 Scout": Llama4TextConfig(**LLAMA4, num_hidden_layers=4, rope_parameters=SCOUT),
    "4 Maverick": Llama4TextConfig(
        **LLAMA4, num_hidden_layers=2, interleave_moe_layer_step=2, use_qk_norm=False
    ),
    "4 with two experts of a token and biases": Llama4TextConfig(
        **LLAMA4 | {"attention_chunk_size": None},
        num_hidden_layers=2,
        num_experts_per_tok=2,
        no_rope_layers=[1, 0],
        attention_bias=True,
    ),
}


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("4")])
def test_llama4(tmp_path, name):
    """Prompts end within, at the end of, and beyond the first chunk of 24 tokens."""
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder, expert_parallel="Scout" in name)
    check_generation(folder, [5, 24, 60])


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_rope(tmp_path, rope):
    """Both spellings are read alike; the newer one is run."""
    theta = {"rope_theta": 500.0}
    new = llama_config(rope_parameters=rope | theta, max_position_embeddings=64)
    old = llama_config(rope_scaling=rope, **theta, max_position_embeddings=64)
    assert read_config(JsonReader(old)) == read_config(JsonReader(new))
    folder = make_llama(tmp_path, rope_parameters=rope | theta, max_position_embeddings=64)
    # Prompts and what follows begin and end within, cross, and begin beyond 32 and 64.
    check_generation(folder, [12, 28, 45, 60, 75], tokens=24)


def test_old_name_of_the_type_key(tmp_path):
    folder = make_llama(tmp_path, rope_scaling={"type": "linear", "factor": 3.0})
    assert read_config(JsonReader(json.loads((folder / "config.json").read_text()))).ropes[0].kind == "linear"
    check_generation(folder, [12], tokens=24)


def test_dynamic_rope_forgets(tmp_path):
    """A long sequence must not leave traces in a shorter one after it."""
    folder = make_llama(
        tmp_path, rope_scaling={"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=32
    )
    check_generation(folder, [50, 5, 40], tokens=24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
        ({"rope_scaling": {"rope_type": "axial"}}, "'axial' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'factor'"),
        ({"rope_scaling": {"rope_type": "longrope", **FACTORS, "short_factor": [1.0]}}, "'short_factor'"),
        ({"hidden_size": "big"}, "'hidden_size' is 'big'"),
        ({"hidden_size": None}, "no 'hidden_size'"),
    ],
)
def test_config_errors(change, message):
    config = {**llama_config(), **change}
    with pytest.raises(ConfigError, match=message):
        read_config(JsonReader(config))


LLAMA_3 = {
    "_name_or_path": "meta-llama/Meta-Llama-3-8B",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "mlp_bias": False,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "unsloth_version": "2024.9",
    "layer_types": ["full_attention"] * 2,
}


def test_fields_of_published_configs_are_known():
    architecture = tgi_architectures()[0]
    architecture.read({**llama_config(), **LLAMA_3})


@pytest.mark.parametrize(
    "change",
    [
        {"embedding_multiplier": 12.0},
        {"use_qk_norm": True},
        {"no_rope_layers": [1, 0]},
        {"sliding_window": 64},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"rope_scaling": {"factor": 4.0}},
        {"rope_scaling": {"type": "linear", "factor": 4.0, "attn_factor": 2.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
        {"rotary_base": 5000},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"a field of next year": 1},
    ],
    ids=str,
)
def test_what_would_be_another_model_is_refused_by_name(change):
    architecture = tgi_architectures()[0]
    place, value = next(iter(change.items()))
    names = [place, *value] if isinstance(value, dict) else [place]
    with pytest.raises(ConfigError, match=f"'({'|'.join(names)})'"):
        architecture.read({**llama_config(), **change})


def test_a_format_of_weights_that_is_not_supported(tmp_path):
    config = llama_config(quantization_config={"quant_method": "quip"})
    with pytest.raises(ConfigError, match="'quant_method' is 'quip'"):
        describe_config(tmp_path, config)


def test_bfloat16_is_close_to_transformers(tmp_path):
    """Both round in every operation; what is left is some 1 % of the logits' spread."""
    folder = make_llama(tmp_path, dtype="bfloat16")
    prompt = random_prompt(512, 30, 0)
    driver = make_driver(folder, CpuDevice(1), dtype="bfloat16")
    driver.start(0)
    got = driver.prefill({0: prompt})[0].logits.log_softmax(-1)
    (wanted,) = transformers_logprobs(folder, None, [prompt])
    assert (got - wanted[-1]).abs().max() < 0.15


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_weights_are_those_of_the_checkpoint(tmp_path, config):
    config = {key: value for key, value in {**llama_config(), **config}.items() if value is not None}
    tensors = llama_tensors(config)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    assert {each.name: each.shape for each in describe_config(tmp_path, config).tensors} == shapes


SMALL = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
LARGE = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}


@pytest.mark.parametrize(("shape", "parameters"), [(SMALL, 8_030_261_248), (LARGE, 70_553_706_496)])
def test_parameters_of_models_that_everybody_knows(tmp_path, shape, parameters):
    """Llama-3.1-8B and 70B; Meta says 8.03 and 70.6 billion."""
    config = llama_config(vocab_size=128256, num_key_value_heads=8, **shape)
    assert describe_config(tmp_path, config).parameters == parameters


def test_the_decoder_of_a_llama4_for_images_and_text(tmp_path):
    """Scout's layers with chunks have a group of blocks of their own."""
    text = Llama4TextConfig(num_hidden_layers=48, max_position_embeddings=10485760)
    with torch.device("meta"):
        wanted = sum(parameter.numel() for parameter in Llama4ForCausalLM(text).parameters())
    config = {"architectures": ["Llama4ForConditionalGeneration"], "text_config": text.to_dict()}
    described = describe_config(tmp_path, config)
    assert described.parameters == wanted
    assert described.tensors[0].name == "language_model.model.embed_tokens.weight"
    assert {group.window: len(group.layers) for group in described.groups} == {8192: 36, None: 12}


@pytest.mark.parametrize(
    "change", [{"no_rope_layers": [1]}, {"layer_types": ["sliding_attention"] * 2}, {"attn_scale": "high"}]
)
def test_what_llama4_cannot_do_is_refused_by_name(change):
    config = Llama4TextConfig(**LLAMA4, num_hidden_layers=2).to_dict()
    with pytest.raises(ConfigError, match=next(iter(change))):
        read_llama4(JsonReader(config | change))


def test_llama4_may_see_everything():
    """A size of null is no chunks."""
    config = Llama4TextConfig(**LLAMA4, num_hidden_layers=4).to_dict()
    del config["layer_types"]
    assert read_llama4(JsonReader(config)).windows == (24, 24, 24, None)
    assert read_llama4(JsonReader(config | {"attention_chunk_size": None})).windows == (None,) * 4
