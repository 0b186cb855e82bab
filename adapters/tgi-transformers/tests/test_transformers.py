"""Five families against transformers, in process."""

import json
import logging

import msgspec
import pytest
import torch
import transformers
from tgi_transformers.plugin import read_config

from tgi.device.base import Device
from tgi.device.cpu.cpu_device import CpuDevice
from tgi.layers.loading import describe, load_model
from tgi.plugins import ConfigError, JsonReader
from tgi.plugins.lookup import find_architecture, read_config_json
from tgi.protocol import Describe, unpack_floats, unpack_ints
from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.driver import load_command, make_driver
from tgi.testing.models import make_llama
from tgi.testing.runs import random_prompt
from tgi.weights import Shard

from .random_models import FAMILIES, GENERAL, NEW, SMALL, VOCAB, make_model

OF_FIVE = pytest.mark.skipif(not NEW, reason="transformers 4 refuses it, or has another reference")


def cases(table, *of_five):
    """Parameters by name; those `of_five` need transformers 5."""
    return [
        pytest.param(value, id=name, marks=[OF_FIVE] * (name in of_five)) for name, value in table.items()
    ]


CARDS = {"Gemma 2": ["gaudi2-lazy", "gaudi3-compile"]}


@pytest.mark.parametrize("family", cases({name: name for name in FAMILIES}, "OPT"))
def test_families(tmp_path, family):
    """The longest prompt has 37 tokens, and a window 8."""
    check_architecture(make_model(tmp_path, **FAMILIES[family]), ranks=0, cards=CARDS.get(family, []))


SWITCHES = {
    "a window in every layer": {**FAMILIES["Gemma 2"], "layer_types": ["sliding_attention"] * 4},
    "compressed keys, wider than values": {
        **SMALL,
        "config": "DeepseekV3Config",
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "one key/value head": {**FAMILIES["GPT-2"], "config": "GPTBigCodeConfig", "multi_query": True},
    "scale by layer": {**FAMILIES["GPT-2"], "scale_attn_by_inverse_layer_idx": True},
    "no scale by features": {**FAMILIES["GPT-2"], "scale_attn_weights": False},
    "features narrower than layers": {**FAMILIES["OPT"], "word_embed_proj_dim": 32},
    "attention in every layer of a hybrid": {
        "config": "GraniteMoeHybridConfig",
        **SMALL,
        "num_key_value_heads": 2,
        "layer_types": ["attention"] * SMALL["num_hidden_layers"],
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "position_embedding_type": "rope",
        "shared_intermediate_size": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 2 * SMALL["hidden_size"] // 4,
        "mamba_n_groups": 1,
        "tie_word_embeddings": True,
    },
    "scaled logits": {**FAMILIES["Qwen3"], "config": "CohereConfig", "logit_scale": 0.25},
}


@pytest.mark.parametrize(
    "settings",
    cases(
        SWITCHES,
        "one key/value head",
        "features narrower than layers",
        "attention in every layer of a hybrid",
    ),
)
def test_switches(tmp_path, settings):
    folder = make_model(tmp_path, **settings)
    driver, prompt = make_driver(folder, CpuDevice(1)), random_prompt(VOCAB, 37, 0)
    driver.start(0)
    driver.prefill({0: prompt[:20]}, unfinished=[0])
    answers = [driver.prefill({0: prompt[20:]})[0]] + [driver.decode([0])[0] for _ in range(4)]
    text = prompt + [answer.token for answer in answers]
    with torch.inference_mode():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, torch_dtype=torch.float32, attn_implementation="eager"
        )
        wanted = model(torch.tensor([text])).logits[0, 36:-1]
    assert (torch.stack([answer.logits for answer in answers]) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("device", [CpuDevice, Device])
def test_questions_about_the_prompt(tmp_path, device):
    folder = make_model(tmp_path, **FAMILIES["Gemma 2"])
    driver, prompt = make_driver(folder, device(1)), random_prompt(VOCAB, 30, 0)
    driver.start(0)
    driver.prefill({0: prompt}, targets={0: [*prompt[1:], -1]}, prompt_top=3)
    with torch.inference_mode():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, torch_dtype=torch.float32, attn_implementation="eager"
        )
        logprobs = model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
    wanted = logprobs.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    assert unpack_floats(driver.result.prompt_logprobs)[:29] == pytest.approx(wanted.tolist(), abs=1e-4)
    top = unpack_ints(driver.result.prompt_top_tokens).reshape(-1, 3)[:29]
    assert top.tolist() == logprobs.topk(3).indices.tolist()


def test_bfloat16(tmp_path):
    """Both round in every operation; what is left is some 1 % of the logits' spread."""
    folder = make_model(tmp_path, **FAMILIES["Qwen3"])
    driver, prompt = make_driver(folder, CpuDevice(1), dtype="bfloat16"), random_prompt(VOCAB, 30, 0)
    driver.start(0)
    got = driver.prefill({0: prompt})[0].logits
    with torch.inference_mode():
        wanted = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([prompt])).logits
    assert driver.runner.dtype == torch.bfloat16
    assert (got - wanted[0, -1]).abs().mean() < 0.03 * wanted.std()


def test_the_log_says_who_runs_it(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    folder = make_model(tmp_path / "qwen", **FAMILIES["Qwen3"])
    architecture, config = find_architecture(folder, read_config_json(folder))
    assert architecture.model == "tgi_transformers.model:TransformersModel"
    assert (config.head_dim, config.num_kv_heads, config.max_position) == (16, 2, 512)
    assert "no adapter offers Qwen3ForCausalLM" in caplog.text
    assert "on one card only" in caplog.text


def test_an_adapter_of_its_own_goes_first(tmp_path, caplog):
    folder = make_llama(tmp_path)
    architecture, _ = find_architecture(folder, read_config_json(folder))
    assert architecture.model == "tgi.layers:LlamaDecoder"
    assert not caplog.text


@pytest.mark.parametrize("family", cases({name: name for name in FAMILIES}, "OPT"))
def test_positions_that_are_learned_have_an_end(tmp_path, family):
    config = json.loads((make_model(tmp_path, **FAMILIES[family]) / "config.json").read_bytes())
    found = read_config(JsonReader(config)).learned_positions
    assert found == (found and found_positions(transformers.AutoConfig.from_pretrained(tmp_path)))
    assert (found is not None) == (family in ("GPT-2", "OPT"))


def found_positions(config):
    """The number of position embeddings that transformers makes, less OPT's offset of 2."""
    model = transformers.AutoModelForCausalLM.from_config(config)
    tables = [m for n, m in model.named_modules() if n.endswith(("wpe", "embed_positions"))]
    return tables[0].weight.shape[0] - getattr(tables[0], "offset", 0)


def test_windows_of_layers():
    config = {**GENERAL, "architectures": ["Gemma2ForCausalLM"], "sliding_window": 8}
    layers = config["num_hidden_layers"] = 3
    found = read_config(JsonReader(config))
    assert found.windows == (None,) * layers
    full, sliding = "full_attention", "sliding_attention"
    for types in ([sliding] * (layers - 1) + [full], [sliding] * layers):
        found = read_config(JsonReader({**config, "layer_types": types}))
        assert found.windows == tuple(8 if kind == sliding else None for kind in types)


@pytest.mark.parametrize("family", cases({name: name for name in FAMILIES}, "OPT"))
def test_descriptions(tmp_path, family):
    """A description without numbers is that of the loaded model."""
    folder = make_model(tmp_path, **FAMILIES[family])
    config = json.loads((folder / "config.json").read_text())
    (name,) = config["architectures"]
    command = Describe(folder=str(folder), architecture=name, ranks=1, dtype="float32")
    described = describe(command)
    build = load_model(load_command(folder), Shard(), Device(1), lambda *_: None).build
    assert described.groups == build.cache_groups(4)
    assert described.tensors == build.tensors
    assert (described.widest, described.changes_scores) == (build.widest, build.changes_scores)
    assert described.possible_ranks == [1]
    with pytest.raises(ConfigError, match="on one rank only"):
        describe(msgspec.structs.replace(command, ranks=2))


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({}, None),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 512),
        ({"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 64}}, 64),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 32}, 32),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, 512),
    ],
)
def test_a_rope_that_depends_on_the_length_ends_where_it_begins_to(change, limit):
    config = {**GENERAL, "max_position_embeddings": 512, "rope_theta": 1e4, **change}
    read = read_config(JsonReader(config))
    assert (read.learned_positions, read.max_position) == (limit, limit or 512)


def test_sizes_that_the_config_class_fills_in(tmp_path):
    """Qwen3's heads have 128 features whatever the hidden size is."""
    folder = make_model(tmp_path, **{**FAMILIES["Qwen3"], "head_dim": 128})
    path = folder / "config.json"
    config = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "head_dim"}
    path.write_text(json.dumps(config))
    check_generation(folder, [12], tokens=6)


@OF_FIVE
def test_experts_on_a_device_without_integer_histograms(tmp_path):
    sizes = {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    folder = make_model(tmp_path, config="MixtralConfig", **sizes)
    check_generation(folder, [12], tokens=6, cards=["gaudi2-lazy"])


@OF_FIVE
def test_features_narrower_than_layers_on_a_card(tmp_path):
    """OPT-350M's, which the card keeps for questions about the prompt."""
    folder = make_model(tmp_path, **{**FAMILIES["OPT"], "word_embed_proj_dim": 32})
    check_generation(folder, [12], tokens=6, cards=["gaudi2-lazy"])


@pytest.mark.parametrize("names", [None, [], ["ExaoneForCausalLM"]])
def test_a_model_is_known_by_its_type(tmp_path, names):
    folder = make_llama(tmp_path)
    config = {**read_config_json(folder), "architectures": names}
    assert find_architecture(folder, config)[0].name == "LlamaForCausalLM"
    config = {**GENERAL, "architectures": names, "model_type": "qwen2"}
    assert find_architecture(folder, config)[1].architecture == "Qwen2ForCausalLM"


def test_weights_that_are_made_up(tmp_path):
    folder = make_model(tmp_path, **FAMILIES["Qwen3"])
    (folder / "model.safetensors").unlink()
    driver = make_driver(folder, CpuDevice(1), dummy=True)
    driver.start(0)
    assert driver.prefill({0: [1, 2, 3]})[0].logits.isfinite().all()
