"""Rewriting of a JSON schema in the keywords that llguidance enforces exactly.

Every keyword has a function that rewrites it (`keywords.KEYWORDS`). What it asks for goes into keywords of
llguidance (`Part.out`), or into other schemas that the value must obey as well (`Part.parts`): `if` becomes
a choice of two cases, `not` what obeys the opposite.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

import attrs

from .errors import GrammarError, Unenforceable
from .references import Place, References, names_in, pointer
from .shapes import check

MAX_DEPTH = 64
"""Maximum nesting of schemas. llguidance refuses about 120 nested braces."""
MAX_SIZE = 20_000
"""Maximum number of schemas that one may become; llguidance has a limit of its own."""
Mode: TypeAlias = Literal["whole", "part", "exact"]
"""Extent to which a schema may be narrowed to keep a model from rambling.

`properties` without a type describe an object ("whole", "part") that has no others ("whole"). A part of an
intersection is not closed on its own: that would forbid the properties of other parts."""
APPLICATORS = frozenset(
    ("allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "$recursiveRef", "if", "not")  # noqa: RUF005
    + ("dependencies", "dependentSchemas")
)
"""Keywords that apply other schemas to the same value."""
_OBJECT = frozenset(("properties", "required", "additionalProperties", "patternProperties"))
_TYPES = frozenset(("type", "enum", "const", "allOf", "anyOf", "oneOf", "$ref"))
_LAST = ("patternProperties", "minProperties", "maxProperties")
_OPENING = ("patternProperties", "unevaluatedProperties", "minProperties")


@attrs.define
class Part:
    """A schema that is being rewritten."""

    rewriter: "Rewriter"
    raw: dict[str, Any]
    place: Place
    mode: Mode
    out: dict[str, Any] = attrs.field(factory=dict)
    """Keywords of llguidance."""
    parts: list[Any] = attrs.field(factory=list)
    """Other schemas that the value must obey."""
    done: set[str] = attrs.field(factory=set)
    """Groups of keywords that are rewritten together, with the first of them."""

    @property
    def is_intersection(self) -> bool:
        """Whether several schemas apply to the same value."""
        applicators = APPLICATORS & self.raw.keys()
        several = len(listed(self.raw.get("allOf"))) > 1 or len(applicators) > 1
        return several or bool(applicators and _OBJECT & self.raw.keys())

    def inside(self, raw: Any, *way: str) -> Any:
        """Rewrite a schema of items or properties."""
        mode: Mode = "exact" if self.mode == "exact" else "whole"
        return self.rewriter.schema(raw, (*self.place, *way), mode)

    @property
    def beside_mode(self) -> Mode:
        """Mode of the schemas for the same value."""
        return "part" if self.mode == "whole" and self.is_intersection else self.mode

    def beside(self, raw: Any, *way: str) -> Any:
        """Rewrite a schema for the same value."""
        return self.rewriter.schema(raw, (*self.place, *way), self.beside_mode)

    def exactly(self, raw: Any, *way: str) -> Any:
        """Rewrite a schema for the same value without narrowing it, because it is a condition."""
        return self.rewriter.schema(raw, (*self.place, *way), "exact")

    def resolve(self, schema: Any) -> Any:
        """Return what a schema with a `$ref` means, without one. Raises Unenforceable."""
        return self.rewriter.resolve(schema, self.place)

    def is_first(self, group: str) -> bool:
        """Return whether no keyword of a group has been rewritten, and note that one is now."""
        is_first = group not in self.done
        self.done.add(group)
        return is_first


@attrs.frozen
class Keyword:
    """A keyword that is enforced."""

    rewrite: Callable[[Part, Any], None]
    """Rewrites the keyword, given its value. Raises Unenforceable, or GrammarError of schemas within."""
    narrower: str = ""
    """Instances that JSON Schema accepts and we do not, for the documentation."""
    refused: str = ""
    """Places where the keyword is refused, or relaxed with a warning, for the documentation; "" for none."""


class Rewriter:
    """Rewrites one schema with all that it refers to."""

    def __init__(self, root: Any, keywords: Mapping[str, Keyword], *, lenient: bool) -> None:
        self._references = References(root)
        self._keywords = keywords
        self._lenient = lenient
        self._names: dict[tuple[Place, Mode], str] = {}
        self._pending: list[tuple[Place, Mode, str]] = []
        self._size = 0
        self._depth = 0
        self.mentioned, self.patterns = names_in(root)
        self.remarks: list[str] = []
        """Demands of the schema that are not enforced, a sentence each."""
        self.has_names_to_evade = False
        """Whether a property's name, spelt with escapes, would be that of a property without its schema."""

    def rewrite(self, mode: Mode) -> dict[str, Any]:
        """Return the schema of llguidance. Raises GrammarError."""
        root = self.schema(self._references.value(()), (), mode)
        if root is False:
            raise GrammarError("the schema `false` allows nothing")
        result = {} if root is True else dict(root)
        definitions = {}
        while self._pending:
            place, own_mode, name = self._pending.pop()
            definitions[name] = self.schema(self._references.value(place), place, own_mode)
        if definitions:
            result["$defs"] = definitions
        return result

    def schema(self, raw: Any, place: Place, mode: Mode) -> Any:
        """Return what llguidance must enforce for a schema at a place. Raises GrammarError."""
        if isinstance(raw, bool):
            return raw
        if not isinstance(raw, dict):
            at = f"at {pointer(place)}: " if place else ""
            raise GrammarError(f"{at}a schema must be an object or a boolean")
        self._size += 1
        if self._size > MAX_SIZE:
            raise GrammarError("the schema is too large")
        if self._depth > MAX_DEPTH:
            raise GrammarError(f"the schema is nested more than {MAX_DEPTH} deep")
        self._depth += 1
        try:
            part = Part(self, raw, place, mode)
            for keyword, value in sorted(self._shaped(part).items(), key=_comes_last):
                try:
                    self._keywords[keyword].rewrite(part, value)
                except Unenforceable as error:
                    self.cannot(keyword, place, str(error))
            return self._finished(part)
        finally:
            self._depth -= 1

    def _shaped(self, part: Part) -> dict[str, Any]:
        """Reduce a schema to the keywords that restrict values and have the right shape, and return it."""
        shaped = {}
        for keyword, value in part.raw.items():
            if keyword in self._keywords:
                try:
                    check(keyword, value)
                except Unenforceable as error:
                    self.cannot(keyword, part.place, str(error))
                else:
                    shaped[keyword] = value
        part.raw = shaped
        return shaped

    def restricts(self, keyword: str) -> bool:
        """Return whether a keyword restricts values."""
        return keyword in self._keywords

    def cannot(self, keyword: str, place: Place, why: str) -> None:
        """Note that a keyword is not enforced, or raise GrammarError."""
        problem = f"`{keyword}` at {pointer(place)}: {why}"
        if not self._lenient:
            raise GrammarError(problem)
        self.remarks.append(f"{problem}; it is not enforced")

    def resolve(self, schema: Any, place: Place) -> Any:
        """Return what a schema at a place means, without a `$ref`. Raises Unenforceable."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema
            target = self._references.value(self._references.find(schema["$ref"], place))
            rest = {name: one for name, one in schema.items() if name in self._keywords and name != "$ref"}
            schema = {"allOf": [target, rest]} if rest else target
        raise Unenforceable("its references lead in a circle")

    def named(self, reference: Any, place: Place, mode: Mode) -> dict[str, Any]:
        """Return a `$ref` to the definition of what a reference at a place leads to. Raises Unenforceable."""
        key = self._references.find(reference, place), mode
        if key not in self._names:
            self._names[key] = f"d{len(self._names)}"
            self._pending.append((*key, self._names[key]))
        return {"$ref": f"#/$defs/{self._names[key]}"}

    def declared(self, root: dict[str, Any], place: Place) -> set[str] | None:
        """Return the names of all properties that an intersection has; None if it is open."""
        names: set[str] = set()
        required: set[str] = set()
        waiting: list[tuple[Any, Place]] = [(root, place)]
        seen: set[Place] = set()
        while waiting:
            raw, at = waiting.pop()
            if not isinstance(raw, dict):
                continue
            if _is_open(raw):
                return None
            names.update(mapping(raw.get("properties")))
            required |= {name for name in listed(raw.get("required")) if isinstance(name, str)}
            waiting += [(one, at) for one in _applied(raw)]
            if "$ref" in raw:
                try:
                    target = self._references.find(raw["$ref"], at)
                except Unenforceable:
                    return None
                if target not in seen:
                    seen.add(target)
                    waiting.append((self._references.value(target), target))
        return names if names and required <= names else None

    def _finished(self, part: Part) -> Any:
        raw, out = part.raw, part.out
        if part.mode != "exact" and means_object(raw):
            out["type"] = "object"
        if part.mode == "whole":
            if not part.is_intersection and _closes(raw):
                out["additionalProperties"] = False
            elif part.is_intersection and (names := self.declared(raw, part.place)):
                part.parts.append(closed(names))
        if out.keys() & {"properties", "patternProperties"}:
            self.has_names_to_evade |= out.get("additionalProperties", True) is not False
            own = mapping(out.get("properties"))
            self.has_names_to_evade |= any(ord(character) < 32 for name in own for character in name)
        if False in part.parts:
            return False
        beside: dict[str, Any] = {}
        for one in part.parts:
            if one is not True and (out.keys() | beside.keys()) & one.keys():
                beside["allOf"] = [*beside.get("allOf", []), one]
            elif one is not True:
                beside |= one
        # llguidance takes properties in the order of the keywords.
        out = beside | out if _applies_first(raw) else out | beside
        if part.place and out.keys() - {"type", "$comment"}:
            out["$comment"] = pointer(part.place)
        return out


def _comes_last(item: tuple[str, Any]) -> int:
    """Return the place of a keyword that needs what others have been rewritten to, behind these."""
    return _LAST.index(item[0]) + 1 if item[0] in _LAST else 0


def mapping(value: Any) -> dict[str, Any]:
    """Return a value if it is an object, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def means_object(raw: dict[str, Any]) -> bool:
    """Return whether a schema describes an object unless it is exact, although it has no type."""
    return "properties" in raw and not _TYPES & raw.keys()


def listed(value: Any) -> list[Any]:
    """Return a value if it is a list, otherwise an empty one."""
    return value if isinstance(value, list) else []


def closed(names: Iterable[str]) -> dict[str, Any]:
    """Return a schema of objects with no other properties than those with some names."""
    return {"properties": dict.fromkeys(sorted(names), True), "additionalProperties": False}


def _applied(raw: dict[str, Any]) -> list[Any]:
    """Return the schemas that a schema applies to the same value, but for those that it refers to."""
    found = [one for keyword in ("allOf", "anyOf", "oneOf") for one in listed(raw.get(keyword))]
    found += [raw[keyword] for keyword in ("if", "then", "else") if keyword in raw]
    for keyword in ("dependentSchemas", "dependencies"):
        found += mapping(raw.get(keyword)).values()
    return found


def _applies_first(raw: dict[str, Any]) -> bool:
    """Return whether other schemas for the same value come before the properties of a schema."""
    order = [keyword in APPLICATORS for keyword in raw if keyword in APPLICATORS or keyword in _OBJECT]
    return bool(order) and order[0]


def _is_open(raw: dict[str, Any]) -> bool:
    """Return whether a schema says that objects may have other properties."""
    return any(keyword in raw for keyword in _OPENING) or raw.get("additionalProperties", False) is not False


def _closes(raw: dict[str, Any]) -> bool:
    """Return whether a schema that is not part of an intersection describes a closed object."""
    properties, required = raw.get("properties"), raw.get("required", [])
    return (
        isinstance(properties, dict)
        and bool(properties)
        and isinstance(required, list)
        and "additionalProperties" not in raw
        and not any(keyword in raw for keyword in _OPENING)
        and all(name in properties for name in required if isinstance(name, str))
    )
