"""Constrained text: which tokens may come next under a JSON schema, a regular expression or a Lark grammar.

Wraps llguidance, which releases the GIL while it compiles and computes masks. Knows no HTTP and no device: a
mask is bytes. A hostile grammar can keep `compile` busy for minutes or end the process by a stack overflow,
which no limit of the library prevents; `grammar_trial` is for finding that out in another process.
"""

import functools
import json
import re
import threading
from collections.abc import Mapping
from typing import Any, Literal

import attrs
import llguidance

from .json_schema import GrammarError, prepare_schema, read_schema
from .tokenizer import Tokenizer

__all__ = ["GrammarCompiler", "GrammarError", "GrammarSpec", "Matcher"]

MAX_SOURCE = {"regex": 65_536, "json": 1_048_576, "lark": 4_194_304}
"""Characters; a Lark grammar is ours, with the schemas of all tools in it."""
_LIMITS = llguidance.LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
"""A state takes 1 to 2 kB. The other limits are the library's: some 20 ms of work for a mask at the most."""
_LONGEST_MESSAGE = 300


@attrs.frozen
class GrammarSpec:
    """What a text must obey."""

    kind: Literal["json", "regex", "lark"]
    source: str
    """A JSON schema as JSON; a regular expression in Rust's syntax, of the whole text; llguidance's Lark."""


@functools.lru_cache(maxsize=4)
def tokens_that_are_no_text(tokenizer: Tokenizer) -> Mapping[str, int]:
    """Tokens that llguidance matches by their ids only: special ones, and all added ones like `<this>`."""
    special = tokenizer.special_ids | tokenizer.eos_ids
    names = {token: tokenizer.decode_alone(token) for token in special | tokenizer.added_ids}
    return {
        name: token
        for token, name in names.items()
        if name and (token in special or (name.startswith("<") and name.endswith(">")))
    }


class GrammarCompiler:
    """Compiles grammars for the tokens of one model. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size`: of the model; the tokenizer may have fewer tokens, or more."""
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._core: llguidance.LLTokenizer | None = None
        self.vocab_size = vocab_size
        self.ends = sorted(token for token in tokenizer.eos_ids if token < vocab_size)

    def compile(self, spec: GrammarSpec) -> "Matcher":
        """Blocking: the first call reads the whole vocabulary. Raises GrammarError."""
        if (size := len(spec.source)) > (limit := MAX_SOURCE[spec.kind]):
            raise GrammarError(f"it is too large: {size} characters, and at most {limit} are allowed")
        core = self._tokens()
        if spec.kind == "json":
            schema = json.dumps(prepare_schema(read_schema(spec.source)), ensure_ascii=False)
            grammar = f"start: %json {schema}"
        elif spec.kind == "regex":
            made = _called(llguidance.LLMatcher.grammar_from_regex, spec.source)
            grammar = json.loads(made)["grammars"][0]["lark_grammar"]
        else:
            grammar = spec.source
        if any(name in grammar for name in tokens_that_are_no_text(self._tokenizer)):
            # Where only one text may follow, llguidance would have it in tokens that it then does not take.
            grammar = '%llguidance {"no_forcing": true}\n' + grammar
        matcher = llguidance.LLMatcher(core, grammar, log_level=0, limits=_LIMITS)
        return Matcher(matcher, self.vocab_size, _mask_of(self.ends, self.vocab_size), frozenset(self.ends))

    def tokenizer_json(self) -> str:
        """The tokenizer as tokenizer.json, for a compiler in another process."""
        return self._tokenizer.to_json()

    def load(self) -> None:
        """Read the vocabulary now; it holds the GIL. Raises GrammarError."""
        self._tokens()

    def _tokens(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._core is None:
                self._core = self._load()
            return self._core

    def _load(self) -> llguidance.LLTokenizer:
        if not self.ends:
            raise GrammarError("the model has no token that ends a text")
        size = max(self.vocab_size, self._tokenizer.vocab_size)
        try:
            return llguidance.LLTokenizer(self._tokenizer.to_json(), n_vocab=size, eos_token=self.ends)
        except ValueError as error:
            raise GrammarError(f"this model's tokenizer cannot be constrained: {error}") from error


class Matcher:
    """Follows one text. Not to be used by two threads at once."""

    def __init__(
        self, core: llguidance.LLMatcher, vocab_size: int, ends_mask: bytes, ends: frozenset[int]
    ) -> None:
        self._core = core
        self._vocab_size = vocab_size
        self._ends_mask = ends_mask
        self._ends = ends
        self.mask = self._compute()
        """Which tokens may come next: bit i of little-endian uint32 words is token i, up to the model's last.
        The tokens that end a text are allowed where it may end, and nothing else where it must."""

    def advance(self, token: int) -> None:
        """Take the next token, and compute the mask after it. Blocking; milliseconds at the most.

        Raises GrammarError when no token can follow, or when to find them takes too much work.
        """
        if token in self._ends:
            if self.mask != self._ends_mask and not self._core.is_accepting():
                raise GrammarError(f"token {token} may not come here")
            self.mask = self._ends_mask
        elif self._core.consume_token(token):
            self.mask = self._compute()
        else:
            raise GrammarError(_one_line(self._core.get_error()) or f"token {token} may not come here")

    def fork(self) -> "Matcher":
        """Another one that has come as far."""
        copy = object.__new__(Matcher)
        copy.__dict__.update(self.__dict__, _core=self._core.deep_copy())
        return copy

    def _compute(self) -> bytes:
        mask = b"" if self._core.is_error() else self._core.compute_bitmask()
        if self._core.is_error():
            raise GrammarError(_one_line(self._core.get_error()))
        words, beyond = divmod(self._vocab_size, 32)
        size = 4 * (words + (beyond > 0))
        if beyond:
            last = int.from_bytes(mask[size - 4 : size], "little") & ((1 << beyond) - 1)
            mask = mask[: size - 4] + last.to_bytes(4, "little")
        mask = mask[:size]
        if not any(mask):
            raise GrammarError("no token of the model continues the text")
        return mask


def _called(function: Any, *arguments: Any, **named: Any) -> Any:
    """What a function of the library returns. Raises GrammarError where it raises ValueError."""
    try:
        return function(*arguments, **named)
    except ValueError as error:
        raise GrammarError(_one_line(str(error))) from error


def _mask_of(tokens: list[int], vocab_size: int) -> bytes:
    bits = 0
    for token in tokens:
        bits |= 1 << token
    return bits.to_bytes(4 * ((vocab_size + 31) // 32), "little")


_NO_TEXT = ("NoExtension", "NoExtensionBias")
_WHERE = re.compile(
    r'^at \d+\(\d+\): (?:failed to compile JSON schema: |invalid regex ".*" \(in regex\): )?', re.DOTALL
)


def _one_line(message: str) -> str:
    """The line of a message that names the problem; those about regexes are drawings."""
    found = re.search(r"^error: (.*)$", message, re.MULTILINE)
    line = found[1] if found else _WHERE.sub("", message).partition("\n")[0].strip()
    if line in _NO_TEXT:
        return "no text obeys it"
    if line.startswith("panic:"):
        return "it is too large"
    return line if len(line) <= _LONGEST_MESSAGE else line[:_LONGEST_MESSAGE] + " …"
