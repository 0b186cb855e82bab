"""When a generation ends: length, end-of-sequence token, stop string, in this order (tgi-behaviour S40-S44).

It sees each token with the text it adds, and knows no tokenizer. A stop string is found wherever it ends,
also inside a token (TGI finds it only at the end of one); it stays in the generated text, and what follows
it is cut off.
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

    __slots__ = ("_eos", "_left", "_memory", "_stop", "_tail", "surplus")

    def __init__(self, max_new_tokens: int, eos: frozenset[int], stop: Sequence[str] = ()) -> None:
        self._left = max_new_tokens
        self._eos = eos
        self._stop = tuple(stop)
        self._memory = max((len(text) for text in self._stop), default=0) - 1
        self._tail = ""
        self.surplus = 0
        """Characters at the end of the text that come after the stop string."""

    def check(self, token: int, text: str) -> FinishReason | None:
        """Call once for each generated token, in order, with the text that it adds."""
        self._left -= 1
        if self._left <= 0:
            return FinishReason.LENGTH
        if token in self._eos:
            return FinishReason.EOS_TOKEN
        if self._stop and self._stops(text):
            return FinishReason.STOP_SEQUENCE
        return None

    def _stops(self, text: str) -> bool:
        """The stop string that ends first decides; "" stops at once, after the whole token, as in TGI."""
        seen = self._tail + text
        found = [(at + len(stop), stop) for stop in self._stop if (at := seen.find(stop)) >= 0]
        if not found:
            self._tail = seen[-self._memory :] if self._memory else ""
            return False
        end, stop = min(found)
        self.surplus = len(seen) - end if stop else 0
        return True

    def cut(self, text: str) -> str:
        """The generated text without what comes after the stop string."""
        return text[: len(text) - self.surplus]
