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
def opt(tmp_path: Path) -> Path:
    """With learned positions, a tied head, and weights that make attention visible."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 48, "ffn_dim": 64, "word_embed_proj_dim": 48}
    more = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
    config = transformers.OPTConfig(**sizes, **more, bos_token_id=0, eos_token_id=1, pad_token_id=None)
    model = transformers.OPTForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(tmp_path)
    make_tokenizer(tmp_path, 512)
    return tmp_path


def test_opt_is_served_by_way_of_transformers(start: Any, opt: Path) -> None:
    server = start(model_id=opt, max_total_tokens=256).wait_ready()
    tokenizer = transformers.AutoTokenizer.from_pretrained(opt)
    prompt = tokenizer(PROMPT, return_tensors="pt")  # with a mask: no token is padding
    model = transformers.AutoModelForCausalLM.from_pretrained(opt, dtype=torch.float32)
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
    assert "no adapter offers OPTForCausalLM" in server.output()
    server.end()
