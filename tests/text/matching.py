"""Grammars on the tokens of the demo model, and independent judges of the texts that obey them."""

import datetime
import json
import random
from functools import cache
from typing import Any

import jsonschema

from tgi.config import DEMO_MODEL
from tgi.text.grammar import GrammarCompiler, GrammarError, GrammarSpec, Matcher
from tgi.text.tokenizer import Tokenizer

VOCABULARY = 4096
END = 1
FORMATS = jsonschema.FormatChecker(("date", "ipv4", "ipv6", "uuid", "email"))


@FORMATS.checks("date-time", raises=ValueError)
def is_date_time(value: object) -> bool:
    return not isinstance(value, str) or bool(datetime.datetime.fromisoformat(value.upper()))


@FORMATS.checks("time", raises=ValueError)
def is_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.time.fromisoformat(value.upper()) is not None


@cache
def demo_tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO_MODEL)


@cache
def demo_compiler(vocab_size: int = VOCABULARY) -> GrammarCompiler:
    return GrammarCompiler(demo_tokenizer(), vocab_size)


def compiled(kind: str, source: Any) -> Matcher:
    text = source if isinstance(source, str) else json.dumps(source)
    return demo_compiler().compile(GrammarSpec(kind, text))  # type: ignore[arg-type]


def allowed(matcher: Matcher) -> list[int]:
    bits = int.from_bytes(matcher.mask, "little")
    return [token for token in range(8 * len(matcher.mask)) if bits >> token & 1]


@cache
def byte_tokens() -> dict[bytes, int]:
    table = demo_tokenizer().bytes_of
    assert table is not None
    return {table[token]: token for token in reversed(range(VOCABULARY))}


def accepts(kind: str, source: Any, text: str) -> bool:
    """Return whether a grammar accepts a whole text, spelt in single bytes."""
    matcher = compiled(kind, source)
    try:
        for byte in text.encode():
            matcher.advance(byte_tokens()[bytes([byte])])
    except GrammarError:
        return False
    return END in allowed(matcher)


def walk(matcher: Matcher, rng: random.Random, tokens: int, *, closes: bool = False) -> list[int] | None:
    """Return a random text of fewer than `tokens`, or None if it did not end. `closes`: end strings often."""
    generated: list[int] = []
    while len(generated) < tokens:
        choice = allowed(matcher)
        if END in choice and (len(choice) == 1 or rng.random() < 0.3):
            return generated
        quote = byte_tokens()[b'"'] if closes else -1
        token = quote if quote in choice and rng.random() < 0.2 else rng.choice(list(set(choice) - {END}))
        matcher.advance(token)
        generated.append(token)
    return None


def validate(text: str, schema: Any) -> None:
    """Raise ValueError or jsonschema.ValidationError for a text that does not obey a schema."""
    jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(json.loads(text))
