"""Incremental decoding: token ids to text, one at a time, as they are generated (tgi-behaviour 5.9).

Let P be the text of the tokens from `prefix` to `read`, and N that of all tokens from `prefix`. By definition
a new token adds N[len(P):], or nothing while N ends in U+FFFD (an incomplete character) or is no longer than
P. Two short cuts give the same text without decoding. For byte-level tokenizers, the bytes of tokens are
joined here. For others, a token that adds the same to any text is looked up.
"""

from .tokenizer import Tokenizer

CONTEXT = 5
"""Number of tokens of the prompt that precede the first generated token when it is decoded."""
_INCOMPLETE = "\ufffd"


class Detokenizer:
    """Decodes the generated tokens of one sequence."""

    __slots__ = ("_ids", "_pending", "_prefix", "_prompt", "_read", "_skip", "_texts_of", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, prompt_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = prompt_ids[-CONTEXT:]
        """The last tokens of the prompt and all generated tokens."""
        self._prompt = self._read = len(self._ids)
        self._prefix = 0
        self._texts_of = tokenizer.texts_of
        self._pending = b""
        """Bytes for which no text was returned; byte-level tokenizers only."""
        self._skip = 0
        """Number of characters of the decoded `_pending` that belong to the prompt."""
        if self._texts_of is not None:
            tail = b"".join(map(self._texts_of.bytes_of.__getitem__, self._ids))
            text = tail.decode(errors="replace")
            if text.endswith(_INCOMPLETE):
                self._pending, self._skip = tail, len(text)

    def append(self, token: int) -> str:
        """Return the text that a token adds; "" while a character is incomplete."""
        self._ids.append(token)
        if self._texts_of is not None:
            if not self._pending and (text := self._texts_of[token]):
                return text
            self._pending += self._texts_of.bytes_of[token]
            text = self._pending.decode(errors="replace")
            if len(text) <= self._skip or text[-1] == _INCOMPLETE:
                return ""
            text = text[self._skip :]
            self._pending, self._skip = b"", 0
            return text
        return self._append_generic(token)

    def _append_generic(self, token: int) -> str:
        size = len(self._ids)
        pieces = self._tokenizer.pieces
        if pieces is not None and self._prompt < self._read == size - 1 and (text := pieces[token]):
            self._prefix, self._read = self._read, size
            return text
        before = self._tokenizer.decode(self._ids[self._prefix : self._read])
        now = self._tokenizer.decode(self._ids[self._prefix :])
        if len(now) <= len(before) or now.endswith(_INCOMPLETE):
            return ""
        self._prefix, self._read = self._read, size
        return now[len(before) :]

    def text(self, *, leave_out_last: bool = False) -> str:
        """Return the generated text without special tokens (S61) and without an incomplete last character.

        `leave_out_last` leaves out the last token. The texts that `append` returns include special tokens.
        """
        special = self._tokenizer.special_ids
        end = len(self._ids) - leave_out_last
        ids = [token for token in self._ids[self._prompt : end] if token not in special]
        last = [token for token in self._ids[: self._prompt][-1:] if token not in special]
        before = self._tokenizer.decode(last)
        return self._tokenizer.decode(last + ids)[len(before) :].rstrip(_INCOMPLETE)
