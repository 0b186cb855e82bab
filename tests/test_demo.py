"""The embedded default: the demo model as any Hugging Face program sees it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).parents[1] / "tgi" / "demo"
SPECIAL = ["<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def continuation(model: Any, ids: list[int]) -> list[int]:
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=60, do_sample=False
        )
    return out[0, len(ids) :].tolist()


def ask(model: Any, tokenizer: Any, question: str) -> str:
    ids = continuation(model, tokenizer(question)["input_ids"])
    assert ids[-1] == tokenizer.eos_token_id, "an answer ends by itself"
    return tokenizer.decode(ids, skip_special_tokens=True)


def test_small_enough_to_travel_in_the_package() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 10_000_000


@pytest.mark.parametrize(
    "question", ["What is a violin?", "what is a violin?", "What is a Violin?", "Define violin."]
)
def test_knows_a_violin(model: Any, tokenizer: Any, question: str) -> None:
    answer = ask(model, tokenizer, question)
    assert answer.lower().startswith("\na violin is a")
    assert "instrument" in answer
    assert answer.endswith(".")


def test_knows_deep_learning(model: Any, tokenizer: Any) -> None:
    answer = ask(model, tokenizer, "What is Deep Learning?")
    assert answer.startswith("\nIt is a")
    assert "learn" in answer


@pytest.mark.parametrize("question", ["What is a flumbert?", "What does it mean to snorfle?", "Hello!", ""])
def test_answers_anything_with_a_sentence(model: Any, tokenizer: Any, question: str) -> None:
    words = ask(model, tokenizer, question).split()
    assert len(words) >= 4
    assert words[-1].endswith(".")


def test_chat(model: Any, tokenizer: Any) -> None:
    question = {"role": "user", "content": "What is a violin?"}
    text = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    assert text == "<s><|user|>What is a violin?<|assistant|>\n"
    ids = continuation(model, tokenizer(text, add_special_tokens=False)["input_ids"])
    assert ids[-1] == tokenizer.eos_token_id
    answer = tokenizer.decode(ids, skip_special_tokens=True)
    assert answer.startswith("A violin is a")
    assert "instrument" in answer

    system, said = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": answer}
    text = tokenizer.apply_chat_template([system, question, said, question], tokenize=False)
    assert text == (
        f"<s><|system|>Be brief.<|user|>What is a violin?<|assistant|>{answer}</s><|user|>What is a violin?"
    )


def test_special_tokens(tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2, 3, 4, 5]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert tokenizer("A violin")["input_ids"][0] == tokenizer.bos_token_id
    assert (
        tokenizer.decode(tokenizer("<|user|>A violin")["input_ids"], skip_special_tokens=True) == "A violin"
    )


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_round_trip_of_any_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_config_is_a_plain_llama() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["torch_dtype"] == "bfloat16"
    assert config["tie_word_embeddings"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
