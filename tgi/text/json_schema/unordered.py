"""A Lark grammar of a schema in which the properties of objects come in any order.

llguidance's own compiler of schemas fixes the order. Here, an object is a parametric rule whose bits tell
which properties there are. Objects under keywords that rules cannot say keep the order of the schema.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from .negation import TYPES

_MAX_PROPERTIES = 60
"""Maximum number of bits of a rule's parameter."""
_REMARKS = frozenset(("$comment", "$defs", "x-guidance"))
_OBJECT = frozenset(("properties", "required", "additionalProperties"))
_COUNTED = frozenset(("prefixItems", "minItems", "maxItems"))
_OF_OTHERS = _COUNTED | frozenset(
    ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength")  # noqa: RUF005
    + ("pattern", "format", "items")
)
_CHARACTERS = r'(?:[^"\\\x00-\x1f\x7f]|\\["\\bfnrt])*'
_HEAD = """%llguidance {"ignore_once": true}
%ignore /[ ]/
"""


def unordered(schema: dict[str, Any]) -> str:
    """Return a Lark grammar of a prepared schema."""
    writer = _Writer(schema)
    start = writer.term({name: value for name, value in schema.items() if name not in _REMARKS})
    return _HEAD + "\n".join([f"start: {start}", *writer.rules]) + "\n"


class _Writer:
    def __init__(self, root: dict[str, Any]) -> None:
        self._general = {name: root[name] for name in ("$defs", "x-guidance") if name in root}
        self._definitions: dict[str, str] = {}
        """Rule of each definition, by its `$ref`."""
        self._count = 0
        self.rules: list[str] = []

    def term(self, node: Any) -> str:
        """Return the expression for the values of a schema."""
        if not isinstance(node, dict):
            return self._ordered(node)
        keywords = node.keys() - _REMARKS
        if keywords == {"$ref"}:
            return self._reference(node["$ref"])
        if keywords == {"anyOf"}:
            return f"({' | '.join(self.term(option) for option in node['anyOf'] if option is not False)})"
        types = node.get("type", list(TYPES))
        rest = [types] if isinstance(types, str) else list(types)
        if not keywords <= _OBJECT | _OF_OTHERS | {"type"}:
            return self._ordered(node)
        found = []
        if "object" in rest and (values := _properties(node)):
            found.append(self._object(node, values))
            rest.remove("object")
        if "array" in rest and isinstance(node.get("items"), dict) and not keywords & _COUNTED:
            item = self._rule(self.term(node["items"]))
            found.append(f'"[" ({item} ("," {item})*)? "]"')
            rest.remove("array")
        if rest:
            found.append(self._ordered(node | {"type": rest} if found else node))
        return f"({' | '.join(found)})"

    def _ordered(self, node: Any) -> str:
        schema = node if isinstance(node, dict) else {} if node else {"anyOf": []}
        return f"%json {json.dumps({**schema, **self._general}, ensure_ascii=False)}"

    def _rule(self, body: str) -> str:
        self._count += 1
        self.rules.append(f"r{self._count}: {body}")
        return f"r{self._count}"

    def _reference(self, reference: str) -> str:
        if reference not in self._definitions:
            self._count += 1
            name = self._definitions[reference] = f"r{self._count}"
            definition = self._general["$defs"][reference.removeprefix("#/$defs/")]
            self.rules.append(f"{name}: {self.term(definition)}")
        return self._definitions[reference]

    def _object(self, node: dict[str, Any], values: dict[str, Any]) -> str:
        """Return the rule of an object, of which each bit of the parameter tells that a property is there."""
        self._count += 1
        number, names = self._count, list(values)
        condition = "true"
        for name in node.get("required", []):
            condition = f"and(bit_set({names.index(name)}), {condition})"
        end = f'"}}" %if {condition}'
        self.rules += [
            f"o{number}::_: m{number}::_ | {end}",
            f'n{number}::_: "," m{number}::_ | {end}',
            f"m{number}::_: " + " | ".join(self._members(node, values, number)),
        ]
        return f'"{{" o{number}::0x0'

    def _members(self, node: dict[str, Any], values: dict[str, Any], number: int) -> Iterator[str]:
        quoted = [json.dumps(name, ensure_ascii=False) for name in values]
        for bit, value in enumerate(values.values()):
            key, term = json.dumps(quoted[bit], ensure_ascii=False), self._rule(self.term(value))
            yield f'{key} ":" {term} n{number}::set_bit({bit}) %if bit_clear({bit})'
        additional = node.get("additionalProperties", True)
        if additional is not False:
            taken = " ".join(f"& ~/{_escaped(one)}/" for one in quoted)
            self.rules.append(f'K{number}: /"{_CHARACTERS}"/ {taken}')
            yield f'K{number} ":" {self._rule(self.term(additional))} n{number}::_'


def _properties(node: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas of an object's properties by name; none if a rule cannot say them."""
    properties, additional = node.get("properties", {}), node.get("additionalProperties", True)
    names = [*properties, *node.get("required", [])]
    values = {name: properties.get(name, additional) for name in names}
    return values if 1 < len(values) <= _MAX_PROPERTIES and False not in values.values() else {}


def _escaped(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9]", lambda match: f"\\x{{{ord(match[0]):x}}}", text)
