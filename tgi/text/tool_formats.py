"""The formats in which models write tool calls, and a parser that reads calls while they are generated.

`FORMATS` declares each format once. Derived from the declaration are the text of calls in a conversation
(`write`), the grammar that forces calls (`rules`), and the parser of an answer (`parser`); its `signs` tell
which chat templates use it. To add a format, add it to `FORMATS`. A format that does not fit the pattern of
`ToolFormat` is a subclass with its own `write`, `rules` and `parser`.
"""

import json
import re
import secrets
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import attrs

from tgi.errors import ToolError

from .json_schema import SchemaTerm
from .reasoning import undecided

_ID_LENGTH = 9
"""Characters of a call's id. Chat templates of Mistral models refuse other lengths."""
_JSON_LEXEME = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]|[:,] |\s+')
"""A lexeme of the text before the arguments of a call, in a format without a mark."""


@attrs.frozen
class Tool:
    """A function that the model may call."""

    name: str
    description: str | None
    parameters: Any
    """JSON schema of the arguments, which are an object. None and {} mean no arguments."""


@attrs.frozen
class CallDelta:
    """The next piece of a tool call."""

    index: int
    """Index of the call within its answer."""
    id: str | None
    """Id of the call in its first delta; None afterwards."""
    name: str | None
    """Name of the function in the first delta; None afterwards."""
    arguments: str
    """The next piece of the arguments' JSON text."""


@attrs.frozen(kw_only=True)
class ToolFormat:
    """The text of calls: `begin head NAME middle ARGUMENTS tail [separator head NAME …] end`."""

    signs: tuple[str, ...] = ()
    """Strings that all occur in the source of a chat template that uses the format."""
    begin: str = ""
    """Text before the first call."""
    head: str = '{"name": "'
    """Text between the beginning of a call and the name of its function."""
    middle: str = '", "arguments": '
    """Text between the name and the arguments."""
    tail: str = "}"
    """Text between the arguments and the end of the call."""
    separator: str = "\n"
    """Text between two calls."""
    end: str = ""
    """Text after the last call."""
    mark: str = ""
    """Beginning of `opening` that tells calls from text before them; "" if calls are all of an answer."""

    @property
    def opening(self) -> str:
        """The text from the beginning of the first call to its name."""
        return self.begin + self.head

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts around names and arguments."""
        return (self.begin, self.head, self.middle, self.tail, self.separator, self.end)

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        """Return the text of calls, each given as a name and the JSON text of its arguments."""
        texts = [f"{self.head}{_quoted(name)}{self.middle}{rest}{self.tail}" for name, rest in calls]
        return self.begin + self.separator.join(texts) + self.end

    def rules(
        self, tools: Sequence[Tool], literal: Callable[[str], str], *, several: bool, among_json: bool
    ) -> Iterator[str]:
        """Yield Lark rules for `calls`: the text of one call, or of `several`, after the mark.

        `literal` returns the expression that matches a text. `among_json`: the calls are an alternative to
        other JSON, and must be made of the same lexemes. Raises ToolError for parameters that are no schema.
        """
        opening, separator, head = self.opening.removeprefix(self.mark), self.separator + self.head, ""
        if among_json:
            opening, separator, head = self.begin, self.separator, self.head
        more = f"({literal(separator)} call)*" if several else ""
        yield f"calls: {literal(opening)} call {more} {literal(self.end)}"
        yield "call: " + " | ".join(f"call_{number}" for number in range(len(tools)))
        for number, tool in enumerate(tools):
            parts = [head + _quoted(tool.name) + self.middle]
            if among_json:
                parts = _JSON_LEXEME.findall(parts[0])
            before = " ".join(map(literal, parts))
            yield f"call_{number}: {before} arguments_{number} {literal(self.tail)}"
            yield f"arguments_{number}: {arguments_term(tool, among_json)}"

    def parser(self) -> "ToolCallParser":
        """Return a parser for one answer."""
        return ToolCallParser(self)


@attrs.define
class ToolCallParser:
    """Reads one answer, in pieces of any size that include special tokens but not the end token.

    Arguments are passed on as they arrive; together they are valid JSON if the answer follows the format. An
    answer that leaves the format is text from there on. Space between text and calls is left out.
    """

    _format: ToolFormat
    _state: Literal["start", "text", "name", "arguments", "call end"] = "start"
    _held: str = ""
    """Text that is read, but not yet known to be content or part of a call."""
    _calls: int = 0
    _depth: int = 0
    """Number of open braces and brackets in the arguments."""
    _in_string: bool = False
    """Whether the arguments' text ends inside a JSON string."""
    _escaped: bool = False
    """Whether the arguments' text ends with a backslash that escapes the next character."""

    @property
    def is_within_arguments(self) -> bool:
        """Whether the arguments of the last call are incomplete."""
        return self._state == "arguments"

    def feed(self, text: str) -> list[str | CallDelta]:
        """Take the next piece of the answer; return content and parts of calls that are now certain."""
        self._held += text
        parts: list[str | CallDelta] = []
        while self._step(parts):
            pass
        return parts

    def end(self) -> list[str | CallDelta]:
        """Return the rest of the content when the answer is complete."""
        rest, self._held = self._held, ""
        if self._calls and (self._state != "text" or not rest.strip()):
            return []  # a call that was cut off, or space behind calls
        if self._state == "name":
            rest = self._format.opening + rest
        return [rest] if rest else []

    def _step(self, parts: list[str | CallDelta]) -> bool:
        """Consume held text; return False if that takes more text."""
        match self._state:
            case "start" | "text":
                return self._take_text(parts)
            case "name":
                return self._take_name(parts)
            case "arguments":
                return self._take_arguments(parts)
            case _:
                return self._take_call_end()

    def _take_text(self, parts: list[str | CallDelta]) -> bool:
        opening = self._format.opening
        at = self._held.find(opening)
        if not self._format.mark and (self._state == "text" or at > 0):
            at = -1  # without a mark, an answer with calls begins with them
        if at >= 0:
            before = self._held[:at].rstrip()
            self._held, self._state = self._held[at + len(opening) :], "name"
            if before:
                parts.append(before)
            return True
        certain = len(self._held) - self._undecided(opening)
        if certain:
            parts.append(self._held[:certain])
            self._held, self._state = self._held[certain:], "text"
        return False

    def _undecided(self, opening: str) -> int:
        """Return how many characters at the end may begin calls, or are space before them."""
        if self._format.mark:
            return undecided(self._held, opening)
        return len(self._held) if self._state == "start" and opening.startswith(self._held) else 0

    def _take_name(self, parts: list[str | CallDelta]) -> bool:
        name, middle, rest = self._held.partition(self._format.middle)
        if not middle:
            return False
        id_ = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_ID_LENGTH))
        parts.append(CallDelta(self._calls, id_, _unquoted(name), ""))
        self._calls += 1
        self._held, self._state, self._depth = rest, "arguments", 0
        return True

    def _take_arguments(self, parts: list[str | CallDelta]) -> bool:
        size = self._scan_arguments()
        if size:
            parts.append(CallDelta(self._calls - 1, None, None, self._held[:size]))
        self._held = self._held[size:]
        return self._state != "arguments"

    def _scan_arguments(self) -> int:
        """Return how many held characters belong to the arguments, and change the state at their end."""
        for index, character in enumerate(self._held):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self._state = "call end"
                    return index + 1
        return len(self._held)

    def _take_call_end(self) -> bool:
        style, held = self._format, self._held
        another = style.tail + style.separator + style.head
        last = style.tail + style.end
        if held.startswith(another):
            self._held, self._state = held[len(another) :], "name"
        elif another.startswith(held):
            return False
        elif held.startswith(last):
            self._held, self._state = held[len(last) :], "text"
        elif last.startswith(held):
            return False
        else:
            self._state = "text"
        return True


def arguments_term(tool: Tool, among_json: bool) -> SchemaTerm:
    """Return the term of a Lark grammar for the arguments of a tool. Raises ToolError.

    One tool among many must not refuse a request: what cannot be enforced is left out.
    """
    schema, owner = tool.parameters, f"the parameters of `{tool.name}`"
    if schema is None or schema == {}:
        schema = {"properties": {}}
    elif schema is True:
        schema = {"type": "object"}
    types = schema.get("type", "object") if isinstance(schema, dict) else []
    if "object" not in ([types] if isinstance(types, str) else types):
        raise ToolError(f"{owner} must have a schema of an object")
    if schema.get("properties") == {} and "additionalProperties" not in schema:
        schema = schema | {"additionalProperties": False}
    return SchemaTerm(schema=schema, owner=owner, lenient=True, is_object=True, spaced=among_json)


def _quoted(name: str) -> str:
    """Return a name as it is written between the quotes of a JSON string."""
    return json.dumps(name, ensure_ascii=False)[1:-1]


def _unquoted(name: str) -> str:
    try:
        return str(json.loads(f'"{name}"'))
    except ValueError:
        return name


GENERIC = ToolFormat(middle='", "parameters": ')
"""The format for a model whose own format is unknown; a prompt explains it."""

_JSON_LIST: dict[str, Any] = {"separator": ", ", "end": "]"}
_DEEPSEEK: dict[str, Any] = {
    "begin": "<｜tool▁calls▁begin｜>",
    "end": "<｜tool▁calls▁end｜>",
    "mark": "<｜tool▁calls▁begin｜>",
}
FORMATS = (
    # Mistral since 2025
    ToolFormat(
        signs=("[TOOL_CALLS]", "[ARGS]"),
        head="[TOOL_CALLS]",
        middle="[ARGS]",
        tail="",
        separator="",
        mark="[TOOL_CALLS]",
    ),
    # Mistral with SentencePiece
    ToolFormat(signs=("[TOOL_CALLS] [",), begin="[TOOL_CALLS] [", mark="[TOOL_CALLS]", **_JSON_LIST),
    # Mistral with Tekken
    ToolFormat(signs=("[TOOL_CALLS]",), begin="[TOOL_CALLS][", mark="[TOOL_CALLS]", **_JSON_LIST),
    # Hermes, Qwen
    ToolFormat(
        signs=("<tool_call>", "</tool_call>", "arguments", '"name'),
        head='<tool_call>\n{"name": "',
        tail="}\n</tool_call>",
        mark="<tool_call>",
    ),
    # Granite 3
    ToolFormat(signs=("<|tool_call|>",), begin="<|tool_call|>[", mark="<|tool_call|>", **_JSON_LIST),
    # DeepSeek V3, R1
    ToolFormat(
        signs=("<｜tool▁calls▁begin｜>", "```json"),
        head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        middle="\n```json\n",
        tail="\n```<｜tool▁call▁end｜>",
        **_DEEPSEEK,
    ),
    # DeepSeek V3.1
    ToolFormat(
        signs=("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
        head="<｜tool▁call▁begin｜>",
        middle="<｜tool▁sep｜>",
        tail="<｜tool▁call▁end｜>",
        separator="",
        **_DEEPSEEK,
    ),
    # Llama 3.1 and later
    ToolFormat(signs=('"name": ', '"parameters": ', "ipython"), middle='", "parameters": '),
)
"""All known formats. The first whose signs occur in a template is the template's."""
