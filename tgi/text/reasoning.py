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
    """The text of thoughts: `begin THOUGHTS end`, and the answer after it, perhaps between two marks."""

    models: str
    """Models that write thoughts so."""
    begin: str
    end: str
    answer_begin: str = ""
    """Mark before the answer, which models may leave out."""
    answer_end: str = ""
    """Mark after the answer."""
    ends_all: bool = False
    """Whether `end` stands after every message of a prompt."""
    source: tuple[str, ...] = ()
    """Strings in the source of chat templates that use the format; the two ends if not set."""

    @property
    def signs(self) -> tuple[str, ...]:
        """Strings that all occur in the source of a chat template that uses the format."""
        return self.source or (self.end, self.answer_end)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts around thoughts and answers."""
        return (self.begin, self.end, self.answer_begin, self.answer_end)

    def state_after(self, prompt: str) -> Thoughts:
        """Return the state of thoughts after a prompt; templates open them, or close them to have none."""
        prompt, begin = prompt.rstrip(), self.begin.rstrip()
        before = prompt.removesuffix(self.end)
        is_closed = before != prompt and (not self.ends_all or before.rstrip().endswith(begin))
        return "begun" if prompt.endswith(begin) else "none" if is_closed else "possible"


HARMONY_THOUGHTS = ReasoningFormat(
    "gpt-oss", "<|channel|>analysis<|message|>", "<|end|>", source=("<|channel|>analysis<|message|>",)
)
"""Thoughts on a channel of their own, which `harmony` reads."""
FORMATS = (
    HARMONY_THOUGHTS,
    ReasoningFormat("MiniMax-M2", "<think>", "</think>", source=("</think>", "<minimax:tool_call>")),
    ReasoningFormat("Granite 3.3, ERNIE 4.5", "<think>", "</think>", "<response>", "</response>"),
    ReasoningFormat("Hunyuan A13B", "<think>", "</think>", "<answer>", "</answer>"),
    ReasoningFormat(
        "DeepSeek R1 and V3.1, Qwen3, QwQ, GLM-4.5 and later, MiniMax-M1, Kimi K2, Nemotron, SmolLM3",
        "<think>",
        "</think>",
    ),
    ReasoningFormat("Granite 3.2", "Here is my thought process:", "Here is my response:"),
    ReasoningFormat("Magistral, Ministral 3", "[THINK]", "[/THINK]"),
    ReasoningFormat("Seed-OSS", "<seed:think>", "</seed:think>"),
    ReasoningFormat(
        "Command R7B, Command A",
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        "<|START_RESPONSE|>",
        "<|END_RESPONSE|>",
    ),
    ReasoningFormat("North", "<|START_THINKING|>", "<|END_THINKING|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ReasoningFormat("Gemma 4", "<|channel>thought\n", "<channel|>"),
    ReasoningFormat("MiniCPM3", "<|thought_start|>", "<|thought_end|>"),
    ReasoningFormat("Apertus", "<|inner_prefix|>", "<|inner_suffix|>"),
    ReasoningFormat("EXAONE Deep", "<thought>", "</thought>"),
    ReasoningFormat("LongCat", "<longcat_think>", "</longcat_think>"),
    ReasoningFormat(
        "Apriel 1.5",
        "Here are my reasoning steps:",
        "[BEGIN FINAL RESPONSE]",
        answer_end="[END FINAL RESPONSE]",
    ),
    ReasoningFormat("Apriel 1.6", "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ReasoningFormat("Kimi-VL", "◁think▷", "◁/think▷"),
    ReasoningFormat(
        "Solar Open",
        "<|think|>",
        "<|end|><|begin|>assistant",
        "<|content|>",
        ends_all=True,
        source=("<|begin|>assistant<|think|>",),
    ),
    ReasoningFormat(
        "Hunyuan 3", "<think:opensource>", "</think:opensource>", source=("<think{}>", ":opensource")
    ),
)


def find_format(template: str) -> ReasoningFormat | None:
    """Return the format that the source of a chat template uses, or None."""
    return next((style for style in FORMATS if all(sign in template for sign in style.signs)), None)


@attrs.define
class ThoughtsParser:
    """Separates thoughts from the text after them, without the space around thoughts."""

    _format: ReasoningFormat
    _state: Literal["start", "opened", "thoughts", "closed", "answer", "begun", "text", "ended"]
    _held: str = ""
    """Text that is read, but not yet known to be thoughts or text after them."""

    @classmethod
    def of(cls, style: ReasoningFormat | None, thoughts: Thoughts) -> "ThoughtsParser":
        """Return a parser for an answer whose beginning is in a state of thoughts."""
        states: dict[Thoughts, Literal["start", "opened", "answer"]]
        states = {"none": "answer", "begun": "opened", "possible": "start"}
        return cls(style or FORMATS[0], "text" if style is None else states[thoughts])

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next belongs to thoughts, or ends them."""
        return self._state in ("opened", "thoughts")

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
            self._skip_space("answer")
        if self._state == "answer":
            self._take_answer_begin()
        if self._state == "begun":
            self._skip_space("text")
        if self._state not in ("text", "ended"):
            return thoughts, ""
        return thoughts, self._take_text()

    def end(self) -> tuple[str, str]:
        """Return the rest of the thoughts and of the text when the answer is complete."""
        rest, self._held = self._held, ""
        return (rest.rstrip(), "") if self._state == "thoughts" else ("", rest)

    def _take_begin(self) -> None:
        begin, held = self._format.begin, self._held.lstrip()
        if held.startswith(begin):
            self._held, self._state = held[len(begin) :], "opened"
        elif not begin.startswith(held):
            self._state = "answer"

    def _take_answer_begin(self) -> None:
        begin, held = self._format.answer_begin, self._held.lstrip()
        if begin and held.startswith(begin):
            self._held, self._state = held[len(begin) :], "begun"
        elif not (begin and begin.startswith(held)):
            self._state = "text"

    def _take_text(self) -> str:
        end = self._format.answer_end if self._state == "text" else ""
        text, found, rest = self._held.partition(end) if end else (self._held, "", "")
        if found:
            self._state, self._held = "ended", ""
            return text.rstrip() + rest
        size = len(text) - (undecided(text, end) if end else 0)
        text, self._held = text[:size], text[size:]
        return text

    def _skip_space(self, following: Literal["thoughts", "answer", "text"]) -> None:
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
