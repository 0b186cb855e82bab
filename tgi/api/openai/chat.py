"""Chat: from messages to the prompt and the grammar of the answer, and from tokens to the answer."""

from collections.abc import Sequence as Items

import attrs
import msgspec

from tgi.api.generate import Finished
from tgi.api.service import Engine
from tgi.errors import ToolError
from tgi.scheduler import Token
from tgi.text.answer_format import AnswerFormat, AnswerParser
from tgi.text.grammar import GrammarSpec
from tgi.text.messages import prepare_messages
from tgi.text.reasoning import Thoughts
from tgi.text.tool_formats import CallDelta
from tgi.text.tool_formats import Tool as FunctionTool

from .text import ChoiceContent, ChoiceText, token_logprob
from .types import (
    ChatCompletionComplete,
    ChatCompletionLogprobs,
    ChatRequest,
    OutputFunction,
    OutputMessage,
    OutputToolCall,
    Tool,
    Usage,
)


@attrs.frozen
class ChatPrompt:
    """What a chat request asks the model."""

    text: str
    grammar: GrammarSpec | None
    """What the answer must obey."""
    answer: AnswerFormat | None
    """How the model writes the answer; None if all of it is content."""
    thoughts: Thoughts = "none"
    """State of thoughts where the answer begins."""


def chat_prompt(body: ChatRequest, engine: Engine) -> ChatPrompt:
    """Render the messages. Raises TemplateError, ToolError (V33) and ValidationError."""
    tools, required = _offered(body)
    grammar = None if body.response_format is None else body.response_format.spec
    templates = engine.templates
    answer = AnswerFormat.of(templates, engine.tokenizer, bool(tools))
    messages, shown = prepare_messages(
        [message.to_template() for message in body.messages],
        [msgspec.to_builtins(tool) for tool in tools],
        templates,
        answer,
        body.tool_prompt or None,
        required=required,
    )
    text = templates.render(messages, shown, _variables(body))
    thoughts = answer.thoughts_after(text)
    grammar = answer.grammar(
        [FunctionTool(t.function.name, t.function.description, t.function.parameters) for t in tools],
        required=required,
        parallel=body.parallel_tool_calls is not False and body.chosen_function is None,
        text=grammar,
        thoughts=thoughts,
        max_thoughts=_max_thoughts(body, engine, required or grammar is not None),
    )
    return ChatPrompt(text, grammar, answer, thoughts)


def _variables(body: ChatRequest) -> dict[str, object]:
    """Return the variables of a request for the chat template."""
    variables = {
        "documents": body.documents,
        "reasoning_effort": body.reasoning_effort,
        "enable_thinking": False if body.reasoning_effort == "none" else body.enable_thinking,
    }
    given = {name: value for name, value in variables.items() if value is not None}
    return given | (body.chat_template_kwargs or {})


def _max_thoughts(body: ChatRequest, engine: Engine, is_forced: bool) -> int | None:
    """Return the limit of tokens for thoughts: the client's, or half of all where an answer is forced."""
    if body.max_thinking_tokens is not None or not is_forced:
        return body.max_thinking_tokens
    return max(1, (body.max_tokens or engine.limits.max_total_tokens) // 2)


def _offered(body: ChatRequest) -> tuple[list[Tool], bool]:
    """Return the tools that the model may call, and whether it must (T2, T3, V33)."""
    tools, name = body.tools or [], body.chosen_function
    if name is None:
        return [] if body.tool_choice == "none" else tools, body.tool_choice == "required" and bool(tools)
    named = [tool for tool in tools if tool.function.name == name]
    if not named:
        raise ToolError(f"Tool with name {name} not found")
    return named[:1], True


def choice_content(body: ChatRequest, prompt: ChatPrompt, engine: Engine) -> ChoiceContent:
    """Return an empty choice of an answer to a prompt."""
    answer, shown, parser = prompt.answer, frozenset[int](), None
    if answer is not None:
        shown, parser = answer.marks, AnswerParser(answer, prompt.thoughts)
    return ChoiceContent(ChoiceText(engine.tokenizer, body.stops, shown=shown), parser)


def chat_choice(
    body: ChatRequest, prompt: ChatPrompt, engine: Engine, index: int, finished: Finished
) -> ChatCompletionComplete:
    """A whole choice (R3.41, R3.42)."""
    content = choice_content(body, prompt, engine)
    deltas = [content.feed(token) for token in finished.tokens]
    text, thoughts = "".join(d.content for d in deltas), "".join(d.thoughts for d in deltas)
    calls = _whole_calls([call for delta in deltas for call in delta.calls])
    message = OutputMessage("assistant", text or None if calls else text)
    if thoughts and body.include_reasoning is not False:
        message.reasoning_content = message.reasoning = thoughts
    if calls:
        message.tool_calls = calls
    logprobs = chat_logprobs(body, engine, finished.tokens)
    return ChatCompletionComplete(index, message, logprobs, content.reason(finished.reason))


def _whole_calls(deltas: list[CallDelta]) -> list[OutputToolCall]:
    calls: list[OutputToolCall] = []
    for delta in deltas:
        if delta.id is not None:
            calls.append(OutputToolCall(delta.id, "function", OutputFunction(None, delta.name or "", "")))
        calls[-1].function.arguments += delta.arguments
    return calls


def chat_logprobs(body: ChatRequest, engine: Engine, tokens: Items[Token]) -> ChatCompletionLogprobs | None:
    """Where the client wants them (R3.44)."""
    if not body.logprobs:
        return None
    return ChatCompletionLogprobs(
        [token_logprob(token, engine.tokenizer, body.top_logprobs or 0) for token in tokens]
    )


def usage_of(finished: Items[Finished]) -> Usage:
    """Of sequences that answer one prompt."""
    return Usage.of(len(finished[0].sequence.prompt), sum(len(one.tokens) for one in finished))
