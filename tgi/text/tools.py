"""How a model writes tool calls: the formats, a grammar that forces one, and a parser that reads it.

The grammar enforces the very text that the parser looks for, so the arguments can be passed on as they are
generated, and are valid JSON together. Knows no HTTP, no messages and no chat template but for what it says
of the format.
"""

import json
import re
import secrets
import string
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from tgi.errors import ToolError, ValidationError

from .chat_template import ChatTemplates
from .grammar import GrammarSpec
from .json_schema import GrammarError, prepare_schema, read_schema
from .tokenizer import Tokenizer

_ID_LENGTH = 9
"""Of the id of a call; templates of Mistral's models refuse others."""
_THOUGHTS_END = "</think>"


@attrs.frozen
class Tool:
    """A function that the model may call."""

    name: str
    description: str | None
    parameters: Any
    """JSON schema of the arguments, an object; None or {} for none."""


@attrs.frozen
class CallDelta:
    """What became known of a call."""

    index: int
    """Of the call within its answer."""
    id: str | None
    """With the first delta of a call, as `name`; None afterwards."""
    name: str | None
    arguments: str
    """The next piece of the JSON text."""


@attrs.frozen(kw_only=True)
class ToolFormat:
    """The text of calls: `begin head NAME middle ARGUMENTS tail [separator head …] end`."""

    begin: str = ""
    head: str = '{"name": "'
    middle: str = '", "arguments": '
    tail: str = "}"
    separator: str = "\n"
    end: str = ""
    mark: str = ""
    """Where text may precede calls, what `begin head` begins with; "": calls are all of an answer."""
    single: bool = False
    """Whether the model makes but one call at a time."""
    taught: bool = True
    """Whether the template tells the model of the format."""
    thinks: bool = False
    """Whether the template knows of thoughts, which may precede a call that is required."""
    special_tokens: dict[str, int] = attrs.field(factory=dict, eq=False, repr=False)
    """Of those in all these texts the ids: they are no text to a grammar."""

    @classmethod
    def of(cls, templates: ChatTemplates, tokenizer: Tokenizer) -> "ToolFormat":
        """The model's own format, as its template shows it, or else one that a prompt has to explain."""
        source = templates.source(with_tools=True) or ""
        known = [made for marks, made in _KNOWN if all(mark in source for mark in marks)]
        made = known[0] if known and templates.knows_tools() else GENERIC
        thinks = _THOUGHTS_END in source and made.mark != ""
        texts = (made.begin, made.head, made.middle, made.tail, made.separator, made.end, _THOUGHTS_END)
        names = {tokenizer.decode_alone(token): token for token in tokenizer.special_ids}
        return attrs.evolve(
            made,
            single="tool_calls|length == 1" in source.replace(" | ", "|"),
            thinks=thinks,
            special_tokens={
                name: token for name, token in names.items() if name and any(name in text for text in texts)
            },
        )

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        """The text of calls, each a name and the JSON text of its arguments."""
        texts = [
            f"{self.head}{_in_json(name)}{self.middle}{arguments}{self.tail}" for name, arguments in calls
        ]
        return self.begin + self.separator.join(texts) + self.end

    def grammar(
        self, tools: Sequence[Tool], *, required: bool, parallel: bool, text: GrammarSpec | None = None
    ) -> GrammarSpec:
        """What an answer has to obey: calls, or where they are not `required`, text.

        Before calls there may be text where the format has a mark for them, unless `text` says what an
        answer without calls has to obey. Raises ToolError for parameters that are no schema, and
        ValidationError for such a `text`.
        """
        more = f"({self._literal(self.separator + self.head)} call)*"
        rest = [self._literal((self.begin + self.head).removeprefix(self.mark)), "call"]
        rest += [more if parallel and not self.single else "", self._literal(self.end)]
        rules = [
            "calls: " + " ".join(rest),
            "call: " + " | ".join(f"call_{number}" for number in range(len(tools))),
            "TEXT: " + ("/(?s:.*)/" if self.mark else _NO_CALL),
        ]
        for number, tool in enumerate(tools):
            opening = self._literal(_in_json(tool.name) + self.middle)
            rules.append(f"call_{number}: {opening} arguments_{number} {self._literal(self.tail)}")
            rules.append(f"arguments_{number}: %json {_arguments_schema(tool)}")
        if required:
            rules += self._start_of_required()
        elif text is not None:
            rules += [f"start: answer | {self._literal(self.mark)} calls", f"answer: {_answer(text)}"]
        elif not self.mark:
            rules.append("start: TEXT | calls")
        else:
            rules += ["start: TEXT | before calls", self._lazy("before", "TEXT", self.mark)]
        return GrammarSpec("lark", "\n".join(rules) + "\n")

    def _start_of_required(self) -> list[str]:
        calls = f"{self._literal(self.mark)} calls"
        if not self.thinks:
            return [f"start: {calls}"]
        return [
            f"start: {calls} | thoughts SPACE {calls}",
            r"SPACE: /\s{0,2}/",
            f"THOUGHTS: /(?s:.*)/ & ~/(?s:.*){_regex(self.mark)}(?s:.*)/",
            self._lazy("thoughts", "THOUGHTS", _THOUGHTS_END),
        ]

    def _lazy(self, rule: str, terminal: str, end: str) -> str:
        """A rule for text up to and with the first `end`."""
        if end in self.special_tokens:
            return f"{rule}: {terminal} {self._literal(end)}"
        return f"{rule}[lazy]: {terminal} {self._literal(end)}"

    def _literal(self, text: str) -> str:
        """A text in a rule; special tokens are no text to the grammar, and named by their ids."""
        known = [token for token in self.special_tokens if token in text]
        pattern = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
        parts = re.split(f"({pattern})", text) if known else [text]
        return " ".join(
            f"<[{self.special_tokens[part]}]>" if part in known else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        )

    def parser(self) -> "ToolCallParser":
        """For one answer."""
        return ToolCallParser(self)


GENERIC = ToolFormat(middle='", "parameters": ', taught=False)
"""For a model of whose own format nothing is known."""

_JSON_LIST: dict[str, Any] = {"separator": ", ", "end": "]"}
_KNOWN: tuple[tuple[tuple[str, ...], ToolFormat], ...] = (
    (
        ("[TOOL_CALLS]", "[ARGS]"),
        ToolFormat(head="[TOOL_CALLS]", middle="[ARGS]", tail="", separator="", mark="[TOOL_CALLS]"),
    ),
    (
        ("[TOOL_CALLS] [",),
        ToolFormat(begin="[TOOL_CALLS] [", mark="[TOOL_CALLS]", **_JSON_LIST),
    ),
    (
        ("[TOOL_CALLS]",),
        ToolFormat(begin="[TOOL_CALLS][", mark="[TOOL_CALLS]", **_JSON_LIST),
    ),
    (
        ("<tool_call>", "</tool_call>", '"arguments'),
        ToolFormat(head='<tool_call>\n{"name": "', tail="}\n</tool_call>", mark="<tool_call>"),
    ),
    (
        ("<|tool_call|>",),
        ToolFormat(begin="<|tool_call|>[", mark="<|tool_call|>", **_JSON_LIST),
    ),
    (
        ("<｜tool▁calls▁begin｜>", "```json"),
        ToolFormat(
            begin="<｜tool▁calls▁begin｜>",
            head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            middle="\n```json\n",
            tail="\n```<｜tool▁call▁end｜>",
            end="<｜tool▁calls▁end｜>",
            mark="<｜tool▁calls▁begin｜>",
        ),
    ),
    (
        ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
        ToolFormat(
            begin="<｜tool▁calls▁begin｜>",
            head="<｜tool▁call▁begin｜>",
            middle="<｜tool▁sep｜>",
            tail="<｜tool▁call▁end｜>",
            separator="",
            end="<｜tool▁calls▁end｜>",
            mark="<｜tool▁calls▁begin｜>",
        ),
    ),
    (
        ('"name": ', '"parameters": ', "ipython"),
        ToolFormat(middle='", "parameters": '),
    ),
)
"""Which parts of a template tell a format: those of Mistral (from 2025, 2024 with SentencePiece and without),
Hermes and Qwen, Granite, DeepSeek (V3 and R1, V3.1), and Llama 3.1."""

_NO_CALL = r'/(?s:.*)/ & ~/\s*\{\s*"name"(?s:.*)/'
"""Text that does not begin as a call of a format without a mark does."""


def _in_json(text: str) -> str:
    """As it is within the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _regex(text: str) -> str:
    return re.sub(r"[^\w ]", lambda found: f"\\x{{{ord(found[0]):x}}}", text)


def _arguments_schema(tool: Tool) -> str:
    nothing = tool.parameters is None or tool.parameters == {}
    try:
        schema = prepare_schema({"properties": {}} if nothing else tool.parameters)
    except GrammarError as error:
        raise ToolError(f"the parameters of {tool.name} are not valid: {error}") from error
    # The parser finds the end of an object only; and what cannot be enforced is no reason to refuse tools.
    guidance = schema["x-guidance"] | {"lenient": True}
    return json.dumps(schema | {"type": "object", "x-guidance": guidance})


def _answer(text: GrammarSpec) -> str:
    """What follows the colon of a rule for a text."""
    if text.kind == "regex":
        escaped = re.sub(
            r"\\.|/|\n", lambda found: {"/": r"\/", "\n": r"\n"}.get(found[0], found[0]), text.source
        )
        return f"/(?:{escaped})/"
    try:
        return "%json " + json.dumps(prepare_schema(read_schema(text.source)))
    except GrammarError as error:
        raise ValidationError(f"grammar is not valid: {error}") from error


def _new_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_ID_LENGTH))


@attrs.define
class ToolCallParser:
    """Reads one answer, in pieces of any size, with special tokens in it but not the one that ends it.

    What does not follow the format after all is text. Space between text and calls is left out.
    """

    _format: ToolFormat
    _state: str = "start"
    _held: str = ""
    """Of which it is not clear yet what it is."""
    _calls: int = 0
    _depth: int = 0
    """Of braces and brackets within the arguments;"""
    _string: bool = False
    """whether within a string of them,"""
    _escape: bool = False
    """and behind its backslash."""

    def feed(self, text: str) -> list[str | CallDelta]:
        """What this piece adds: text for the content, and parts of calls."""
        self._held += text
        found: list[str | CallDelta] = []
        while self._step(found):
            pass
        return found

    def end(self) -> list[str | CallDelta]:
        """What is left when no more will come."""
        left, self._held = self._held, ""
        if self._calls and (self._state != "text" or not left.strip()):
            return []  # a call that was cut off, or space behind calls
        if self._state == "name":
            left = self._format.begin + self._format.head + left
        return [left] if left else []

    def _step(self, found: list[str | CallDelta]) -> bool:
        """Take something from what is held; False when that takes more text."""
        match self._state:
            case "start" | "text":
                return self._take_text(found)
            case "name":
                return self._take_name(found)
            case "arguments":
                return self._take_arguments(found)
            case _:
                return self._take_call_end()

    def _take_text(self, found: list[str | CallDelta]) -> bool:
        opening = self._format.begin + self._format.head
        at = self._held.find(opening)
        if not self._format.mark and (self._state == "text" or at > 0):
            at = -1  # calls are all of an answer
        if at >= 0:
            before = self._held[:at].rstrip()
            self._held, self._state = self._held[at + len(opening) :], "name"
            if before:
                found.append(before)
            return True
        keep = self._undecided(opening)
        if keep < len(self._held):
            found.append(self._held[: len(self._held) - keep])
            self._held, self._state = self._held[len(self._held) - keep :], "text"
        return False

    def _undecided(self, opening: str) -> int:
        """How many characters at the end may be the beginning of calls, or space before them."""
        held = self._held
        if not self._format.mark:
            return len(held) if self._state == "start" and opening.startswith(held) else 0
        keep = next(
            (n for n in range(min(len(opening) - 1, len(held)), 0, -1) if opening.startswith(held[-n:])), 0
        )
        return len(held) - len(held[: len(held) - keep].rstrip())

    def _take_name(self, found: list[str | CallDelta]) -> bool:
        name, middle, rest = self._held.partition(self._format.middle)
        if not middle:
            return False
        found.append(CallDelta(self._calls, _new_id(), _unquoted(name), ""))
        self._calls += 1
        self._held, self._state, self._depth = rest, "arguments", 0
        return True

    def _take_arguments(self, found: list[str | CallDelta]) -> bool:
        size = self._size_of_arguments()
        if size:
            found.append(CallDelta(self._calls - 1, None, None, self._held[:size]))
        self._held = self._held[size:]
        return self._state != "arguments"

    def _size_of_arguments(self) -> int:
        """How much of what is held belongs to the arguments; the state changes at their end."""
        for index, character in enumerate(self._held):
            if self._string:
                if self._escape:
                    self._escape = False
                elif character == "\\":
                    self._escape = True
                elif character == '"':
                    self._string = False
            elif character == '"':
                self._string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self._state = "call end"
                    return index + 1
        return len(self._held)

    def _take_call_end(self) -> bool:
        known, held = self._format, self._held
        another = known.tail + known.separator + known.head
        last = known.tail + known.end
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


def _unquoted(name: str) -> str:
    try:
        return str(json.loads(f'"{name}"'))
    except ValueError:
        return name
