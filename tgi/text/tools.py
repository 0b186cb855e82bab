"""Tools that a model may call: in which format it does so, and a grammar that holds it to that.

The grammar enforces the very text that the parser looks for. Knows no HTTP, no messages and no chat template
but for what it says of the format.
"""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from tgi.errors import ToolError, ValidationError

from .chat_template import ChatTemplates
from .grammar import GrammarSpec, tokens_that_are_no_text
from .json_schema import GrammarError, prepare_schema, read_schema
from .tokenizer import Tokenizer
from .tool_parser import CallDelta, CallText, ToolCallParser, in_json

__all__ = ["GENERIC", "CallDelta", "Tool", "ToolCallParser", "ToolFormat"]

_THOUGHTS_END = "</think>"


@attrs.frozen
class Tool:
    """A function that the model may call."""

    name: str
    description: str | None
    parameters: Any
    """JSON schema of the arguments, an object; None or {} for none."""


@attrs.frozen(kw_only=True)
class ToolFormat:
    """How a model calls tools."""

    text: CallText
    taught: bool = True
    """Whether the template tells the model of the format."""
    single: bool = False
    """Whether the model makes but one call at a time."""
    thinks: bool = False
    """Whether the template knows of thoughts, which may precede a call that is required."""
    special_tokens: dict[str, int] = attrs.field(factory=dict, eq=False, repr=False)
    """Tokens that are no text to a grammar, but those that end an answer."""

    @classmethod
    def of(cls, templates: ChatTemplates, tokenizer: Tokenizer) -> "ToolFormat":
        """The model's own format, as its template shows it, or else one that a prompt has to explain."""
        source = templates.source(with_tools=True) or ""
        known = [text for signs, text in _KNOWN if all(sign in source for sign in signs)]
        taught = bool(known) and templates.knows_tools()
        text = known[0] if taught else GENERIC
        tokens = tokens_that_are_no_text(tokenizer)
        return cls(
            text=text,
            taught=taught,
            single="tool_calls|length == 1" in source.replace(" | ", "|"),
            thinks=_THOUGHTS_END in source and text.mark != "",
            special_tokens={name: id_ for name, id_ in tokens.items() if id_ not in tokenizer.eos_ids},
        )

    def grammar(
        self, tools: Sequence[Tool], *, required: bool, parallel: bool, text: GrammarSpec | None = None
    ) -> GrammarSpec:
        """What an answer has to obey: calls, or where they are not `required`, text.

        Before calls there may be text where the format has a mark for them, unless `text` says what an
        answer without calls has to obey. Raises ToolError for parameters that are no schema, and
        ValidationError for such a `text`.
        """
        # Without a mark a call is told from other JSON by its lexemes, which must be the same then.
        among_json = not (self.text.mark or required or text is None)
        calls = f"{self._literal(self.text.mark)} calls"
        if required and not self.thinks:
            rules = [f"start: {calls}"]
        elif required:
            rules = [f"start: {calls} | thoughts SPACE {calls}", r"SPACE: /\s{0,2}/"]
            rules += self._up_to(
                "thoughts", _THOUGHTS_END, f"{_TEXT} & ~/(?s:.*){_regex(self.text.mark)}(?s:.*)/"
            )
        elif text is not None:
            rules = [f"start: answer | {calls}", f"answer: {_answer(text, among_json)}"]
        elif self.text.mark:
            rules = ["start: text | before calls", f"text: {self._free_text()}", f"TEXT: {_TEXT}"]
            rules += self._up_to("before", self.text.mark, _TEXT)
        else:
            rules = [
                "start: text | calls",
                f"text: {self._free_text(first='FIRST')}",
                f"FIRST: {_NO_CALL}",
                f"TEXT: {_TEXT}",
            ]
        rules += self._calls(tools, parallel and not self.single, among_json)
        return GrammarSpec("lark", "\n".join(rules) + "\n")

    def _calls(self, tools: Sequence[Tool], several: bool, among_json: bool) -> Iterable[str]:
        """The rules for calls, behind the mark."""
        text = self.text
        opening, separator, head = text.opening.removeprefix(text.mark), text.separator + text.head, ""
        if among_json:
            opening, separator, head = text.begin, text.separator, text.head
        more = f"({self._literal(separator)} call)*" if several else ""
        yield f"calls: {self._literal(opening)} call {more} {self._literal(text.end)}"
        yield "call: " + " | ".join(f"call_{number}" for number in range(len(tools)))
        for number, tool in enumerate(tools):
            parts = [head + in_json(tool.name) + text.middle]
            if among_json:
                parts = _JSON_LEXEME.findall(parts[0])
            before = " ".join(map(self._literal, parts))
            yield f"call_{number}: {before} arguments_{number} {self._literal(text.tail)}"
            yield f"arguments_{number}: %json {_json(_arguments_schema(tool), among_json)}"

    def _free_text(self, first: str = "TEXT") -> str:
        """Text and special tokens, but the mark, in any order; what it begins with is a `first`."""
        special = self._any_special(self.text.mark)
        return f"{first}? ({special} TEXT?)*" if special else f"{first}?"

    def _up_to(self, rule: str, end: str, terminal: str) -> Iterable[str]:
        """Rules for text that is a `terminal` up to the first `end`, with special tokens before it."""
        name = rule.upper()
        yield f"{name}: {terminal}"
        special = self._any_special(self.text.mark, end)
        before = f"({name}? {special})*" if special else ""
        if end in self.special_tokens:
            yield f"{rule}: {before} {name}? {self._literal(end)}"
        else:
            yield f"{rule}: {before} {rule}_end"
            yield f"{rule}_end[lazy]: {name}? {self._literal(end)}"

    def _any_special(self, *without: str) -> str:
        ids = sorted(id_ for name, id_ in self.special_tokens.items() if name not in without)
        # Consecutive ids have the same distance to their places in the list.
        runs = itertools.groupby(enumerate(ids), lambda item: item[1] - item[0])
        ranges = [[id_ for _, id_ in run] for _, run in runs]
        return f"<[{','.join(f'{run[0]}-{run[-1]}' for run in ranges)}]>" if ranges else ""

    def _literal(self, text: str) -> str:
        """A text in a rule; special tokens are no text to the grammar, and named by their ids."""
        names = sorted((name for name in self.special_tokens if name in text), key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        return " ".join(
            f"<[{self.special_tokens[part]}]>" if part in names else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        )

    def parser(self) -> ToolCallParser:
        """For one answer."""
        return ToolCallParser(self.text)


GENERIC = CallText(middle='", "parameters": ')
"""For a model of whose own format nothing is known."""

_JSON_LIST: dict[str, Any] = {"separator": ", ", "end": "]"}
_DEEPSEEK: dict[str, Any] = {
    "begin": "<｜tool▁calls▁begin｜>",
    "end": "<｜tool▁calls▁end｜>",
    "mark": "<｜tool▁calls▁begin｜>",
}
_KNOWN: tuple[tuple[tuple[str, ...], CallText], ...] = (
    # Mistral, from 2025; before with SentencePiece; and without.
    (
        ("[TOOL_CALLS]", "[ARGS]"),
        CallText(head="[TOOL_CALLS]", middle="[ARGS]", tail="", separator="", mark="[TOOL_CALLS]"),
    ),
    (("[TOOL_CALLS] [",), CallText(begin="[TOOL_CALLS] [", mark="[TOOL_CALLS]", **_JSON_LIST)),
    (("[TOOL_CALLS]",), CallText(begin="[TOOL_CALLS][", mark="[TOOL_CALLS]", **_JSON_LIST)),
    # Hermes, Qwen.
    (
        ("<tool_call>", "</tool_call>", "arguments", '"name'),
        CallText(head='<tool_call>\n{"name": "', tail="}\n</tool_call>", mark="<tool_call>"),
    ),
    # Granite 3.
    (("<|tool_call|>",), CallText(begin="<|tool_call|>[", mark="<|tool_call|>", **_JSON_LIST)),
    # DeepSeek V3 and R1; V3.1.
    (
        ("<｜tool▁calls▁begin｜>", "```json"),
        CallText(
            head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            middle="\n```json\n",
            tail="\n```<｜tool▁call▁end｜>",
            **_DEEPSEEK,
        ),
    ),
    (
        ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
        CallText(
            head="<｜tool▁call▁begin｜>",
            middle="<｜tool▁sep｜>",
            tail="<｜tool▁call▁end｜>",
            separator="",
            **_DEEPSEEK,
        ),
    ),
    # Llama 3.1 and its successors.
    (('"name": ', '"parameters": ', "ipython"), CallText(middle='", "parameters": ')),
)
"""Which signs in a template tell a format; the first that fits counts."""

_JSON_LEXEME = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]|[:,] |\s+')
"""What a call without a mark is made of."""
_SAME_LEXEMES: dict[str, Any] = {
    "whitespace_pattern": None,
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}

_TEXT = "/(?s:.+)/"
_NO_CALL = _TEXT + r' & ~/\s*\{\s*"name"(?s:.*)/'
"""Text that does not begin as a call of a format without a mark does."""


def _regex(text: str) -> str:
    return re.sub(r"[^\w ]", lambda found: f"\\x{{{ord(found[0]):x}}}", text)


def _arguments_schema(tool: Tool) -> dict[str, Any]:
    nothing = tool.parameters is None or tool.parameters == {}
    try:
        schema = prepare_schema({"properties": {}} if nothing else tool.parameters)
    except GrammarError as error:
        raise ToolError(f"the parameters of {tool.name} are not valid: {error}") from error
    # The parser finds the end of an object only; and what cannot be enforced is no reason to refuse tools.
    guidance = schema["x-guidance"] | {"lenient": True}
    return schema | {"type": "object", "x-guidance": guidance}


def _answer(text: GrammarSpec, among_json: bool) -> str:
    """What follows the colon of a rule for a text."""
    if text.kind == "regex":
        escaped = {"/": r"\/", "\n": r"\n"}
        parts = re.findall(r"\\.|.", text.source, re.DOTALL)
        return f"/(?:{''.join(escaped.get(part, part) for part in parts)})/"
    try:
        return "%json " + _json(prepare_schema(read_schema(text.source)), among_json)
    except GrammarError as error:
        raise ValidationError(f"grammar is not valid: {error}") from error


def _json(schema: dict[str, Any], among_json: bool) -> str:
    guidance = schema["x-guidance"] | (_SAME_LEXEMES if among_json else {})
    return json.dumps(schema | {"x-guidance": guidance}, ensure_ascii=False)
