"""Stopping criteria: length, end-of-sequence token, stop string (tgi-behaviour S40-S44).

In TGI, the last token that may be generated ends the text by its length, even if it is an end-of-sequence
token or completes a stop string. In OpenAI's API, the other reason counts.

A stop string may end inside a token (TGI finds it only at the end of one). It stays in the generated text,
and the text after it is cut off. Among the first `min_tokens` tokens, only the length counts.
"""

import enum
from collections.abc import Sequence


class FinishReason(enum.Enum):
    """Reason why a generation ended, by TGI's name."""

    LENGTH = "length"
    EOS_TOKEN = "eos_token"
    STOP_SEQUENCE = "stop_sequence"


class StoppingCriteria:
    """Stopping criteria of one sequence, with the end of its text."""

    def __init__(
        self,
        max_new_tokens: int,
        eos: frozenset[int],
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        *,
        length_first: bool = True,
    ) -> None:
        """Set the criteria; `eos` are the ids of all tokens that end the text."""
        self._max = self._left = max_new_tokens
        self._eos = eos
        self._stop = tuple(stop)
        self._memory = max((len(text) for text in self._stop), default=0) - 1
        self._length_first = length_first
        self._tail = ""
        self.min_tokens = min_tokens
        """Number of tokens before end-of-sequence tokens and stop strings count."""
        self.surplus = 0
        """Number of characters of the text after the stop string."""
        self.stopped_by: str | None = None
        """Stop string that ended the text."""

    def check(self, token: int, text: str) -> FinishReason | None:
        """Return why the generation ends with this token, which adds `text`; None if it goes on.

        Called once for each generated token, in order.
        """
        self._left -= 1
        is_last = self._left <= 0
        if is_last and self._length_first:
            return FinishReason.LENGTH
        if self.min_tokens and self._max - self._left <= self.min_tokens:
            self._remember(self._tail + text)
        elif token in self._eos:
            return FinishReason.EOS_TOKEN
        elif self._stop and self._stops(text):
            return FinishReason.STOP_SEQUENCE
        return FinishReason.LENGTH if is_last else None

    def _stops(self, text: str) -> bool:
        """Look for the stop string that ends first; "" stops at once, after the whole token, as in TGI."""
        seen, new = self._tail + text, len(self._tail) + 1
        ends = [
            (at + len(stop), stop)
            for stop in self._stop
            if (at := seen.find(stop, max(0, new - len(stop)) if stop else 0)) >= 0
        ]
        if not ends:
            self._remember(seen)
            return False
        end, stop = min(ends)
        self.surplus = len(seen) - end if stop else 0
        self.stopped_by = stop
        return True

    def _remember(self, seen: str) -> None:
        self._tail = seen[-self._memory :] if self._memory > 0 else ""

    def cut(self, text: str) -> str:
        """Return the generated text up to and including the stop string."""
        return text[: len(text) - self.surplus]


def overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may begin a mark."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((size for size in sizes if mark.startswith(text[-size:])), 0)
