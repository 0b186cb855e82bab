"""tgi-behaviour 5.6 and 12.7, with S43 fixed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi.text.stopping import FinishReason, StoppingCriteria

EOS = 2
STOPPED = FinishReason.STOP_SEQUENCE


def end_of(
    texts: list[str], stop: list[str], max_new_tokens: int = 100
) -> tuple[int, str, FinishReason | None]:
    """Number of tokens taken, the text after the cut, and why it ended."""
    criteria = StoppingCriteria(max_new_tokens, frozenset([EOS]), stop)
    seen = ""
    for count, text in enumerate(texts, 1):
        seen += text
        reason = criteria.check(EOS if text == "</s>" else 5, text)
        if reason is not None:
            return count, criteria.cut(seen), reason
    return len(texts), seen, None


@pytest.mark.parametrize(
    ("texts", "stop", "expected"),
    [
        (["x ", "foo"], ["foo"], (2, "x foo", STOPPED)),
        (["x ", "foo\n"], ["foo"], (2, "x foo", STOPPED)),
        (["x ", "foo\n\n"], ["foo"], (2, "x foo", STOPPED)),  # TGI misses this one
        (["x ", "foobar"], ["foo"], (2, "x foo", STOPPED)),  # and this one
        (["f", "o", "o", "d"], ["foo"], (3, "foo", STOPPED)),
        (["anything", "more"], [""], (1, "anything", STOPPED)),
        (["a", "</s>"], ["s>"], (2, "a</s>", FinishReason.EOS_TOKEN)),
        (["abc", "d"], ["bc", "ab"], (1, "ab", STOPPED)),
        (["", "a", "", "b"], ["ab"], (4, "ab", STOPPED)),
        (["x"], [], (1, "x", None)),
    ],
)
def test_stop_strings(
    texts: list[str], stop: list[str], expected: tuple[int, str, FinishReason | None]
) -> None:
    assert end_of(texts, stop) == expected


def test_length_is_looked_at_first() -> None:
    assert end_of(["a", "</s>"], ["s"], max_new_tokens=2)[2] is FinishReason.LENGTH
    assert end_of(["a", "foo"], ["foo"], max_new_tokens=2)[2] is FinishReason.LENGTH
    assert end_of(["a", "b"], [], max_new_tokens=1)[0] == 1


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
)
def test_the_text_ends_with_the_stop_string_that_is_complete_first(texts: list[str], stop: list[str]) -> None:
    count, text, reason = end_of(texts, stop)
    whole = "".join(texts)
    ends = [whole.find(one) + len(one) for one in stop if one in whole]
    assert (reason is STOPPED) == bool(ends)
    if ends:
        assert text == whole[: min(ends)]
        assert len("".join(texts[: count - 1])) < min(ends) <= len("".join(texts[:count]))
