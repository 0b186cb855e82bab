"""Translation of ECMA-262's regular expressions, in which JSON schemas have patterns, into Rust's syntax.

A pattern is parsed, and written again with every class as ranges of characters, so that nothing depends on
what the two syntaxes mean by the same text: `\\d`, `[a&&b]`, `(?x)`, `^{{`. Patterns search; a translation
matches the whole string.
"""

import re
from collections.abc import Iterable
from types import UnionType
from typing import TypeAlias

import attrs

from .errors import Unenforceable

MAX_CODE = 0x10FFFF
MAX_COUNT = 100_000
"""Maximum of a count in braces."""
_MAX_ALTERNATIVES = 64
"""Maximum number of alternatives that anchors in groups may make."""
Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Ranges of characters, both ends included, in ascending order and apart from each other."""


class PatternError(Unenforceable):
    """A pattern is no regular expression of ECMA-262, or cannot be enforced."""


@attrs.frozen
class Class:
    """One character of a set."""

    ranges: Ranges
    properties: tuple[str, ...] = ()
    """Unicode properties in Rust's syntax, of which one may hold as well."""
    negated: bool = False
    """Whether the character is one that is not in the set; only with properties."""


@attrs.frozen
class Sequence:
    """Parts one after the other."""

    parts: tuple["Node", ...]


@attrs.frozen
class Choice:
    """One of several alternatives."""

    options: tuple["Node", ...]


@attrs.frozen
class Repeat:
    """A part several times."""

    part: "Node"
    least: int
    most: int | None


@attrs.frozen
class Anchor:
    """Beginning (`^`) or end (`$`) of the string."""

    sign: str


@attrs.frozen
class Look:
    """Look-ahead: what follows must match, or must not."""

    part: "Node"
    negative: bool


Node: TypeAlias = Class | Sequence | Choice | Repeat | Anchor | Look


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges in order, those that touch joined."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    return tuple(joined)


def complement(ranges: Ranges) -> Ranges:
    """Return the ranges of all other characters."""
    rest, start = [], 0
    for low, high in ranges:
        if low > start:
            rest.append((start, low - 1))
        start = high + 1
    if start <= MAX_CODE:
        rest.append((start, MAX_CODE))
    return tuple(rest)


ANY = Class(((0, MAX_CODE),))
ANYTHING = Repeat(ANY, 0, None)
_DIGITS: Ranges = ((48, 57),)
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACES = "\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"
_SPACE: Ranges = union([(0x2000, 0x200A), *((ord(one), ord(one)) for one in _SPACES)])
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_NOT_DOT: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_COUNT = re.compile(r"\{(\d+)(,(\d*))?\}")
_PROPERTY = re.compile(r"\{([A-Za-z_]+(?:=[A-Za-z_]+)?)\}")


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> Node:
        node = self._choice()
        if self._at < len(self._text):
            raise PatternError("a `)` has no `(`")
        return node

    def _next(self, text: str) -> bool:
        """Take a text if it comes next."""
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _take(self) -> str:
        if self._at >= len(self._text):
            raise PatternError("it ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _choice(self) -> Node:
        options = [self._sequence()]
        while self._next("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._quantified(self._atom()))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _quantified(self, atom: Node) -> Node:
        count = _COUNT.match(self._text, self._at)
        if self._next("*"):
            least, most = 0, None
        elif self._next("+"):
            least, most = 1, None
        elif self._next("?"):
            least, most = 0, 1
        elif count:
            self._at = count.end()
            least = int(count[1])
            most = least if count[2] is None else int(count[3]) if count[3] else None
            if max(least, most or 0) > MAX_COUNT or (most is not None and most < least):
                raise PatternError(f"the count {count[0]} is not valid")
        else:
            return atom
        self._next("?")  # lazy or not, the same strings match
        if isinstance(atom, Anchor | Look):
            raise PatternError("an assertion is repeated")
        return Repeat(atom, least, most)

    def _atom(self) -> Node:
        character = self._take()
        if character in "^$":
            return Anchor(character)
        if character == ".":
            return Class(complement(_NOT_DOT))
        if character == "(":
            return self._group()
        if character == "[":
            return self._class()
        if character == "\\":
            return self._escape()
        if character in "*+?":
            raise PatternError(f"nothing precedes `{character}`")
        return Class(((ord(character), ord(character)),))

    def _group(self) -> Node:
        looks = {"?=": False, "?!": True}
        negative = next((looks[sign] for sign in looks if self._next(sign)), None)
        if self._next("?<=") or self._next("?<!"):
            raise PatternError("look-behind cannot be enforced")
        if negative is None and not self._next("?:") and self._text.startswith("?", self._at):
            name = re.compile(r"\?P?<[^\W\d]\w*>").match(self._text, self._at)
            if not name:
                raise PatternError(
                    "the group `(" + self._text[self._at : self._at + 3] + "` is not supported"
                )
            self._at = name.end()
        node = self._choice()
        if not self._next(")"):
            raise PatternError("a `(` is not closed")
        return node if negative is None else Look(node, negative)

    def _escape(self) -> Node:
        character = self._take()
        if character.lower() in _CLASSES:
            ranges = _CLASSES[character.lower()]
            return Class(ranges if character.islower() else complement(ranges))
        if character in "pP":
            return Class((), (self._property(character),))
        if character in "bB":
            raise PatternError(f"`\\{character}`, the edge of a word, cannot be enforced")
        if character in "k123456789":
            raise PatternError("back-references cannot be enforced")
        return self._one(self._code(character))

    @staticmethod
    def _one(code: int) -> Class:
        return Class(((code, code),))

    def _property(self, sign: str) -> str:
        name = _PROPERTY.match(self._text, self._at)
        if not name:
            raise PatternError(f"`\\{sign}` has no name")
        self._at = name.end()
        return f"\\{sign}{{{name[1]}}}"

    def _code(self, character: str) -> int:
        """Return the character that an escape stands for."""
        if character in _CONTROLS:
            return _CONTROLS[character]
        if character == "0":
            return 0
        if character == "c":
            return ord(self._take()) % 32
        if character == "x":
            return self._hexadecimal(2)
        if character == "u":
            return self._unicode()
        if character.isascii() and character.isalpha():
            raise PatternError(f"`\\{character}` means nothing in ECMA-262")
        return ord(character)

    def _unicode(self) -> int:
        if self._next("{"):
            end = self._text.find("}", self._at)
            return self._hexadecimal(max(0, end - self._at), 1)
        code = self._hexadecimal(4)
        if 0xD800 <= code < 0xDC00 and self._next("\\u"):
            low = self._hexadecimal(4)
            if 0xDC00 <= low < 0xE000:
                return 0x10000 + ((code - 0xD800) << 10) + low - 0xDC00
        if 0xD800 <= code < 0xE000:
            raise PatternError("half of a surrogate pair is no character")
        return code

    def _hexadecimal(self, digits: int, behind: int = 0) -> int:
        text = self._text[self._at : self._at + digits]
        if len(text) < digits or not re.fullmatch("[0-9a-fA-F]+", text) or int(text, 16) > MAX_CODE:
            raise PatternError("an escape lacks its hexadecimal digits")
        self._at += digits + behind
        return int(text, 16)

    def _class(self) -> Node:
        negated = self._next("^")
        ranges: list[tuple[int, int]] = []
        properties: list[str] = []
        while not self._next("]"):
            low = self._member(properties)
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                high = self._member(properties)
                if len(low) == len(high) == 1 and low[0][0] == low[0][1] and high[0][0] == high[0][1]:
                    if low[0][0] > high[0][0]:
                        raise PatternError("a range of characters ends before it begins")
                    ranges.append((low[0][0], high[0][0]))
                    continue
                ranges += [(45, 45), *high]  # a class beside the hyphen: it stands for itself
            ranges += low
        found = union(ranges)
        if properties:
            return Class(found, tuple(properties), negated)
        return Class(complement(found) if negated else found)

    def _member(self, properties: list[str]) -> Ranges:
        character = self._take()
        if character != "\\":
            return ((ord(character), ord(character)),)
        character = self._take()
        if character.lower() in _CLASSES:
            ranges = _CLASSES[character.lower()]
            return ranges if character.islower() else complement(ranges)
        if character in "pP":
            properties.append(self._property(character))
            return ()
        code = 8 if character == "b" else self._code(character)
        return ((code, code),)


def parse(pattern: str) -> Node:
    """Return the tree of a pattern. Raises PatternError."""
    try:
        return _Parser(pattern).parse()
    except RecursionError as error:
        raise PatternError("it is nested too deep") from error


def split(node: Node) -> tuple[Node, list[Look]]:
    """Return a pattern without the look-ahead behind its `^`, and this."""
    parts = list(node.parts) if isinstance(node, Sequence) else [node]
    looks: list[Look] = []
    if parts and isinstance(parts[0], Anchor) and parts[0].sign == "^":
        while len(parts) > 1 and isinstance(parts[1], Look):
            looks.append(parts.pop(1))  # type: ignore[arg-type]
    return Sequence(tuple(parts)), looks


def whole(node: Node) -> Node:
    """Return what matches the strings in which a pattern is found. Raises PatternError."""
    options = []
    for parts in _alternatives(node):
        begins = bool(parts) and parts[0] == Anchor("^")
        ends = bool(parts) and parts[-1] == Anchor("$")
        inner = [part for part in parts if not isinstance(part, Anchor)]
        at = [index for index, part in enumerate(parts) if isinstance(part, Anchor)]
        leading = sum(1 for index in at if all(part == Anchor("^") for part in parts[: index + 1]))
        trailing = sum(1 for index in at if all(part == Anchor("$") for part in parts[index:]))
        if leading + trailing < len(at):
            raise PatternError("`^` or `$` within the pattern cannot be enforced")
        if any(_has(part, Anchor | Look) for part in inner):
            raise PatternError("look-ahead or an anchor within the pattern cannot be enforced")
        options.append(Sequence((*([] if begins else [ANYTHING]), *inner, *([] if ends else [ANYTHING]))))
    return options[0] if len(options) == 1 else Choice(tuple(options))


def _alternatives(node: Node) -> list[tuple[Node, ...]]:
    """Return the alternatives of a pattern, among them those of groups with anchors."""
    if isinstance(node, Choice):
        found = [parts for option in node.options for parts in _alternatives(option)]
    elif isinstance(node, Sequence):
        found = [()]
        for part in node.parts:
            rest = _alternatives(part) if _has(part, Anchor) else [(part,)]
            found = [(*before, *after) for before in found for after in rest]
            if len(found) > _MAX_ALTERNATIVES:
                break
    else:
        found = [(node,)]
    if len(found) > _MAX_ALTERNATIVES:
        raise PatternError("it has too many alternatives with anchors")
    return found


def _has(node: Node, kind: type[Node] | UnionType) -> bool:
    """Return whether a pattern has such a part, other than in a look-ahead."""
    if isinstance(node, Choice | Sequence):
        return any(_has(one, kind) for one in (node.options if isinstance(node, Choice) else node.parts))
    return _has(node.part, kind) if isinstance(node, Repeat) else isinstance(node, kind)


def write(node: Node) -> str:
    """Return a tree without assertions as an expression of Rust."""
    if isinstance(node, Class):
        return _written_class(node)
    if isinstance(node, Sequence):
        return "".join(write(part) for part in node.parts)
    if isinstance(node, Choice):
        return "(?:" + "|".join(write(option) for option in node.options) + ")"
    assert isinstance(node, Repeat)
    counts = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    most = "" if node.most is None else node.most
    count = f"{{{node.least}}}" if node.least == node.most else f"{{{node.least},{most}}}"
    single = isinstance(node.part, Class) and (node.part == ANY or node.part.ranges or node.part.properties)
    text = write(node.part)
    return (text if single else f"(?:{text})") + counts.get((node.least, node.most), count)


def _written_class(node: Class) -> str:
    if node == ANY:
        return "(?s:.)"
    if not node.properties:
        if not node.ranges:
            return "[a&&b]"  # nothing
        if len(node.ranges) == 1 and node.ranges[0][0] == node.ranges[0][1]:
            return _character(node.ranges[0][0])
    ranges = [
        _character(low) if low == high else f"{_character(low)}-{_character(high)}"
        for low, high in node.ranges
    ]
    return f"[{'^' if node.negated else ''}{''.join(ranges)}{''.join(node.properties)}]"


def _character(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\x{{{code:x}}}"
