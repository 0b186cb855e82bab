"""Logits and text against transformers for every switch of config.json, alone and on several ranks."""

import pytest
from tgi_mistral.plugin import read_config, tgi_architectures
from transformers import MistralConfig, MixtralConfig

from tgi.plugins import ConfigError, JsonReader
from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import describe_config, make_checkpoint
from tgi.testing.models import llama_tensors, make_mistral, mistral_config

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SWITCHES = {
    "a window of 24": {},
    "a window of one block": {"sliding_window": 16},
    "a window within a block": {"sliding_window": 5},
    "a window that sees itself only": {"sliding_window": 1},
    "a window beyond all prompts": {"sliding_window": 4096},
    "no window": {"sliding_window": None},
    "heads of another size": {"sliding_window": None, "head_dim": 24},
    "one key/value head": {"num_key_value_heads": 1},
    "every head its own": {"num_key_value_heads": 4},
    "tied head": {"tie_word_embeddings": True},
    "rope scaled": {"rope_scaling": YARN, "max_position_embeddings": 64},
    "rope in its newer spelling": {"rope_parameters": YARN | {"rope_theta": 1e6}},
    "odd sizes": {"hidden_size": 60, "intermediate_size": 78, "head_dim": 10, "vocab_size": 333},
}
LAZY, COMPILED = "gaudi2-lazy", "gaudi3-compile"
CARDS = {"a window of 24": [LAZY], "no window": [COMPILED], "a window within a block": [COMPILED]}
RANKS = {"one key/value head": 4, "every head its own": 2, "a window of 24": 2, "heads of another size": 4}
"""Numbers of ranks: more than key/value heads, fewer, as many, and more again."""


@pytest.mark.parametrize("name", SWITCHES)
def test_switches(tmp_path, name):
    folder = make_mistral(tmp_path, **SWITCHES[name])
    check_architecture(folder, cards=CARDS.get(name, []), ranks=RANKS.get(name, 0))


@pytest.mark.parametrize("window", [24, None])
def test_text_is_that_of_transformers(tmp_path, window):
    check_generation(make_mistral(tmp_path, sliding_window=window), cards=[LAZY, COMPILED])


@pytest.mark.parametrize("name", SWITCHES)
def test_weights_are_those_of_the_checkpoint(tmp_path, name):
    config = mistral_config(**SWITCHES[name])
    described = describe_config(tmp_path, config)
    shapes = {key: list(tensor.shape) for key, tensor in llama_tensors(config).items()}
    assert {each.name: each.shape for each in described.tensors} == shapes
    assert [group.window for group in described.groups] == [config["sliding_window"]]


def test_what_config_json_leaves_out():
    """A key that is missing has the default of transformers' MistralConfig; null is a value."""
    config = mistral_config()
    for key in ("sliding_window", "num_key_value_heads", "max_position_embeddings"):
        del config[key]
    config["num_attention_heads"] = 16
    read = read_config(JsonReader(config))
    assert (set(read.windows), read.num_kv_heads, read.max_position) == ({4096}, 8, 131072)
    config |= {"sliding_window": None, "num_key_value_heads": None, "head_dim": None}
    read = read_config(JsonReader(config))
    assert (set(read.windows), read.num_kv_heads, read.head_dim) == ({None}, 16, 4)


TYPES = ["full_attention", "sliding_attention"]


def test_layers_with_and_without_a_window(tmp_path):
    """Ministral's layers alternate."""
    check_generation(make_mistral(tmp_path, sliding_window=24, layer_types=TYPES, head_dim=16))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"layer_types": TYPES[:1]}, "layer_types"),
        ({"layer_types": ["chunked_attention"] * 2}, "'chunked_attention'"),
        ({"layer_types": TYPES, "sliding_window": None}, "'sliding_attention'"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"sliding_window": -1}, "sliding_window"),
        ({"llama_4_scaling_beta": 0.1}, "llama_4_scaling_beta"),
    ],
)
def test_what_would_be_another_model_is_refused_by_name(change, name):
    architecture, *_ = tgi_architectures()
    with pytest.raises(ConfigError, match=name):
        architecture.read({**mistral_config(), **change})


SMALL = {"intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
V1 = {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32000}
NEMO = {"hidden_size": 5120, "num_hidden_layers": 40, "vocab_size": 131072, "head_dim": 128}


@pytest.mark.parametrize(("shape", "parameters"), [(V1, 7_241_732_096), (NEMO, 12_247_782_400)])
def test_parameters_of_models_that_everybody_knows(tmp_path, shape, parameters):
    """Mistral-7B-v0.1 and Nemo, by the metadata of their files."""
    config = mistral_config(**SMALL, **shape)
    assert describe_config(tmp_path, config).parameters == parameters


SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
CONFIGS = {
    "7B with a window": MistralConfig(**SIZES, sliding_window=24),
    "Nemo": MistralConfig(**SIZES, sliding_window=None, head_dim=24),
    "Ministral": MistralConfig(**SIZES, sliding_window=24, layer_types=TYPES),
    "Mixtral": MixtralConfig(**SIZES, **EXPERTS, sliding_window=None),
    "Mixtral with a window": MixtralConfig(**SIZES, **EXPERTS, sliding_window=24),
}


@pytest.mark.parametrize(("name", "ranks"), [("Mixtral", 4), ("Mixtral with a window", 2)])
def test_mixtral(tmp_path, name, ranks):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder, ranks=ranks, expert_parallel=ranks == 4)
    check_generation(folder, [5, 40])


SMALL_3_1 = {
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 131072,
    "sliding_window": None,
    "rope_theta": 1e9,
    "model_type": "mistral",
}


def test_the_decoder_of_a_model_of_images_and_text(tmp_path):
    """That of Mistral Small 3.1 is Mistral Small 3, which has 23,572,403,200 parameters."""
    names = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
    config = names | {"text_config": SMALL_3_1, "vision_config": {"hidden_size": 1024}}
    described = describe_config(tmp_path, config)
    assert described.parameters == 23_572_403_200
    assert described.tensors[0].name == "language_model.model.embed_tokens.weight"
