"""Syntaxes in which models write the arguments of a call.

Most models write JSON text. `Tagged` has an element for each argument (`<parameter=city>Oslo</parameter>`),
`Literals` has literals of Python (`city="Oslo"`) or of Gemma 4 (`city:<|"|>Oslo<|"|>`). Each writes
arguments, holds a model to the schema of a function, and reads arguments into JSON text while they are
generated.
"""

import abc
import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import attrs
import msgspec

from .json_schema import SchemaTerm
from .json_schema.automata import translate
from .json_schema.formats import PATTERNS
from .json_schema.patterns import PatternError
from .stopping import overlap

_ANY = "(?s:.)"
_KEY = r"/[^\s<>\"'=:,(){}\[\]]+/"
"""Name of an argument that the schema does not know."""
_TYPES_OF = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "object": ("properties", "required", "additionalProperties", "patternProperties"),
    "array": ("items", "minItems", "maxItems", "prefixItems"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
"""Keywords by the type that they imply where none is said."""
_WORDS = {"True": "true", "False": "false", "None": "null"}
_MAX_LENGTH = 20_000
"""Maximum of a limit of characters, each of which takes a state of the lexer."""


class Syntax(abc.ABC):
    """The text of a call's arguments."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts around names and values."""
        return ()

    def write(self, arguments: str) -> str:
        """Return the text of arguments, given as JSON text; the JSON text itself if it is no object."""
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        return self._write(value) if isinstance(value, dict) else arguments

    @abc.abstractmethod
    def _write(self, arguments: Mapping[str, Any]) -> str: ...

    @abc.abstractmethod
    def expression(self, rules: "Rules") -> str:
        """Return the Lark expression for arguments that obey the schema of `rules`; add its rules."""

    @abc.abstractmethod
    def reader(self, _schema: Mapping[str, Any]) -> "Reader":
        """Return a reader of the arguments of one call."""


class Reader(abc.ABC):
    """Reads the arguments of one call, in pieces of any size, into JSON text."""

    def __init__(self) -> None:
        self.done = False
        """Whether the arguments are complete."""
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next piece; return JSON text that is now certain, and what follows the arguments."""
        self._held += text
        parts = []
        while not self.done and (part := self._step()) is not None:
            parts.append(part)
        rest = self._held if self.done else ""
        return "".join(parts), rest

    @abc.abstractmethod
    def _step(self) -> str | None:
        """Consume held text and return JSON text; None if that takes more text."""

    def _take(self, size: int) -> str:
        taken, self._held = self._held[:size], self._held[size:]
        return taken


class Rules:
    """Lark rules that are made once for each body."""

    def __init__(self, prefix: str, literal: Callable[[str], str], term: SchemaTerm) -> None:
        """`literal` returns the expression that matches a text; `term` is the schema of all arguments."""
        self.literal = literal
        self.term = term
        self.root = term.schema
        self._prefix = prefix
        self._names: dict[str, str] = {}
        self._lines: list[str] = []

    def add(self, body: str, *, lazy: bool = False, terminal: bool = False) -> str:
        """Return the name of a rule, or of a terminal, with this body."""
        body = f"{'[lazy]' if lazy else ''}: {body}"
        if body not in self._names:
            name = f"{self._prefix}_{len(self._names)}"
            self._names[body] = name.upper() if terminal else name
            self._lines.append(self._names[body] + body)
        return self._names[body]

    def recursive(self, key: str, make: Callable[[], str]) -> str:
        """Return the name of the rule for a `key`, whose body `make` returns and may use the rule itself."""
        if key not in self._names:
            self._names[key] = name = f"{self._prefix}_{len(self._names)}"
            self._lines.append(f"{name}: {make()}")
        return self._names[key]

    def lines(self) -> list[str]:
        """Return all rules."""
        return self._lines

    def resolved(self, schema: Any) -> Mapping[str, Any]:
        """Return a schema with its references to other parts of the root followed; {} where that fails."""
        for _ in range(9):
            if not isinstance(schema, Mapping):
                return {}
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                return schema
            schema = _find(self.root, reference)
        return {}

    def json(self, schema: Mapping[str, Any]) -> str:
        """Return the expression for JSON text that obeys a part of the root."""
        if "$ref" in json.dumps(schema):  # references go from the root
            schema = {**self.root, "$ref": "#/x-part", "x-part": schema}
            for keyword in (*_TYPES_OF["object"], "type"):
                schema.pop(keyword, None)
        return str(msgspec.structs.replace(self.term, schema=schema, is_object=False))

    def text_until(self, schema: Mapping[str, Any], end: str) -> str:
        """Return the expression for a text without quotes that obeys a schema of strings, and its `end`."""
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values is not None:
            return "(" + " | ".join(self.literal(value + end) for value in values) + ")"
        least, most = (schema.get(name) for name in ("minLength", "maxLength"))
        least = least if isinstance(least, int) else 0
        limit = min(most, _MAX_LENGTH) if isinstance(most, int) else ""
        patterns = _patterns(schema)
        closing = self.literal(end)
        match = re.match(r'"(?:[^"\\]|\\.)*"', closing)
        if match is None:  # a token of its own ends the text
            parts = [f"/{_ANY}{{{max(1, least)},{limit}}}/", *(f"/{pattern}/" for pattern in patterns)]
            optional = "?" if least == 0 and not patterns else ""
            return f"{self.add(' & '.join(parts), terminal=True)}{optional} {closing}"
        mark = json.loads(match[0])
        parts = [f"/{_ANY}{{{least},{limit}}}/", *(f"/{pattern}/" for pattern in patterns)]
        if least or patterns:
            parts.append(f"~/(?s:.*){pattern_of(mark)}(?s:.*)/")
        if len(parts) == 1:
            text = f"/{_ANY}{{{least},{limit}}}{pattern_of(mark)}/"
        else:
            text = f"{self.add(' & '.join(parts), terminal=True)} {match[0]}"
        return f"{self.add(text, lazy=True)} {closing[match.end() :]}".rstrip()

    def members(self, members: Sequence[tuple[str, bool]], separator: str, extra: str) -> str:
        """Return the expression for members in order, each with whether it is required.

        Any number of `extra` ones may follow, unless that is "".
        """
        more = f"({separator} {extra})*" if extra else ""
        tails = [more]
        for member, required in reversed(members):
            body = f"{separator} {member}"
            rest = tails[-1]
            tails.append(self.add(f"{body if required else f'({body})?'} {rest}".strip()))
        tails.reverse()
        starts = []
        for number, (member, required) in enumerate(members):
            starts.append(f"{member} {tails[number + 1]}".strip())
            if required:
                break
        else:
            starts.append(f"({extra} {more})?" if extra else '""')
        return self.add(" | ".join(starts))


def _find(root: Mapping[str, Any], reference: str) -> Any:
    place: Any = root
    for part in reference.removeprefix("#").split("/")[1:] if reference.startswith("#") else ["?"]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not (isinstance(place, Mapping) and name in place):
            return {}
        place = place[name]
    return place


def pattern_of(text: str) -> str:
    """Return the pattern of a text, without a character that means something to Lark."""
    return re.sub(r"[^\w ]", lambda match: f"\\x{{{ord(match[0]):x}}}", text)


def _patterns(schema: Mapping[str, Any]) -> list[str]:
    """Return the patterns of a schema of strings, in Rust's syntax for Lark, that can be enforced."""
    patterns = [PATTERNS[name] for name in [schema.get("format")] if name in PATTERNS]
    if isinstance(pattern := schema.get("pattern"), str):
        with suppress(PatternError):
            patterns += translate(pattern)
    return [re.sub(r"(?<!\\)/", r"\/", pattern) for pattern in patterns]


class _JsonText(Syntax):
    """JSON text."""

    def write(self, arguments: str) -> str:
        """Return the text as it is."""
        return arguments

    def _write(self, arguments: Mapping[str, Any]) -> str:
        return json.dumps(arguments, ensure_ascii=False)

    def expression(self, rules: Rules) -> str:
        """Return the Lark expression for arguments that obey the schema of `rules`."""
        return str(rules.term)

    def reader(self, _schema: Mapping[str, Any]) -> Reader:
        """Return a reader of the arguments of one call."""
        return _JsonReader()


class _JsonReader(Reader):
    """Passes JSON text on until its brackets are closed."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self._in_string = self._escaped = False

    def _step(self) -> str | None:
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
                    self.done = True
                    return self._take(index + 1)
        return self._take(len(self._held)) or None


@attrs.frozen
class _Kinds:
    """Parts of a schema: strings, and everything else."""

    strings: list[Mapping[str, Any]]
    others: list[Mapping[str, Any]]
    anything: bool = False
    """Whether the schema does not say the type."""

    @classmethod
    def of(cls, schema: Any, rules: Rules, depth: int = 0) -> "_Kinds":
        schema = rules.resolved(schema)
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list) and values:
            texts = [value for value in values if isinstance(value, str)]
            rest = [value for value in values if not isinstance(value, str)]
            return cls([{"enum": texts}] if texts else [], [{"enum": rest}] if rest else [])
        choices = schema.get("anyOf", schema.get("oneOf", schema.get("allOf", ())))
        if choices and depth < 9 and (len(choices) == 1 or "allOf" not in schema):
            kinds = [cls.of(choice, rules, depth + 1) for choice in choices]
            if any(kind.anything for kind in kinds):
                return cls([{}], [], anything=True)
            return cls([s for k in kinds for s in k.strings], [o for k in kinds for o in k.others])
        types = schema.get("type")
        if types is None:
            types = [name for name, words in _TYPES_OF.items() if any(word in schema for word in words)][:1]
        types = [types] if isinstance(types, str) else types
        if not types:
            return cls([{}], [], anything=True)
        rest = [name for name in types if name != "string"]
        return cls(
            [{**schema, "type": "string"}] if "string" in types else [],
            [{**schema, "type": rest[0] if len(rest) == 1 else rest}] if rest else [],
        )


def _properties(schema: Mapping[str, Any]) -> tuple[dict[str, Any], set[str], Any]:
    """Return properties, the names of required ones, and the schema of others; False if there are none."""
    listed = schema.get("properties")
    properties = dict(listed) if isinstance(listed, dict) else {}
    required = schema.get("required")
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    is_closed = (
        isinstance(listed, dict)
        and "patternProperties" not in schema
        and all(name in properties for name in names)
    )
    for name in names:
        properties.setdefault(name, {})
    return properties, set(names), schema.get("additionalProperties", not is_closed)


@attrs.frozen
class Tagged(Syntax):
    """An element `begin KEY middle VALUE end` for each argument. Strings have no quotes, the rest is JSON."""

    begin: str
    middle: str
    end: str

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts around names and values."""
        return self.begin, self.middle, self.end

    def _write(self, arguments: Mapping[str, Any]) -> str:
        values = (
            (k, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for k, v in arguments.items()
        )
        return "".join(f"{self.begin}{key}{self.middle}{value}{self.end}" for key, value in values)

    def expression(self, rules: Rules) -> str:
        """Return the Lark expression for arguments that obey the schema of `rules`."""
        properties, required, other = _properties(rules.resolved(rules.root))
        parts = []
        for name, part in properties.items():
            element = f"{rules.literal(self.begin + name + self.middle)} {self._value(part, rules)}"
            parts.append(element if name in required else f"({element})?")
        if other is not False:
            begin, middle = rules.literal(self.begin), rules.literal(self.middle)
            parts.append(f"({begin} {rules.add(_KEY, terminal=True)} {middle} {self._value(other, rules)})*")
        return rules.add(" ".join(parts) or '""')

    def _value(self, schema: Any, rules: Rules) -> str:
        kinds = _Kinds.of(schema, rules)
        values = [rules.text_until(part, self.end) for part in kinds.strings]
        if kinds.strings and not all("enum" in part for part in kinds.strings):
            return rules.add(" | ".join(values))  # any JSON text is a text as well
        end = rules.literal(self.end)
        return rules.add(" | ".join([*values, *(f"{rules.json(part)} {end}" for part in kinds.others)]))

    def reader(self, _schema: Mapping[str, Any]) -> Reader:
        """Return a reader of the arguments of one call."""
        return _TaggedReader(self, _schema)


class _TaggedReader(Reader):
    def __init__(self, syntax: Tagged, schema: Mapping[str, Any]) -> None:
        super().__init__()
        self._syntax = syntax
        self._rules = Rules("", str, SchemaTerm(schema=schema))
        self._schema = self._rules.resolved(schema)
        self._state: Literal["begin", "next", "value", "text", "json"] = "begin"
        self._kinds = _Kinds([], [])

    def _step(self) -> str | None:
        match self._state:
            case "begin":
                self._state = "next"
                return "{"
            case "next":
                return self._next()
            case "value":
                return self._begin_value()
            case _:
                return self._value()

    def _next(self) -> str | None:
        begin, middle = self._syntax.begin, self._syntax.middle
        if begin.startswith(self._held) and self._held != begin:
            return None
        if not self._held.startswith(begin):
            self.done = True
            return "}"
        key, found, rest = self._held.removeprefix(begin).partition(middle)
        if not found:
            return None
        self._held, self._state = rest, "value"
        properties, _, other = _properties(self._schema)
        self._kinds = _Kinds.of(properties.get(key, {} if isinstance(other, bool) else other), self._rules)
        separator, self._separator = self._separator, ", "
        return f"{separator}{json.dumps(key, ensure_ascii=False)}: "

    _separator = ""

    def _begin_value(self) -> str | None:
        if not self._held:
            return None
        if not self._kinds.others and not self._kinds.anything:
            self._state = "text"
            return '"'
        if not self._kinds.strings and self._held[0] not in "TFN":
            self._state = "json"
            return ""
        text, found, rest = self._held.partition(self._syntax.end)
        if not found:
            return None
        self._held, self._state = rest, "next"
        return self._converted(text)

    def _converted(self, text: str) -> str:
        """Return the JSON text of a value that may be a string or not."""
        plain = _WORDS.get(text, text)
        try:
            value = json.loads(plain)
        except ValueError:
            value = text
        types = {name for part in self._kinds.others for name in _types(part)}
        if isinstance(value, str) or not (self._kinds.anything or _type_of(value) & types):
            return json.dumps(text, ensure_ascii=False)
        return plain

    def _value(self) -> str | None:
        end = self._syntax.end
        at = self._held.find(end)
        size = at if at >= 0 else len(self._held) - overlap(self._held, end)
        piece = self._take(size)
        if self._state == "text":
            piece = json.dumps(piece, ensure_ascii=False)[1:-1]
        if at < 0:
            return piece or None
        self._take(len(end))
        piece += '"' if self._state == "text" else ""
        self._state = "next"
        return piece


def _types(schema: Mapping[str, Any]) -> set[str]:
    if "enum" in schema:
        return {name for value in schema["enum"] for name in _type_of(value)}
    types = schema.get("type", ())
    return {types} if isinstance(types, str) else set(types)


def _type_of(value: object) -> set[str]:
    """Return the names of the types that a JSON value has."""
    names: dict[type, set[str]] = {
        bool: {"boolean"},
        int: {"integer", "number"},
        float: {"number"},
        list: {"array"},
        dict: {"object"},
    }
    return names.get(type(value), {"null"})


@attrs.frozen
class Literals(Syntax):
    """Arguments `KEY assign VALUE`, whose values are literals of a programming language."""

    assign: str
    close: str
    """Character after the arguments."""
    separator: str = ", "
    quote: str = ""
    """Text around strings, which have no escapes; "" for strings as in JSON."""
    words: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    """Words of the language by the JSON text that they stand for."""
    is_sorted: bool = False
    """Whether models see names in alphabetical order."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts around names and values."""
        return (self.quote,)

    def _write(self, arguments: Mapping[str, Any]) -> str:
        items = self._ordered(arguments)
        return self.separator.join(f"{name}{self.assign}{self._written(value)}" for name, value in items)

    def _ordered(self, members: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        return (
            sorted(members.items(), key=lambda item: item[0].lower()) if self.is_sorted else members.items()
        )

    def _written(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self.quote}{value}{self.quote}" if self.quote else json.dumps(value, ensure_ascii=False)
        if isinstance(value, dict):
            items = self._ordered(value)
            return "{" + self.separator.join(f"{self._key(k)}{self._written(v)}" for k, v in items) + "}"
        if isinstance(value, list):
            return "[" + self.separator.join(map(self._written, value)) + "]"
        text = json.dumps(value)
        return self.words.get(text, text)

    def _key(self, name: str) -> str:
        return f"{name}:" if self.quote else f"{json.dumps(name, ensure_ascii=False)}: "

    def expression(self, rules: Rules) -> str:
        """Return the Lark expression for arguments that obey the schema of `rules`."""
        properties, required, other = _properties(rules.resolved(rules.root))
        return self._members(properties, required, other, rules, lambda name: name + self.assign)

    def _members(
        self,
        properties: Mapping[str, Any],
        required: set[str],
        other: Any,
        rules: Rules,
        key: Callable[[str], str],
    ) -> str:
        members = [
            (f"{rules.literal(key(name))} {self._value(part, rules)}", name in required)
            for name, part in self._ordered(properties)
        ]
        extra = ""
        if other is not False:
            string = "" if self.quote or key("") == self.assign else rules.json({"type": "string"})
            name = string or rules.add(_KEY, terminal=True)
            assign = key("").removeprefix('""')
            extra = f"{name} {rules.literal(assign)} {self._value(other, rules)}"
        return rules.members(members, rules.literal(self.separator), extra)

    def _value(self, schema: Any, rules: Rules) -> str:
        if isinstance(schema, Mapping) and isinstance(reference := schema.get("$ref"), str):
            return rules.recursive(reference, lambda: self._choices(rules.resolved(schema), rules))
        return rules.add(self._choices(schema, rules))

    def _choices(self, schema: Any, rules: Rules) -> str:
        choices = schema.get("anyOf", schema.get("oneOf", ())) if isinstance(schema, Mapping) else ()
        if choices and "enum" not in schema and "const" not in schema:
            return " | ".join(self._value(choice, rules) for choice in choices)
        kinds = _Kinds.of(schema, rules)
        if kinds.anything:
            return rules.recursive("anything", lambda: self._anything(rules))
        values = [self._string(part, rules) for part in kinds.strings]
        for part in kinds.others:
            if "enum" in part:
                values += [rules.literal(self._written(value)) for value in part["enum"]]
            else:
                values += [self._typed(part, name, rules) for name in sorted(_types(part))]
        return " | ".join(values)

    def _anything(self, rules: Rules) -> str:
        types = ("array", "boolean", "null", "number", "object")
        return " | ".join([self._string({}, rules), *(self._typed({}, name, rules) for name in types)])

    def _string(self, schema: Mapping[str, Any], rules: Rules) -> str:
        if self.quote:
            return f"{rules.literal(self.quote)} {rules.text_until(schema, self.quote)}"
        return rules.json(schema if "enum" in schema else {**schema, "type": "string"})

    def _typed(self, schema: Mapping[str, Any], name: str, rules: Rules) -> str:
        if name == "boolean":
            return " | ".join(rules.literal(self.words.get(word, word)) for word in ("true", "false"))
        if name == "null":
            return rules.literal(self.words.get(name, name))
        if name == "object":
            members = self._members(*_properties(schema), rules, self._key)
            return f"{rules.literal('{')} {members} {rules.literal('}')}"
        if name == "array":
            item = self._value(schema.get("items", {}), rules)
            least, most = schema.get("minItems", 0), schema.get("maxItems", "")
            rest = f"({rules.literal(self.separator)} {item}){{{max(0, least - 1)},{most and most - 1}}}"
            items = "" if most == 0 else f"({item} {rest}){'?' if least == 0 else ''}"
            return f"{rules.literal('[')} {items} {rules.literal(']')}"
        return rules.json({**schema, "type": name})

    def reader(self, _schema: Mapping[str, Any]) -> Reader:
        """Return a reader of the arguments of one call."""
        return _LiteralsReader(self)


class _LiteralsReader(Reader):
    """Turns literals into JSON text lexeme by lexeme, and strings piece by piece."""

    def __init__(self, syntax: Literals) -> None:
        super().__init__()
        self._syntax = syntax
        self._quotes = (syntax.quote,) if syntax.quote else ('"', "'")
        self._quote = ""
        """Quote of the string that is open; "" outside of strings."""
        self._open: list[str] = []
        """Closing brackets, in JSON, of the containers that are open."""
        self._begun = self._is_key = False
        self._comma = False
        """Whether a comma is due before the next value or key."""

    def _step(self) -> str | None:
        if not self._begun:
            self._begun = self._is_key = True
            return "{"
        if self._quote:
            return self._string()
        self._held = self._held.lstrip()
        if not self._held or any(q.startswith(self._held) and q != self._held for q in self._quotes):
            return None
        if self._held[0] in ",=:)]}":
            return self._punctuation()
        comma = ", " if self._comma else ""
        for quote in self._quotes:
            if self._held.startswith(quote):
                self._take(len(quote))
                self._quote, self._comma = quote, False
                return comma + '"'
        if self._held[0] in "[({":
            self._comma, self._is_key = False, self._take(1) == "{"
            self._open.append("}" if self._is_key else "]")
            return comma + ("{" if self._is_key else "[")
        match = re.search(r"[=:]" if self._is_key else r"[,)\]}]", self._held)
        if match is None:
            return None
        self._comma = False
        word = self._take(match.start()).strip()
        return comma + (json.dumps(word, ensure_ascii=False) if self._is_key else _json_of_word(word))

    def _punctuation(self) -> str:
        if not self._open and self._held[0] == self._syntax.close:
            self.done = True
            return "}"
        mark = self._take(1)
        if mark in "=:":
            self._is_key = False
            return ": "
        if mark == ",":
            self._comma, self._is_key = True, not self._open or self._open[-1] == "}"
            return ""
        self._comma = False
        return self._open.pop() if self._open else ""

    def _string(self) -> str | None:
        escapes = not self._syntax.quote
        end, escape = self._held.find(self._quote), self._held.find("\\") if escapes else -1
        if escape >= 0 and (end < 0 or escape < end):
            if escape:
                return _inner(self._take(escape))
            size = _escape_size(self._held)
            return _unescaped(self._take(size)) if size else None
        if end >= 0:
            piece = _inner(self._take(end)) + '"'
            self._take(len(self._quote))
            self._quote = ""
            return piece
        return _inner(self._take(len(self._held) - overlap(self._held, self._quote))) or None


def _escape_size(text: str) -> int:
    """Return the size of the escape that a text begins with; 0 if that takes more text.

    Two escapes of JSON count as one where they are halves of one character.
    """
    kind = text[1:2]
    if kind and kind in "01234567":
        digits = len(text[1:4]) - len(text[1:4].lstrip("01234567"))
        return 0 if 1 + digits == len(text) < 4 else 1 + digits
    size = {"x": 4, "u": 6, "U": 10}.get(kind, 2)
    if kind == "u" and "d8" <= text[2:4].lower() <= "db":
        if len(text) == size:
            return 0
        size = 12 if text[6:7] == "\\" else 6
    return size if len(text) >= size else 0


def _inner(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _unescaped(escape: str) -> str:
    """Return the JSON text of an escape in a string of Python or JSON."""
    readers = (json.loads, ast.literal_eval) if escape[1] in "\n'abvxUN01234567" else (json.loads,)
    for read in readers:
        try:
            return json.dumps(read(f'"{escape}"'))[1:-1]
        except (ValueError, SyntaxError):
            continue
    return _inner(escape)


def _json_of_word(word: str) -> str:
    """Return the JSON text of a number or a word."""
    if word in _WORDS:
        return _WORDS[word]
    for read in (json.loads, ast.literal_eval):
        try:
            return json.dumps(read(word))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return json.dumps(word, ensure_ascii=False)


JSON_TEXT = _JsonText()
PYTHON = Literals("=", ")", words={word: python for python, word in _WORDS.items()})
"""`city="Oslo", days=3, alerts=True`"""
