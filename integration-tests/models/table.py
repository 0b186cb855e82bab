"""The models that are served and asked, with the arguments of the server."""

from collections.abc import Callable
from pathlib import Path

import attrs

from tests.falcon_models import make_falcon
from tgi.testing.models import make_llama, make_mistral

INPUT = "What is Deep Learning?"
TOKENS = 32
LIMITS = "--max-input-tokens 512 --max-total-tokens 1024 --max-batch-size 4"
PREFILL = f"{LIMITS} --max-batch-prefill-tokens 2048"
SMALL = "--max-total-tokens 128 --max-batch-size 4 --max-batch-prefill-tokens 128 --threads 1 --dtype float32"
SIMULATED = f"{SMALL} --device hpu-sim --max-graphs 6"
SHARDED = "--sharded true --num-shard 2"


@attrs.frozen
class Model:
    """One server: `model` is an id on the Hub, or what makes a checkpoint in a folder."""

    name: str
    model: str | Callable[[Path], Path]
    arguments: str
    expected: str = attrs.Factory(lambda self: self.name, takes_self=True)
    """Under which name the text is kept that it answers: many ranks and other devices answer the same."""


def _falcon(folder: Path) -> Path:
    return make_falcon(folder, "40b", seed=5)


MADE_HERE = [
    Model("llama", make_llama, SMALL),
    Model("llama-sharded", make_llama, f"{SMALL} {SHARDED}", "llama"),
    Model("llama-hpu-sim", make_llama, SIMULATED, "llama"),
    Model("mistral", make_mistral, SMALL),
    Model("mistral-hpu-sim-sharded", make_mistral, f"{SIMULATED} {SHARDED}", "mistral"),
    Model("falcon", _falcon, f"{SMALL} {SHARDED}"),
    Model("falcon-hpu-sim", _falcon, SIMULATED, "falcon"),
]
"""On a CPU and a simulated Gaudi, on one rank and two: each family on both of both."""

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
ON_GAUDI = [
    Model(f"{LLAMA}-sharded", LLAMA, f"{SHARDED} {PREFILL}"),
    Model(LLAMA, LLAMA, PREFILL),
]
"""Those that TGI tests by default, with its arguments,"""
MORE_ON_GAUDI = [
    *(
        Model(name, name, PREFILL)
        for name in (
            "meta-llama/Llama-2-7b-chat-hf",
            "mistralai/Mistral-7B-Instruct-v0.3",
            "bigcode/starcoder2-3b",
            "google/gemma-7b-it",
            "Qwen/Qwen2-0.5B-Instruct",
        )
    ),
    *(
        Model(name, name, LIMITS)
        for name in (
            "tiiuae/falcon-7b-instruct",
            "microsoft/phi-1_5",
            "openai-community/gpt2",
            "EleutherAI/gpt-j-6b",
        )
    ),
]
"""and those that it tests as well when all are asked for."""
