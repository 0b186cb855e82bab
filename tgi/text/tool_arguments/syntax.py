"""The interface of a syntax of arguments, and the syntax of most models: JSON text."""

import abc
import json
from collections.abc import Mapping
from typing import Any

from .rules import Rules


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
    def expression(self, rules: Rules) -> str:
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


JSON_TEXT = _JsonText()
"""Arguments in JSON text."""
