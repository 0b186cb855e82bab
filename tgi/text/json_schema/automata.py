"""Differences and intersections of regular expressions, through an automaton of their derivatives.

The states are Brzozowski's derivatives; states are eliminated to get the expression of the complement.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from .patterns import (
    ANYTHING,
    MAX_CODE,
    Anchor,
    Choice,
    Class,
    Node,
    PatternError,
    Ranges,
    Repeat,
    Sequence,
    complement,
    parse,
    split,
    union,
    whole,
    write,
)

MAX_STATES = 64
MAX_LENGTH = 20_000
"""Maximum number of characters of a complement."""
_WRITTEN: Ranges = ((8, 10), (12, 13), (32, 126), (128, 0xD7FF), (0xE000, MAX_CODE))
"""Characters that JSON text can have without the escape `\\u`, which a grammar may forbid."""
NOTHING = Class(())
EMPTY = Sequence(())


def sequence(parts: Iterable[Node]) -> Node:
    """Return parts one after the other, in the simplest form."""
    flat: list[Node] = []
    for part in parts:
        if part == NOTHING:
            return NOTHING
        flat += part.parts if isinstance(part, Sequence) else [part]
    return flat[0] if len(flat) == 1 else Sequence(tuple(flat))


def choice(options: Iterable[Node]) -> Node:
    """Return alternatives in the simplest form, in an order that does not depend on theirs."""
    flat: dict[Node, None] = {}
    for option in options:
        flat |= dict.fromkeys(option.options if isinstance(option, Choice) else [option])
    flat.pop(NOTHING, None)
    if ANYTHING in flat:
        return ANYTHING
    if len(flat) < 2:
        return next(iter(flat), NOTHING)
    return Choice(tuple(sorted(flat, key=repr)))


def repeat(part: Node, least: int, most: int | None) -> Node:
    """Return a part several times, in the simplest form."""
    if most == 0 or part == EMPTY:
        return EMPTY
    if part == NOTHING:
        return NOTHING if least else EMPTY
    return part if (least, most) == (1, 1) else Repeat(part, least, most)


def _is_nullable(node: Node) -> bool:
    if isinstance(node, Sequence):
        return all(_is_nullable(part) for part in node.parts)
    if isinstance(node, Choice):
        return any(_is_nullable(option) for option in node.options)
    return isinstance(node, Repeat) and (not node.least or _is_nullable(node.part))


def _derivative(node: Node, code: int) -> Node:
    """Return what may follow a character in the strings of a node that begin with it."""
    if isinstance(node, Class):
        return EMPTY if any(low <= code <= high for low, high in node.ranges) else NOTHING
    if isinstance(node, Choice):
        return choice(_derivative(option, code) for option in node.options)
    if isinstance(node, Repeat):
        most = None if node.most is None else node.most - 1
        rest = repeat(node.part, max(node.least - 1, 0), most)
        return sequence([_derivative(node.part, code), rest])
    assert isinstance(node, Sequence)
    options = []
    for index, part in enumerate(node.parts):
        options.append(sequence([_derivative(part, code), *node.parts[index + 1 :]]))
        if not _is_nullable(part):
            break
    return choice(options)


def _classes(node: Node) -> set[Ranges]:
    if isinstance(node, Class):
        if node.properties:
            raise PatternError("what a Unicode property excludes is too large")
        return {node.ranges}
    parts = node.parts if isinstance(node, Sequence) else node.options if isinstance(node, Choice) else None
    if parts is None:
        assert isinstance(node, Repeat)
        parts = (node.part,)
    return {ranges for part in parts for ranges in _classes(part)}


def _alphabet(node: Node) -> list[Ranges]:
    """Return sets of characters, all of which the node's classes have or lack together."""
    atoms: list[Ranges] = [((0, MAX_CODE),)]
    for ranges in _classes(node):
        rest = complement(ranges)
        atoms = [part for atom in atoms for part in (_common(atom, ranges), _common(atom, rest)) if part]
    return atoms


def _common(one: Ranges, other: Ranges) -> Ranges:
    return complement(union((*complement(one), *complement(other))))


def complement_of(node: Node) -> Node:
    """Return a tree for all strings that a tree without assertions does not match. Raises PatternError."""
    alphabet = _alphabet(node)
    start = sequence([node])
    numbers = {start: 0}
    edges: list[dict[int, Ranges]] = []
    waiting = [start]
    for state in waiting:
        targets: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for atom in alphabet:
            after = _derivative(state, atom[0][0])
            if after not in numbers:
                numbers[after] = len(numbers)
                waiting.append(after)
                if len(numbers) > MAX_STATES:
                    raise PatternError("what it excludes is too complex")
            targets[numbers[after]] += atom
        edges.append({target: union(ranges) for target, ranges in targets.items()})
    accepting = [not _is_nullable(state) for state in waiting]
    return _expression(edges, accepting)


def _expression(edges: list[dict[int, Ranges]], accepting: list[bool]) -> Node:
    """Return a tree for the strings that lead from state 0 to an accepting one."""
    end = len(edges)
    ways: dict[tuple[int, int], Node] = {}
    for source, targets in enumerate(edges):
        for target, ranges in targets.items():
            ways[source + 1, target + 1] = Class(ranges)
        if accepting[source]:
            ways[source + 1, end + 1] = EMPTY
    ways[0, 1] = EMPTY
    states = set(range(1, end + 1))
    while states:
        state = min(states, key=lambda one: sum(one in way for way in ways))
        states.remove(state)
        loop = repeat(ways.pop((state, state), NOTHING), 0, None)
        into = [(source, way) for (source, target), way in ways.items() if target == state]
        out = [(target, way) for (source, target), way in ways.items() if source == state]
        for source, before in into:
            for target, after in out:
                way = sequence([before, loop, after])
                ways[source, target] = choice([ways.get((source, target), NOTHING), way])
        ways = {pair: way for pair, way in ways.items() if state not in pair}
        if sum(len(write(way)) for way in ways.values()) > 4 * MAX_LENGTH:
            raise PatternError("what it excludes is too complex")
    found = ways.get((0, end + 1), NOTHING)
    if len(write(found)) > MAX_LENGTH:
        raise PatternError("what it excludes is too complex")
    return found


def translate(pattern: str) -> list[str]:
    """Return expressions of Rust, all of which match a whole string that has the pattern.

    Raises PatternError.
    """
    node, looks = split(parse(pattern))
    parts = [whole(node)]
    for look in looks:
        ahead = whole(Sequence((Anchor("^"), look.part)))
        parts.append(complement_of(ahead) if look.negative else ahead)
    return [write(part) for part in parts]


def without(pattern: str | None, texts: Iterable[str]) -> list[str]:
    """Return expressions for strings that lack a pattern and are none of some texts. Raises PatternError."""
    excluded = _texts(texts)
    if pattern is not None:
        node, looks = split(parse(pattern))
        if looks:
            raise PatternError("the opposite of look-ahead cannot be enforced")
        excluded = choice([excluded, whole(node)])
    return [write(complement_of(excluded))]


def _texts(texts: Iterable[str]) -> Node:
    return choice(
        sequence([Class(((ord(character), ord(character)),)) for character in text]) for text in texts
    )


def _written(node: Node) -> Node:
    """Return a tree for those strings of a tree that JSON text has without `\\u`, in the simplest form."""
    if isinstance(node, Choice):
        return choice(map(_written, node.options))
    if isinstance(node, Repeat):
        return repeat(_written(node.part), node.least, node.most)
    if isinstance(node, Sequence):
        return sequence(map(_written, node.parts))
    assert isinstance(node, Class)
    return node if node.properties else Class(_common(node.ranges, _WRITTEN))


def _some(node: Node, limit: int) -> list[str]:
    """Return different strings that a tree made by `_written` matches: `limit` of them, or all."""
    if isinstance(node, Class):
        if node.properties:
            return ["\ue000"]  # a property has more characters than any schema lists
        codes = itertools.chain.from_iterable(range(low, high + 1) for low, high in node.ranges)
        return [chr(code) for code in itertools.islice(codes, limit)]
    if isinstance(node, Choice):
        return _first((text for option in node.options for text in _some(option, limit)), limit)
    if isinstance(node, Repeat):
        return _first(_repeated(_some(node.part, limit), node, limit), limit)
    assert isinstance(node, Sequence)
    found = [""]
    for part in node.parts:
        found = _joined(found, _some(part, limit), limit)
    return found


def _repeated(options: list[str], node: Repeat, limit: int) -> Iterator[str]:
    found = [""]
    for count in itertools.count() if node.most is None else range(node.most + 1):
        if count >= node.least:
            yield from found
        found = _joined(found, options, limit)


def _joined(ones: list[str], others: list[str], limit: int) -> list[str]:
    return _first((one + other for one in ones for other in others), limit)


def _first(texts: Iterable[str], limit: int) -> list[str]:
    """Return the first different texts."""
    found: dict[str, None] = {}
    for text in texts:
        found[text] = None
        if len(found) == limit:
            break
    return list(found)


@attrs.frozen
class Names:
    """A set of names of properties."""

    node: Node

    @classmethod
    def of(cls, pattern: Any) -> "Names":
        """Return the names that have a pattern. Raises PatternError."""
        if not isinstance(pattern, str):
            raise PatternError("it must be a string")
        node, looks = split(parse(pattern))
        names = cls(whole(node))
        for look in looks:
            ahead = cls(whole(Sequence((Anchor("^"), look.part))))
            left = names - ahead if look.negative else names & ahead
            if left is None:
                raise PatternError("no name has it")
            names = left
        return names

    @classmethod
    def listed(cls, names: Iterable[Any]) -> "Names":
        """Return some names."""
        return cls(_texts(name for name in names if isinstance(name, str)))

    @classmethod
    def outside(cls, sets: Iterable["Names"]) -> "Names | None":
        """Return the names that are in none of some sets; None for no name. Raises PatternError."""
        return cls._or_none(complement_of(choice(names.node for names in sets)))

    @property
    def expression(self) -> str:
        """Expression of Rust that matches the whole of a name."""
        return write(self.node)

    def has(self, name: str) -> bool:
        """Return whether a name is one of these. Raises PatternError."""
        node = self.node
        _classes(node)
        for character in name:
            node = _derivative(node, ord(character))
        return _is_nullable(node)

    def all_among(self, names: frozenset[str]) -> list[str] | None:
        """Return those of these names that JSON text can have, if all are among others, otherwise None."""
        node, limit = _written(self.node), 1
        while names.issuperset(found := _some(node, limit)):
            if len(found) < limit:
                return found
            limit *= 2
        return None

    def __and__(self, other: "Names") -> "Names | None":
        """Return the names in both sets; None for no name."""
        outside = choice([complement_of(self.node), complement_of(other.node)])
        return self._or_none(complement_of(outside))

    def __sub__(self, other: "Names") -> "Names | None":
        """Return the names that are not in the other set; None for no name."""
        outside = choice([complement_of(self.node), other.node])
        return self._or_none(complement_of(outside))

    @classmethod
    def _or_none(cls, node: Node) -> "Names | None":
        return None if node == NOTHING else cls(node)
