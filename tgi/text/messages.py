"""What a chat template is given for the messages and the tools of a request.

Templates differ in what they print: calls, the role `tool`, content in parts. Whatever one does not print
becomes plain text that it does, so that every conversation reaches every model.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .chat_template import Abilities, ChatTemplates
from .tool_parser import CallText
from .tools import GENERIC, ToolFormat

Message = dict[str, Any]

TOOL_PROMPT = (
    "\nGiven the functions available, please respond with a JSON for a function call with its proper "
    "arguments that best answers the given prompt. Respond in the format {name: function name, parameters: "
    "dictionary of argument name and its value}.Do not use variables.\n"
)
"""T8."""
MAY_ANSWER = "If no function is needed, answer in plain text instead.\n"
"""What follows it where the model may do so."""


def prepare_messages(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    templates: ChatTemplates,
    tool_format: ToolFormat | None,
    tool_prompt: str | None = None,
    *,
    required: bool = False,
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """The messages and the tools to render.

    Takes messages and tools as OpenAI's API has them. `tool_format`: of calls; None where there are no tools.
    `tool_prompt` tells the model how to call them; None: TGI's text (T8), where the template does not say it.
    `required`: an answer without a call is not wanted.
    """
    shown = [_shown(tool) for tool in tools]
    knowing = bool(shown) and templates.knows_tools()
    abilities = templates.abilities(with_tools=knowing)
    source = templates.source(with_tools=knowing) or ""
    ids = _Ids() if re.search(r"length != 9\b", source) else None
    written = GENERIC if tool_format is None else tool_format.text
    if "developer" not in source:  # OpenAI's newer name of the role
        messages = [m | {"role": "system"} if m["role"] == "developer" else m for m in map(dict, messages)]
    done = _merged([_converted(message, abilities, written, ids) for message in messages])
    taught = knowing and tool_format is not None and tool_format.taught
    if shown and not (taught and tool_prompt is None):
        default = TOOL_PROMPT if required else TOOL_PROMPT + MAY_ANSWER
        text = default if tool_prompt is None else tool_prompt
        described = "" if knowing else json.dumps(shown, ensure_ascii=False, separators=(",", ":")) + "\n"
        _append(done, f"\n---\n{described}{text}")
    if abilities.parts:
        for message in done:
            if "content" in message:
                message["content"] = [{"type": "text", "text": message["content"]}]
    return done, shown if knowing else None


def _shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as templates expect it: with all that they may look at, and no more."""
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
    message: Mapping[str, Any], abilities: Abilities, call_text: CallText, ids: "_Ids | None"
) -> tuple[Message, bool]:
    """A message for the template, and whether it is a user's in place of a tool's."""
    done = {key: value for key, value in message.items() if key not in ("content", "tool_calls")}
    text, calls = _text_of(message.get("content")), message.get("tool_calls")
    if calls and abilities.calls:
        done["tool_calls"] = [_call(call, as_text=abilities.calls == "texts", ids=ids) for call in calls]
        if text or abilities.empty_content:
            done["content"] = text
        return done, False
    if calls:
        written = call_text.write((_function(call)["name"], _arguments_text(call)) for call in calls)
        text = f"{text}\n{written}" if text else written
    if message["role"] == "tool":
        if not (abilities.calls or abilities.tool_role):
            return {"role": "user", "content": text}, True
        if ids is not None:
            done["tool_call_id"] = ids[message.get("tool_call_id")]
    return done | {"content": text}, False


def _merged(messages: Sequence[tuple[Message, bool]]) -> list[Message]:
    """With users that follow each other made one, where a result of a tool is among them: such templates
    want turns."""
    done: list[Message] = []
    mergeable = False
    for message, result in messages:
        mergeable = result or (mergeable and message["role"] == "user")
        if mergeable and done and done[-1]["role"] == message["role"]:
            done[-1]["content"] += "\n" + message["content"]
        else:
            done.append(message)
    return done


def _text_of(content: object) -> str:
    """The parts of a content, put together as TGI does it (C32)."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part["text"] if part.get("text") is not None else f"![]({_url_of(part)})" for part in content)
    return "".join(texts)


def _url_of(part: Mapping[str, Any]) -> str:
    image = part.get("image_url", part)
    return str(image["url"] if isinstance(image, Mapping) else image)


def _function(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function: Mapping[str, Any] = call["function"]
    return function


def _arguments(call: Mapping[str, Any]) -> Any:
    function = _function(call)
    return function.get("arguments", function.get("parameters", {}))


def _arguments_text(call: Mapping[str, Any]) -> str:
    arguments = _arguments(call)
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _arguments_object(call: Mapping[str, Any]) -> Any:
    """What OpenAI's JSON text means; the text itself where it is no JSON."""
    arguments = _arguments(call)
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments


def _call(call: Mapping[str, Any], *, as_text: bool, ids: "_Ids | None") -> dict[str, Any]:
    arguments = _arguments_text(call) if as_text else _arguments_object(call)
    number = call.get("id") if ids is None else ids[call.get("id")]
    # Templates print the keys of a function in this order.
    done = {"type": "function", "function": {"name": _function(call)["name"], "arguments": arguments}}
    return done if number is None else {"id": number, **done}


class _Ids(dict[str | None, str]):
    """Ids as Mistral's templates want them, for those that clients brought along."""

    def __missing__(self, number: str | None) -> str:
        valid = number is not None and re.fullmatch("[A-Za-z0-9]{9}", number)
        self[number] = number if valid and number is not None else f"{len(self):09d}"
        return self[number]


def _append(messages: list[Message], text: str) -> None:
    """To the last message that is not the model's own and has a content (T6)."""
    for message in reversed(messages):
        if message["role"] != "assistant" and "content" in message:
            message["content"] += text
            return
