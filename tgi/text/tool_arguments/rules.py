"""Turns JSON schemas into Lark rules, for values that are not written as JSON text."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import msgspec

from tgi.text.json_schema import SchemaTerm
from tgi.text.json_schema.automata import translate
from tgi.text.json_schema.formats import PATTERNS
from tgi.text.json_schema.patterns import PatternError

_ANY = "(?s:.)"
KEY = r"/[^\s<>\"'=:,(){}\[\]]+/"
"""Name of an argument that the schema does not know."""
TYPES_OF = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "object": ("properties", "required", "additionalProperties", "patternProperties"),
    "array": ("items", "minItems", "maxItems", "prefixItems"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
"""Keywords by the type that they imply where none is said."""
WORDS = {"True": "true", "False": "false", "None": "null"}
_MAX_LENGTH = 20_000
"""Greatest limit of characters that is enforced: each takes a state of the lexer."""


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
            for keyword in (*TYPES_OF["object"], "type"):
                schema.pop(keyword, None)
        return str(msgspec.structs.replace(self.term, schema=schema, is_object=False))

    def text_until(self, schema: Mapping[str, Any], end: str) -> str:
        """Return the expression for a text without quotes that obeys a schema of strings, and its `end`."""
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values is not None:
            return "(" + " | ".join(self.literal(value + end) for value in values) + ")"
        least, most = count_of(schema, "minLength"), count_of(schema, "maxLength")
        least = min(least or 0, _MAX_LENGTH)
        limit = "" if most is None or most < least else min(most, _MAX_LENGTH)
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


@attrs.frozen
class Kinds:
    """Parts of a schema: strings, and everything else."""

    strings: list[Mapping[str, Any]]
    others: list[Mapping[str, Any]]
    anything: bool = False
    """Whether the schema does not say the type."""

    @classmethod
    def of(cls, schema: Any, rules: Rules, depth: int = 0) -> "Kinds":
        """Return the parts of a schema, which is a part of the root of `rules`."""
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
            types = [name for name, words in TYPES_OF.items() if any(word in schema for word in words)][:1]
        types = [types] if isinstance(types, str) else types
        types = [name for name in types if isinstance(name, str)] if isinstance(types, list) else []
        if not types:
            return cls([{}], [], anything=True)
        rest = [name for name in types if name != "string"]
        return cls(
            [{**schema, "type": "string"}] if "string" in types else [],
            [{**schema, "type": rest[0] if len(rest) == 1 else rest}] if rest else [],
        )


def count_of(schema: Mapping[str, Any], keyword: str) -> int | None:
    """Return a keyword's number of characters or items; None if it says none."""
    value = schema.get(keyword)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        return None
    return int(value)


def properties_of(schema: Mapping[str, Any]) -> tuple[dict[str, Any], set[str], Any]:
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


def types_of(schema: Mapping[str, Any]) -> set[str]:
    """Return the names of the types that a schema allows."""
    if "enum" in schema:
        return {name for value in schema["enum"] for name in type_of(value)}
    types = schema.get("type", ())
    return {types} if isinstance(types, str) else set(types)


def type_of(value: object) -> set[str]:
    """Return the names of the types that a JSON value has."""
    names: dict[type, set[str]] = {
        bool: {"boolean"},
        int: {"integer", "number"},
        float: {"number"},
        list: {"array"},
        dict: {"object"},
    }
    return names.get(type(value), {"null"})
