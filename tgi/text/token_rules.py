"""Rules about single tokens: those that alone may come, and sequences that may not.

They follow one text as a grammar's matcher does, and hold beside one.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, Self

from .grammar import GrammarError, mask_of
from .tokenizer import Tokenizer


class _Matcher(Protocol):
    @property
    def mask(self) -> bytes: ...

    def advance(self, token: int) -> None: ...

    def fork(self) -> Self: ...


class TokenRules:
    """Follows one text. Not safe to use from two threads at once."""

    def __init__(
        self,
        vocab_size: int,
        *,
        allowed: Iterable[int] | None = None,
        barred: Iterable[Sequence[int]] = (),
        matcher: _Matcher | None = None,
    ) -> None:
        """Allow these tokens, or all if None, but none that completes one of the sequences `barred`.

        `matcher` holds the text to a grammar beside. Raises GrammarError if no token can begin a text.
        """
        self._vocab_size = vocab_size
        self._allowed = (1 << vocab_size) - 1 if allowed is None else _bits(allowed, vocab_size)
        self._barred = [tuple(sequence) for sequence in barred if sequence]
        self._matcher = matcher
        self._last: tuple[int, ...] = ()
        """The last tokens of the text, as many as decide about the next."""
        self._memory = max((len(sequence) for sequence in self._barred), default=1) - 1
        self.mask = self._compute()
        """Tokens that may come next, as those of `tgi.text.grammar.Matcher`."""

    def advance(self, token: int) -> None:
        """Take the next token. Raises GrammarError if none can follow it."""
        if self._matcher is not None:
            self._matcher.advance(token)
        if self._memory:
            self._last = (*self._last, token)[-self._memory :]
        if self._memory or self._matcher is not None:
            self.mask = self._compute()

    def fork(self) -> "TokenRules":
        """Return an independent copy."""
        copy = object.__new__(TokenRules)
        matcher = None if self._matcher is None else self._matcher.fork()
        copy.__dict__.update(self.__dict__, _matcher=matcher)
        return copy

    def _compute(self) -> bytes:
        ended = {
            sequence[-1]
            for sequence in self._barred
            if len(sequence) == 1 or self._last[1 - len(sequence) :] == sequence[:-1]
        }
        mask = self._allowed & ~_bits(ended, self._vocab_size)
        if self._matcher is not None:
            mask &= int.from_bytes(self._matcher.mask, "little")
        if not mask:
            raise GrammarError("no token that is allowed continues the text")
        return mask.to_bytes(4 * ((self._vocab_size + 31) // 32), "little")


def _bits(tokens: Iterable[int], vocab_size: int) -> int:
    return int.from_bytes(mask_of(tokens, vocab_size), "little")


def spellings(word: str, tokenizer: Tokenizer) -> list[list[int]]:
    """Return the tokens of a word where a text begins with it, and where it follows a space.

    Raises TokenizerError.
    """
    texts = dict.fromkeys((word, word.lstrip(), " " + word.lstrip()))
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]
