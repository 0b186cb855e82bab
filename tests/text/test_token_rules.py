"""Rules about single tokens, against a plain reading of them."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.api.serving import EOS, make_tokenizer
from tgi.text.grammar import GrammarCompiler, GrammarError, GrammarSpec
from tgi.text.token_rules import TokenRules, spellings

SIZE = 40
TOKENS = st.integers(0, SIZE - 1)
BARRED = st.lists(st.lists(TOKENS, min_size=1, max_size=3), max_size=4)


def allowed_by(rules: TokenRules, size: int = SIZE) -> set[int]:
    bits = np.unpackbits(np.frombuffer(rules.mask, np.uint8), bitorder="little")
    assert len(rules.mask) % 4 == 0
    assert not bits[size:].any()
    return set(np.flatnonzero(bits).tolist())


@given(st.sets(TOKENS) | st.none(), BARRED, st.lists(TOKENS, max_size=6))
def test_each_mask_is_that_of_the_definition(
    allowed: set[int] | None, barred: list[list[int]], text: list[int]
) -> None:
    """A sequence may not be completed; its beginning is searched in the generated text alone."""

    def expected(before: Sequence[int]) -> set[int]:
        return {
            token
            for token in (range(SIZE) if allowed is None else allowed)
            if not any([*before, token][-len(one) :] == one for one in barred)
        }

    try:
        rules = TokenRules(SIZE, allowed=allowed, barred=barred)
    except GrammarError:
        assert not expected([])
        return
    assert allowed_by(rules) == expected([])
    for place, token in enumerate(text):
        before = text[: place + 1]
        try:
            rules.advance(token)
        except GrammarError:
            assert not expected(before)
            return
        assert allowed_by(rules) == expected(before)
        assert allowed_by(rules.fork()) == expected(before)


def test_rules_hold_beside_a_grammar() -> None:
    tokenizer = make_tokenizer()
    a, b, c = (tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "abc")
    size = 300
    matcher = GrammarCompiler(tokenizer, size).compile(GrammarSpec("regex", "[abc]{2}"))
    rules = TokenRules(size, barred=[[a, b], [c]], matcher=matcher)
    assert allowed_by(rules, size) == {a, b}
    other = rules.fork()
    rules.advance(a)
    assert allowed_by(rules, size) == {a}
    assert allowed_by(other, size) == {a, b}
    rules.advance(a)
    assert allowed_by(rules, size) == {EOS}


def test_a_word_is_found_where_a_text_begins_with_it_and_behind_a_space() -> None:
    tokenizer = make_tokenizer()
    texts = [tokenizer.decode(tokens) for tokens in spellings("world", tokenizer)]
    assert texts == ["world", " world"]
    assert [tokenizer.decode(tokens) for tokens in spellings(" world", tokenizer)] == [" world", "world"]
