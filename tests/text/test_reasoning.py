"""Thoughts before an answer: recognised, and separated from the text after them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi.text.reasoning import FORMATS, ReasoningFormat, Thoughts, ThoughtsParser, find_format

from .chat_templates import TEMPLATES

every_format = pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.models)


def parsed(style: ReasoningFormat | None, state: Thoughts, pieces: list[str]) -> tuple[str, str]:
    """Return thoughts and text of an answer."""
    parser = ThoughtsParser.of(style, state)
    parts = [*map(parser.feed, pieces), parser.end()]
    return "".join(thoughts for thoughts, _ in parts), "".join(text for _, text in parts)


@every_format
@pytest.mark.parametrize(
    ("state", "answer", "thoughts", "text"),
    [
        ("possible", "BEGIN\nHm, {x}.\n\nEND\n\nYes. ", "Hm, {x}.", "Yes. "),
        ("possible", " \nBEGINHmEND", "Hm", ""),
        ("possible", "BEGINEND Yes", "", "Yes"),
        ("possible", "Yes BEGINno ENDno", "", "Yes BEGINno ENDno"),
        ("possible", "", "", ""),
        ("possible", "BEGINHm", "Hm", ""),
        ("begun", "\nHm BEGIN\nENDYes ENDno", "Hm BEGIN", "Yes ENDno"),
        ("begun", "Hm \n", "Hm", ""),
        ("none", "BEGINnoEND", "", "BEGINnoEND"),
    ],
)
def test_thoughts_are_separated_from_text(
    style: ReasoningFormat, state: Thoughts, answer: str, thoughts: str, text: str
) -> None:
    def marked(plain: str) -> str:
        return plain.replace("BEGIN", style.begin).replace("END", style.end)

    expected = marked(thoughts).rstrip(), marked(text)
    assert parsed(style, state, [marked(answer)]) == expected
    assert parsed(style, state, list(marked(answer))) == expected


def test_answers_of_other_models_are_text() -> None:
    assert parsed(None, "none", ["<think>no", "</think> "]) == ("", "<think>no</think> ")


@every_format
@given(data=st.data(), state=st.sampled_from(["none", "begun", "possible"]))
def test_parsing_does_not_depend_on_pieces(
    style: ReasoningFormat, data: st.DataObject, state: Thoughts
) -> None:
    parts = [style.begin, style.end, style.begin[:-1], style.end[:3], "a", "<", " ", "\n"]
    text = "".join(data.draw(st.lists(st.sampled_from(parts), max_size=9)))
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *places, len(text)])]
    thoughts, rest = parsed(style, state, [text])
    assert parsed(style, state, pieces) == (thoughts, rest)
    assert thoughts == thoughts.strip()
    if state == "none":
        assert (thoughts, rest) == ("", text)
    if thoughts:
        assert style.end not in thoughts


@every_format
def test_the_end_of_a_prompt_tells_the_state_of_thoughts(style: ReasoningFormat) -> None:
    assert style.state_after(f"user: x\nassistant: {style.begin}\n") == "begun"
    assert style.state_after(f"user: x\nassistant: {style.begin}\n\n{style.end}\n\n") == "none"
    assert style.state_after(f"user: {style.begin}x{style.end}\nassistant:") == "possible"


@pytest.mark.parametrize("family", TEMPLATES)
def test_templates_of_models_that_think_are_recognised(family: str) -> None:
    style = find_format(TEMPLATES[family])
    ends = {"qwen3": "</think>", "deepseek-r1": "</think>", "gpt-oss": "<|end|>"}
    assert (style and style.end) == ends.get(family)


@pytest.mark.parametrize(
    "style", [style for style in FORMATS if style.answer_begin and style.answer_end], ids=lambda s: s.models
)
@pytest.mark.parametrize(
    ("state", "answer", "thoughts", "text"),
    [
        ("possible", "BEGIN Hm. END\nFIRST\nYes.\nLAST", "Hm.", "Yes."),
        ("possible", "FIRSTYes.LAST", "", "Yes."),
        ("possible", "Yes.", "", "Yes."),
        ("begun", "Hm.END FIRST Yes <b>.", "Hm.", "Yes <b>."),
        ("none", "\nFIRSTYes FIRST LAST\n", "", "Yes FIRST\n"),
        ("none", "  Yes.", "", "  Yes."),
        ("none", "Yes.LAST", "", "Yes."),
    ],
)
def test_marks_around_answers_are_left_out(
    style: ReasoningFormat, state: Thoughts, answer: str, thoughts: str, text: str
) -> None:
    def marked(plain: str) -> str:
        plain = plain.replace("BEGIN", style.begin).replace("END", style.end)
        return plain.replace("FIRST", style.answer_begin).replace("LAST", style.answer_end)

    for pieces in ([marked(answer)], list(marked(answer))):
        assert parsed(style, state, pieces) == (thoughts, marked(text))


@pytest.mark.parametrize("state", ["possible", "none"])
def test_a_mark_may_stand_before_an_answer_alone(state: Thoughts) -> None:
    (style,) = (style for style in FORMATS if style.models == "Solar Open")
    text = "<|content|>Yes <|content|>\n"
    before = "<|think|>Hm.<|end|><|begin|>assistant" if state == "possible" else ""
    for pieces in ([before + text], list(before + text)):
        assert parsed(style, state, pieces) == ("Hm." if before else "", "Yes <|content|>\n")
    assert style.state_after("<|begin|>assistant<|think|><|end|><|begin|>assistant") == "none"
    assert style.state_after("<|begin|>user<|content|>x<|end|><|begin|>assistant") == "possible"
