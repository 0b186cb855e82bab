"""config.json of published models: each is served as transformers computes it, or refused with the reason.

`published_configs.json` has their fields and settings as published, odd remarks included; only sizes, ids of
tokens, and lists by layer are shrunk. A random model of transformers stands for the published weights.
"refused" is a pattern of the reason for which a model need not be served; null: it must be.
"""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file

from tgi.layers.loading import describe
from tgi.layers.rotary import attention_factor, frequencies
from tgi.plugins import ConfigError
from tgi.plugins.lookup import find_architecture
from tgi.protocol import Describe
from tgi.testing.driver import Driver, make_driver
from tgi.testing.models import make_tokenizer
from tgi.testing.runs import random_prompt
from tgi.worker.runner import open_device

PUBLISHED = json.loads(Path(__file__).with_name("published_configs.json").read_text())
SERVED = [name for name, published in PUBLISHED.items() if published["refused"] is None]
PROMPT, NEW = 24, 5
"""Number of tokens of the prompt, beyond every window, and of those generated."""


def write(folder: Path, config: dict[str, Any]) -> Any:
    """Write a checkpoint with that config.json; return the model of transformers, or None if it has none."""
    text = json.dumps(config)
    (folder / "config.json").write_text(text)
    make_tokenizer(folder, 320)
    try:
        settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ValueError:
        return None
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.2 * parameter.shape[-1] ** -0.5)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(text)
    return model


def load(folder: Path) -> tuple[Driver | None, str]:
    """Return the loaded model, or the reason for which it is refused."""
    try:
        return make_driver(folder, open_device("cpu", 1)), ""  # with the kernels, if they are built
    except ConfigError as error:
        return None, str(error)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_served_or_refused(tmp_path: Path, name: str) -> None:
    check(tmp_path, **PUBLISHED[name])


def check(folder: Path, config: dict[str, Any], refused: str | None = None) -> None:
    """Compare with transformers a prompt in two chunks, and tokens after it; or the reason of a refusal."""
    model = write(folder, config)
    driver, reason = load(folder) if model else (None, refusal(folder, config))
    if driver is None and (model or reason):
        assert re.search(refused or "nothing", reason), reason
    if driver is None:
        return  # nothing to compare an adapter with, if one runs what transformers does not
    prompt = random_prompt(90, PROMPT, 0)
    driver.start(0, prompt_length=PROMPT)
    driver.prefill({0: prompt[:10]}, unfinished=[0])
    answers = [driver.prefill({0: prompt[10:]})[0]]
    answers += [driver.decode([0])[0] for _ in range(NEW)]
    tokens = [answer.token for answer in answers]
    with torch.inference_mode():
        wanted = model(torch.tensor([prompt + tokens])).logits[0, PROMPT - 1 : -1]
    assert (torch.stack([answer.logits for answer in answers]) - wanted).abs().max() < 1e-4
    assert tokens == wanted.argmax(-1).tolist()


FAMILIES = {PUBLISHED[name]["config"]["architectures"][0]: name for name in reversed(SERVED)}
"""One model of each architecture."""
NO_SCALING: list[dict[str, Any]] = [
    {},
    *({"rope_scaling": value} for value in (None, {}, {"rope_type": "default"}, {"type": "default"})),
    *({"rope_parameters": value} for value in (None, {}, {"rope_type": "default"}, {"rope_theta": 7000.0})),
    {"rope_parameters": {"rope_type": "default", "rope_theta": 7000.0}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7000.0}},
    {"rope_parameters": None, "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2.0}},
]


def rotations(model: torch.nn.Module) -> set[tuple[Any, ...]]:
    """Return the factor and the rounded frequencies of each RoPE of a model of transformers."""
    found = set()
    for module in model.modules():
        for name, values in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and "original" not in name:
                factor = getattr(module, name.replace("inv_freq", "attention_scaling"), 1.0)
                found.add((round(float(factor), 5), *(float(f"{value:.4g}") for value in values.tolist())))
    return found


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
def test_rope_without_a_scaling_is_that_of_transformers_in_every_form(
    tmp_path: Path, architecture: str
) -> None:
    for form in NO_SCALING:
        config = copy.deepcopy(PUBLISHED[FAMILIES[architecture]]["config"])
        config = {name: one for name, one in config.items() if not name.startswith("rope_")} | form
        (tmp_path / "config.json").write_text(json.dumps(config))
        try:
            settings = transformers.AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
            wanted = rotations(transformers.AutoModelForCausalLM.from_config(settings))
            _, model = find_architecture(tmp_path, config)
        except (ConfigError, ValueError, KeyError, StrictDataclassError):
            continue  # refused here, or nothing to compare with
        ropes = {rope for rope in getattr(model, "ropes", ()) if rope is not None}
        ours = {
            (
                round(attention_factor(rope), 5),
                *(float(f"{value:.4g}") for value in frequencies(rope).tolist()),
            )
            for rope in ropes
        }
        assert not (ours and wanted) or ours == wanted, form


def places(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the objects in a config.json whose fields may change the text."""
    yield config
    yield from (config[key] for key in ("rope_scaling", "rope_parameters") if config.get(key))


@pytest.mark.parametrize("name", SERVED)
def test_a_field_that_nobody_knows_is_refused_by_name(tmp_path: Path, name: str) -> None:
    for index, _ in enumerate(places(PUBLISHED[name]["config"])):
        config = copy.deepcopy(PUBLISHED[name]["config"])
        list(places(config))[index]["odd_scale"] = 2.0
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert "'odd_scale' is 2.0" in refusal(tmp_path, config)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("Llama 3 8B", {"rope_theta": 0}, "'rope_theta' is 0.0, expected more than 0"),
        ("DeepSeek Coder 6.7B", {"rope_scaling": {"type": "linear", "factor": 0}}, "'factor' is 0.0"),
        ("DeepSeek Coder 6.7B", {"rope_scaling": {"type": "spiral", "factor": 2}}, "RoPE of type 'spiral'"),
        ("Gemma 2 9B", {"attn_logit_softcapping": 0}, "'attn_logit_softcapping' is 0.0"),
        ("Granite 3.1 8B", {"logits_scaling": 0}, "'logits_scaling' is 0.0"),
        ("Phi 3.5 MoE", {"num_experts_per_tok": 1}, "'num_experts_per_tok' is 1"),
        ("Command R7B", {"order_of_interleaved_layers": "global_attn_first"}, "global_attn_first"),
        ("Llama 3 8B", {"model_type": "gemma"}, "'model_type' is 'gemma', which are different models"),
        ("Llama 3 8B", {"mlp_bias": "no"}, "'mlp_bias' is 'no', expected bool"),
        ("Seed OSS 36B", {"rope_scaling": {"rope_type": "spiral"}}, "spiral"),
        ("Gemma 3 1B", {"rope_parameters": {"rope_theta": 5.0}}, "'rope_parameters' has no 'full_attention'"),
        (
            "Phi 3 mini 4k",
            {"layer_types": ["full_attention"] * 2},
            "'layer_types' is",
        ),  # transformers ignores it
        ("Phi 3 mini 4k", {"sliding_window": 0}, "'sliding_window' is 0, expected 1 or more"),
        ("Mixtral 8x7B", {"sliding_window": 0}, "'sliding_window' is 0, expected 1 or more"),
        ("StarCoder2 3B", {"sliding_window": -1}, "'sliding_window' is -1, expected 1 or more"),
        ("Qwen1.5 MoE A2.7B", {"use_sliding_window": True}, "'use_sliding_window' is true"),
        ("DeepSeek V2 Lite", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is set"),
        (
            "Mistral Small 24B 2501",
            {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": {"model_type": "qwen3"}},
            "'text_config': 'model_type' is 'qwen3'; this architecture runs only mistral",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(
    tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    config = PUBLISHED[name]["config"] | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert message in refusal(tmp_path, config)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("Command R7B", {"head_dim": 16}),
        ("Phi 3.5 mini", {"sliding_window": 5}),
        ("Qwen2.5 7B Instruct", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
        ("Llama 3 8B", {"rope_parameters": {"rope_theta": 77.0, "rope_type": "default"}, "rope_theta": None}),
        ("Gemma 3 1B", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ("Gemma 3 1B", {"rope_parameters": {"full_attention": {"rope_theta": 99.0}}}),
        ("Qwen3 30B A3B", {"use_sliding_window": True, "sliding_window": 5}),
        ("GPT-NeoX 20B", {"hidden_act": ...}),
        ("SmolLM3 3B", {"head_dim": 12}),
        ("gpt-oss 20B", {"rope_scaling": ..., "rope_parameters": None}),
        ("Llama 3 8B", {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 1}),
        ("GPT-NeoX 20B", {"use_parallel_residual": False, "rotary_pct": 0.5}),
        ("Falcon RW 1B", {"bias": False}),
        ("OLMoE 1B 7B", {"norm_topk_prob": True, "clip_qkv": 1.0}),
    ],
)
def test_settings_of_neighbours_count(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    """A field with "..." is missing."""
    changed = PUBLISHED[name]["config"] | change
    check(tmp_path, {key: value for key, value in changed.items() if value is not ...})


@pytest.mark.parametrize("name", ["Llama 3 8B", "Phi 2", "GPT-J 6B", "BLOOM 560M", "Seed OSS 36B"])
@pytest.mark.parametrize("left_out", ["head", "embedding", "none"])
def test_a_tied_model_may_have_either_tensor_or_a_head_of_its_own(
    tmp_path: Path, name: str, left_out: str
) -> None:
    config = PUBLISHED[name]["config"] | {"tie_word_embeddings": True}
    write(tmp_path, config | {"tie_word_embeddings": False})
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    names = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
    embedding = next(key for key in tensors if key.endswith(names))
    if left_out != "none":
        tensors["lm_head.weight"] = tensors[embedding].clone()
        del tensors["lm_head.weight" if left_out == "head" else embedding]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    driver = make_driver(tmp_path, open_device("cpu", 1))
    driver.start(0)
    with torch.inference_mode():
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        wanted = model(torch.tensor([[5, 6, 7]])).logits[0, -1]
    assert (driver.prefill({0: [5, 6, 7]})[0].logits - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["Llama 3 8B", "Phi 2", "GPT-2"])
def test_tensors_may_lack_the_name_of_the_decoder(tmp_path: Path, name: str) -> None:
    model = write(tmp_path, PUBLISHED[name]["config"])
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {key.removeprefix("model.").removeprefix("transformer."): value for key, value in tensors.items()}
    assert bare.keys() != tensors.keys()
    save_file(bare, tmp_path / "model.safetensors", {"format": "pt"})
    driver = make_driver(tmp_path, open_device("cpu", 1))
    driver.start(0)
    with torch.inference_mode():
        wanted = model(torch.tensor([[5, 6, 7]])).logits[0, -1]
    assert (driver.prefill({0: [5, 6, 7]})[0].logits - wanted).abs().max() < 1e-4


def refusal(folder: Path, config: dict[str, Any]) -> str:
    """Return the reason for which a server refuses a config.json before it reads weights; "": it does not."""
    try:
        architecture, _ = find_architecture(folder, config)
        describe(
            Describe(
                folder=str(folder), architecture=architecture.name, ranks=1, dtype="float32", check=False
            )
        )
    except ConfigError as error:
        return str(error)
    return ""
