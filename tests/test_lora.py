"""LoRA adapters against PEFT: several in one batch, every family, ranks, and devices that compile."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DeepseekV2Config,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    Phi3Config,
    Qwen2MoeConfig,
)

from tests.compiling import COMPILING, open_compiling
from tests.peft_adapters import make_adapter, peft_logits
from tgi.protocol import Bucket, LoadLora, LoraSlots
from tgi.scheduler.warming import warm_up_step, with_loras
from tgi.testing.checkpoints import make_checkpoint
from tgi.testing.driver import Driver, make_driver
from tgi.testing.models import make_llama
from tgi.testing.rank_threads import on_threads
from tgi.testing.runs import random_prompt
from tgi.worker.runner import open_device

VOCAB, EIGHT = 320, 8
KINDS = [
    {"r": 4},
    {"r": 16, "lora_alpha": 4},
    {"r": 3, "target_modules": ["q_proj", "v_proj"]},
    {"r": 8, "use_rslora": True},
    {"r": 2, "rank_pattern": {"q_proj": 7, "layers.1.mlp.down_proj": 5}, "alpha_pattern": {"v_proj": 32}},
    {"r": 4, "target_modules": ["down_proj"]},
    {"r": 4, "target_modules": ["k_proj", "up_proj"], "layers_to_transform": [1]},
    {"r": 1, "target_modules": ["gate_proj", "o_proj"]},
]
"""Settings of adapters that differ in rank, factor and modules."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"), vocab_size=VOCAB)


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(folder / str(seed), model, seed, **kind) for seed, kind in enumerate(KINDS)]


PROMPTS = [random_prompt(VOCAB, 5 + 3 * number, number) for number in range(16)]


@pytest.fixture(scope="module")
def wanted(model: Path, adapters: list[Path]) -> list[torch.Tensor]:
    """Logits after each prompt and the token that follows it: the adapters in turn, with none in between."""
    rows = []
    for lane, prompt in enumerate(PROMPTS):
        adapter = adapters[lane // 2] if lane % 2 == 0 else None
        text = [prompt, [*prompt, 7]]
        rows.append(torch.stack(peft_logits(model, adapter, text)))
    return rows


def load(driver: Driver, adapters: list[Path]) -> None:
    for slot, folder in enumerate(adapters):
        assert driver.load_lora(slot, folder) == ""


def mixed(driver: Driver) -> list[torch.Tensor]:
    """Logits of all prompts in common steps, and of another token after each."""
    lanes = range(len(PROMPTS))
    for lane in lanes:
        driver.start(lane, lora=lane // 2 if lane % 2 == 0 else -1)
    only_seven = (1 << 7).to_bytes(VOCAB // 8, "little")
    first = {}
    for lane in lanes:
        first |= driver.prefill({lane: PROMPTS[lane]}, masks={lane: only_seven})
    second = driver.decode(list(lanes))
    return [torch.stack([first[lane].logits, second[lane].logits]) for lane in lanes]


def test_eight_adapters_in_a_batch_of_sixteen(model, adapters, wanted) -> None:
    driver = make_driver(model, open_device("cpu", 1), loras=LoraSlots(EIGHT, 16))
    load(driver, adapters)
    for got, want in zip(mixed(driver), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", COMPILING)
def test_devices_that_compile(model, adapters, wanted, name) -> None:
    with open_compiling(name) as device:
        driver = make_driver(model, device, loras=LoraSlots(EIGHT, 16), dtype="float32")
        load(driver, adapters)
        for got, want in zip(mixed(driver), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["gaudi2-lazy", "gaudi3-compile"])
def test_a_warm_up_makes_both_programs(model, adapters, name) -> None:
    with open_compiling(name) as device:
        runner = make_driver(model, device, loras=LoraSlots(2, 16), dtype="float32").runner
        plain = warm_up_step(Bucket(2, 1, 4))
        steps = plain, with_loras(plain)
        for step in steps:
            runner.execute(step)
        runner.seal()
        for slot, folder in enumerate(adapters[:2]):
            assert runner.load_lora(LoadLora(0, slot, str(folder))).fault == ""
        for step in steps:
            counted = runner.execute(step).statistics
            assert not counted.keys() & {"graph_misses", "graph_compilations"}


SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 96}
GPT2 = {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
LATENT = {
    **SIZES, "num_key_value_heads": 4, "intermediate_size": 96, "kv_lora_rank": 24, "q_lora_rank": 20,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 2,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}  # fmt: skip
FAMILIES = {
    "fused tensors": (Phi3Config(**GROUPED, pad_token_id=0), "all-linear"),
    "transposed tensors": (GPT2Config(**GPT2), ["c_attn", "c_proj", "c_fc"]),
    "one key/value head": (GPTBigCodeConfig(**GPT2), ["c_attn", "c_proj", "c_fc"]),
    "by head": (GPTNeoXConfig(**SIZES, intermediate_size=96, tie_word_embeddings=True), "all-linear"),
    "by group": (
        FalconConfig(**SIZES, num_kv_heads=2, new_decoder_architecture=True), ["query_key_value", "dense"]
    ),
    "compressed keys": (
        DeepseekV2Config(**LATENT),
        ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"],
    ),
    "experts": (Qwen2MoeConfig(**GROUPED, **EXPERTS), ["q_proj", "k_proj", "shared_expert.up_proj"]),
    "norms of heads": (Gemma3TextConfig(**GROUPED, head_dim=16), ["q_proj", "v_proj", "gate_proj"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_families_and_two_ranks(tmp_path, name) -> None:
    config, targets = FAMILIES[name]
    model = make_checkpoint(tmp_path / "model", config)
    adapter = make_adapter(tmp_path / "adapter", model, 1, target_modules=targets)
    prompt = PROMPTS[4]
    (wanted,) = peft_logits(model, adapter, [prompt])
    (plain,) = peft_logits(model, None, [prompt])
    assert (wanted - plain).abs().max() > 0.1

    def run(driver: Driver) -> list[torch.Tensor]:
        load(driver, [adapter])
        driver.start(0, lora=0)
        driver.start(1)
        return [driver.prefill({lane: prompt})[lane].logits for lane in (0, 1)]

    slots = LoraSlots(1, 4)
    one = run(make_driver(model, open_device("cpu", 1), loras=slots))
    two = on_threads(model, 2, run, range(1, 99), loras=slots)
    for adapted, base in (one, two):
        torch.testing.assert_close(adapted, wanted, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(base, plain, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def driver(model) -> Driver:
    return make_driver(model, open_device("cpu", 1), loras=LoraSlots(2, 8))


@pytest.mark.parametrize(
    "chosen",
    [
        {"target_modules": r".*\.layers\.0\.(self_attn\.(q|v)_proj|mlp\.down_proj)"},
        {"exclude_modules": ["up_proj"]},
        {"auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True}},
    ],
    ids=["pattern", "all but one", "Unsloth"],
)
def test_modules_that_peft_chose(tmp_path, model, driver, chosen) -> None:
    """The file tells which they are, however they were chosen."""
    adapter = make_adapter(tmp_path, model, 1, **chosen)
    (wanted,) = peft_logits(model, adapter, [PROMPTS[2]])
    load(driver, [adapter])
    driver.start(0, lora=0)
    torch.testing.assert_close(driver.prefill({0: PROMPTS[2]})[0].logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tool", ["LLaMA-Factory", "axolotl"])
def test_the_folder_of_a_training(tmp_path, model, driver, tool) -> None:
    """Beside the adapter lie its checkpoints, what the trainer needs to go on, and a tokenizer."""
    settings = {"LLaMA-Factory": {"use_rslora": True, "lora_dropout": 0.1}, "axolotl": {"r": 8}}[tool]
    output = make_adapter(tmp_path, model, 1, **settings)
    for step in (50, 200):
        make_adapter(output / f"checkpoint-{step}", model, step, **settings)
    others = ["training_args.bin", "trainer_state.json", "trainer_log.jsonl", "README.md", "tokenizer.json"]
    for folder in (output, output / "checkpoint-50", output / "checkpoint-200"):
        change_config(folder, modules_to_save=None if tool == "axolotl" else [], target_parameters=[])
        for name in others + ["optimizer.pt", "scheduler.pt", "rng_state.pth"] * (folder is not output):
            (folder / name).write_text("{}")
        (wanted,) = peft_logits(model, folder, [PROMPTS[2]])
        load(driver, [folder])
        driver.start(0, lora=0)
        got = driver.prefill({0: PROMPTS[2]})[0].logits
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    (output / "adapter_config.json").unlink()
    assert re.search(
        rf"name one of its checkpoints, as {output}/checkpoint-200$", driver.load_lora(0, output)
    )


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def rename(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    for name in [name for name in tensors if old in name]:
        tensors[name.replace(old, new)] = tensors.pop(name)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def query_of(rank: int, into: int) -> dict[str, torch.Tensor]:
    return {f"{Q}.lora_A.weight": torch.zeros(rank, into), f"{Q}.lora_B.weight": torch.zeros(64, rank)}


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "dora": (lambda f: change_config(f, use_dora=True), "'use_dora' is true"),
    "biases": (lambda f: change_config(f, bias="lora_only"), "'bias' is \"lora_only\""),
    "saved modules": (lambda f: change_config(f, modules_to_save=["lm_head"]), "'modules_to_save'"),
    "pissa": (lambda f: change_config(f, init_lora_weights="pissa_niter_4"), "'init_lora_weights'"),
    "other kind": (lambda f: change_config(f, peft_type="IA3"), "'IA3', and only 'LORA'"),
    "unknown field": (lambda f: change_config(f, use_new=1), "'use_new' is 1, not supported: this field"),
    "no settings": (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
    "no tensors": (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model"),
    "nothing": (lambda f: change_tensors(f, dict.clear), "has no tensors"),
    "cut off": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x"), "no complete|not a complete"),
    "half a pair": (lambda f: change_tensors(f, lambda t: t.pop(f"{Q}.lora_A.weight")), "not the other"),
    "embedding": (
        lambda f: change_tensors(f, lambda t: rename(t, f"{Q}.lora_A.weight", "embed.lora_embedding_A")),
        "'embed.lora_embedding_A' are no matrices of LoRA",
    ),
    "head": (
        lambda f: change_tensors(f, lambda t: rename(t, "model.layers.0.self_attn.q_proj", "lm_head")),
        "changes 'lm_head', and adapters of this model can change down_proj, gate_proj, k_proj, o_proj,",
    ),
    "experts": (
        lambda f: change_tensors(f, lambda t: rename(t, "0.mlp.down_proj", "0.mlp.experts.3.down_proj")),
        "changes 'model.layers.0.mlp.experts.3.down_proj'",
    ),
    "stacked experts": (
        lambda f: change_tensors(f, lambda t: rename(t, "0.mlp.down_proj", "0.mlp.experts.base_layer")),
        "changes 'model.layers.0.mlp.experts.base_layer'",
    ),
    "tokens": (lambda f: change_config(f, trainable_token_indices=[3]), "'trainable_token_indices' is"),
    "layers twice": (lambda f: change_config(f, layer_replication=[[0, 2], [1, 2]]), "'layer_replication'"),
    "biases of its own": (lambda f: change_config(f, lora_bias=True), "'lora_bias' is true"),
    "other layers": (
        lambda f: change_tensors(f, lambda t: rename(t, "layers.1.", "layers.9.")),
        "'model.layers.9.self_attn",
    ),
    "vision": (
        lambda f: change_tensors(f, lambda t: rename(t, "model.layers.0", "vision_tower.layers.0")),
        "changes 'vision_tower.layers.0",
    ),
    "other shape": (
        lambda f: change_tensors(f, lambda t: t.update(query_of(rank=4, into=63))),
        r"is for a layer of shape \[64, 63\], and here it is \[64, 64\]",
    ),
    "shapes apart": (
        lambda f: change_tensors(f, lambda t: t.update({f"{Q}.lora_B.weight": torch.zeros(64, 5)})),
        "cannot be multiplied",
    ),
    "rank": (
        lambda f: change_tensors(f, lambda t: t.update(query_of(rank=9, into=64))),
        "has rank 9, and --max-lora-rank is 8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_adapter_is_refused_and_changes_nothing(tmp_path, adapters, driver, name) -> None:
    damage, reason = FAULTS[name]
    folder = shutil.copytree(adapters[0], tmp_path / "adapter")
    load(driver, [folder])
    driver.start(0, lora=0)
    before = driver.prefill({0: PROMPTS[0]})[0].logits
    damage(folder)
    assert re.search(reason, driver.load_lora(0, folder))
    driver.start(0, lora=0)
    assert torch.equal(driver.prefill({0: PROMPTS[0]})[0].logits, before)


def test_older_files_and_names(tmp_path, adapters, driver) -> None:
    """A pickle, and names as those of a model that sees and reads, or without the first parts."""
    load(driver, [adapters[0]])
    driver.start(0, lora=0)
    wanted = driver.prefill({0: PROMPTS[0]})[0].logits
    for old, new in (
        ("model.model.model.", "model.model.model.language_model."),
        ("base_model.model.model.", ""),
    ):
        folder = shutil.copytree(adapters[0], tmp_path / f"{len(new)}")
        change_tensors(folder, lambda t, old=old, new=new: rename(t, old, new))
        path = folder / "adapter_model.safetensors"
        torch.save(load_file(path), folder / "adapter_model.bin")
        path.unlink()
        load(driver, [folder])
        driver.start(0, lora=0)
        assert torch.equal(driver.prefill({0: PROMPTS[0]})[0].logits, wanted)
