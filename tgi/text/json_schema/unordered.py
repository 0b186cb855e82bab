"""A Lark grammar of a schema in which the properties of objects come in any order.

llguidance's own compiler of schemas fixes the order. Here, an object is a parametric rule whose bits tell
which properties there are. Objects under keywords that rules cannot say keep the order of the schema.
"""

import itertools
import json
import re
from typing import Any

from .negation import TYPES

_MAX_PROPERTIES = 60
"""Maximum number of bits of a rule's parameter."""
_MAX_CASES = 16
"""Maximum number of objects into which an object that has other schemas, too, is divided."""
_REMARKS = frozenset(("$comment", "$defs", "x-guidance"))
_OBJECT = frozenset(("properties", "required", "additionalProperties"))
_COUNTED = frozenset(("prefixItems", "minItems", "maxItems"))
_OF_OTHERS = _COUNTED | frozenset(
    ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength")  # noqa: RUF005
    + ("pattern", "format", "items")
)
_CHARACTERS = r'(?:[^"\\\x00-\x1f\x7f]|\\["\\bfnrt])*'
_REFERENCE = re.compile(r'"\$ref": "#/\$defs/(d\d+)"')
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
        self._options = root["x-guidance"]
        self._definitions = root.get("$defs", {})
        self._referred = {
            name: _REFERENCE.findall(json.dumps(definition)) for name, definition in self._definitions.items()
        }
        """Names of the definitions that each definition refers to."""
        self._named: dict[str, str] = {}
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
            options = [self.term(option) for option in node["anyOf"] if option is not False]
            return f"({' | '.join(options)})" if options else self._ordered(False)
        if keywords & {"allOf", "anyOf", "$ref"}:
            cases = self._cases(node, 0)
            return f"({' | '.join(map(self.term, cases))})" if cases else self._ordered(node)
        if not keywords <= _OBJECT | _OF_OTHERS | {"type"}:
            return self._ordered(node)
        return self._of_types(node, keywords)

    def _of_types(self, node: dict[str, Any], keywords: set[str]) -> str:
        rest = _types(node)
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
        """Return the expression for a schema, left to llguidance with the definitions that it needs."""
        schema = node if isinstance(node, dict) else {} if node else {"anyOf": []}
        needed: dict[str, Any] = {}
        waiting = _REFERENCE.findall(json.dumps(schema))
        while waiting:
            name = waiting.pop()
            if name not in needed:
                needed[name] = self._definitions[name]
                waiting += self._referred[name]
        general = {"x-guidance": self._options} | ({"$defs": needed} if needed else {})
        return f"%json {json.dumps(schema | general, ensure_ascii=False)}"

    def _rule(self, body: str) -> str:
        self._count += 1
        self.rules.append(f"r{self._count}: {body}")
        return f"r{self._count}"

    def _reference(self, reference: str) -> str:
        if reference not in self._named:
            self._count += 1
            name = self._named[reference] = f"r{self._count}"
            self.rules.append(f"{name}: {self.term(self._definition(reference))}")
        return self._named[reference]

    def _definition(self, reference: str) -> Any:
        return self._definitions[reference.removeprefix("#/$defs/")]

    def _cases(self, node: Any, depth: int) -> list[dict[str, Any]]:
        """Return schemas without others for the same value, of which a node is the choice; [] if unknown."""
        if depth > _MAX_CASES or not isinstance(node, dict):
            return [{}] if node is True else []
        cases = [{name: value for name, value in node.items() if name in _OBJECT or name == "type"}]
        applied = [[part] for part in node.get("allOf", [])]
        if "anyOf" in node:
            applied.append([option for option in node["anyOf"] if option is not False])
        if "$ref" in node:
            applied.append([self._definition(node["$ref"])])
        if node.keys() - _OBJECT - _REMARKS - {"type", "allOf", "anyOf", "$ref"}:
            return []
        for options in applied:
            found = [self._cases(option, depth + 1) for option in options]
            if not all(found):
                return []
            pairs = itertools.product(cases, itertools.chain(*found))
            cases = [both for one, other in pairs if (both := _both(one, other))]
            if len(cases) > _MAX_CASES:
                return []
        return cases

    def _object(self, node: dict[str, Any], values: dict[str, Any]) -> str:
        """Return the rule of an object, of which each bit of the parameter tells that a property is there."""
        self._count += 1
        number, possible = self._count, [name for name, value in values.items() if value is not False]
        condition = "true"
        for name in node.get("required", []):
            condition = f"and(bit_set({possible.index(name)}), {condition})"
        end = f'"}}" %if {condition}'
        members = [self._member(name, values[name], number, bit) for bit, name in enumerate(possible)]
        more = ""
        if node.get("additionalProperties", True) is False:
            more = f"%if not(is_ones([0:{len(possible)}]))"  # a comma needs something behind it
        else:
            members.append(self._other_member(node, values, number))
        self.rules += [
            f"o{number}::_: m{number}::_ | {end}",
            f'n{number}::_: "," m{number}::_ {more} | {end}',
            f"m{number}::_: " + " | ".join(members),
        ]
        return f'"{{" o{number}::0x0'

    def _member(self, name: str, value: Any, number: int, bit: int) -> str:
        key, term = json.dumps(_quoted(name), ensure_ascii=False), self._rule(self.term(value))
        return f'{key} ":" {term} n{number}::set_bit({bit}) %if bit_clear({bit})'

    def _other_member(self, node: dict[str, Any], values: dict[str, Any], number: int) -> str:
        """Return the expression of a property that is not listed."""
        taken = " ".join(f"& ~/{_escaped(_quoted(name))}/" for name in values)
        self.rules.append(f'K{number}: /"{_CHARACTERS}"/ {taken}')
        term = self._rule(self.term(node.get("additionalProperties", True)))
        return f'K{number} ":" {term} n{number}::_'


def _types(node: dict[str, Any]) -> list[str]:
    types = node.get("type", TYPES)
    return [types] if isinstance(types, str) else list(types)


def _properties(node: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas of an object's properties by name; none if a rule cannot say them."""
    properties, additional = node.get("properties", {}), node.get("additionalProperties", True)
    required = node.get("required", [])
    values = {name: properties.get(name, additional) for name in [*properties, *required]}
    possible = [name for name, value in values.items() if value is not False]
    is_satisfiable = set(required) <= set(possible) and (possible or additional is not False)
    least = 2 if additional is False else 1  # for which there are several orders
    return values if least <= len(values) <= _MAX_PROPERTIES and is_satisfiable else {}


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the objects that obey two schemas without others; {} if there is none."""
    types = [name for name in _types(one) if name in _types(other)]
    if not types:
        return {}
    first, second = one.get("additionalProperties", True), other.get("additionalProperties", True)
    names = dict.fromkeys([*one.get("properties", {}), *other.get("properties", {})])
    return {
        "type": types,
        "properties": {
            name: _common(
                one.get("properties", {}).get(name, first), other.get("properties", {}).get(name, second)
            )
            for name in names
        },
        "required": list(dict.fromkeys([*one.get("required", []), *other.get("required", [])])),
        "additionalProperties": _common(first, second),
    }


def _common(one: Any, other: Any) -> Any:
    if one is False or other is True or one == other:
        return one
    return other if other is False or one is True else {"allOf": [one, other]}


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _escaped(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9]", lambda match: f"\\x{{{ord(match[0]):x}}}", text)
