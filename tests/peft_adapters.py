"""LoRA adapters as PEFT writes them, and the logits that PEFT's own models give with them."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

peft: Any = pytest.importorskip("peft")


def make_adapter(folder: Path, model: Path, seed: int, **config: Any) -> Path:
    """Write an adapter with random matrices for the checkpoint `model`; return its folder.

    Its changes are about half as large as the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    base: Any = AutoModelForCausalLM.from_pretrained(model)
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    with _quiet():
        adapted = peft.get_peft_model(base, peft.LoraConfig(**config))
    with torch.no_grad():
        for name, tensor in adapted.named_parameters():
            if "lora_" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5 * tensor.shape[1] ** -0.5)
    adapted.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def open_peft(model: Path, adapter: Path | None) -> Iterator[Any]:
    """Open the checkpoint, with an adapter or without."""
    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad(), _quiet():
        yield (base if adapter is None else peft.PeftModel.from_pretrained(base, adapter)).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignore PEFT's own warnings, about its use of transformers and the settings of adapters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peft_logits(
    model: Path,
    adapter: Path | None,
    prompts: Sequence[Sequence[int]],
    change: Callable[[str, nn.Linear], nn.Module] | None = None,
) -> list[torch.Tensor]:
    """Return the logits after each prompt, by PEFT.

    `change` may replace linear layers, whose names are given, below the adapter.
    """
    with open_peft(model, adapter) as adapted:
        for name, layer in list(adapted.named_modules()):
            if change is not None and isinstance(layer, nn.Linear) and ".lora_" not in name:
                adapted.set_submodule(name, change(name, layer))
        return [adapted(torch.tensor([list(prompt)])).logits[0, -1] for prompt in prompts]
