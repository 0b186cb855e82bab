"""Small random checkpoints with tokenizer and chat template, for tests.

The weights are drawn so that the activations stay near unit variance and attention is not uniform: a wrong
rotation, mask or scale changes the logits visibly.
"""

import json
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = ("<s>", "</s>", "<|user|>", "<|assistant|>")
"""Ids 0 to 3: beginning and end of text, and the two roles of the chat template."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ 'user' if message['role'] == 'user' else 'assistant' }}|>{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_CORPUS = (
    "Deep learning is a part of machine learning that is based on neural networks with many layers.",
    "A violin is a bowed stringed instrument that is the highest of the viol family; what is a violin?",
    "The quick brown fox jumps over the lazy dog while the rain in Spain stays mainly in the plain.",
    "def main(argument):\n    return argument + 1234567890\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Où est la bibliothèque ? 日本語 😀",
)


def make_llama(
    folder: Path | str, seed: int = 0, dtype: str = "float32", shards: int = 1, **config: Any
) -> Path:
    """Write a random Llama checkpoint of some 100,000 parameters into `folder` (made if missing); return it.

    `config` replaces keys of config.json: `vocab_size` (at least 320), `hidden_size`, `rope_parameters`, ….
    With `shards` > 1 the tensors are divided over that many files with an index.
    """
    whole = llama_config(dtype=dtype, **config)
    return save_checkpoint(Path(folder), whole, llama_tensors(whole, seed), shards)


def make_mistral(
    folder: Path | str, seed: int = 0, dtype: str = "float32", shards: int = 1, **config: Any
) -> Path:
    """Write a random Mistral checkpoint, with the arguments of `make_llama`."""
    whole = mistral_config(dtype=dtype, **config)
    return save_checkpoint(Path(folder), whole, llama_tensors(whole, seed), shards)


def llama_config(*, dtype: str = "float32", **overrides: Any) -> dict[str, Any]:
    """Return a config.json of a tiny Llama with grouped-query attention."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
    }
    config.update(overrides)
    if "rope_parameters" in overrides and "rope_theta" not in overrides:
        del config["rope_theta"]
    return {key: value for key, value in config.items() if value is not None}


def mistral_config(*, sliding_window: int | None = 24, **overrides: Any) -> dict[str, Any]:
    """Return a config.json of a tiny Mistral; a `sliding_window` of None is written as null."""
    config = llama_config(architectures=["MistralForCausalLM"], model_type="mistral", **overrides)
    del config["attention_bias"], config["mlp_bias"]
    return config | {"sliding_window": sliding_window}


def llama_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Draw float32 tensors for a config, under the names of Llama's and Mistral's checkpoints."""
    draw = Draw.from_seed(seed)
    hidden, inter, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim", hidden // heads)
    attention_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    draw.linear("model.embed_tokens", config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        attention, mlp = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp"
        draw.norm(f"model.layers.{index}.input_layernorm", hidden)
        draw.linear(f"{attention}.q_proj", heads * head_dim, hidden, 1.5, attention_bias)
        draw.linear(f"{attention}.k_proj", kv_heads * head_dim, hidden, 1.5, attention_bias)
        draw.linear(f"{attention}.v_proj", kv_heads * head_dim, hidden, 1.0, attention_bias)
        draw.linear(f"{attention}.o_proj", hidden, heads * head_dim, 1.0, attention_bias)
        draw.norm(f"model.layers.{index}.post_attention_layernorm", hidden)
        draw.linear(f"{mlp}.gate_proj", inter, hidden, 1.0, mlp_bias)
        draw.linear(f"{mlp}.up_proj", inter, hidden, 1.0, mlp_bias)
        draw.linear(f"{mlp}.down_proj", hidden, inter, 1.0, mlp_bias)
    draw.norm("model.norm", hidden)
    if not config.get("tie_word_embeddings", False):
        draw.linear("lm_head", config["vocab_size"], hidden, 2.0)
    return draw.tensors


@attrs.frozen
class Draw:
    """A checkpoint's random float32 tensors, drawn one after another."""

    generator: torch.Generator
    tensors: dict[str, torch.Tensor] = attrs.field(factory=dict)

    @classmethod
    def from_seed(cls, seed: int) -> "Draw":
        """Begin with a seed: the same calls draw the same numbers."""
        return cls(torch.Generator().manual_seed(seed))

    def linear(self, name: str, out: int, into: int, gain: float = 1.0, bias: bool = False) -> None:
        """Draw a layer that multiplies the variance of its input by gain squared."""
        weight = torch.randn(out, into, generator=self.generator) * (gain * into**-0.5)
        self.tensors[f"{name}.weight"] = weight
        if bias:
            self.tensors[f"{name}.bias"] = torch.randn(out, generator=self.generator) * 0.1

    def norm(self, name: str, size: int, bias: bool = False) -> None:
        """Draw a norm's weight near 1, and its bias near 0."""
        self.tensors[f"{name}.weight"] = 1 + 0.1 * torch.randn(size, generator=self.generator)
        if bias:
            self.tensors[f"{name}.bias"] = 0.1 * torch.randn(size, generator=self.generator)


def save_checkpoint(
    folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], shards: int = 1
) -> Path:
    """Write a whole checkpoint into `folder` (made if missing) in the config's dtype; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
    make_tokenizer(folder, config["vocab_size"])
    dtype = getattr(torch, config["torch_dtype"])
    save_tensors(folder, {name: tensor.to(dtype) for name, tensor in tensors.items()}, shards)
    return folder


def save_tensors(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    """Write model.safetensors, or `shards` files of about the same number of tensors and their index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def make_tokenizer(folder: Path, vocab_size: int = 512) -> None:
    """Write a byte-level BPE tokenizer of at most `vocab_size` tokens and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
