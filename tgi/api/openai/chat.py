"""`/v1/chat/completions` and `/chat_tokenize`: from a conversation to its answer, streamed or not."""

import functools
from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import Any, TypeVar

from msgspec import UNSET, UnsetType
from quart import Response

from tgi.api.call import BODY_ERRORS, Call, json_answer, post
from tgi.api.stream import Finished
from tgi.scheduler import Sequence, Token
from tgi.text.answer_format import AnswerParser
from tgi.text.stopping import FinishReason
from tgi.text.tokenizer import Tokenizer
from tgi.text.tool_calls import AnswerDelta, CallDelta

from . import answers, requests
from .answers import Answer, VisibleText, openai_reason, prompt_logprobs, token_name
from .messages import TextChunk
from .prompts import ChatPrompt, chat_prompt, chat_sequences
from .requests import check_count

T = TypeVar("T", answers.ChatCompletionLogprob, answers.ChatCompletionTopLogprob)


async def chat_completions(call: Call[requests.ChatRequest]) -> Response:
    """Answer a conversation, streamed or not."""
    body = call.body
    with call.generating():
        call.take_permits(check_count("n", body.n, call.engine.limits))
        prompt, sequences = await chat_sequences(call, body)
        answer = ChatAnswer(call, prompt, sequences)
        headers = call.prompt_headers(len(prompt.text))
        if body.stream:
            return await call.stream(sequences, answer, headers)
        finished = await call.generate(sequences)
        headers |= call.finish(finished)
    return json_answer(answer.whole(finished), headers=headers)


async def chat_tokenize(call: Call[requests.ChatRequest]) -> Response:
    """Answer with the prompt that a conversation becomes, and its tokens."""
    engine = call.engine
    prompt = await call.run_in_thread_if_large(lambda: chat_prompt(call.body, engine))
    special = bool(call.body.add_special_tokens)
    work = functools.partial(engine.tokenizer.tokenize, prompt.text, add_special_tokens=special)
    pieces = await call.tokenized(work, len(prompt.text))
    return json_answer(answers.ChatTokenizeResponse(pieces, prompt.text))


class Choice:
    """One of `n` answers as its tokens come: thoughts, content and tool calls."""

    def __init__(self, tokenizer: Tokenizer, body: requests.ChatRequest, prompt: ChatPrompt) -> None:
        self._text = VisibleText(tokenizer, body, shown=prompt.style.marks)
        self._parser: AnswerParser | None = None
        if prompt.style.with_tools or prompt.style.reasoning is not None:
            self._parser = prompt.style.parser(prompt.thoughts, prompt.tools, required=prompt.required)
        self._hides_thoughts = body.include_reasoning is False
        self._called = False
        self._called_reason: answers.Reason = "function_call" if body.functions else "tool_calls"
        self.thought_tokens = 0
        """Number of tokens so far that are thoughts, without those that begin and end them."""
        self.begun = False
        """Whether an event has reported it."""
        self.untold: list[Token] = []
        """Tokens that no event has reported yet."""

    def feed(self, token: Token) -> AnswerDelta:
        """Return the pieces of the answer that are certain with the next token."""
        text = self._text.feed(token)
        if self._parser is None:
            return AnswerDelta(content=text)
        was_thinking = self._parser.is_thinking
        delta = self._parser.feed(text, last=token.finish is not None)
        self.thought_tokens += was_thinking and self._parser.is_thinking
        self._called = self._called or bool(delta.calls)
        if self._hides_thoughts:
            delta.thoughts = ""
        return delta

    @property
    def is_parsed(self) -> bool:
        """Whether a token may add nothing, because it only frames thoughts or a tool call."""
        return self._parser is not None

    def reason(self, finish: FinishReason) -> answers.Reason:
        """Return OpenAI's name of the reason why the choice ended."""
        reason = openai_reason(finish)
        is_whole = self._parser is not None and not self._parser.is_within_arguments
        return self._called_reason if self._called and is_whole and reason == "stop" else reason


class ChatAnswer(Answer):
    """The answer to a conversation: whole, or an event for each token that adds to it."""

    def __init__(
        self, call: Call[requests.ChatRequest], prompt: ChatPrompt, sequences: Items[Sequence]
    ) -> None:
        self._body = call.body
        self._tokenizer = call.engine.tokenizer
        self._prompt = prompt
        self._echo = _echo(call.body)
        """Text of the last message where it is put before that of the answer."""
        self._choices = [Choice(self._tokenizer, call.body, prompt) for _ in sequences]
        named = call.body.model
        super().__init__(
            call,
            call.body.stream_options,
            sequences,
            prefix="chatcmpl",
            model=call.engine.model.served_name if named in (None, "tgi") else named,
            per_prompt=len(sequences),
        )

    def usage(self) -> answers.Usage:
        """Return the tokens so far, and how many of them are thoughts if the model has any."""
        usage = super().usage()
        if self._prompt.style.reasoning is not None:
            thoughts = sum(choice.thought_tokens for choice in self._choices)
            usage.completion_tokens_details = answers.CompletionTokensDetails(thoughts)
        return usage

    def whole(self, finished: Items[Finished]) -> answers.ChatCompletion:
        """Return the body of an answer that is not streamed (R3.41, R3.42)."""
        choices = []
        for index, (choice, one) in enumerate(zip(self._choices, finished, strict=True)):
            deltas = [choice.feed(token) for token in one.tokens]
            calls = _joined_calls(call for delta in deltas for call in delta.calls)
            content = self._echo + "".join(delta.content for delta in deltas)
            message = answers.OutputMessage("assistant", content or None if calls else content)
            if thoughts := "".join(delta.thoughts for delta in deltas):
                message.reasoning_content = message.reasoning = thoughts
            if calls and self._body.functions:
                message.function_call = answers.Function(calls[0].function.arguments, calls[0].function.name)
            elif calls:
                message.tool_calls = calls
            self.generated[index] = len(one.tokens)
            told = answers.ChatCompletionComplete(
                index, message, self._logprobs(one.tokens), choice.reason(one.reason)
            )
            told.token_ids = self._token_ids(one.tokens)
            choices.append(told)
        whole = answers.ChatCompletion(*self.head, choices, self.usage())
        first, top = self.sequences[0], self._body.prompt_logprobs
        whole.prompt_logprobs = prompt_logprobs(first, top, self._tokenizer)
        self._add_prompt(whole)
        return whole

    def events(self, index: int, token: Token) -> list[answers.ChatCompletionChunk]:
        """Return the event of a token that adds something; a choice begins and ends with events of their own.

        OpenAI's client ignores everything but the role in the first event of a choice.
        """
        choice = self._choices[index]
        pieces = choice.feed(token)
        choice.untold.append(token)
        deltas: list[tuple[answers.ChatCompletionDelta, answers.Reason | None]] = []
        if not choice.begun:
            choice.begun = True
            deltas.append((answers.ChatCompletionDelta("assistant", self._echo), None))
        delta = answers.ChatCompletionDelta()
        if pieces.thoughts:
            delta.reasoning_content = delta.reasoning = pieces.thoughts
        if pieces.calls and self._body.functions:
            delta.function_call = _function_delta(pieces.calls)
        elif pieces.calls:
            delta.tool_calls = [_call_delta(call) for call in pieces.calls]
        if pieces.content or not (pieces.calls or pieces.thoughts):
            delta.content = pieces.content
        has_more = pieces.content or pieces.calls or pieces.thoughts
        if has_more or not (choice.is_parsed or token.finish):
            deltas.append((delta, None))
        if token.finish is not None:
            deltas.append((answers.ChatCompletionDelta(), choice.reason(token.finish)))
        return [self._chunk(index, delta, reason) for delta, reason in deltas]

    def _chunk(
        self, index: int, delta: answers.ChatCompletionDelta, reason: answers.Reason | None
    ) -> answers.ChatCompletionChunk:
        """Return an event, which covers all tokens so far unless it is the one with the role."""
        choice, is_first = self._choices[index], delta.role is not UNSET
        tokens = [] if is_first else choice.untold
        told = answers.ChatCompletionChoice(index, delta, self._logprobs(tokens) if tokens else None, reason)
        told.token_ids = self._token_ids(tokens)
        chunk = answers.ChatCompletionChunk(*self.head, [told], self.running_usage())
        if is_first:
            self._add_prompt(chunk)
        else:
            choice.untold.clear()
        return chunk

    def _add_prompt(self, answer: answers.ChatCompletion | answers.ChatCompletionChunk) -> None:
        """Add the prompt as the client asks for it."""
        if self._body.return_token_ids:
            answer.prompt_token_ids = self.sequences[0].prompt
        if self._body.return_prompt_text:
            answer.prompt_text = self._prompt.text

    def _token_ids(self, tokens: Items[Token]) -> list[int] | UnsetType:
        return [token.id for token in tokens] if self._body.return_token_ids else UNSET

    def usage_event(self) -> answers.ChatCompletionChunk:
        """Return the event that tells the usage at the end (R3.54)."""
        return answers.ChatCompletionChunk(*self.head, [], self.usage())

    def _logprobs(self, tokens: Items[Token]) -> answers.ChatCompletionLogprobs | None:
        """Return the log-probabilities of tokens if the client asks for them (R3.44)."""
        if not self._body.logprobs:
            return None
        return answers.ChatCompletionLogprobs([self._logprob(token) for token in tokens])

    def _logprob(self, token: Token) -> answers.ChatCompletionLogprob:
        top = [
            self._named(answers.ChatCompletionTopLogprob, *one)
            for one in token.top[: self._body.top_logprobs or 0]
        ]
        return self._named(answers.ChatCompletionLogprob, token.id, token.logprob, top_logprobs=top)

    def _named(self, kind: type[T], token: int, logprob: float, **others: Any) -> T:
        data = self._tokenizer.bytes_alone(token)
        name = token_name(token) if self._body.return_tokens_as_token_ids else data.decode(errors="replace")
        return kind(token=name, logprob=logprob, bytes=list(data), **others)


def _echo(body: requests.ChatRequest) -> str:
    last = body.messages[-1]
    if not body.echo or last.role != "assistant" or last.content is None:
        return ""
    if isinstance(last.content, str):
        return last.content
    return "".join(part.text for part in last.content if isinstance(part, TextChunk))


def _joined_calls(deltas: Iterable[CallDelta]) -> list[answers.OutputToolCall]:
    calls: list[answers.OutputToolCall] = []
    for delta in deltas:
        if delta.id is not None:
            calls.append(
                answers.OutputToolCall(
                    delta.id, "function", answers.OutputFunction(None, delta.name or "", "")
                )
            )
        calls[-1].function.arguments += delta.arguments
    return calls


def _call_delta(call: CallDelta) -> answers.DeltaToolCall:
    """Return an event's piece of a call; id, type and name come once, for clients join strings."""
    if call.id is None or call.name is None:
        return answers.DeltaToolCall(call.index, answers.Function(call.arguments))
    return answers.DeltaToolCall(
        call.index, answers.Function(call.arguments, call.name), id=call.id, type="function"
    )


def _function_delta(calls: Items[CallDelta]) -> answers.Function:
    """Return an event's piece of the one call in the older form."""
    named = [call.name for call in calls if call.name is not None]
    return answers.Function("".join(call.arguments for call in calls), named[0] if named else UNSET)


_EXAMPLE = {"messages": [{"role": "user", "content": "What is deep learning?"}], "max_tokens": 20}
ROUTES = (
    post(
        "/v1/chat/completions", "chat_completions", "Answer a conversation, as OpenAI's API does",
        chat_completions, requests.ChatRequest,
        answer=answers.ChatCompletion, stream=answers.ChatCompletionChunk, example=_EXAMPLE,
    ),
    post(
        "/chat_tokenize", "get_chat_tokenize", "The prompt that a conversation becomes, and its tokens",
        chat_tokenize, requests.ChatRequest,
        answer=answers.ChatTokenizeResponse, errors=(*BODY_ERRORS, 404), example=_EXAMPLE,
    ),
)  # fmt: skip
