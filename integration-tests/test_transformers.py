"""A model that no adapter offers by name, through a running server."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tgi.testing.models import make_tokenizer

PROMPT = "What is Deep Learning?"


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """With learned positions, a tied head, and weights that make attention visible."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 256}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=1))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(tmp_path)
    make_tokenizer(tmp_path, 512)
    return tmp_path


def test_gpt2_is_served_by_way_of_transformers(start: Any, gpt2: Path) -> None:
    server = start(model_id=gpt2, max_total_tokens=256).wait_ready()
    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2)
    prompt = tokenizer(PROMPT, return_tensors="pt")  # with a mask: no token is padding
    model = transformers.AutoModelForCausalLM.from_pretrained(gpt2, dtype=torch.float32)
    text = model.generate(**prompt, max_new_tokens=32, do_sample=False, pad_token_id=0)
    logprobs = model(text).logits[0, :-1].log_softmax(-1).gather(1, text[0, 1:, None])[:, 0].tolist()

    asked = {"max_new_tokens": 32, "details": True, "decoder_input_details": True}
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(server.generate, PROMPT, **asked) for _ in range(4)]
    for answer in (future.result() for future in answers):
        prefill, tokens = answer["details"]["prefill"], answer["details"]["tokens"]
        assert [token["id"] for token in prefill + tokens] == text[0].tolist()
        found = [token["logprob"] for token in prefill[1:] + tokens]
        assert found == pytest.approx(logprobs, abs=1e-4)
    assert "no adapter offers GPT2LMHeadModel" in server.output()
    server.end()
