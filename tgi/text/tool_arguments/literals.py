"""Arguments in literals of a programming language."""

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from tgi.text.stopping import overlap

from .rules import KEY, WORDS, Kinds, Rules, count_of, properties_of, types_of
from .syntax import Reader, Syntax


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
        properties, required, other = properties_of(rules.resolved(rules.root))
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
            name = string or rules.add(KEY, terminal=True)
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
        kinds = Kinds.of(schema, rules)
        if kinds.anything:
            return rules.recursive("anything", lambda: self._anything(rules))
        values = [self._string(part, rules) for part in kinds.strings]
        for part in kinds.others:
            if "enum" in part:
                values += [rules.literal(self._written(value)) for value in part["enum"]]
            else:
                values += [self._typed(part, name, rules) for name in sorted(types_of(part))]
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
            members = self._members(*properties_of(schema), rules, self._key)
            return f"{rules.literal('{')} {members} {rules.literal('}')}"
        if name == "array":
            item = self._value(schema.get("items", {}), rules)
            least, most = count_of(schema, "minItems") or 0, count_of(schema, "maxItems")
            bounds = f"{max(0, least - 1)},{'' if most is None or most < least else most - 1}"
            items = (
                f"({item} ({rules.literal(self.separator)} {item}){{{bounds}}}){'?' if least == 0 else ''}"
            )
            items = "" if most == 0 else items
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
    if word in WORDS:
        return WORDS[word]
    for read in (json.loads, ast.literal_eval):
        try:
            return json.dumps(read(word))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return json.dumps(word, ensure_ascii=False)


PYTHON = Literals("=", ")", words={word: python for python, word in WORDS.items()})
"""`city="Oslo", days=3, alerts=True`"""
