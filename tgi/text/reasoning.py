"""The formats in which models write thoughts before an answer, and a parser that separates the two.

`FORMATS` declares each format once; a chat template that contains the `end` of one uses it. To add a format,
add it to `FORMATS`.
"""

from typing import Literal

import attrs

from .stopping import overlap

Thoughts = Literal["none", "begun", "possible"]
"""The state of thoughts where an answer begins: it has none, is within them, or may begin with them."""


@attrs.frozen
class ReasoningFormat:
    """The text of thoughts: `begin THOUGHTS end`, and the answer after it."""

    begin: str
    end: str

    def state_after(self, prompt: str) -> Thoughts:
        """Return the state of thoughts after a prompt; templates open them, or close them to have none."""
        prompt = prompt.rstrip()
        return "begun" if prompt.endswith(self.begin) else "none" if prompt.endswith(self.end) else "possible"


FORMATS = (
    ReasoningFormat("<think>", "</think>"),  # DeepSeek R1, Qwen3, Granite 3.3, GLM-4.5, MiniMax and others
    ReasoningFormat("[THINK]", "[/THINK]"),  # Mistral
    ReasoningFormat("<seed:think>", "</seed:think>"),  # Seed-OSS
    ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
)


def find_format(template: str) -> ReasoningFormat | None:
    """Return the format that the source of a chat template uses, or None."""
    return next((style for style in FORMATS if style.end in template), None)


@attrs.define
class ThoughtsParser:
    """Separates thoughts from the text after them, without the space around thoughts."""

    _format: ReasoningFormat
    _state: Literal["start", "opened", "thoughts", "closed", "text"]
    _held: str = ""
    """Text that is read, but not yet known to be thoughts or text after them."""

    @classmethod
    def of(cls, style: ReasoningFormat | None, thoughts: Thoughts) -> "ThoughtsParser":
        """Return a parser for an answer whose beginning is in a state of thoughts."""
        states: dict[Thoughts, Literal["start", "opened", "text"]]
        states = {"none": "text", "begun": "opened", "possible": "start"}
        return cls(style or FORMATS[0], "text" if style is None else states[thoughts])

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next piece of the answer; return thoughts and text after them that are now certain."""
        self._held += text
        thoughts = ""
        if self._state == "start":
            self._take_begin()
        if self._state == "opened":
            self._skip_space("thoughts")
        if self._state == "thoughts":
            thoughts = self._take_thoughts()
        if self._state == "closed":
            self._skip_space("text")
        if self._state != "text":
            return thoughts, ""
        text, self._held = self._held, ""
        return thoughts, text

    def end(self) -> tuple[str, str]:
        """Return the rest of the thoughts and of the text when the answer is complete."""
        rest, self._held = self._held, ""
        return (rest.rstrip(), "") if self._state == "thoughts" else ("", rest)

    def _take_begin(self) -> None:
        begin, held = self._format.begin, self._held.lstrip()
        if held.startswith(begin):
            self._held, self._state = held[len(begin) :], "opened"
        elif not begin.startswith(held):
            self._state = "text"

    def _skip_space(self, following: Literal["thoughts", "text"]) -> None:
        self._held = self._held.lstrip()
        if self._held:
            self._state = following

    def _take_thoughts(self) -> str:
        thoughts, end, rest = self._held.partition(self._format.end)
        if end:
            self._held, self._state = rest, "closed"
            return thoughts.rstrip()
        certain = len(self._held) - undecided(self._held, self._format.end)
        thoughts, self._held = self._held[:certain], self._held[certain:]
        return thoughts


def undecided(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may begin a mark, or are space before one."""
    return len(text) - len(text[: len(text) - overlap(text, mark)].rstrip())
