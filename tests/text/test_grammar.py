"""Masks against independent judges: jsonschema, regex, and the texts that tokens make."""

import codecs
import json
import random
from typing import Any

import pytest
import regex

from tgi.text.grammar import MAX_SOURCE, GrammarCompiler, GrammarError, GrammarSpec
from tgi.text.tokenizer import Tokenizer

from .matching import (
    END,
    VOCABULARY,
    accepts,
    allowed,
    byte_tokens,
    compiled,
    demo_compiler,
    demo_tokenizer,
    validate,
    walk,
)
from .random_grammars import random_regex, random_schema
from .tokenizers_of_all_kinds import ALL, SPECIAL

OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
    "required": ["a"],
}


TGIS_REGEX = (
    r'\{[ ]?"a"[ ]?:[ ]?"([^"\\\x00-\x1F\x7F-\x9F]|\\["\\])*"'
    r'([ ]?,[ ]?"b"[ ]?:[ ]?(-)?(0|[1-9][0-9]*))?[ ]?\}'
)


@pytest.mark.contract("R2.52", "12.6")
def test_json_has_at_most_one_space_and_only_listed_properties() -> None:
    for text in ('{"a":"x"}', '{ "a" : "x" , "b" : 1 }', '{"a":"x","b":-0}'):
        assert accepts("json", OBJECT, text)
    for text in (
        '{  "a":"x"}',
        '{"a":"x"} ',
        '{\n"a":"x"}',
        '{"a":"x","c":1}',
        '{"b":1,"a":"x"}',
        '{"b":1}',
        "{}",
    ):
        assert not accepts("json", OBJECT, text)


@pytest.mark.contract("12.6")
@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("^abc$", ["abc"], ["xabc", "abcd", ""]),
        ("^a|b$", ["a", "b"], ["ab"]),
        ("a/b\n", ["a/b\n"], ["a/b"]),
        ('[^"]*', ["", "é\n"], ['"']),
        (r"((25[0-5]|2[0-4]\d|[01]?\d\d?)\.){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)", ["127.0.0.1"], ["256.0.0.1"]),
        # What TGI makes of the schema above (12.6).
        (
            TGIS_REGEX,
            ['{"a":"x"}', '{ "a" : "x" , "b" : 1 }', '{"a":"x","b":-0}'],
            ['{  "a":"x"}', '{"a":"x"} ', '{\n"a":"x"}', '{"a":"x","c":1}', '{"b":1}', "{}"],
        ),
    ],
)
def test_regex_matches_the_whole_text(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [text for text in yes if not accepts("regex", pattern, text)] == []
    assert [text for text in no if accepts("regex", pattern, text)] == []


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"\d{5}-\d{4}", ["36007-9721"], ["40004-𐴹204", "٣٦٠٠٧-٩٧٢١"]),
        (r"\w+", ["aZ_9"], ["é", "日"]),
        (r"[^\W\d]", ["a"], ["1", "é"]),
        (r"a\sb", ["a b", "a\tb"], ["a\u2003b"]),
        (r"\D", ["a", "é"], ["1"]),
        (r"\(?x\)?", ["x", "(x)"], ["y"]),
    ],
)
def test_classes_of_a_regex_are_ascii(pattern: str, yes: list[str], no: list[str]) -> None:
    """As in TGI, whose engine is interegular."""
    assert [text for text in yes + no if accepts("regex", pattern, text)] == yes


@pytest.mark.parametrize(
    ("kind", "source", "error"),
    [
        ("regex", "(a", "unclosed group"),
        ("regex", "a(?=b)", "look-around, including look-ahead and look-behind, is not supported"),
        ("regex", "(?x) a # b", "the flag `x` of regular expressions is not supported"),
        ("regex", "a(?i-x)(?sx:b)", "the flag `x` of regular expressions is not supported"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", r"\bword", "lookarounds not supported yet; WordUnicode in regex"),
        (
            "regex",
            "a" * (MAX_SOURCE["regex"] + 1),
            "it is too large: 65537 characters, and at most 65536 are",
        ),
        ("regex", "\ud800", "surrogates not allowed"),
        ("json", "{", "the schema is not JSON: Expecting property name"),
        ("json", "[1]", "a schema must be an object or a boolean"),
        ("json", "false", "the schema `false` allows nothing"),
        ("json", "[" * 100_000, "the schema is nested more than 64 deep"),
        ("json", {"type": "strin"}, '`type` at the root: "strin" is not a type'),
        (
            "json",
            {"properties": {"a": {"minLength": "1"}}},
            "`minLength` at properties/a: it must be an integer",
        ),
        ("json", {"required": "a"}, "`required` at the root: it must be a list of names"),
        ("json", {"items": {"uniqueItems": True}}, "`uniqueItems` at items: items can be told"),
        ("json", {"$ref": "#/$defs/none"}, "`$ref` at the root: the schema has no `#/$defs/none`"),
        (
            "json",
            {"$ref": "http://x/y"},
            "`http://x/y` is in no part of this schema, and nothing is downloaded",
        ),
        ("json", {"$ref": "#"}, "no text obeys it"),
        ("json", {"type": "string", "minLength": 2, "maxLength": 1}, "Unsatisfiable schema"),
        ("json", {"type": "string", "pattern": "("}, "`pattern` at the root: `(`, a `(` is not closed"),
        ("json", '{"minimum": NaN}', "the schema is not JSON: NaN is no number"),
        ("lark", "start: other", 'unknown name: "other"'),
        ("lark", 'start: %json {"type": "strin"}', "Invalid type: strin"),
    ],
)
def test_invalid_grammar_is_named_in_one_line(kind: str, source: Any, error: str) -> None:
    with pytest.raises(GrammarError) as raised:
        compiled(kind, source)
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_end_token_is_allowed_where_the_text_may_end() -> None:
    matcher = compiled("regex", "a?b*c{1}")
    for text, may, must in (("a", False, False), ("b", False, False), ("c", True, True)):
        matcher.advance(byte_tokens()[text.encode()])
        assert (END in allowed(matcher), allowed(matcher) == [END]) == (may, must)
    matcher.advance(END)
    assert allowed(matcher) == [END]
    matcher = compiled("regex", "ab*")
    matcher.advance(byte_tokens()[b"a"])
    assert {END, byte_tokens()[b"b"]} <= set(allowed(matcher))
    matcher.advance(END)
    assert allowed(matcher) == [END]


def test_token_outside_the_mask_is_refused() -> None:
    matcher = compiled("regex", "ab")
    for token in (END, byte_tokens()[b"x"]):
        with pytest.raises(GrammarError, match=r"may not come here|doesn't satisfy the grammar"):
            matcher.fork().advance(token)
    matcher.advance(byte_tokens()[b"a"])
    assert allowed(matcher) == [byte_tokens()[b"b"]]


def test_forks_are_independent() -> None:
    first = compiled("regex", "(a|b)(a|b)c?")
    second = first.fork()
    first.advance(byte_tokens()[b"a"])
    assert second.mask != first.mask
    second.advance(byte_tokens()[b"b"])
    assert second.mask == first.mask


@pytest.mark.parametrize("vocab_size", [1000, 4090, 4096, 4100, 5000])
def test_mask_has_the_size_of_the_models_vocabulary(vocab_size: int) -> None:
    """The vocabulary may be smaller than the tokenizer's, or larger."""
    matcher = demo_compiler(vocab_size).compile(GrammarSpec("regex", "(?s:.*)"))
    assert len(matcher.mask) == 4 * -(-vocab_size // 32)
    table = demo_tokenizer().bytes_of
    assert table is not None
    texts = [
        token
        for token in range(min(vocab_size, VOCABULARY))
        if token not in demo_tokenizer().special_ids and begins_utf8(table[token])
    ]
    assert allowed(matcher) == [END, *texts]


def begins_utf8(data: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def test_grammar_without_tokens_of_a_smaller_model_is_refused() -> None:
    names = [token for token in range(256, VOCABULARY) if demo_tokenizer().decode([token]) == " the"]
    word = demo_tokenizer().decode(names[:1])
    with pytest.raises(GrammarError, match="no token of the model continues the text"):
        demo_compiler(names[0]).compile(GrammarSpec("lark", f"start: <[{names[0]}]>"))
    assert word == " the"


def test_special_tokens_never_match_as_text() -> None:
    """Tokens count that only other files than tokenizer.json name; several may end a text."""
    core = ALL["byte_level"]()
    word = core.token_to_id("two words")
    tokenizer = Tokenizer(core, [core.token_to_id("<|tool|>")], [END, word])
    matcher = GrammarCompiler(tokenizer, 450).compile(GrammarSpec("regex", "two words|<.*>"))
    assert not {END, word, *map(core.token_to_id, SPECIAL)} & set(allowed(matcher))
    matcher = GrammarCompiler(tokenizer, 450).compile(GrammarSpec("regex", ""))
    assert allowed(matcher) == sorted([END, word])


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_generated_text_obeys_for_both_kinds_of_tokenizers(kind: str) -> None:
    core = ALL[kind]()
    compiler = GrammarCompiler(Tokenizer(core, [], [END]), core.get_vocab_size())
    pattern = r'The [é日😀 a-z]{1,9} fox(es)? "\d"\n'
    before = core.encode("x", add_special_tokens=False).ids
    start = len(core.decode(before, skip_special_tokens=False))
    for seed in range(10):
        tokens = walk(compiler.compile(GrammarSpec("regex", pattern)), random.Random(seed), 200)
        assert tokens is not None
        text = core.decode(before + tokens, skip_special_tokens=False)[start:]
        assert regex.fullmatch(pattern, text)


@pytest.mark.parametrize("kind", ["metaspace", "word_piece", "with_a_word_end"])
def test_tokenizer_that_cannot_spell_every_byte_is_refused(kind: str) -> None:
    core = ALL[kind]()
    compiler = GrammarCompiler(Tokenizer(core, [], [END]), core.get_vocab_size())
    with pytest.raises(GrammarError, match="this model's tokenizer cannot be constrained"):
        compiler.compile(GrammarSpec("regex", "a"))


def test_model_without_an_end_token_is_refused() -> None:
    core = ALL["byte_level"]()
    with pytest.raises(GrammarError, match="no token that ends a text"):
        GrammarCompiler(Tokenizer(core, [], [5000]), 450).compile(GrammarSpec("regex", "a"))


def test_finished_walks_through_500_random_schemas_validate() -> None:
    finished = 0
    for seed in range(500):
        rng = random.Random(seed)
        schema = random_schema(rng)
        tokens = walk(compiled("json", schema), rng, 400, closes=True)
        if tokens is None:
            continue
        finished += 1
        validate(demo_tokenizer().decode(tokens), schema)
    assert finished > 450


def test_finished_walks_through_150_random_schemas_in_any_order_validate() -> None:
    finished = 0
    for seed in range(150):
        rng = random.Random(seed)
        schema = random_schema(rng, closed=True)
        matcher = demo_compiler().compile(GrammarSpec("json", json.dumps(schema), lenient=True))
        tokens = walk(matcher, rng, 400, closes=True)
        if tokens is not None:
            finished += 1
            validate(demo_tokenizer().decode(tokens), schema)
    assert finished > 120


def test_finished_walks_through_200_random_regexes_match() -> None:
    finished = 0
    for seed in range(200):
        rng = random.Random(seed)
        pattern = random_regex(rng)
        tokens = walk(compiled("regex", pattern), rng, 400)
        if tokens is None:
            continue
        finished += 1
        assert regex.fullmatch(pattern, demo_tokenizer().decode(tokens)), (pattern, tokens)
    assert finished > 190
