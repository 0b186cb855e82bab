"""Chat: from messages to the prompt and the grammar of the answer, and from tokens to the answer."""

from collections.abc import Sequence as Items

import attrs

from tgi.errors import ToolError
from tgi.scheduler import Token
from tgi.text.answer_format import AnswerFormat, AnswerParser
from tgi.text.grammar import GrammarSpec
from tgi.text.messages import prepare_messages
from tgi.text.reasoning import Thoughts
from tgi.text.tool_formats import CallDelta, Tool

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
    answer: AnswerFormat | None
    """How the model writes the answer; None if all of it is content."""
    thoughts: Thoughts = "none"
    """State of thoughts where the answer begins."""


async def chat_prompt(body: ChatRequest, service: Service, engine: Engine) -> ChatPrompt:
    """Render the messages. Raises TemplateError, ToolError (V33) and ValidationError."""
    return await aside(lambda: _chat_prompt(body, engine), service.tokenizing)


def _chat_prompt(body: ChatRequest, engine: Engine) -> ChatPrompt:
    tools, required = _offered(body)
    grammar = None if body.response_format is None else grammar_spec(body.response_format)
    templates = engine.templates
    answer = AnswerFormat.of(templates, engine.tokenizer, bool(tools))
    messages, shown = prepare_messages(
        [_without_nulls(message) for message in body.messages],
        [_without_nulls(tool) for tool in tools],
        templates,
        answer,
        body.tool_prompt or None,
        required=required,
    )
    text = templates.render(messages, shown, _variables(body))
    thoughts = answer.thoughts_after(text)
    grammar = answer.grammar(
        [Tool(t.function.name, t.function.description, t.function.parameters) for t in tools],
        required=required,
        parallel=body.parallel_tool_calls is not False and not _named(body),
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
    """Return an empty choice of an answer to a prompt."""
    answer, shown, parser = prompt.answer, frozenset[int](), None
    if answer is not None:
        shown, parser = answer.marks, AnswerParser(answer, prompt.thoughts)
    return ChoiceContent(ChoiceText(engine.tokenizer, body.stop or [], shown=shown), parser)


def chat_choice(
    body: ChatRequest, prompt: ChatPrompt, engine: Engine, index: int, finished: Finished
) -> ChatChoiceBody:
    """A whole choice (R3.41, R3.42)."""
    content = choice_content(body, prompt, engine)
    deltas = [content.feed(token) for token in finished.tokens]
    text, thoughts = "".join(d.content for d in deltas), "".join(d.thoughts for d in deltas)
    calls = _whole_calls([call for delta in deltas for call in delta.calls])
    message = ChatMessageBody("assistant", text or None if calls else text)
    if thoughts and body.include_reasoning is not False:
        message.reasoning_content = message.reasoning = thoughts
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
