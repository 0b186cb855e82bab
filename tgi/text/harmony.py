"""Harmony, the format of gpt-oss: an answer is a series of messages on channels.

<|channel|>analysis<|message|>THOUGHTS<|end|><|start|>assistant<|channel|>final<|message|>TEXT
<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>ARGUMENTS
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from .stopping import overlap
from .tool_arguments import JSON_TEXT
from .tool_calls import AnswerDelta, CallDelta, Tool, arguments_term, new_id

_CHANNEL, _MESSAGE, _NEXT = "<|channel|>", "<|message|>", "<|end|><|start|>assistant"
HARMONY_MARKS = ("<|start|>", _CHANNEL, "<|constrain|>", _MESSAGE, "<|end|>")
"""Marks of messages."""
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", _CHANNEL)
"""Marks that end the text of a message."""
_HEADERS = (_CHANNEL, "<|start|>", " to=", "assistant")
"""Texts with which the head of a message begins."""
PROMPT_END = "<|start|>assistant"
"""End of a prompt after which an answer begins."""


def harmony_rules(
    tools: Sequence[Tool],
    literal: Callable[[str], str],
    *,
    answer: str | None,
    required: bool,
    bounded: bool,
) -> Iterator[str]:
    """Yield Lark rules for an answer; `thoughts` are thoughts with their end, to be added.

    `answer` is the body of a rule for an answer without calls, None for any text. A call must come if it is
    `required`. `bounded`: thoughts come once at most.
    """
    is_strict = required or bounded or answer is not None
    last = [f"call_{number}" for number in range(len(tools))] + ([] if required else ["final"])
    yield f"start: {'analysis?' if is_strict else '(analysis | preamble)*'} ({' | '.join(last)})"
    yield f"analysis: {literal(f'{_CHANNEL}analysis{_MESSAGE}')} thoughts {literal(PROMPT_END)}"
    yield "TEXT: /(?s:.+)/"
    if not is_strict:
        yield f"preamble: {literal(f'{_CHANNEL}commentary{_MESSAGE}')} TEXT? {literal(_NEXT)}"
    if not required:
        yield f"final: {literal(f'{_CHANNEL}final{_MESSAGE}')} {'TEXT?' if answer is None else 'answer'}"
    if answer is not None:
        yield f"answer: {answer}"
    for number, tool in enumerate(tools):
        after = literal(f"{_CHANNEL}commentary to=functions.{tool.name}")
        before = literal(f" to=functions.{tool.name}{_CHANNEL}commentary")
        kind = f"({literal(' <|constrain|>json')})? {literal(_MESSAGE)}"
        yield f"call_{number}: ({after} | {before}) {kind} arguments_{number}"
        yield f"arguments_{number}: {arguments_term(tool, among_json=False)}"


class HarmonyParser:
    """Reads one answer, in pieces of any size, message by message."""

    def __init__(self) -> None:
        self._held = ""
        self._state: Literal["head", "thoughts", "content", "call"] = "head"
        self._calls = 0
        self._arguments = JSON_TEXT.reader({})

    @property
    def is_within_arguments(self) -> bool:
        """Whether the arguments of the last call are incomplete."""
        return self._state == "call" and not self._arguments.done

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next belongs to thoughts, or ends them."""
        return self._state == "thoughts"

    def feed(self, text: str, *, last: bool = False) -> AnswerDelta:
        """Take the next piece of the answer, or its `last`; return everything that is now certain."""
        self._held += text
        delta = AnswerDelta()
        while self._state != "head" or self._take_head(delta.calls):
            ends = [at for end in _ENDS if (at := self._held.find(end)) >= 0]
            size = min(ends) if ends else len(self._held)
            if not ends and not last:
                size -= max(overlap(self._held, end) for end in _ENDS)
            piece, self._held = self._held[:size], self._held[size:]
            if self._state == "thoughts":
                delta.thoughts += piece
            elif self._state == "content":
                delta.content += piece
            elif piece and (arguments := self._arguments.feed(piece)[0]):
                delta.calls.append(CallDelta(self._calls - 1, None, None, arguments))
            if not ends:
                break
            self._state = "head"
        return delta

    def _take_head(self, calls: list[CallDelta]) -> bool:
        """Take the head of a message; return False if that takes more text."""
        self._held = re.sub(r"^(<\|(end|call|return)\|>)+", "", self._held)
        if not self._held or any(head.startswith(self._held) for head in (*_HEADERS, *_ENDS)):
            return False
        if not self._held.startswith(_HEADERS):
            self._state = "content"  # text without a head
            return True
        head, found, rest = self._held.partition(_MESSAGE)
        if not found:
            return False
        self._held = rest
        function = re.search(r"\bto=functions\.([^\s<]+)", head)
        if function is not None:
            calls.append(CallDelta(self._calls, new_id(), function[1], ""))
            self._calls += 1
            self._arguments = JSON_TEXT.reader({})
            self._state = "call"
        else:
            self._state = "thoughts" if f"{_CHANNEL}analysis" in head else "content"
        return True
