"""Harmony: answers in messages on channels, as OpenAI's guide to the format of gpt-oss describes them."""

import itertools
import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tokenizers

from tgi.text.answer_format import AnswerFormat
from tgi.text.chat_template import ChatTemplates
from tgi.text.grammar import GrammarCompiler, GrammarSpec
from tgi.text.harmony import HARMONY_MARKS
from tgi.text.tokenizer import Tokenizer
from tgi.text.tool_calls import Tool
from tgi.text.tool_formats import HARMONY

from .chat_templates import TEMPLATES
from .test_tools import CITY, DEMO

CALL, RETURN = "<|call|>", "<|return|>"


def make_tokenizer() -> Tokenizer:
    core = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    core.add_special_tokens([*HARMONY_MARKS, CALL, RETURN])
    ends = [core.token_to_id(CALL), core.token_to_id(RETURN)]
    return Tokenizer(core, [], ends)


TOKENIZER = make_tokenizer()
COMPILER = GrammarCompiler(TOKENIZER, TOKENIZER.vocab_size)
STYLE = AnswerFormat.of(ChatTemplates({"default": TEMPLATES["gpt-oss"]}, {}), TOKENIZER)
WEATHER = Tool("weather", None, {"type": "object", "properties": {"city": CITY}, "required": ["city"]})
TOOLS = [WEATHER, Tool("clock", None, None)]
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"
TO_WEATHER = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"


def read(text: str, pieces: Sequence[str] = ()) -> tuple[str, str, list[tuple[str, str]]]:
    parser = STYLE.parser("possible", TOOLS)
    deltas = [*map(parser.feed, pieces or [text]), parser.feed("", last=True)]
    calls: list[tuple[str, str]] = []
    for call in (call for delta in deltas for call in delta.calls):
        if call.name is not None:
            calls.append((call.name, ""))
        calls[-1] = (calls[-1][0], calls[-1][1] + call.arguments)
    return "".join(d.thoughts for d in deltas), "".join(d.content for d in deltas), calls


def allows(spec: GrammarSpec | None, text: str) -> bool:
    """Return whether a grammar allows a whole text."""
    assert spec is not None
    matcher = COMPILER.compile(spec)
    for token in TOKENIZER.encode(text, add_special_tokens=False):
        bits = np.unpackbits(np.frombuffer(matcher.mask, np.uint8), bitorder="little")
        if not bits[token]:
            return False
        matcher.advance(token)
    bits = np.unpackbits(np.frombuffer(matcher.mask, np.uint8), bitorder="little")
    return bool(bits[COMPILER.ends].all())


def test_the_template_of_gpt_oss_is_recognised() -> None:
    assert STYLE.calls is HARMONY
    assert STYLE.single
    assert STYLE.thoughts_after("<|start|>user<|message|>x<|end|><|start|>assistant") == "possible"
    assert STYLE.thoughts_after(f"<|start|>assistant{FINAL}It is") == "none"


@pytest.mark.parametrize(
    ("text", "thoughts", "content", "calls"),
    [
        (f"{ANALYSIS}Hm, {{x}}.{NEXT}{FINAL}It rains.", "Hm, {x}.", "It rains.", []),
        (f"{FINAL}It rains.{RETURN}", "", "It rains.", []),
        (
            f'{ANALYSIS}Hm.{NEXT}{TO_WEATHER}{{"city": "Rome"}}{CALL}',
            "Hm.",
            "",
            [("weather", '{"city": "Rome"}')],
        ),
        (
            ' to=functions.weather<|channel|>commentary json<|message|>{"city": "<|Rome"}',
            "",
            "",
            [("weather", '{"city": "<|Rome"}')],
        ),
        (
            f"{ANALYSIS}a{NEXT}<|channel|>commentary<|message|>Wait.{NEXT}{ANALYSIS}b{NEXT}"
            "<|channel|>commentary to=functions.clock<|message|>{}",
            "ab",
            "Wait.",
            [("clock", "{}")],
        ),
        ("It rains.", "", "It rains.", []),
        (f"{ANALYSIS}Hm", "Hm", "", []),
        (f'{TO_WEATHER}{{"ci', "", "", [("weather", '{"ci')]),
        ("", "", "", []),
    ],
)
def test_messages_are_told_apart(text: str, thoughts: str, content: str, calls: Any) -> None:
    chance = random.Random(0)
    size = len(text) + 1
    cuts = [sorted({0, len(text), *(chance.randrange(size) for _ in range(n))}) for n in (1, 3, 9)]
    for pieces in ([text], list(text), *([text[a:b] for a, b in itertools.pairwise(c)] for c in cuts)):
        assert read(text, pieces) == (thoughts, content, calls)


def test_arguments_are_streamed() -> None:
    parser = STYLE.parser("possible", TOOLS)
    parser.feed(TO_WEATHER)
    assert [call.arguments for call in parser.feed('{"city"').calls] == ['{"city"']
    assert parser.is_within_arguments
    assert [call.arguments for call in parser.feed(': "Rome"}').calls] == [': "Rome"}']
    assert not parser.is_within_arguments


THOUGHTS = f"{ANALYSIS}Hm <b>.{NEXT}"
FINAL_TEXT = f"{FINAL}It rains."
PREAMBLE = f"<|channel|>commentary<|message|>Wait.{NEXT}"
CALLS = f'{TO_WEATHER}{{"city": "Rome"}}'
OTHER_ORDER = ' to=functions.weather<|channel|>commentary<|message|>{"city": "Rome"}'


@pytest.mark.parametrize(
    ("required", "text", "is_allowed"),
    [
        (False, FINAL_TEXT, True),
        (False, THOUGHTS + FINAL_TEXT, True),
        (False, THOUGHTS + PREAMBLE + THOUGHTS + CALLS, True),
        (False, OTHER_ORDER, True),
        (False, f'{TO_WEATHER}{{"town": "Rome"}}', False),
        (False, TO_WEATHER.replace("weather", "nothing"), False),
        (True, CALLS, True),
        (True, THOUGHTS + CALLS, True),
        (True, FINAL_TEXT, False),
        (True, THOUGHTS + FINAL_TEXT, False),
        (True, "It rains.", False),
        (True, f'{TO_WEATHER}{{"city": "too long"}}', False),
    ],
)
def test_calls_are_forced(required: bool, text: str, is_allowed: bool) -> None:
    spec = STYLE.grammar(TOOLS, required=required, thoughts="possible")
    assert allows(spec, text) is is_allowed


def test_a_response_format_holds_on_the_final_channel() -> None:
    schema = GrammarSpec("json", json.dumps({"type": "object", "properties": {"a": {"type": "boolean"}}}))
    for tools in ([], TOOLS):
        spec = STYLE.grammar(tools, text=schema, thoughts="possible", max_thoughts=9)
        assert allows(spec, THOUGHTS + FINAL + '{"a":true}')
        assert not allows(spec, THOUGHTS + FINAL_TEXT)
        assert allows(spec, CALLS) is bool(tools)
    assert STYLE.grammar([], thoughts="possible") is None


def test_a_budget_ends_thoughts() -> None:
    spec = STYLE.grammar([], thoughts="possible", max_thoughts=3)
    assert allows(spec, f"{ANALYSIS} the the the{NEXT}{FINAL_TEXT}")
    assert not allows(spec, f"{ANALYSIS} the the the the{NEXT}{FINAL_TEXT}")
