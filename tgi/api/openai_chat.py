"""Chat: from messages to the prompt and the grammar of the answer, and from tokens to the answer."""

from collections.abc import Sequence as Items

import attrs

from tgi.errors import ToolError
from tgi.scheduler import Token
from tgi.text.grammar import GrammarSpec
from tgi.text.messages import prepare_messages
from tgi.text.tool_formats import CallDelta, Tool
from tgi.text.tools import ToolCalling

from .answers import aside
from .generate import Finished
from .openai_answers import (
    ChatChoiceBody,
    ChatLogprobsBody,
    ChatMessageBody,
    FunctionBody,
    ToolCallBody,
    UsageBody,
)
from .openai_schema import ChatRequest, Message, ToolDefinition
from .openai_text import ChoiceContent, ChoiceText, token_logprob
from .service import Engine, Service
from .validate import grammar_spec


@attrs.frozen
class ChatPrompt:
    """What a chat request asks the model."""

    text: str
    grammar: GrammarSpec | None
    """What the answer must obey."""
    calling: ToolCalling | None
    """How tool calls are written in it; None: there are no tools to call."""


async def chat_prompt(body: ChatRequest, service: Service, engine: Engine) -> ChatPrompt:
    """Render the messages. Raises TemplateError, ToolError (V33) and ValidationError."""
    return await aside(lambda: _chat_prompt(body, engine), service.tokenizing)


def _chat_prompt(body: ChatRequest, engine: Engine) -> ChatPrompt:
    tools, required = _offered(body)
    grammar = None if body.response_format is None else grammar_spec(body.response_format)
    calling = None
    if tools:
        calling = ToolCalling.of(engine.templates, engine.tokenizer)
        grammar = calling.grammar(
            [Tool(t.function.name, t.function.description, t.function.parameters) for t in tools],
            required=required,
            parallel=body.parallel_tool_calls is not False and not _named(body),
            text=grammar,
        )
    messages, shown = prepare_messages(
        [_without_nulls(message) for message in body.messages],
        [_without_nulls(tool) for tool in tools],
        engine.templates,
        calling,
        body.tool_prompt or None,
        required=required,
    )
    text = engine.templates.render(messages, shown, body.chat_template_kwargs)
    return ChatPrompt(text, grammar, calling)


def _offered(body: ChatRequest) -> tuple[list[ToolDefinition], bool]:
    """The tools that the model may call, and whether it must (T2, T3, V33)."""
    tools, choice = body.tools or [], body.tool_choice
    if choice is None or choice.mode == "auto":
        return tools, False
    if choice.mode == "none":
        return [], False
    if choice.mode == "required":
        return tools, bool(tools)
    named = [tool for tool in tools if tool.function.name == choice.name]
    if not named:
        raise ToolError(f"Tool with name {choice.name} not found")
    return named[:1], True


def _named(body: ChatRequest) -> bool:
    """One function is asked for, and so one call."""
    return body.tool_choice is not None and body.tool_choice.mode == "named"


def _without_nulls(record: Message | ToolDefinition) -> dict[str, object]:
    """As templates expect it: what is not given is not there."""
    return attrs.asdict(record, filter=lambda _, value: value is not None)


def choice_content(body: ChatRequest, prompt: ChatPrompt, engine: Engine) -> ChoiceContent:
    """An empty choice of an answer to this prompt."""
    parser = None if prompt.calling is None else prompt.calling.format.parser()
    text = ChoiceText(engine.tokenizer, body.stop or [], with_special=parser is not None)
    return ChoiceContent(text, parser)


def chat_choice(
    body: ChatRequest, prompt: ChatPrompt, engine: Engine, index: int, finished: Finished
) -> ChatChoiceBody:
    """A whole choice (R3.41, R3.42)."""
    content = choice_content(body, prompt, engine)
    pieces = [content.feed(token) for token in finished.tokens]
    text = "".join(piece for piece, _ in pieces)
    calls = _whole_calls([delta for _, deltas in pieces for delta in deltas])
    message = ChatMessageBody("assistant", text or None if calls else text)
    if calls:
        message.tool_calls = calls
    logprobs = chat_logprobs(body, engine, finished.tokens)
    return ChatChoiceBody(index, message, logprobs, content.reason(finished.reason))


def _whole_calls(deltas: list[CallDelta]) -> list[ToolCallBody]:
    calls: list[ToolCallBody] = []
    for delta in deltas:
        if delta.id is not None:
            calls.append(ToolCallBody(delta.id, "function", FunctionBody(None, delta.name or "", "")))
        calls[-1].function.arguments += delta.arguments
    return calls


def chat_logprobs(body: ChatRequest, engine: Engine, tokens: Items[Token]) -> ChatLogprobsBody | None:
    """Where the client wants them (R3.44)."""
    if not body.logprobs:
        return None
    return ChatLogprobsBody(
        [token_logprob(token, engine.tokenizer, body.top_logprobs or 0) for token in tokens]
    )


def usage_of(finished: Items[Finished]) -> UsageBody:
    """Of sequences that answer one prompt."""
    return UsageBody.of(len(finished[0].sequence.prompt), sum(len(one.tokens) for one in finished))
