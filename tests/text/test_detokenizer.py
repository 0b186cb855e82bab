import functools
import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgi.text.detokenizer import CONTEXT, Detokenizer
from tgi.text.tokenizer import Tokenizer

from .tokenizers_of_all_kinds import ALL, CORPUS, SPECIAL


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    core = ALL[kind]()
    return Tokenizer(core, [core.token_to_id(name) for name in SPECIAL], [])


def texts_by_definition(tokenizer: Tokenizer, prompt: list[int], generated: list[int]) -> list[str]:
    """Decode by the definition of tgi-behaviour 5.9, with the start clamped at 0 (S60)."""
    ids = list(prompt)
    prefix, read = max(0, len(prompt) - CONTEXT), len(prompt)
    texts = []
    for token in generated:
        ids.append(token)
        before = tokenizer.decode(ids[prefix:read])
        now = tokenizer.decode(ids[prefix:])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            texts.append(now[len(before) :])
            prefix, read = read, len(ids)
        else:
            texts.append("")
    return texts


def ids_for(kind: str) -> st.SearchStrategy[list[int]]:
    """Return a strategy for arbitrary ids, one of them beyond the vocabulary, and cuts of real text."""
    size = tokenizer_of(kind).vocab_size
    real = [tokenizer_of(kind).encode(text, add_special_tokens=False) for text in CORPUS]
    cut = st.tuples(st.sampled_from(real), st.integers(0, 60), st.integers(0, 60))
    arbitrary = st.lists(st.integers(0, size), max_size=12)
    return st.lists(st.one_of(arbitrary, cut.map(lambda cut: cut[0][cut[1] : cut[2]])), max_size=4).map(
        lambda parts: list(itertools.chain.from_iterable(parts))
    )


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_incremental_text_equals_the_definition(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    prompt, generated = data.draw(ids_for(kind)), data.draw(ids_for(kind))
    detokenizer = Detokenizer(tokenizer, prompt)
    texts = [detokenizer.append(token) for token in generated]
    assert texts == texts_by_definition(tokenizer, prompt, generated)


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_generated_text_is_decoded_after_the_last_prompt_token_without_special_ones(
    kind: str, data: st.DataObject
) -> None:
    tokenizer = tokenizer_of(kind)
    prompt, generated = data.draw(ids_for(kind)), data.draw(ids_for(kind))
    detokenizer = Detokenizer(tokenizer, prompt)
    for token in generated:
        detokenizer.append(token)
    visible = [token for token in generated if token not in tokenizer.special_ids]
    last = [token for token in prompt[-1:] if token not in tokenizer.special_ids]
    whole = tokenizer.decode(last + visible)
    assert detokenizer.text() == whole[len(tokenizer.decode(last)) :].rstrip("\ufffd")


def test_the_byte_table_agrees_with_the_library_on_every_token() -> None:
    tokenizer = tokenizer_of("byte_level")
    assert tokenizer.bytes_of is not None
    for token in range(tokenizer.vocab_size):
        assert tokenizer.bytes_of[token].decode(errors="replace") == tokenizer.decode([token])


def test_a_character_comes_with_the_token_that_completes_it() -> None:
    tokenizer = tokenizer_of("byte_level")
    assert tokenizer.bytes_of is not None
    token_of = {tokenizer.bytes_of[token]: token for token in range(tokenizer.vocab_size)}
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("So:"))
    violin = [token_of[bytes([byte])] for byte in "🎼".encode()]
    assert [detokenizer.append(token) for token in violin] == ["", "", "", "🎼"]
    assert detokenizer.append(violin[0]) == ""
    assert detokenizer.text() == "🎼"  # S62: what came before the incomplete character stays


def test_the_prompts_first_token_keeps_its_context() -> None:
    """TGI's negative offset (S60) loses the space of the first word after a prompt of four tokens."""
    tokenizer = tokenizer_of("byte_fallback")
    words = tokenizer.encode("The quick", add_special_tokens=False)
    for length in range(1, 7):
        prompt = words[:length]
        detokenizer = Detokenizer(tokenizer, prompt)
        text = "".join(detokenizer.append(token) for token in words[length:])
        assert tokenizer.decode(prompt) + text == "The quick"


def test_appending_a_token_takes_microseconds() -> None:
    """The aim is 1.5 us; the bound leaves room for a busy machine."""
    tokenizer = tokenizer_of("byte_level")
    ids = tokenizer.encode(CORPUS[0] * 200)
    best = float("inf")
    for _ in range(5):
        detokenizer = Detokenizer(tokenizer, ids[:10])
        begin = time.perf_counter()
        for token in ids:
            detokenizer.append(token)
        best = min(best, (time.perf_counter() - begin) / len(ids))
    assert best < 5e-6
