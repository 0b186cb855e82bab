"""Turns a conversation into its prompt, the grammar of its answer, and its sequences."""

from collections.abc import Sequence as Items
from typing import Any

import attrs
import msgspec

from tgi.api.call import Call
from tgi.api.service import Engine
from tgi.api.validate import make_sequences
from tgi.errors import ToolError, ValidationError
from tgi.scheduler import Sequence
from tgi.text import tool_calls
from tgi.text.answer_format import AnswerFormat
from tgi.text.chat_template import ChatTemplates
from tgi.text.grammar import GrammarSpec
from tgi.text.messages import prepare_messages
from tgi.text.reasoning import Thoughts

from .messages import Tool
from .requests import MAX_CHAT_LOGPROBS, ChatRequest, check_count, make_generation, prompt_top


@attrs.frozen
class ChatPrompt:
    """A conversation as the model reads it, and how it writes the answer."""

    text: str
    grammar: GrammarSpec | None
    """Grammar of the answer; None if it may be any text."""
    style: AnswerFormat
    tools: Items[tool_calls.Tool]
    """Tools that may be called."""
    required: bool
    """Whether one must be called."""
    thoughts: Thoughts
    """State of thoughts where the answer begins."""


async def chat_sequences(call: Call[Any], body: ChatRequest) -> tuple[ChatPrompt, list[Sequence]]:
    """Return the prompt of a conversation and its sequences. Raises ApiError."""
    prompt = await call.run_in_thread_if_large(lambda: chat_prompt(body, call.engine))
    generation = make_generation(
        call,
        body,
        prompt.text,
        count=check_count("n", body.n, call.engine.limits),
        max_tokens=body.max_tokens,
        top=body.top_logprobs,
        names=("messages", "top_logprobs"),
        max_top_tokens=MAX_CHAT_LOGPROBS,
        prompt_top=prompt_top(body, call.engine.limits),
        grammar=lambda: prompt.grammar,
        add_special_tokens=bool(body.add_special_tokens),
    )
    return prompt, await make_sequences(call, generation)


def chat_prompt(body: ChatRequest, engine: Engine) -> ChatPrompt:
    """Render the messages. Raises TemplateError, ToolError (V33) and ValidationError."""
    _check_messages(body)
    tools, mode = _offered(body)
    required = bool(tools) and mode in ("required", "named")
    text_grammar = body.text_grammar
    if required and text_grammar is not None and body.response_format is None:
        raise ValidationError("a grammar and a `tool_choice` that requires a call cannot be combined")
    templates = engine.templates
    style = AnswerFormat.of(templates, engine.tokenizer, bool(tools))
    messages, described = prepare_messages(
        [message.to_template() for message in body.messages],
        [msgspec.to_builtins(tool) for tool in tools],
        templates,
        style,
        body.tool_prompt or None,
        required=required,
    )
    text = _rendered(body, templates, messages, described)
    thoughts = style.thoughts_after(text)
    callable_tools = [
        tool_calls.Tool(t.function.name, t.function.description, t.function.parameters) for t in tools
    ]
    grammar = style.grammar(
        callable_tools,
        required=required,
        parallel=mode != "named" and _are_parallel(body, required),
        text=text_grammar,
        thoughts=thoughts,
        max_thoughts=_max_thoughts(body, engine, is_forced=required or text_grammar is not None),
    )
    return ChatPrompt(text, grammar, style, callable_tools, required, thoughts)


def _check_messages(body: ChatRequest) -> None:
    """Raise ValidationError for no messages, and for messages that are more than text."""
    if not body.messages:
        raise ValidationError("`messages` cannot be empty")
    for index, message in enumerate(body.messages):
        if kind := message.other_than_text:
            raise ValidationError(f"`messages[{index}]` has {kind}, and the model reads text only")


def _rendered(
    body: ChatRequest,
    templates: ChatTemplates,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
) -> str:
    """Return the text of the prompt. Raises TemplateError."""
    return templates.render(
        messages,
        tools,
        _variables(body),
        continues=False if body.add_generation_prompt else body.continue_final_message,
        more=body.add_generation_prompt is not False,
    )


def _offered(body: ChatRequest) -> tuple[list[Tool], str]:
    """Return the tools that the model may call, and the mode of the choice (T2, T3, V33)."""
    tools = {tool.function.name: tool for tool in reversed(body.tools or [])}
    mode, names = body.chosen_tools
    if mode == "required" and not (body.tools if names is None else names):
        raise ToolError("`tool_choice` is `required`, and no `tools` are given")
    if names is None:
        return [] if mode == "none" else body.tools or [], mode
    if missing := [name for name in names if name not in tools]:
        raise ToolError(f"Tool with name {missing[0]} not found")
    return [tools[name] for name in names], mode


def _variables(body: ChatRequest) -> dict[str, object]:
    variables: dict[str, object] = {
        "documents": body.documents,
        "reasoning_effort": body.reasoning_effort,
        "verbosity": body.verbosity,
        "thinking_budget": body.max_thinking_tokens,
    }
    thinks = False if body.reasoning_effort == "none" else body.enable_thinking
    # Names of the same variable in Qwen's templates and others, DeepSeek's and Granite's, and Cohere's.
    variables |= dict.fromkeys(("enable_thinking", "thinking", "reasoning"), thinks)
    given = {name: value for name, value in variables.items() if value is not None}
    return given | (body.chat_template_kwargs or {})


def _are_parallel(body: ChatRequest, required: bool) -> bool:
    """Return whether several calls may come; where one must come, only if the client says so.

    Small models that must call go on calling until they run out of tokens.
    """
    return not required if body.parallel_tool_calls is None else body.parallel_tool_calls


def _max_thoughts(body: ChatRequest, engine: Engine, *, is_forced: bool) -> int | None:
    """Return the limit of tokens for thoughts: the client's, or half of all tokens if an answer is forced."""
    if body.max_thinking_tokens is not None or not is_forced:
        return body.max_thinking_tokens
    return max(1, (body.max_tokens or engine.limits.max_total_tokens) // 2)
