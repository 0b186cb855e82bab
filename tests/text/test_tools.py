"""Tool calls: random walks through the grammar of every format are parsed and checked with jsonschema."""

import functools
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tgi.demo
from tgi.errors import ToolError, ValidationError
from tgi.text.answer_format import AnswerFormat
from tgi.text.chat_template import ChatTemplates
from tgi.text.grammar import GrammarCompiler, GrammarSpec, Matcher
from tgi.text.reasoning import Thoughts
from tgi.text.tokenizer import Tokenizer
from tgi.text.tool_arguments import JSON_TEXT, PYTHON
from tgi.text.tool_calls import ID, CallDelta, Tool, ToolCallParser, ToolFormat
from tgi.text.tool_formats import FORMATS

from .chat_templates import TEMPLATES
from .tool_templates import TOOL_TEMPLATES

# ruff: noqa: E501  (texts of models)

DEMO = Path(next(iter(tgi.demo.__path__)))
MARKS = tuple(
    dict.fromkeys(
        mark
        for style in FORMATS
        for text in (*style.texts, "</think>")
        for mark in re.findall(r"<[|｜/]?[^<>{}\[\]()\n =]+[|｜]?>|\[[A-Z_]+\]", text)
    )
)
"""The marks of all formats, of which models have some as special tokens."""
OTHERS = {
    "generic": "{{ messages[0].content }}",
    "generic, tools known": "{{ messages[0].content }}{{ tools }}",
    "mistral": TEMPLATES["mistral-v3"],
    "mistral nemo": TEMPLATES["mistral-nemo"],
    "qwen2.5": TEMPLATES["qwen2.5"],
    "qwen3": TEMPLATES["qwen3"],
    "hermes": TEMPLATES["hermes"],
    "granite": TEMPLATES["granite"],
    "llama 3.1": TEMPLATES["llama3.1-tools"],
}
TEMPLATES_OF = OTHERS | TOOL_TEMPLATES
CITY = {"type": "string", "maxLength": 5}
TOOLS = [
    Tool(
        "get_weather",
        "The weather",
        {
            "type": "object",
            "properties": {
                "city": CITY,
                "unit": {"enum": ["°C", 'a "quote" }', "\\"]},
                "days": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": -9, "maximum": 99},
                    "maxItems": 2,
                },
            },
            "required": ["city", "unit"],
        },
    ),
    Tool("get", None, {}),
    Tool("weather-2", None, None),
    Tool(
        "nested",
        "",
        {
            "$defs": {"place": {"type": "object", "properties": {"name": CITY}, "required": ["name"]}},
            "type": "object",
            "properties": {
                "at": {"$ref": "#/$defs/place"},
                "how": {"anyOf": [{"type": "boolean"}, {"type": "null"}, {"const": {"a": [1, "}"]}}]},
            },
            "required": ["at", "how"],
            "additionalProperties": False,
        },
    ),
]
NOTHING = {"type": "object", "additionalProperties": False}
SCHEMAS = {tool.name: tool.parameters or NOTHING for tool in TOOLS}


def tokenizer_of(*, marks_are_special: bool) -> Tokenizer:
    core = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    if marks_are_special:
        core.add_special_tokens(list(MARKS))
    else:
        core.add_tokens(["[TOOL_CALLS]", "[ARGS]", "<tool_call>", "</tool_call>"])
    return Tokenizer(core, [], [1])


TOKENIZERS = {special: tokenizer_of(marks_are_special=special) for special in (False, True)}
COMPILERS = {
    special: GrammarCompiler(tokenizer, tokenizer.vocab_size) for special, tokenizer in TOKENIZERS.items()
}
every_format = pytest.mark.parametrize("name", TEMPLATES_OF)
both_kinds = pytest.mark.parametrize("special", [False, True], ids=["marks are text", "marks are special"])


def style_of(name: str, *, special: bool = False) -> AnswerFormat:
    return AnswerFormat.of(ChatTemplates({"default": TEMPLATES_OF[name]}, {}), TOKENIZERS[special])


def grammar(style: AnswerFormat, tools: Sequence[Tool], **options: Any) -> GrammarSpec:
    spec = style.grammar(tools, **options)
    assert spec is not None
    return spec


@functools.cache
def compiled(spec: GrammarSpec, *, special: bool) -> Matcher:
    return COMPILERS[special].compile(spec)


def allowed(matcher: Matcher) -> list[int]:
    bits = np.unpackbits(np.frombuffer(matcher.mask, np.uint8), bitorder="little")
    tokens: list[int] = bits.nonzero()[0].tolist()
    return tokens


def walk(
    spec: GrammarSpec, seed: int, *, special: bool, opening: Sequence[str] = (), most: int = 400
) -> str | None:
    """Return a random text that a grammar allows, beginning with `opening`; None if it takes `most` tokens."""
    tokenizer = TOKENIZERS[special]
    chance = random.Random(seed)
    matcher = compiled(spec, special=special).fork()
    ids = [token for text in opening for token in tokenizer.encode(text, add_special_tokens=False)]
    for token in ids:
        assert token in allowed(matcher), tokenizer.decode(ids)
        matcher.advance(token)
    while len(ids) < most:
        tokens = allowed(matcher)
        if tokens == [1] or (1 in tokens and chance.random() < 0.3):
            return tokenizer.decode(ids)
        while (token := chance.choice(tokens)) == 1:
            pass
        ids.append(token)
        matcher.advance(ids[-1])
    return None


def read(
    style: AnswerFormat, pieces: Iterable[str], tools: Sequence[Tool] = TOOLS
) -> tuple[str, list[tuple[str, str]]]:
    """Return content and calls that a parser reads from pieces of text, joined as clients join them."""
    parser = style.calls.parser(tools)
    found = [part for piece in pieces for part in parser.feed(piece)] + parser.end()
    content, calls, ids = "", list[tuple[str, str]](), set[str]()
    for part in found:
        if isinstance(part, str):
            assert part
            content += part
        elif part.id is not None:
            assert part == CallDelta(len(calls), part.id, part.name, "")
            assert re.fullmatch("[A-Za-z0-9]{9}", part.id)
            assert part.name is not None
            calls.append((part.name, ""))
            ids.add(part.id)
        else:
            assert part.name is None
            assert part.index == len(calls) - 1
            assert part.arguments
            calls[-1] = (calls[-1][0], calls[-1][1] + part.arguments)
    assert len(ids) == len(calls)
    return content, calls


def read_all(
    style: AnswerFormat, state: Thoughts, pieces: Sequence[str]
) -> tuple[str, str, list[tuple[str, str]]]:
    """Return thoughts, content and calls that a parser reads from pieces of text."""
    parser = style.parser(state, TOOLS)
    deltas = [parser.feed(piece) for piece in pieces] + [parser.feed("", last=True)]
    calls: list[tuple[str, str]] = []
    for call in (call for delta in deltas for call in delta.calls):
        if call.name is not None:
            calls.append((call.name, ""))
        calls[-1] = (calls[-1][0], calls[-1][1] + call.arguments)
    return "".join(d.thoughts for d in deltas), "".join(d.content for d in deltas), calls


def read_cut(style: AnswerFormat, text: str, tools: Sequence[Tool]) -> tuple[str, list[tuple[str, str]]]:
    """Return content and calls of an answer that had to be a call."""
    parser = style.calls.parser(tools, required=True)
    parts = parser.feed(text) + parser.end()
    calls = [part for part in parts if isinstance(part, CallDelta)]
    names = [call.name for call in calls if call.name is not None]
    return "".join(part for part in parts if isinstance(part, str)), [
        (name, "".join(call.arguments for call in calls if call.index == number))
        for number, name in enumerate(names)
    ]


def same(style: AnswerFormat, calls: Sequence[tuple[str, str]], others: Sequence[tuple[str, str]]) -> bool:
    """Return whether calls are the same: their texts if the format has JSON text, otherwise their values."""
    if style.calls.arguments is JSON_TEXT:
        return calls == others
    return [(name, json.loads(text)) for name, text in calls] == [
        (name, json.loads(text)) for name, text in others
    ]


def cut(text: str, places: Iterable[int]) -> list[str]:
    bounds = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def check_calls(calls: Sequence[tuple[str, str]]) -> None:
    for name, arguments in calls:
        value = json.loads(arguments)
        assert isinstance(value, dict)
        jsonschema.validate(value, SCHEMAS[name])


def ways_to_cut(text: str, seed: int) -> list[list[str]]:
    chance = random.Random(seed)
    return [
        [text],
        list(text),
        *(cut(text, [chance.randrange(10**6) for _ in range(n)]) for n in (1, 3, 9, 40)),
    ]


@every_format
@both_kinds
@pytest.mark.parametrize(
    ("tools", "parallel"),
    [(TOOLS, True), (TOOLS[:1], False), (TOOLS[1:2], False)],
    ids=["required", "named", "named, no parameters"],
)
def test_required_calls_obey_the_grammar_and_parse(
    name: str, special: bool, parallel: bool, tools: list[Tool]
) -> None:
    style = style_of(name, special=special)
    spec = grammar(style, tools, required=True, parallel=parallel)
    numbers = set()
    for seed in range(4):
        text = walk(spec, seed, special=special)
        if text is None:
            continue
        content, calls = read(style, [text])
        assert content == ""
        assert {called for called, _ in calls} <= {tool.name for tool in tools}
        check_calls(calls)
        if style.calls.arguments is JSON_TEXT and ID not in style.calls.head + style.calls.middle:
            assert style.calls.write(calls) == text
        numbers.add(len(calls))
        for pieces in ways_to_cut(text, seed):
            assert read(style, pieces) == (content, calls)
    assert numbers
    if style.single or not parallel:
        assert numbers == {1}


@every_format
@both_kinds
def test_parallel_calls_only_where_allowed(name: str, special: bool) -> None:
    style = style_of(name, special=special)
    calls = [("get", "{}"), ("weather-2", "{ }"), ("get_weather", '{"city":"}]\\"", "unit": "\\\\"}')]
    for parallel in (False, True):
        matcher = COMPILERS[special].compile(grammar(style, TOOLS, required=True, parallel=parallel))
        ids = TOKENIZERS[special].encode(style.calls.write(calls), add_special_tokens=False)
        taken = 0
        while taken < len(ids) and ids[taken] in allowed(matcher):
            matcher.advance(ids[taken])
            taken += 1
        if parallel and not style.single:
            assert taken == len(ids)
            assert 1 in allowed(matcher)
        else:
            assert taken < len(ids)
    check_calls(calls)
    content, found = read(style, list(style.calls.write(calls)))
    assert content == ""
    assert same(style, found, calls)


@every_format
@both_kinds
def test_auto_allows_any_text_without_a_call(name: str, special: bool) -> None:
    style = style_of(name, special=special)
    spec = grammar(style, TOOLS, required=False, parallel=True)
    matcher = COMPILERS[special].compile(spec)
    assert 1 in allowed(matcher), "an empty answer"
    for seed in range(3):
        text = walk(spec, seed, special=special, opening=['I think {"name" is <tool'], most=200)
        assert text is not None
        for pieces in ways_to_cut(text, seed):
            assert read(style, pieces) == (text, [])


@every_format
@both_kinds
def test_auto_enforces_a_call_once_begun(name: str, special: bool) -> None:
    """Text may precede a call if the format has a mark."""
    style = style_of(name, special=special)
    spec = grammar(style, TOOLS, required=False, parallel=True)
    before = "Let me <think> {x.\n\n" if style.calls.mark else ""
    read_any = False
    for seed in range(6):
        text = walk(
            spec, seed, special=special, opening=[before, style.calls.mark or style.calls.openings(TOOLS)[0]]
        )
        if text is None:
            continue
        content, calls = read(style, [text])
        assert content == before.rstrip()
        assert calls
        check_calls(calls)
        if style.calls.arguments is JSON_TEXT and ID not in style.calls.head + style.calls.middle:
            assert before + style.calls.write(calls) == text
        for pieces in ways_to_cut(text, seed):
            assert read(style, pieces) == (content, calls)
        read_any = True
    assert read_any


@every_format
@both_kinds
def test_auto_with_a_response_schema_is_a_call_or_obeys_the_schema(name: str, special: bool) -> None:
    style = style_of(name, special=special)
    schema = {"type": "object", "properties": {"answer": CITY}, "required": ["answer"]}
    spec = grammar(style, TOOLS, required=False, parallel=False, text=GrammarSpec("json", json.dumps(schema)))
    kinds = set()
    for seed in range(12):
        mark = style.calls.mark or style.calls.openings(TOOLS)[0]
        opening = [mark if seed % 2 else style.calls.text_begin + '{"']
        text = walk(spec, seed, special=special, opening=opening)
        if text is None:
            continue
        content, calls = read(style, list(text))
        check_calls(calls)
        if not calls:
            jsonschema.validate(json.loads(content), schema)
        assert len(calls) == (0 if content else 1)
        kinds.add(bool(calls))
    assert kinds == {False, True}


def test_auto_with_a_response_regex_obeys_the_regex() -> None:
    style = style_of("hermes")
    spec = grammar(style, TOOLS, required=False, parallel=False, text=GrammarSpec("regex", "a|[/\n]{2}"))
    texts = {walk(spec, seed, special=False, opening=[first]) for seed in range(9) for first in "a/\n"}
    assert texts <= {"a", "//", "\n\n", "/\n", "\n/"}
    assert len(texts) > 3
    called = walk(spec, 0, special=False, opening=["<tool_call>\n{"])
    assert called is None or read(style, [called])[1]


THOUGHTS = '\nOne <tool_ could "call" {it.\n'


@both_kinds
@pytest.mark.parametrize(("state", "begin"), [("possible", "<think>"), ("begun", "")])
def test_thoughts_may_precede_a_required_call(special: bool, state: Thoughts, begin: str) -> None:
    style = style_of("qwen3", special=special)
    spec = grammar(style, TOOLS[:1], required=True, parallel=False, thoughts=state, max_thoughts=90)
    opening = [begin, THOUGHTS, "</think>", "\n\n", "<tool_call>"]
    text = next(filter(None, (walk(spec, seed, special=special, opening=opening) for seed in range(9))))
    for pieces in ways_to_cut(text, 0):
        thoughts, content, calls = read_all(style, state, pieces)
        assert (thoughts, content, len(calls)) == (THOUGHTS.strip(), "", 1)
        check_calls(calls)


@both_kinds
@pytest.mark.parametrize("state", ["none", "begun", "possible"])
def test_a_required_call_comes_after_bounded_thoughts(special: bool, state: Thoughts) -> None:
    """The model takes tokens of text as long as it can."""
    style = style_of("qwen3", special=special)
    tool = Tool("f", None, {"type": "object", "properties": {"city": CITY}, "required": ["city"]})
    spec = grammar(style, [tool], required=True, parallel=False, thoughts=state, max_thoughts=20)
    matcher, ids = COMPILERS[special].compile(spec), list[int]()
    (word,) = TOKENIZERS[special].encode(" the", add_special_tokens=False)
    while len(ids) < 200 and allowed(matcher) != [1]:
        tokens = allowed(matcher)
        ids.append(word if word in tokens else next(token for token in tokens if token != 1))
        matcher.advance(ids[-1])
    assert allowed(matcher) == [1], "no end of the answer"
    thoughts, content, calls = read_all(style, state, [TOKENIZERS[special].decode(ids)])
    assert bool(thoughts) == (state != "none")
    assert (content, [name for name, _ in calls]) == ("", ["f"])


@both_kinds
def test_answers_without_thoughts_begin_with_the_required_call(special: bool) -> None:
    spec = grammar(style_of("qwen3", special=special), TOOLS, required=True, thoughts="none")
    with pytest.raises(AssertionError):
        walk(spec, 0, special=special, opening=["<think>"])


@both_kinds
@pytest.mark.parametrize("tools", [[], TOOLS])
@pytest.mark.parametrize(("state", "begin"), [("possible", "<think>"), ("begun", "")])
def test_a_budget_ends_thoughts(special: bool, state: Thoughts, begin: str, tools: list[Tool]) -> None:
    style = style_of("qwen3", special=special)
    spec = grammar(style, tools, thoughts=state, max_thoughts=5)
    matcher = COMPILERS[special].compile(spec)
    (word,) = TOKENIZERS[special].encode(" the", add_special_tokens=False)
    for token in TOKENIZERS[special].encode(begin, add_special_tokens=False):
        matcher.advance(token)
    count = 0
    while word in allowed(matcher):
        matcher.advance(word)
        count += 1
    assert count == (5 if special else 1), "characters count where the mark is text"
    assert 1 not in allowed(matcher)
    for token in TOKENIZERS[special].encode("</think>", add_special_tokens=False):
        matcher.advance(token)
    matcher.advance(word)
    assert 1 in allowed(matcher)


@both_kinds
def test_a_response_format_holds_after_thoughts_that_have_begun(special: bool) -> None:
    style = style_of("qwen3", special=special)
    schema = GrammarSpec("json", json.dumps({"type": "object", "properties": {"a": {"type": "boolean"}}}))
    for tools in ([], TOOLS):
        spec = grammar(style, tools, text=schema, thoughts="begun", max_thoughts=50)
        text = walk(spec, 0, special=special, opening=["Hm.", "</think>", '{"a":true}'])
        assert text is not None
        assert read_all(style, "begun", [text]) == ("Hm.", '{"a":true}', [])
    assert style.grammar([], text=schema, thoughts="possible") is schema
    assert style.grammar([], thoughts="begun") is None


@pytest.mark.parametrize("mark", ["<tool_call>", "[TOOL_CALLS]"])
def test_a_mark_that_is_a_special_token_is_not_spelt(mark: str) -> None:
    style = style_of("hermes" if mark[0] == "<" else "mistral", special=True)
    core = COMPILERS[True].compile(grammar(style, TOOLS, required=True, parallel=False))
    number = TOKENIZERS[True].encode(mark, add_special_tokens=False)
    assert allowed(core) == number


def test_invalid_parameters_and_response_formats_are_refused() -> None:
    style = style_of("generic")
    for parameters in ([], False, {"type": "array", "items": {"type": "integer"}}, {"type": ["string"]}):
        with pytest.raises(ToolError, match="the parameters of `f` must have a schema of an object"):
            grammar(style, [Tool("f", None, parameters)], required=True, parallel=True)
    with pytest.raises(ValidationError, match="grammar is not valid: "):
        grammar(style, TOOLS, required=False, parallel=True, text=GrammarSpec("json", "{"))


@pytest.mark.parametrize(
    "parameters",
    [
        True,
        {"type": "object"},
        {"type": ["object", "null"]},
        {"properties": {"a": {"type": "integer"}}},
        {
            "type": "object",
            "properties": {"a": {"type": "string", "format": "color", "maxLength": 3}},
            "required": ["a"],
        },
        {"type": "object", "properties": {"a": {"not": {"type": "string"}, "type": ["integer", "string"]}}},
        {"type": "object", "properties": {"a": {"type": "integer"}}, "if": {}, "then": {"required": ["a"]}},
    ],
)
def test_unusual_parameters_still_give_objects(parameters: Any) -> None:
    """Keywords that cannot be enforced are ignored."""
    style = style_of("hermes")
    spec = grammar(style, [Tool("f", None, parameters)], required=True, parallel=False)
    opening = ['<tool_call>\n{"name": "f", "arguments": {']
    texts = [text for seed in range(8) if (text := walk(spec, seed, special=False, opening=opening))]
    assert texts
    for text in texts:
        (_, arguments), *none = read(style, [text])[1]
        assert not none
        assert isinstance(json.loads(arguments), dict)


def test_function_names_may_hold_any_characters() -> None:
    for name in ('a", "arguments": {"', "x\\", "é\n</tool_call>", "<s>", ""):
        for style in TEMPLATES_OF:
            style = style_of(style)
            if style.calls.middle in name:
                continue
            spec = grammar(style, [Tool(name, None, None)], required=True, parallel=False)
            text = walk(spec, 0, special=False)
            assert text is not None
            ((read_name, arguments),) = read(style, list(text), [Tool(name, None, None)])[1]
            assert (read_name, json.loads(arguments)) == (name, {})


_places = st.lists(st.integers(0, 10**4), max_size=12)
_names = st.text(st.sampled_from("abc_-9"), min_size=1, max_size=9)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('a{}[]":,\\\n é😀<'), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_objects = st.dictionaries(st.text(max_size=5), _values, max_size=4)
_layouts: st.SearchStrategy[Callable[[Any], str]] = st.sampled_from(
    [
        json.dumps,
        lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
        lambda value: json.dumps(value, indent=2),
    ]
)


def schema_of(value: Any) -> dict[str, Any]:
    """Return a schema that says the type of a value."""
    kinds = {
        str: "string",
        bool: "boolean",
        int: "integer",
        list: "array",
        dict: "object",
        type(None): "null",
    }
    schema = {"type": kinds[type(value)]}
    return schema | (
        {"properties": {key: schema_of(part) for key, part in value.items()}}
        if isinstance(value, dict)
        else {}
    )


@st.composite
def _calls(draw: st.DrawFn, style: AnswerFormat) -> tuple[list[tuple[str, str]], list[Tool]]:
    """Draw calls and their tools. Names of arguments in Python and in tags are words."""
    objects = _objects
    if style.calls.arguments is not JSON_TEXT:
        words = st.text(st.sampled_from("abc_é"), min_size=1, max_size=5)
        values = (
            _values
            if style.calls.arguments is PYTHON
            else st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.text(st.sampled_from('a{}[]":,\\\n é😀<'), max_size=8),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
                max_leaves=6,
            )
        )
        objects = st.dictionaries(words, values, max_size=4)
    names = draw(st.lists(_names, min_size=1, max_size=3, unique=True))
    given = [(name, draw(objects)) for name in names]
    return (
        [(name, draw(_layouts)(arguments)) for name, arguments in given],
        [Tool(name, None, schema_of(arguments)) for name, arguments in given],
    )


@every_format
@settings(max_examples=12, deadline=None)
@given(data=st.data(), places=_places)
def test_parser_reads_what_the_format_writes(name: str, data: st.DataObject, places: list[int]) -> None:
    style = style_of(name)
    calls, tools = data.draw(_calls(style))
    before = data.draw(st.text(st.sampled_from("ab <\n{["), max_size=9)) if style.calls.mark else ""
    content, found = read(style, cut(before + style.calls.write(calls), places), tools)
    assert content == before.rstrip()
    assert same(style, found, calls)


@every_format
@settings(max_examples=12, deadline=None)
@given(data=st.data(), places=_places)
def test_incomplete_opening_is_text(name: str, data: st.DataObject, places: list[int]) -> None:
    style = style_of(name)
    opening = style.calls.opening if style.calls.mark else style.calls.openings(TOOLS)[0]
    parts = [opening[:n] for n in range(1, len(opening))] + [" ", "\n", "a", '"', "}"]
    text = "".join(data.draw(st.lists(st.sampled_from(parts), max_size=6)))
    if opening in text or (style.calls.mark and style.calls.mark in text):
        return
    assert read(style, cut(text, places)) == (text, [])


@every_format
@settings(max_examples=12, deadline=None)
@given(data=st.data(), places=_places, length=st.integers(0, 10**4))
def test_truncated_answer_keeps_the_arguments_so_far(
    name: str, data: st.DataObject, places: list[int], length: int
) -> None:
    """Content after the first call is empty."""
    style = style_of(name)
    calls, tools = data.draw(_calls(style))
    text = style.calls.write(calls)
    _, whole = read(style, [text], tools)
    text = text[: length % (len(text) + 1)]
    content, found = read(style, cut(text, places), tools)
    begins = [style.calls.mark] if style.calls.mark else style.calls.openings(tools)
    assert content == ("" if found or any(opening in text for opening in begins) else text)
    assert read_cut(style, text, tools) == ("", found)
    assert [called for called, _ in found] == [called for called, _ in calls][: len(found)]
    for (_, part), (_, all_of_it) in zip(found[-1:], whole[len(found) - 1 :], strict=False):
        assert all_of_it.startswith(part)
    assert found[:-1] == whole[: max(0, len(found) - 1)]


@every_format
@settings(max_examples=12, deadline=None)
@given(data=st.data(), places=_places)
@example(data=None, places=[])
def test_parsing_does_not_depend_on_pieces(name: str, data: st.DataObject | None, places: list[int]) -> None:
    """Any text of a model without a grammar can be read."""
    style = style_of(name)
    parts = [*'ab {}[]"\n', *filter(None, (style.calls.opening, style.calls.middle))]
    parts += list(filter(None, (*style.calls.arguments.texts, style.calls.tail, style.calls.end)))
    parts += [*style.calls.openings(TOOLS), "'", "\\", "=", "("]
    text = "" if data is None else "".join(data.draw(st.lists(st.sampled_from(parts), max_size=12)))
    assert read(style, cut(text, places)) == read(style, [text])


def test_parser_streams_content_and_arguments() -> None:
    parser = style_of("hermes").calls.parser()
    fed = [
        ("Well", ["Well"]),
        (", <", [","]),
        ("b> ", [" <b>"]),
        ("\n\n<tool_", []),
        ("call>\n", []),
        ('{"name": "get', []),
        ("_weather", []),
        ('", "arguments": ', [("get_weather", "")]),
        ('{"city', [(None, '{"city')]),
        ('": "A}', [(None, '": "A}')]),
        ('"}', [(None, '"}')]),
        ("}\n</tool_call>", []),
        ('\n<tool_call>\n{"name": "get", "arguments": {}}\n</tool', [("get", ""), (None, "{}")]),
        ("_call>\n", []),
    ]
    for piece, expected in fed:
        parts = [
            part if isinstance(part, str) else (part.name, part.arguments) for part in parser.feed(piece)
        ]
        assert parts == expected
    assert parser.end() == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("generic", '{"name": "f", "parameters": {"a": 1}}\n{"name": "g", "parameters": {}}'),
        ("generic, tools known", '{"name": "f", "parameters": {"a": 1}}\n{"name": "g", "parameters": {}}'),
        ("llama 3.1", '{"name": "f", "parameters": {"a": 1}}\n{"name": "g", "parameters": {}}'),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]'),
        (
            "mistral nemo",
            '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        ),
        ("Magistral, Devstral, Ministral 3", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}'),
        ("granite", '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]'),
        (
            "DeepSeek V3.1",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"
            '"a": 1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ),
        (
            "DeepSeek V3, R1",
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>\n'
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        (
            "Mistral Small 3.2",
            '[TOOL_CALLS]f[CALL_ID]000000000[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]000000001[ARGS]{}',
        ),
        (
            "Qwen3-Coder, Qwen3.5",
            "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>\n"
            "<tool_call>\n<function=g>\n</function>\n</tool_call>",
        ),
        (
            "Seed-OSS",
            "<seed:tool_call>\n<function=f>\n<parameter=a>1</parameter>\n</function>\n</seed:tool_call>\n"
            "<seed:tool_call>\n<function=g>\n</function>\n</seed:tool_call>",
        ),
        (
            "GLM-4.5, GLM-4.6, Laguna, Ling 3",
            "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>\n<tool_call>g\n</tool_call>",
        ),
        (
            "GLM-4.7, GLM-5",
            "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call><tool_call>g</tool_call>",
        ),
        (
            "Hunyuan 3",
            "<tool_calls:opensource>\n<tool_call:opensource>f<tool_sep:opensource>\n<arg_key:opensource>a</arg_key:opensource>\n"
            "<arg_value:opensource>1</arg_value:opensource>\n</tool_call:opensource>\n"
            "<tool_call:opensource>g<tool_sep:opensource>\n</tool_call:opensource>\n</tool_calls:opensource>",
        ),
        (
            "Solar Open",
            "<|tool_calls|><|tool_call:begin|>0000000000<|tool_call:name|>f<|tool_call:args|>"
            '{"a": 1}<|tool_call:end|><|tool_call:begin|>0000000001<|tool_call:name|>g<|tool_call:args|>{}<|tool_call:end|>',
        ),
        (
            "GigaChat 3.5",
            '<｜GCML｜tool_calls>\n<｜GCML｜invoke name="f">\n<｜GCML｜parameter name="a" string="false">1</｜GCML｜parameter>\n'
            '</｜GCML｜invoke>\n<｜GCML｜invoke name="g">\n</｜GCML｜invoke>\n</｜GCML｜tool_calls>',
        ),
        (
            "MiniMax-M2",
            '<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">1</parameter>\n</invoke>\n'
            '<invoke name="g">\n</invoke>\n</minimax:tool_call>',
        ),
        (
            "MiniMax-M1",
            '<tool_calls>\n{"name": "f", "arguments": {"a": 1}}\n{"name": "g", "arguments": {}}\n</tool_calls>',
        ),
        ("Gemma 4", "<|tool_call>call:f{a:1}<tool_call|><|tool_call>call:g{}<tool_call|>"),
        (
            "FunctionGemma",
            "<start_function_call>call:f{a:1}<end_function_call><start_function_call>call:g{}<end_function_call>",
        ),
        (
            "Phi-4-mini",
            '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]<|/tool_call|>',
        ),
        (
            "Kimi K2",
            '<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|>'
            "<|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        ),
        (
            "Command R7B, Command A",
            '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}},\n'
            '    {"tool_call_id": "1", "tool_name": "g", "parameters": {}}\n]<|END_ACTION|>',
        ),
        ("Functionary 3.2", 'f\n{"a": 1}>>>g\n{}'),
        ("MiniCPM3", "<|tool_call_start|>\n```python\nf(a=1)\ng()\n```\n<|tool_call_end|>"),
        ("LFM2", "<|tool_call_start|>[f(a=1), g()]<|tool_call_end|>"),
        ("Olmo 3", "<function_calls>\nf(a=1)\ng()\n</function_calls>"),
        (
            "Nemotron Nano, Llama Nemotron",
            '<TOOLCALL>[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]</TOOLCALL>',
        ),
        ("Apertus", '<|tools_prefix|>[{"f": {"a": 1}}, {"g": {}}]<|tools_suffix|>'),
        ("Llama 3.2, Llama 4, Gemma 3 and ToolACE with pythonic templates", "[f(a=1), g()]"),
    ]
    + [
        (
            name,
            '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
        )
        for name in ("qwen2.5", "qwen3", "hermes")
    ],
)
def test_written_calls_equal_the_families_documentation(name: str, text: str) -> None:
    assert style_of(name).calls.write([("f", '{"a": 1}'), ("g", "{}")]) == text
    assert style_of(name).taught is not name.startswith("generic")
    assert style_of(name).single is (name == "llama 3.1")


@pytest.mark.parametrize(
    "family", ["mistral-v3", "mistral-nemo", "qwen2.5", "qwen3", "hermes", "llama3.1-tools"]
)
def test_a_template_prints_calls_as_the_format_writes_them(family: str) -> None:
    templates = ChatTemplates({"default": TEMPLATES[family]}, {"bos_token": "<s>", "eos_token": "</s>"})
    style = AnswerFormat.of(templates, TOKENIZERS[False])
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"a": ["é"]}}}
    tools = [
        {
            "type": "function",
            "function": {"name": "f", "description": "", "parameters": NOTHING | {"properties": {}}},
        }
    ]
    text = templates.render(
        [
            {"role": "user", "content": "?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "!"},
        ],
        tools,
    )
    written = style.calls.write([("f", '{"a": ["é"]}')])
    assert written.removesuffix("}]") in text


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("all\nNo.", "No.", []),
        ("all\n>>> 1 + 1\n2", ">>> 1 + 1\n2", []),
        ("all\nI look.\n>>>get\n{}", "I look.", [("get", "{}")]),
        ('get\n{}>>>weather-2\n{"a": 1}', "", [("get", "{}"), ("weather-2", '{"a": 1}')]),
        ("No.", "No.", []),
        ("get", "get", []),
        ("all", "all", []),
    ],
)
def test_recipients_of_functionary(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    """What is said to `all` is text, after which calls may follow."""
    style = style_of("Functionary 3.2")
    for pieces in ways_to_cut(text, 0):
        assert read(style, pieces) == (content, calls)
    if not calls:  # a request without tools
        without = AnswerFormat.of(
            ChatTemplates({"default": TOOL_TEMPLATES["Functionary 3.2"]}, {}), TOKENIZERS[False], False
        )
        for pieces in ways_to_cut(text, 1):
            assert read_all(without, "none", pieces)[1:] == (content, [])
    answer = style.grammar([], text=GrammarSpec("regex", "No[.]"))
    assert walk(answer or GrammarSpec("regex", ""), 0, special=False) == "all\nNo."


class Lines(ToolFormat):
    """A format of another shape: a line `!NAME` and a line `KEY=INTEGER` for each argument."""

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        return "".join(
            f"!{name}\n" + "".join(f"{key}={value}\n" for key, value in json.loads(rest).items())
            for name, rest in calls
        )

    def rules(self, tools: Sequence[Tool], literal: Callable[[str], str], **_options: bool) -> Iterator[str]:
        yield "calls: " + " | ".join(f"call_{number}" for number in range(len(tools)))
        yield r"INTEGER: /-?[0-9]{1,3}/"
        for number, tool in enumerate(tools):
            keys = [
                f"{literal(key + '=')} INTEGER {literal(chr(10))}" for key in tool.parameters["properties"]
            ]
            yield f"call_{number}: {literal(tool.name + chr(10))} {' '.join(keys)}"

    def parser(self, _tools: Sequence[Tool] = ()) -> ToolCallParser:
        return LinesParser(self)


class LinesParser(ToolCallParser):
    def __init__(self, style: ToolFormat) -> None:
        super().__init__(style)
        self._lines = ""

    def feed(self, text: str) -> list[str | CallDelta]:
        self._lines += text
        return []

    def end(self) -> list[str | CallDelta]:
        name, *lines = self._lines.removeprefix("!").splitlines()
        values = {key: int(value) for key, value in (line.split("=") for line in lines)}
        return [CallDelta(0, "a1b2c3d4e", name, ""), CallDelta(0, None, None, json.dumps(values))]


def test_a_format_of_another_shape_overrides_its_methods() -> None:
    style = AnswerFormat(calls=Lines(mark="!"))
    tool = Tool("add", None, {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}})
    for seed in range(5):
        text = walk(grammar(style, [tool], required=True), seed, special=False)
        assert text is not None
        assert text.startswith("!add\na=")
        content, calls = read(style, list(text))
        assert content == ""
        assert sorted(json.loads(calls[0][1])) == ["a", "b"]
        assert style.calls.write([(name, rest) for name, rest in calls]).count("\n") == 3


@both_kinds
@pytest.mark.parametrize(
    "spec",
    [
        GrammarSpec("json", json.dumps({"const": "a<tool_call>b</s>c"})),
        GrammarSpec("regex", "a<tool_call>b</s>c"),
        GrammarSpec("lark", 'start: "a<tool_call>b</s>c"'),
    ],
)
def test_text_that_must_come_is_spelt_even_where_it_looks_like_a_special_token(
    spec: GrammarSpec, special: bool
) -> None:
    """llguidance would force `<tool_call>`, which it then does not accept, and `</s>`, which ends the text."""
    texts = {walk(spec, seed, special=special) for seed in range(3)}
    assert {text.strip('"') for text in texts if text is not None} == {"a<tool_call>b</s>c"}
