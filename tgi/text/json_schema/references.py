"""Follows the references of a schema: `$ref`, `$id`, `$anchor`, JSON pointers."""

from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from .errors import Unenforceable

Place = tuple[str, ...]
"""Keywords, names and indices on the way from the root of a schema to a part of it."""
_NO_SCHEMAS = ("enum", "const", "default", "examples", "example")
"""Keywords whose values may look like schemas."""


def pointer(place: Place) -> str:
    """Return a place for people to read."""
    return "/".join(place) or "the root"


def names_in(root: Any) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return texts that include all properties that a schema lists, and its patterns of names."""
    names: set[str] = set()
    patterns: dict[str, None] = {}
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            names.update(value)
            if isinstance(own := value.get("patternProperties"), dict):
                patterns |= dict.fromkeys(own)
            waiting += [one for keyword, one in value.items() if keyword != "enum"]
        elif isinstance(value, list):
            names |= {one for one in value if isinstance(one, str)}
            waiting += value
    return frozenset(names), tuple(patterns)


class References:
    """Finds the places that references within a schema lead to."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._resources: dict[str, Place] = {"": ()}
        """Place of each schema with an `$id`, by its URI."""
        self._anchors: dict[tuple[str, str], Place] = {}
        """Place of each anchor, by the URI of its resource and its name."""
        self._index()

    def _index(self) -> None:
        waiting: list[tuple[Any, Place, str]] = [(self._root, (), "")]
        while waiting:
            value, place, base = waiting.pop()
            if isinstance(value, list):
                waiting += [(part, (*place, str(index)), base) for index, part in enumerate(value)]
            elif isinstance(value, dict):
                base = self._note(value, place, base)
                waiting += [
                    (part, (*place, name), base)
                    for name, part in value.items()
                    if isinstance(part, dict | list) and name not in _NO_SCHEMAS
                ]

    def _note(self, schema: dict[str, Any], place: Place, base: str) -> str:
        """Remember the names that a schema gives itself, and return the base of the references in it."""
        for id_ in (schema.get("$id"), schema.get("id")):
            if isinstance(id_, str):
                uri, anchor = urldefrag(_join(base, id_))
                if anchor:
                    self._anchors.setdefault((uri, anchor), place)
                elif uri:
                    self._resources.setdefault(uri, place)
                    base = uri
        for keyword in ("$anchor", "$dynamicAnchor"):
            name = schema.get(keyword)
            if isinstance(name, str):
                self._anchors.setdefault((base, name), place)
        return base

    def find(self, reference: Any, at: Place) -> Place:
        """Return the place that a reference of the schema at a place leads to. Raises Unenforceable."""
        if not isinstance(reference, str):
            raise Unenforceable("it must be a string")
        uri, fragment = urldefrag(_join(self._base(at), reference))
        fragment = unquote(fragment)
        start = self._resources.get(uri)
        if start is None:
            raise Unenforceable(f"`{reference}` is in no part of this schema, and nothing is downloaded")
        if fragment and not fragment.startswith("/"):
            if (uri, fragment) not in self._anchors:
                raise Unenforceable(f"the schema has no `{reference}`")
            return self._anchors[uri, fragment]
        way = self._way(fragment)
        if not self._leads_somewhere((*start, *way)) and self._leads_somewhere(way):
            return way  # many write pointers from the root, even below another `id`
        place = (*start, *way)
        self.value(place)
        return place

    @staticmethod
    def _way(fragment: str) -> Place:
        tokens = [token.replace("~1", "/").replace("~0", "~") for token in fragment.split("/")[1:]]
        return tuple(token for token in tokens if token or len(tokens) > 1)

    def _leads_somewhere(self, place: Place) -> bool:
        try:
            self.value(place)
        except Unenforceable:
            return False
        return True

    def value(self, place: Place) -> Any:
        """Return the part of the schema at a place. Raises Unenforceable."""
        value = self._root
        for token in place:
            if isinstance(value, dict) and token in value:
                value = value[token]
            elif isinstance(value, list) and token.isdecimal() and int(token) < len(value):
                value = value[int(token)]
            else:
                raise Unenforceable(f"the schema has no `#/{'/'.join(place)}`")
        return value

    def _base(self, at: Place) -> str:
        """Return the URI that the references of a schema are relative to."""
        base = ""
        for end in range(len(at) + 1):
            try:
                value = self.value(at[:end])
            except Unenforceable:  # a part that only the rewriting has
                break
            for id_ in (value.get("$id"), value.get("id")) if isinstance(value, dict) else ():
                if isinstance(id_, str):
                    uri, anchor = urldefrag(_join(base, id_))
                    base = uri if uri and not anchor else base
        return base


def _join(base: str, reference: str) -> str:
    try:
        return urljoin(base, reference)
    except ValueError:  # brackets that are no address
        return reference
