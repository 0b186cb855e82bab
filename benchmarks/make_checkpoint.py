"""Write a random-weight checkpoint of a known shape; how fast it runs does not depend on the values.

    python benchmarks/make_checkpoint.py llama-160m FOLDER
    python benchmarks/make_checkpoint.py qwen3-moe-300m FOLDER    # 32 experts, 4 for a token
    python benchmarks/make_checkpoint.py llama-1b FOLDER          # 2.5 GB, the shape of Llama-3.2-1B
    python benchmarks/make_checkpoint.py llama-8b FOLDER --zeros  # 16 GB, the shape of Llama-3.1-8B

The folder is complete: config, bfloat16 weights, generation config, tokenizer, chat template. The tokenizer
is a byte-level BPE trained on the sources of Python's standard library. The output row of the end-of-text
token is zero, so that its logit is 0 and, among thousands of random ones, never the largest: greedy answers
have the length that was asked for, on every server. The same shape, seed and Python give the same checkpoint.
With --zeros all weights are zero, in a file of holes, which takes no room on a disk: for measuring how fast
it is loaded.
"""

import argparse
import json
import math
import struct
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM

BOS, EOS, START, END, TURN = "<|begin|>", "<|end|>", "<|start_role|>", "<|end_role|>", "<|end_turn|>"
SPECIAL_TOKENS = [BOS, EOS, START, END, TURN]
"""Ids 0, 1, …"""

CHAT_TEMPLATE = (
    f"{{{{ bos_token }}}}{{% for message in messages %}}{START}{{{{ message['role'] }}}}{END}"
    f"{{{{ message['content'] }}}}{TURN}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{START}assistant{END}{{% endif %}}"
)

COMMON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "llama-160m": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "qwen3-moe-300m": {  # 295 million parameters, 97 million for a token
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "moe_intermediate_size": 256,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
    "llama-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
    },
    "llama-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
    },
}


def make_checkpoint(
    shape: str, folder: Path, seed: int = 0, *, layers: int | None = None, zeros: bool = False
) -> None:
    """Write the checkpoint into `folder`, which is made if it is missing; None: as many layers as it has."""
    folder.mkdir(parents=True, exist_ok=True)
    config = COMMON | SHAPES[shape]
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
    write_tokenizer(folder, config["vocab_size"], config["max_position_embeddings"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))  # type: ignore[no-untyped-call]
    named = ((name, tuple(parameter.shape)) for name, parameter in model.named_parameters())
    shapes = dict(part for name, shape in named for part in published(name, shape))
    write_weights(folder / "model.safetensors", shapes, None if zeros else seed)


def published(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes in a published file: transformers joins experts when it loads them."""
    module, dot, last = name.rpartition(".experts.")
    if not dot:
        yield name, shape
        return
    count, rows, columns = shape
    parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
    for expert in range(count):
        for part in parts:
            yield f"{module}.experts.{expert}.{part}.weight", (rows // len(parts), columns)


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]], seed: int | None) -> None:
    """Draw the tensors one by one and write each at once: memory holds the largest, not all of them.

    The format is safetensors': the length of a JSON header, the header, the values of each tensor in turn.
    Without a seed these are a hole.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if seed is None:
            file.truncate(file.tell() + end)
            return
        generator = torch.Generator().manual_seed(seed)
        for name, shape in shapes.items():
            tensor = draw(name, shape, generator)
            file.write(tensor.view(torch.uint8).numpy().data)


def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Norm weights are one, matrices normal with the variance that keeps activations near one."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    tensor = torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, shape[1] ** -0.5, generator=generator)
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        tensor[SPECIAL_TOKENS.index(EOS)] = 0
    return tensor


def write_tokenizer(folder: Path, vocab_size: int, max_length: int) -> None:
    """Train the tokenizer and write tokenizer.json and tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trained = min(vocab_size, 30_000)
    trainer = trainers.BpeTrainer(
        vocab_size=trained,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(source_texts(limit=400 * trained), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    write_json(folder / "tokenizer.json", fill_vocabulary(json.loads(tokenizer.to_str()), vocab_size))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    write_json(folder / "tokenizer_config.json", settings)


def fill_vocabulary(tokenizer: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """Add made-up words up to `vocab_size`: no prompt contains them, but a random model says them as text."""
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    for index in range(len(vocabulary), vocab_size):
        vocabulary[f"Ġ~{index}"] = index
    return tokenizer


def source_texts(limit: int) -> Iterator[str]:
    """The first `limit` characters of the standard library's modules, tests left out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if not {"test", "tests", "site-packages", "lib2to3"} & set(path.relative_to(library).parts):
            text = path.read_text("utf-8", "ignore")
            yield text
            limit -= len(text)
            if limit < 0:
                return


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, help="so many, instead of all")
    parser.add_argument("--zeros", action="store_true")
    arguments = parser.parse_args()
    make_checkpoint(
        arguments.shape, arguments.folder, arguments.seed, layers=arguments.layers, zeros=arguments.zeros
    )
