"""The text of tool calls: how it is written, and a parser that reads it while it is generated.

Knows no grammar and no chat template. Where the text follows the format exactly, as a grammar can enforce,
the arguments are passed on as they come, and are valid JSON together.
"""

import json
import secrets
import string
from collections.abc import Iterable

import attrs

_ID_LENGTH = 9
"""Of the id of a call; templates of Mistral's models refuse others."""


@attrs.frozen
class CallDelta:
    """What became known of a call."""

    index: int
    """Of the call within its answer."""
    id: str | None
    """With the first delta of a call, as `name`; None afterwards."""
    name: str | None
    arguments: str
    """The next piece of the JSON text."""


@attrs.frozen(kw_only=True)
class CallText:
    """The text of calls: `begin head NAME middle ARGUMENTS tail [separator head …] end`."""

    begin: str = ""
    head: str = '{"name": "'
    middle: str = '", "arguments": '
    tail: str = "}"
    separator: str = "\n"
    end: str = ""
    mark: str = ""
    """Where text may precede calls, what `begin head` begins with; "": calls are all of an answer."""

    @property
    def opening(self) -> str:
        """Where the name of the first call begins."""
        return self.begin + self.head

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        """The text of calls, each a name and the JSON text of its arguments."""
        texts = [f"{self.head}{in_json(name)}{self.middle}{rest}{self.tail}" for name, rest in calls]
        return self.begin + self.separator.join(texts) + self.end


def in_json(name: str) -> str:
    """As it is within the quotes of a JSON string."""
    return json.dumps(name, ensure_ascii=False)[1:-1]


def _new_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_ID_LENGTH))


@attrs.define
class ToolCallParser:
    """Reads one answer, in pieces of any size, with special tokens in it but not the one that ends it.

    What does not follow the format after all is text. Space between text and calls is left out.
    """

    _text: CallText
    _state: str = "start"
    _held: str = ""
    """Of which it is not clear yet what it is."""
    _calls: int = 0
    _depth: int = 0
    """Of braces and brackets within the arguments;"""
    _string: bool = False
    """whether within a string of them,"""
    _escape: bool = False
    """and behind its backslash."""

    @property
    def is_within_arguments(self) -> bool:
        """What there is of the last call is no whole JSON text, or not yet."""
        return self._state == "arguments"

    def feed(self, text: str) -> list[str | CallDelta]:
        """What this piece adds: text for the content, and parts of calls."""
        self._held += text
        found: list[str | CallDelta] = []
        while self._step(found):
            pass
        return found

    def end(self) -> list[str | CallDelta]:
        """What is left when no more will come."""
        left, self._held = self._held, ""
        if self._calls and (self._state != "text" or not left.strip()):
            return []  # a call that was cut off, or space behind calls
        if self._state == "name":
            left = self._text.opening + left
        return [left] if left else []

    def _step(self, found: list[str | CallDelta]) -> bool:
        """Take something from what is held; False when that takes more text."""
        match self._state:
            case "start" | "text":
                return self._take_text(found)
            case "name":
                return self._take_name(found)
            case "arguments":
                return self._take_arguments(found)
            case _:
                return self._take_call_end()

    def _take_text(self, found: list[str | CallDelta]) -> bool:
        opening = self._text.opening
        at = self._held.find(opening)
        if not self._text.mark and (self._state == "text" or at > 0):
            at = -1  # calls are all of an answer
        if at >= 0:
            before = self._held[:at].rstrip()
            self._held, self._state = self._held[at + len(opening) :], "name"
            if before:
                found.append(before)
            return True
        keep = self._undecided(opening)
        if keep < len(self._held):
            found.append(self._held[: len(self._held) - keep])
            self._held, self._state = self._held[len(self._held) - keep :], "text"
        return False

    def _undecided(self, opening: str) -> int:
        """How many characters at the end may be the beginning of calls, or space before them."""
        held = self._held
        if not self._text.mark:
            return len(held) if self._state == "start" and opening.startswith(held) else 0
        keep = next(
            (n for n in range(min(len(opening) - 1, len(held)), 0, -1) if opening.startswith(held[-n:])), 0
        )
        return len(held) - len(held[: len(held) - keep].rstrip())

    def _take_name(self, found: list[str | CallDelta]) -> bool:
        name, middle, rest = self._held.partition(self._text.middle)
        if not middle:
            return False
        found.append(CallDelta(self._calls, _new_id(), _unquoted(name), ""))
        self._calls += 1
        self._held, self._state, self._depth = rest, "arguments", 0
        return True

    def _take_arguments(self, found: list[str | CallDelta]) -> bool:
        size = self._size_of_arguments()
        if size:
            found.append(CallDelta(self._calls - 1, None, None, self._held[:size]))
        self._held = self._held[size:]
        return self._state != "arguments"

    def _size_of_arguments(self) -> int:
        """How much of what is held belongs to the arguments; the state changes at their end."""
        for index, character in enumerate(self._held):
            if self._string:
                if self._escape:
                    self._escape = False
                elif character == "\\":
                    self._escape = True
                elif character == '"':
                    self._string = False
            elif character == '"':
                self._string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self._state = "call end"
                    return index + 1
        return len(self._held)

    def _take_call_end(self) -> bool:
        known, held = self._text, self._held
        another = known.tail + known.separator + known.head
        last = known.tail + known.end
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


def _unquoted(name: str) -> str:
    try:
        return str(json.loads(f'"{name}"'))
    except ValueError:
        return name
