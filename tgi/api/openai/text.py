"""What clients of the OpenAI routes see of generated tokens: text without its end, and log-probabilities."""

from collections.abc import Sequence as Items

import attrs

from tgi.scheduler import Sequence, Token
from tgi.text.answer_format import AnswerDelta, AnswerParser
from tgi.text.stopping import FinishReason
from tgi.text.tokenizer import Tokenizer

from .types import (
    ChatCompletionLogprob,
    ChatCompletionTopLogprob,
    CompletionLogprobs,
    Reason,
)


class ChoiceText:
    """The text of one choice as its tokens come, without end tokens and, as OpenAI has it, stop strings.

    What may be the beginning of a stop string is held back until the next token tells.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Items[str], *, shown: frozenset[int] = frozenset()
    ) -> None:
        """`shown` are special tokens that are part of the text, like the marks around tool calls."""
        self._hidden = tokenizer.eos_ids | (tokenizer.special_ids - shown)
        self._stop = [text for text in stop if text]
        self._held = ""

    def feed(self, token: Token) -> str:
        """What this token adds."""
        ends_text = token.finish is FinishReason.EOS_TOKEN or token.id in self._hidden
        text = "" if ends_text else token.text
        if not self._stop:
            return text
        seen = self._held + text
        if token.finish is FinishReason.STOP_SEQUENCE:
            ends = [(at + len(stop), at) for stop in self._stop if (at := seen.find(stop)) >= 0]
            return seen[: min(ends)[1]] if ends else seen
        self._held = "" if token.finish else self._beginning_of_stop(seen)
        return seen[: len(seen) - len(self._held)]

    def _beginning_of_stop(self, text: str) -> str:
        """The longest end of the text that a stop string could begin with."""
        longest = min(len(text), max(map(len, self._stop)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return text[-length:]
        return ""


@attrs.define(eq=False)
class ChoiceContent:
    """One choice of a chat answer: its thoughts, its text, and the tool calls that are read out of it."""

    text: ChoiceText
    parser: AnswerParser | None
    """Reader of the answer; None if all of it is content."""
    begun: bool = False
    """Whether an event has told of it."""
    called: bool = False
    """Whether it has a tool call."""

    def feed(self, token: Token) -> AnswerDelta:
        """Return the pieces of the answer that are certain with this token."""
        text = self.text.feed(token)
        if self.parser is None:
            return AnswerDelta(content=text)
        delta = self.parser.feed(text, last=token.finish is not None)
        self.called = self.called or bool(delta.calls)
        return delta

    def reason(self, finish: FinishReason) -> Reason:
        """Return OpenAI's reason for the end of the choice."""
        reason = openai_reason(finish)
        is_whole = self.parser is not None and not self.parser.is_within_arguments
        return "tool_calls" if self.called and is_whole and reason == "stop" else reason


def openai_reason(finish: FinishReason) -> Reason:
    """Why a generation ended, in OpenAI's words."""
    return "length" if finish is FinishReason.LENGTH else "stop"


def token_logprob(token: Token, tokenizer: Tokenizer, top: int) -> ChatCompletionLogprob:
    """A token of a chat answer, with exactly `top` of the most likely ones, or fewer where there are."""
    data = tokenizer.bytes_alone(token.id)
    return ChatCompletionLogprob(
        data.decode(errors="replace"),
        token.logprob,
        list(data),
        [_top_logprob(other, logprob, tokenizer) for other, logprob in token.top[:top]],
    )


def _top_logprob(token: int, logprob: float, tokenizer: Tokenizer) -> ChatCompletionTopLogprob:
    data = tokenizer.bytes_alone(token)
    return ChatCompletionTopLogprob(data.decode(errors="replace"), logprob, list(data))


class LogprobColumns:
    """The columns of a completion's log-probabilities as its tokens come."""

    def __init__(self, tokenizer: Tokenizer, top: int) -> None:
        """`top`: how many of the most likely tokens beside the chosen one."""
        self._tokenizer = tokenizer
        self._top = top
        self._offset = 0

    def prompt(self, sequence: Sequence, text: str) -> CompletionLogprobs:
        """Of the tokens of the prompt, before any others; nothing is known of the first one.

        `text` is what is shown of it: the tokeniser may have put a token of its own before it.
        """
        self._offset = len(text) - sum(len(self._text(token)) for token in sequence.prompt)
        body = CompletionLogprobs([], [], [] if self._top else None, [])
        tops: list[Items[tuple[int, float]]] = [(), *sequence.prompt_tops]
        for place, (token, logprob) in enumerate(
            zip(sequence.prompt, [None, *sequence.prompt_logprobs], strict=True)
        ):
            self._add(body, token, logprob, tops[place] if self._top else ())
        return body

    def tokens(self, tokens: Items[Token]) -> CompletionLogprobs:
        """Of generated tokens."""
        body = CompletionLogprobs([], [], [] if self._top else None, [])
        for token in tokens:
            self._add(body, token.id, token.logprob, token.top)
        return body

    def _add(
        self,
        body: CompletionLogprobs,
        token: int,
        logprob: float | None,
        top: Items[tuple[int, float]],
    ) -> None:
        text = self._text(token)
        body.tokens.append(text)
        body.token_logprobs.append(logprob)
        body.text_offset.append(max(0, self._offset))
        self._offset += len(text)
        if body.top_logprobs is not None:
            body.top_logprobs.append(None if logprob is None else self._top_table(text, logprob, top))

    def _top_table(self, text: str, logprob: float, top: Items[tuple[int, float]]) -> dict[str, float | None]:
        """By text; of tokens with the same text the most likely one, and the chosen one in any case."""
        table: dict[str, float | None] = {}
        for token, value in top[: self._top]:
            table.setdefault(self._text(token), value)
        table.setdefault(text, logprob)
        return table

    def _text(self, token: int) -> str:
        return self._tokenizer.bytes_alone(token).decode(errors="replace")


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """The columns of one after those of the other."""
    top = None
    if first.top_logprobs is not None and second.top_logprobs is not None:
        top = first.top_logprobs + second.top_logprobs
    return CompletionLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        top,
        first.text_offset + second.text_offset,
    )
