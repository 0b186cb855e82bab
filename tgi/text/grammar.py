"""Grammars that constrain a text: JSON schemas, regular expressions, Lark.

Wraps llguidance, which releases the GIL while it compiles and computes masks. A hostile grammar can keep
`compile` busy for minutes, or end the process by a stack overflow, which no limit of the library prevents.
`grammar_trial` tries a grammar in another process first.
"""

import functools
import re
import threading
from collections.abc import Iterable, Mapping
from typing import Literal

import attrs
import llguidance

from .gbnf import is_gbnf, lark_of_gbnf
from .json_schema import GrammarError, SchemaTerm, read_schema
from .relaxing import Expansion
from .tokenizer import Tokenizer

__all__ = ["GrammarCompiler", "GrammarError", "GrammarSpec", "Matcher"]

MAX_SOURCE = {"regex": 65_536, "ebnf": 65_536, "json": 1_048_576, "lark": 4_194_304}
"""Maximum characters of a source by kind. Lark grammars are ours, with the schemas of all tools in them."""
_LIMITS = llguidance.LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
"""Limits of a matcher: a lexer state takes 1 to 2 kB; the library's defaults allow about 20 ms for a mask."""
_MAX_MESSAGE = 300
"""Maximum characters of a library's error message that are shown."""


@attrs.frozen
class GrammarSpec:
    """The source of a grammar that a whole text must obey."""

    kind: Literal["json", "regex", "ebnf", "lark"]
    source: str
    """A JSON schema as JSON text, a regular expression in Rust's syntax, a client's grammar in GBNF or
    Lark, or a Lark grammar of llguidance.

    In a grammar of `kind` lark, `SchemaTerm`s stand for JSON that obeys schemas.
    """
    lenient: bool = False
    """Whether a JSON schema is taken as it is: objects are open, with properties in any order.

    What cannot be enforced is left out, with a remark.
    """

    @property
    def term(self) -> SchemaTerm:
        """The JSON schema as a term of a Lark grammar. Raises GrammarError."""
        strict = not self.lenient
        schema = read_schema(self.source)
        return SchemaTerm(schema=schema, lenient=self.lenient, closed=strict, ordered=strict)


@functools.lru_cache(maxsize=4)
def tokens_that_are_no_text(tokenizer: Tokenizer) -> Mapping[str, int]:
    """Return tokens that llguidance matches by id only: special ones, and added ones like `<this>`."""
    special = tokenizer.special_ids | tokenizer.eos_ids
    names = {token: tokenizer.decode_alone(token) for token in special | tokenizer.added_ids}
    return {
        name: token
        for token, name in names.items()
        if name and (token in special or (name.startswith("<") and name.endswith(">")))
    }


def lark_of(source: str) -> str:
    """Return a client's grammar, in llama.cpp's GBNF or in Lark, as Lark. Raises GrammarError."""
    lark = lark_of_gbnf(source) if is_gbnf(source) else re.sub(r"^%llguidance.*", "", source, flags=re.M)
    return lark.replace(SchemaTerm.SIGN, "%schema ")


class GrammarCompiler:
    """Compiles grammars for the tokens of one model. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Make a compiler of masks of `vocab_size` tokens; the tokenizer may have fewer tokens, or more."""
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._core: llguidance.LLTokenizer | None = None
        self.vocab_size = vocab_size
        """Number of tokens of the model."""
        self.ends = sorted(token for token in tokenizer.eos_ids if token < vocab_size)

    def compile(self, spec: GrammarSpec) -> "Matcher":
        """Compile a grammar. Blocks; the first call reads the whole vocabulary. Raises GrammarError."""
        if (size := len(spec.source)) > (limit := MAX_SOURCE[spec.kind]):
            raise GrammarError(f"it is too large: {size} characters, and at most {limit} are allowed")
        core = self._tokens()
        if spec.kind == "regex":
            expansion = Expansion.of(f"start: {regex_term(spec.source)}")
        else:
            lark = lark_of(spec.source) if spec.kind == "ebnf" else spec.source
            expansion = Expansion.of(f"start: {spec.term}" if spec.kind == "json" else lark)
        matcher = self._compiled(core, expansion.grammar)
        if matcher.is_error() and expansion.terms:
            expansion.relax(lambda grammar: self._problem(core, grammar))
            matcher = self._compiled(core, expansion.grammar)
        ends = mask_of(self.ends, self.vocab_size), frozenset(self.ends)
        return Matcher(matcher, self.vocab_size, *ends, tuple(expansion.remarks))

    def _compiled(self, core: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
        if any(name in grammar for name in tokens_that_are_no_text(self._tokenizer)):
            # Where only one text may follow, llguidance would force tokens that it then does not accept.
            grammar = '%llguidance {"no_forcing": true}\n' + grammar
        return llguidance.LLMatcher(core, grammar, log_level=0, limits=_LIMITS)

    @staticmethod
    def _problem(core: llguidance.LLTokenizer, grammar: str) -> str:
        """Return why a Lark grammar cannot be compiled, in one line; "" if it can."""
        problem = llguidance.LLMatcher.validate_grammar(grammar, core, limits=_LIMITS)
        return _one_line(problem) if problem else ""

    def tokenizer_json(self) -> str:
        """Return the text of tokenizer.json, for a compiler in another process."""
        return self._tokenizer.to_json()

    def load(self) -> None:
        """Read the vocabulary, holding the GIL. Raises GrammarError."""
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
    """Follows one text. Not safe to use from two threads at once."""

    def __init__(
        self,
        core: llguidance.LLMatcher,
        vocab_size: int,
        ends_mask: bytes,
        ends: frozenset[int],
        remarks: tuple[str, ...],
    ) -> None:
        self._core = core
        self._vocab_size = vocab_size
        self._ends_mask = ends_mask
        self._ends = ends
        self.remarks = remarks
        """Demands of its schemas that the text need not obey, a sentence each."""
        self.mask = self._compute()
        """Tokens that may come next, as bits of little-endian uint32 words: bit i is token i of the model.

        Tokens that end a text are set where it may end; no others are set where it must.
        """

    def advance(self, token: int) -> None:
        """Take the next token and compute the mask after it. Blocks for milliseconds at most.

        Raises GrammarError if `token` is not allowed, no token can follow it, or finding them takes too long.
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
        """Return an independent copy."""
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


def mask_of(tokens: Iterable[int], vocab_size: int) -> bytes:
    """Return a mask of these tokens, as `Matcher.mask` is one; those that the model does not know are out."""
    mask = bytearray(4 * ((vocab_size + 31) // 32))
    for token in tokens:
        if token < vocab_size:
            mask[token >> 3] |= 1 << (token & 7)
    return bytes(mask)


_FLAGS = re.compile(r"\\.|\(\?([a-zA-Z]*)", re.DOTALL)


def regex_term(pattern: str) -> str:
    r"""Return the term of a Lark grammar for a regular expression; `\d`, `\w` and `\s` are ASCII as in TGI.

    Raises GrammarError.
    """
    if any("x" in (match[1] or "") for match in _FLAGS.finditer(pattern)):
        raise GrammarError("the flag `x` of regular expressions is not supported")
    try:
        return f"/(?:{llguidance.regex_to_lark(pattern, 'dws')})/"
    except ValueError as error:
        raise GrammarError(str(error)) from error


_NO_TEXT = ("NoExtension", "NoExtensionBias")
"""Messages of llguidance for a grammar that no text obeys."""
_WHERE = re.compile(
    r'^at \d+\(\d+\): (?:failed to compile JSON schema: |invalid regex ".*" \(in regex\): )?', re.DOTALL
)


def _one_line(message: str) -> str:
    """Return the line that names the problem in a message of llguidance, which may be a drawing."""
    match = re.search(r"^error: (.*)$", message, re.MULTILINE)
    line = match[1] if match else _WHERE.sub("", message).partition("\n")[0].strip()
    if line in _NO_TEXT:
        return "no text obeys it"
    if line.startswith("panic:"):
        return "it is too large"
    return line if len(line) <= _MAX_MESSAGE else line[:_MAX_MESSAGE] + " …"
