"""Random checkpoints of any architecture that transformers knows, to be checked and served.

The weights are drawn so that the activations stay near unit variance and attention is not uniform: a wrong
rotation, mask or scale changes the logits visibly, which it does not with those that transformers draws.
"""

import json
from pathlib import Path
from typing import Any

import torch

from tgi.layers.loading import describe
from tgi.protocol import Describe, Described

from .models import make_tokenizer


def make_checkpoint(folder: Path | str, config: Any, seed: int = 0) -> Path:
    """Write a random float32 checkpoint of transformers' `config`, which has at least 320 tokens, with a
    tokenizer and a chat template into `folder` (made if missing); return it."""
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    generator = torch.Generator().manual_seed(seed)
    build: Any = AutoModelForCausalLM.from_config
    model = build(config, torch_dtype=torch.float32)
    with torch.no_grad():
        for tensor in model.parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() > 1:
                tensor.copy_(noise * 1.5 * tensor.shape[-1] ** -0.5)
            else:
                tensor.add_(noise * 0.1)  # norms' weights stay near 1, and biases are not 0
        stored = model.state_dict()
        for name, tensor in model.named_buffers():
            if name in stored and tensor.is_floating_point():  # corrections of routers
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    make_tokenizer(folder, config.vocab_size)
    return folder


def describe_config(
    folder: Path, config: dict[str, Any], *, ranks: int = 1, dtype: str = "bfloat16"
) -> Described:
    """Describe the model of a config.json, which is written to `folder`, without weights."""
    (folder / "config.json").write_text(json.dumps(config))
    (architecture, *_) = config["architectures"]
    command = Describe(folder=str(folder), architecture=architecture, ranks=ranks, dtype=dtype, check=False)
    return describe(command)
