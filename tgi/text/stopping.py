"""When a generation ends: length, end-of-sequence token, stop string, in this order (tgi-behaviour S40-S44).

It sees each token with the text it adds, and knows no tokenizer. A stop string is found wherever it ends,
also inside a token (TGI finds it only at the end of one); it stays in the generated text, and what follows
it is cut off. Within the first `min_tokens` tokens only the length counts.
"""

import enum
from collections.abc import Sequence


class FinishReason(enum.Enum):
    """Why a generation ended, in TGI's words."""

    LENGTH = "length"
    EOS_TOKEN = "eos_token"
    STOP_SEQUENCE = "stop_sequence"


class StoppingCriteria:
    """The criteria of one sequence, and what they must remember of its text."""

    __slots__ = ("_eos", "_left", "_max", "_memory", "_stop", "_tail", "min_tokens", "surplus")

    def __init__(
        self, max_new_tokens: int, eos: frozenset[int], stop: Sequence[str] = (), min_tokens: int = 0
    ) -> None:
        """`eos`: every token that ends the text."""
        self._max = self._left = max_new_tokens
        self._eos = eos
        self._stop = tuple(stop)
        self._memory = max((len(text) for text in self._stop), default=0) - 1
        self._tail = ""
        self.min_tokens = min_tokens
        """Among the first so many tokens neither end nor stop string counts."""
        self.surplus = 0
        """Characters at the end of the text that come after the stop string."""

    def check(self, token: int, text: str) -> FinishReason | None:
        """Call once for each generated token, in order, with the text that it adds."""
        self._left -= 1
        if self._left <= 0:
            return FinishReason.LENGTH
        if self.min_tokens and self._max - self._left <= self.min_tokens:
            self._remember(self._tail + text)
            return None
        if token in self._eos:
            return FinishReason.EOS_TOKEN
        if self._stop and self._stops(text):
            return FinishReason.STOP_SEQUENCE
        return None

    def _stops(self, text: str) -> bool:
        """The stop string that ends first decides; "" stops at once, after the whole token, as in TGI."""
        seen, new = self._tail + text, len(self._tail) + 1
        found = [
            (at + len(stop), stop)
            for stop in self._stop
            if (at := seen.find(stop, max(0, new - len(stop)) if stop else 0)) >= 0
        ]
        if not found:
            self._remember(seen)
            return False
        end, stop = min(found)
        self.surplus = len(seen) - end if stop else 0
        return True

    def _remember(self, seen: str) -> None:
        self._tail = seen[-self._memory :] if self._memory > 0 else ""

    def cut(self, text: str) -> str:
        """The generated text without what comes after the stop string."""
        return text[: len(text) - self.surplus]
