"""Tool calls: their text, the grammar that forces them, and a parser that reads them as they are generated.

`ToolFormat` declares the text of calls. Derived from it are calls in a conversation (`write`), the grammar
(`rules`), and the parser of an answer (`parser`). A format that does not fit its pattern is a subclass with
its own `write`, `rules` and `parser`.
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
from .tool_arguments import JSON_TEXT, Reader, Rules, Syntax, pattern_of

_ID_LENGTH = 9
"""Characters of a call's id. Chat templates of Mistral models refuse other lengths."""
_JSON_LEXEME = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]|[:,] |\s+')
"""A lexeme of the text before the arguments of a call, in a format without a mark."""
_ID_WIDTHS = (1, 9, 10)
"""Numbers of digits of ids that formats ask for, at the least."""
ID = "{id}"
"""Place of an id in the text of a call."""


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


@attrs.define
class AnswerDelta:
    """The next pieces of an answer."""

    thoughts: str = ""
    content: str = ""
    calls: list[CallDelta] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class ToolFormat:
    """The text of calls: `begin head NAME middle ARGUMENTS tail [separator head NAME …] end`."""

    models: str = ""
    """Models that write calls so."""
    signs: tuple[str, ...] = ()
    """Strings that all occur in the source of a chat template that uses the format."""
    begin: str = ""
    """Text before the first call."""
    head: str = '{"name": "'
    """Text between the beginning of a call and the name of its function, with `ID` for an id."""
    middle: str = '", "arguments": '
    """Text between the name and the arguments, with `ID` for an id."""
    arguments: Syntax = JSON_TEXT
    """Syntax of the arguments."""
    tail: str = "}"
    """Text between the arguments and the end of the call."""
    separator: str = "\n"
    """Text between two calls."""
    end: str = ""
    """Text after the last call."""
    mark: str = ""
    """Beginning of `opening` that tells calls from text before them; "" if calls are all of an answer."""
    id_pattern: str = "[0-9]{1,3}"
    """Pattern of the ids that stand in calls."""
    text_begin: str = ""
    """Text before an answer that is text, where no mark tells calls; they may follow it after `separator`."""

    @property
    def opening(self) -> str:
        """The text from the beginning of the first call to its name, or to the id before it."""
        return self.begin + self.head.partition(ID)[0]

    @property
    def is_told_by_names(self) -> bool:
        """Whether an answer with calls is told from text by the name of a function at its beginning."""
        return not self.mark and (self.arguments is not JSON_TEXT or not self.opening)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts around names and arguments."""
        return (
            self.begin,
            self.head,
            self.middle,
            *self.arguments.texts,
            self.tail,
            self.separator,
            self.end,
        )

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        """Return the text of calls, each given as a name and the JSON text of its arguments."""
        texts = []
        for number, (name, arguments) in enumerate(calls):
            ids = (f"{number:0{width}d}" for width in _ID_WIDTHS)
            id_ = next((id_ for id_ in ids if re.fullmatch(self.id_pattern, id_)), str(number))
            head, middle = self.head.replace(ID, id_), self.middle.replace(ID, id_)
            texts.append(f"{head}{self.quoted(name)}{middle}{self.arguments.write(arguments)}{self.tail}")
        return self.begin + self.separator.join(texts) + self.end

    def rules(
        self, tools: Sequence[Tool], literal: Callable[[str], str], *, several: bool, among_json: bool
    ) -> Iterator[str]:
        """Yield Lark rules for `calls`: the text of one call, or of `several`, after the mark.

        `literal` returns the expression that matches a text. `among_json`: the calls are an alternative to
        other JSON, and must be made of the same lexemes. Raises ToolError for parameters that are no schema.
        """

        def with_id(text: str) -> str:
            return " CALL_ID ".join(literal(part) for part in text.split(ID))

        opening, separator, head = (
            (self.begin + self.head).removeprefix(self.mark),
            self.separator + self.head,
            "",
        )
        if among_json:
            opening, separator, head = self.begin, self.separator, self.head
        more = f"({with_id(separator)} call)*" if several else ""
        # Other text may begin as a call does, up to the arguments: that must be one lexeme.
        is_spelt = self.is_told_by_names and not among_json
        first = "first" if is_spelt else f"{with_id(opening)} call"
        yield f"calls: {first} {more} {literal(self.end)}"
        for rule in ("call", "first") if is_spelt else ("call",):
            yield f"{rule}: " + " | ".join(f"{rule}_{number}" for number in range(len(tools)))
        if ID in self.head + self.middle:
            yield f"CALL_ID: /{self.id_pattern}/"
        for number, tool in enumerate(tools):
            parts = [head + self.quoted(tool.name) + self.middle]
            if among_json and not self.is_told_by_names:
                parts = _JSON_LEXEME.findall(parts[0])
            before = " ".join(map(with_id, parts))
            rules = Rules(f"part_{number}", literal, arguments_term(tool, among_json))
            arguments = self.arguments.expression(rules)
            rest = f"arguments_{number} {literal(self.tail)}"
            yield f"call_{number}: {before} {rest}"
            if is_spelt:
                yield f"first_{number}: {literal(opening + parts[0])} {rest}"
            yield f"arguments_{number}: {arguments}"
            yield from rules.lines()

    def quoted(self, name: str) -> str:
        """Return the name of a function as it stands in a call."""
        return json.dumps(name, ensure_ascii=False)[1:-1] if self.head.endswith('"') else name

    def openings(self, tools: Sequence[Tool]) -> Sequence[str]:
        """Return the texts of which one begins an answer with calls, in a format without a mark."""
        if not self.is_told_by_names:
            return [self.opening]
        return [self.opening + self.quoted(tool.name) + self.middle for tool in tools]

    def beginning(self, tools: Sequence[Tool]) -> str:
        """Return the pattern of the beginning of a call, in a format without a mark."""
        lexemes = [] if self.is_told_by_names else re.findall(r'"\w+"|\S', self.opening.removesuffix('"'))
        texts = [r"\s*".join(map(pattern_of, lexemes))] if lexemes else map(pattern_of, self.openings(tools))
        return rf"\s*(?:{'|'.join(texts)})(?s:.*)"

    def parser(self, tools: Sequence[Tool] = (), *, required: bool = False) -> "ToolCallParser":
        """Return a parser for one answer with calls of these tools; `required`: it must be a call."""
        return ToolCallParser(self, tools, required)


@attrs.define
class ToolCallParser:
    """Reads one answer, in pieces of any size that include special tokens but not the end token.

    Arguments are passed on as they arrive; together they are valid JSON if the answer follows the format. An
    answer that leaves the format is text from there on. Space between text and calls is left out.
    """

    _format: ToolFormat
    _tools: Sequence[Tool] = ()
    _required: bool = False
    _state: Literal["start", "text", "name", "arguments", "call end"] = "start"
    _held: str = ""
    """Text that is read, but not yet known to be content or part of a call."""
    _calls: int = 0
    _reader: Reader = attrs.field(factory=lambda: JSON_TEXT.reader({}))
    """Reader of the last call's arguments."""

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
        before, mark, _ = rest.partition(self._format.mark) if self._format.mark else (rest, "", "")
        if self._required or self._state == "name":
            return []  # the beginning of a call
        rest = before.rstrip() if mark else rest
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
        style = self._format
        openings, head = ([style.opening], style.opening) if style.mark else ([], "")
        if self._state == "start" and not style.mark:
            # An answer with calls begins with them.
            openings, head = list(style.openings(self._tools)), style.opening
            begin = style.text_begin
            if begin and self._held.startswith(begin):
                self._held, self._state = self._held.removeprefix(begin), "text"
                return True
            if not self._held.startswith(tuple(openings)):
                if any(text.startswith(self._held) for text in (*openings, begin)):
                    return False
                openings = []
        elif style.text_begin:
            head = style.separator + style.head
            openings = [style.separator + opening for opening in style.openings(self._tools)]
        at = min((at for text in openings if (at := self._held.find(text)) >= 0), default=-1)
        if at >= 0:
            before = self._held[:at].rstrip()
            self._held, self._state = self._held[at + len(head) :], "name"
            if before:
                parts.append(before)
            return True
        certain = len(self._held) - max((undecided(self._held, text) for text in openings), default=0)
        if certain:
            parts.append(self._held[:certain])
            self._held, self._state = self._held[certain:], "text"
        return False

    def _take_name(self, parts: list[str | CallDelta]) -> bool:
        style = self._format
        before, _, middle = style.middle.rpartition(ID)
        if middle:
            text, found, rest = self._held.partition(middle)
        else:  # the arguments or the end of the call end the name
            ends = [end for end in (*style.arguments.texts[:1], style.tail) if end in self._held]
            at = min(map(self._held.index, ends), default=0)
            text, found, rest = self._held[:at], "".join(ends), self._held[at:]
        if not found:
            return False
        _, has_id, after = style.head.partition(ID)
        if has_id:
            text = re.sub(f"^{style.id_pattern}{re.escape(after)}", "", text)
        if before:
            text = re.sub(f"{re.escape(before)}{style.id_pattern}$", "", text)
        name = _unquoted(text) if style.head.endswith('"') else text
        parts.append(CallDelta(self._calls, new_id(), name, ""))
        tool = next((tool for tool in self._tools if tool.name == name), None)
        parameters = tool.parameters if tool is not None and isinstance(tool.parameters, dict) else {}
        self._reader = style.arguments.reader(parameters)
        self._calls += 1
        self._held, self._state = rest, "arguments"
        return True

    def _take_arguments(self, parts: list[str | CallDelta]) -> bool:
        text, self._held = self._reader.feed(self._held)
        if text:
            parts.append(CallDelta(self._calls - 1, None, None, text))
        if self._reader.done:
            self._state = "call end"
        return self._reader.done

    def _take_call_end(self) -> bool:
        style, held = self._format, self._held
        another = style.tail + style.separator + style.head.partition(ID)[0]
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


def new_id() -> str:
    """Return the id of a new call."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_ID_LENGTH))


def arguments_term(tool: Tool, among_json: bool) -> SchemaTerm:
    """Return the term of a Lark grammar for the arguments of a tool. Raises ToolError.

    One tool among many must not refuse a request: what cannot be enforced is left out.
    """
    schema, owner = tool.parameters, f"the parameters of `{tool.name}`"
    if schema is None or schema == {}:
        schema = {"properties": {}}
    elif schema is True:
        schema = {"type": "object"}
    types = schema.get("type", "object") if isinstance(schema, dict) else None
    if types != "object" and not (isinstance(types, list) and "object" in types):
        raise ToolError(f"{owner} must have a schema of an object")
    if schema.get("properties") == {} and "additionalProperties" not in schema:
        schema = schema | {"additionalProperties": False}
    return SchemaTerm(schema=schema, owner=owner, lenient=True, is_object=True, spaced=among_json)


def _unquoted(name: str) -> str:
    try:
        return str(json.loads(f'"{name}"'))
    except ValueError:
        return name
