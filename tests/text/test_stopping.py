"""Stopping criteria (tgi-behaviour 5.6, 12.7), with S43 mended."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi.text.stopping import FinishReason, StoppingCriteria

EOS = 2
STOPPED = FinishReason.STOP_SEQUENCE


def end_of(
    texts: list[str],
    stop: list[str],
    max_new_tokens: int = 100,
    min_tokens: int = 0,
    length_first: bool = True,
) -> tuple[int, str, FinishReason | None]:
    """Return the number of tokens taken, the text after the cut, and the reason of the end."""
    criteria = StoppingCriteria(max_new_tokens, frozenset([EOS]), stop, min_tokens, length_first=length_first)
    seen = ""
    for count, text in enumerate(texts, 1):
        seen += text
        reason = criteria.check(EOS if text == "</s>" else 5, text)
        if reason is not None:
            return count, criteria.cut(seen), reason
    return len(texts), seen, None


@pytest.mark.contract("12.7")
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


@pytest.mark.contract("12.7")
def test_length_precedes_other_reasons() -> None:
    assert end_of(["a", "</s>"], ["s"], max_new_tokens=2)[2] is FinishReason.LENGTH
    assert end_of(["a", "foo"], ["foo"], max_new_tokens=2)[2] is FinishReason.LENGTH
    assert end_of(["a", "b"], [], max_new_tokens=1)[0] == 1


@pytest.mark.parametrize(
    ("texts", "stop", "min_tokens", "expected"),
    [
        (["a", "</s>"], ["x"], 0, (2, "a</s>", FinishReason.EOS_TOKEN)),
        (["a", "foo\n"], ["foo"], 0, (2, "afoo", STOPPED)),
        (["a", "b"], ["foo"], 0, (2, "ab", FinishReason.LENGTH)),
        (["a", "foo"], ["foo"], 2, (2, "afoo", FinishReason.LENGTH)),
        (["a", "</s>"], ["foo"], 2, (2, "a</s>", FinishReason.LENGTH)),
    ],
)
def test_length_is_the_last_reason_for_openai(
    texts: list[str], stop: list[str], min_tokens: int, expected: tuple[int, str, FinishReason | None]
) -> None:
    assert end_of(texts, stop, max_new_tokens=2, min_tokens=min_tokens, length_first=False) == expected


@pytest.mark.parametrize(
    ("texts", "stop", "expected"),
    [
        (["a", "</s>", "</s>", "</s>", "b"], [], (4, "a</s></s></s>", FinishReason.EOS_TOKEN)),
        (["foo", "foo", "foo", "d foo"], ["foo"], (4, "foofoofood foo", STOPPED)),
        (["", "", "f", "o", "o d"], ["foo"], (5, "foo", STOPPED)),  # it may begin earlier
        (["", "", "foo", "", "d"], ["foo", "much longer"], (5, "food", None)),  # but not end
        (["a", "b", "c", "d"], [""], (4, "abcd", STOPPED)),
    ],
)
def test_only_length_ends_the_first_min_tokens(
    texts: list[str], stop: list[str], expected: tuple[int, str, FinishReason | None]
) -> None:
    assert end_of(texts, stop, min_tokens=3) == expected


def test_length_ends_before_min_tokens() -> None:
    assert end_of(["a", "b", "c"], [], max_new_tokens=2, min_tokens=3) == (2, "ab", FinishReason.LENGTH)


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    st.integers(0, 3),
)
def test_the_text_ends_with_the_stop_string_that_is_complete_first(
    texts: list[str], stop: list[str], min_tokens: int
) -> None:
    count, text, reason = end_of(texts, stop, min_tokens=min_tokens)
    whole, first = "".join(texts), len("".join(texts[:min_tokens]))
    ends = [end for one in stop for end in range(first + 1, len(whole) + 1) if whole[:end].endswith(one)]
    assert (reason is STOPPED) == bool(ends)
    if ends:
        assert text == whole[: min(ends)]
        assert len("".join(texts[: count - 1])) < min(ends) <= len("".join(texts[:count]))
