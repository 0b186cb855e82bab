"""Conversion of a request's messages and tools to those that the model's chat template prints.

Templates differ in whether they print calls, the role `tool`, and content in parts. Anything that a template
does not print becomes plain text that it does, so that every conversation reaches every model.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .abilities import NO_CONTENT, Abilities
from .answer_format import AnswerFormat
from .chat_template import ChatTemplates

Message = dict[str, Any]

TOOL_PROMPT = (
    "\nGiven the functions available, please respond with a JSON for a function call with its proper "
    "arguments that best answers the given prompt. Respond in the format {name: function name, parameters: "
    "dictionary of argument name and its value}.Do not use variables.\n"
)
"""TGI's explanation of how to call tools (T8)."""
MAY_ANSWER = "If no function is needed, answer in plain text instead.\n"
"""Addition to TOOL_PROMPT where an answer without calls is allowed."""


def prepare_messages(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    templates: ChatTemplates,
    answer: AnswerFormat,
    tool_prompt: str | None = None,
    *,
    required: bool = False,
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Return the messages and the tools for `ChatTemplates.render`.

    `messages` and `tools` have the shape of OpenAI's API. `tool_prompt` explains to the model how to call
    tools; the default is TGI's text (T8) if the template does not explain it. `required`: the answer must be
    a call.
    """
    described = [_described(tool) for tool in tools]
    in_template = bool(described) and templates.knows_tools()
    abilities = templates.abilities(with_tools=in_template)
    source = templates.source(with_tools=in_template) or ""
    ids = _Names() if abilities.names_in_ids else _Ids() if re.search(r"length != 9\b", source) else None
    # OpenAI's newer name of the role; many templates print messages of any role.
    if not (abilities.developer and "developer" in source):
        messages = [m | {"role": "system"} if m["role"] == "developer" else m for m in map(dict, messages)]
    if abilities.calls and not abilities.several_calls:
        messages = list(_one_call_each(messages))
    if abilities.calls and abilities.text_of_calls == "before":
        messages = [part for message in messages for part in _text_before_calls(message)]
    if abilities.calls and abilities.text_of_calls is None:
        messages = list(_texts_after_calls(messages))
    turned: list[tuple[Message, bool]] = []
    answers_calls = abilities.calls is not None
    for message in messages:
        if calls := message.get("tool_calls"):
            answers_calls = _are_printed(calls, _text_of(message.get("content")), abilities)
        turned.append(_converted(message, abilities, answer, ids, not turned, answers_calls))
    converted = _merged(turned, abilities)
    is_taught = in_template and answer.taught
    if described and not (is_taught and tool_prompt is None):
        default = TOOL_PROMPT if required else TOOL_PROMPT + MAY_ANSWER
        text = default if tool_prompt is None else tool_prompt
        if not in_template:
            text = json.dumps(described, ensure_ascii=False, separators=(",", ":")) + "\n" + text
        _append(converted, f"\n---\n{text}")
    if in_template and abilities.tools_in_system:
        if not (converted and converted[0]["role"] == "system"):
            converted.insert(0, {"role": "system", "content": ""})
        functions = [tool["function"] for tool in described]
        converted[0]["tools"] = json.dumps(functions, ensure_ascii=False)
    for message in converted:
        content = message.get("content")
        if isinstance(content, _Joined) and message["role"] in abilities.joins_parts:
            message["content"] = [{"type": "text", "text": text} for text in content.texts]
        elif isinstance(content, str) and abilities.parts:
            message["content"] = [{"type": "text", "text": content}]
    return converted, described if in_template else None


def _one_call_each(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield messages with one call each, followed by its results, in place of those with several."""
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        calls = message.get("tool_calls") or []
        results = list(itertools.takewhile(lambda m: m["role"] == "tool", rest))
        if len(calls) < 2:
            yield message
            continue
        del rest[: len(results)]
        for call in calls:
            is_last = call is calls[-1]
            yield {**message, "tool_calls": [call]}
            message = {"role": message["role"]}
            yield from [r for r in results if is_last or r.get("tool_call_id") == call.get("id")]
            results = [r for r in results if r.get("tool_call_id") != call.get("id")]


def _text_before_calls(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a message, or its text and its calls in a message each."""
    if message.get("tool_calls") and _text_of(message.get("content")):
        yield {name: value for name, value in message.items() if name != "tool_calls"}
        message = {"role": message["role"], "tool_calls": message["tool_calls"]}
    yield message


def _texts_after_calls(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield messages whose texts beside calls are in the answers after the results, if such may follow."""
    held = ""
    for index, message in enumerate(messages):
        text, calls = _text_of(message.get("content")), message.get("tool_calls")
        if calls and text:
            following = next((m for m in messages[index + 1 :] if m["role"] != "tool"), {"tool_calls": calls})
            if not following.get("tool_calls"):
                held, message = text, {name: one for name, one in message.items() if name != "content"}
        elif held and message["role"] == "assistant":
            held, message = "", {**message, "content": f"{held}\n{text}"}
        elif held and message["role"] != "tool":
            yield {"role": "assistant", "content": held}
            held = ""
        yield message


def _described(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool with exactly the keys that templates look at."""
    function = tool["function"]
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {
            "name": function["name"],
            "description": function.get("description") or "",
            "parameters": parameters,
        },
    }


def _converted(
    message: Mapping[str, Any],
    abilities: Abilities,
    answer: AnswerFormat,
    ids: "_Ids | None",
    is_first: bool,
    calls_are_printed: bool,
) -> tuple[Message, bool]:
    """Return a message for the template, and whether it is a user's that stands for another role.

    `calls_are_printed`: the template prints its calls, or those whose result it is.
    """
    converted = {key: value for key, value in message.items() if key not in ("content", "tool_calls")}
    text, calls = _text_of(message.get("content")), message.get("tool_calls")
    if calls and calls_are_printed:
        converted["tool_calls"] = [_call(call, as_text=abilities.calls == "texts", ids=ids) for call in calls]
        return converted | ({"content": text} if text else NO_CONTENT[abilities.no_content]), False
    if calls:
        written = answer.calls.write((call["function"]["name"], _arguments_text(call)) for call in calls)
        text = f"{text}\n{written}" if text else written
    if message["role"] == "system" and not (
        abilities.system == "anywhere" or (abilities.system and is_first)
    ):
        return {"role": "user", "content": text}, True
    if message["role"] == "tool":
        if not (calls_are_printed or abilities.tool_role):
            return {"role": "user", "content": text}, True
        if ids is not None:
            converted["tool_call_id"] = ids[message.get("tool_call_id")]
        if abilities.no_content == "part":
            return converted | {"content": [{"type": "text", "text": text}]}, False
    return converted | {"content": text}, False


def _are_printed(calls: Sequence[Mapping[str, Any]], text: str, abilities: Abilities) -> bool:
    """Return whether a template prints these calls, with the text beside them."""
    if not abilities.calls or (text and abilities.text_of_calls is None):
        return False
    # Arguments may be cut off; templates that look into them fail, or print nothing, if they are no object.
    return abilities.calls == "texts" or all(isinstance(_arguments_object(call), dict) for call in calls)


def _merged(messages: Sequence[tuple[Message, bool]], abilities: Abilities) -> list[Message]:
    """Join consecutive messages of a role if the template requires turns, or one stands for another role."""
    merged: list[Message] = []
    mergeable = False
    for message, is_other in messages:
        mergeable = is_other or (mergeable and message["role"] == "user")
        last = merged[-1] if merged else message | {"role": None}
        is_turn = abilities.turns and message["role"] in ("user", "assistant")
        has_calls = "tool_calls" in message or "tool_calls" in last
        if (mergeable or is_turn) and last["role"] == message["role"] and not has_calls:
            last["content"] += "\n" + message["content"]
        else:
            merged.append(message)
    return merged


class _Joined(str):
    """The texts of parts, joined as TGI does (C32); a text derived from it has no parts."""

    texts: Sequence[str]


def _text_of(content: object) -> str:
    """Return the text of a message's content."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    texts = [part["text"] for part in content]
    joined = _Joined("".join(texts))
    joined.texts = texts
    return joined if len(texts) > 1 else str(joined)


def _arguments(call: Mapping[str, Any]) -> Any:
    function = call["function"]
    return function.get("arguments", function.get("parameters", {}))


def _arguments_text(call: Mapping[str, Any]) -> str:
    arguments = _arguments(call)
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _arguments_object(call: Mapping[str, Any]) -> Any:
    """Return the value of the arguments' JSON text, or the text itself if it is not JSON."""
    arguments = _arguments(call)
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments


def _call(call: Mapping[str, Any], *, as_text: bool, ids: "_Ids | None") -> dict[str, Any]:
    arguments = _arguments_text(call) if as_text else _arguments_object(call)
    if isinstance(ids, _Names):
        ids.add(call)
    id_ = call.get("id") if ids is None else ids[call.get("id")]
    # Templates print the keys of a function in this order.
    converted = {"type": "function", "function": {"name": call["function"]["name"], "arguments": arguments}}
    return converted if id_ is None else {"id": id_, **converted}


class _Ids(dict[str | None, str]):
    """Clients' ids of calls, each with the id of nine characters that Mistral's templates require."""

    def __missing__(self, id_: str | None) -> str:
        valid = id_ is not None and re.fullmatch("[A-Za-z0-9]{9}", id_)
        self[id_] = id_ if valid and id_ is not None else f"{len(self):09d}"
        return self[id_]


class _Names(_Ids):
    """Clients' ids of calls, each with the id that names the function, as in `functions.weather:0`."""

    def __init__(self) -> None:
        self._calls = 0

    def add(self, call: Mapping[str, Any]) -> None:
        """Give the next call of the conversation its id."""
        self[call.get("id")] = f"functions.{call['function']['name']}:{self._calls}"
        self._calls += 1


def _append(messages: list[Message], text: str) -> None:
    """Append text to the last message that has a content and is not the model's own (T6)."""
    for message in reversed(messages):
        if message["role"] != "assistant" and isinstance(message.get("content"), str):
            message["content"] += text
            return
