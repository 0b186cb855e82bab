"""All layers in one call give the same bits as one kernel after another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from tests.peft_adapters import make_adapter
from tgi.protocol import LoraSlots
from tgi.testing.checkpoints import make_checkpoint
from tgi.testing.driver import Driver, make_driver
from tgi.testing.runs import random_prompt
from tgi.worker.runner import open_device

pytest.importorskip("tgi_cpu_kernels")
from tests.test_invariance import kernels_are_used

pytestmark = pytest.mark.skipif(not kernels_are_used(), reason="tgi-cpu-kernels is not used here")

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "biases": Qwen2Config(**SIZES),
    "head norms": Qwen3Config(**SIZES, head_dim=32),
    "a window": MistralConfig(**SIZES, sliding_window=20),
}


def steps(driver: Driver, adapters: Sequence[Path] = ()) -> list[torch.Tensor]:
    """Return the logits of a long prompt, in two chunks between two others, and of decode rows.

    The first rows have adapters.
    """
    for slot, folder in enumerate(adapters):
        assert not driver.load_lora(slot, folder)
    long, *others = (random_prompt(320, length, length) for length in (300, 7, 33))
    for lane in range(3):
        driver.start(lane, lora=lane if lane < len(adapters) else -1)
    driver.prefill({0: long[:270]}, unfinished=[0])
    answers = [driver.prefill({1: others[0], 0: long[270:], 2: others[1]})]
    answers += [driver.decode([2, 0, 1]) for _ in range(3)]
    return [answer[lane].logits for answer in answers for lane in range(3)]


@pytest.mark.parametrize(
    ("dtype", "quantize"), [("bfloat16", ""), ("float32", ""), ("bfloat16", "int8"), ("bfloat16", "int4")]
)
@pytest.mark.parametrize("name", CONFIGS)
def test_layers_in_one_call_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: str, quantize: str
) -> None:
    folder = make_checkpoint(tmp_path / "model", CONFIGS[name])
    adapters = [make_adapter(tmp_path / str(seed), folder, seed, r=3 + seed) for seed in range(2)]
    load: dict[str, Any] = {"dtype": dtype, "quantize": quantize, "loras": LoraSlots(2, 4)}
    device: Any = open_device("cpu", 2)
    joined: list[Any] = []

    def note(layers: Any) -> Any:
        joined.append(type(device).join_layers(device, layers))
        return joined[-1]

    monkeypatch.setattr(device, "join_layers", note)
    together = steps(make_driver(folder, device, **load), adapters)
    assert joined[0] is not None
    monkeypatch.setattr(device, "join_layers", lambda _: None)
    for one, other in zip(together, steps(make_driver(folder, device, **load), adapters), strict=True):
        assert torch.equal(one, other)
