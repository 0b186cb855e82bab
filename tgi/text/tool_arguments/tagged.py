"""Arguments in elements, as of XML."""

import json
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from tgi.text.json_schema import SchemaTerm
from tgi.text.stopping import overlap

from .rules import KEY, WORDS, Kinds, Rules, properties_of, type_of, types_of
from .syntax import Reader, Syntax


@attrs.frozen
class Tagged(Syntax):
    """An element `begin KEY middle VALUE end` for each argument. Strings have no quotes, the rest is JSON."""

    begin: str
    middle: str
    end: str
    before_json: str = ""
    """Text in the place of `middle` before a value that is no string; "": the same."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts around names and values."""
        return self.begin, self.middle, self.before_json, self.end

    def _write(self, arguments: Mapping[str, Any]) -> str:
        values = (
            (k, self.middle, v)
            if isinstance(v, str)
            else (k, self.before_json or self.middle, json.dumps(v, ensure_ascii=False))
            for k, v in arguments.items()
        )
        return "".join(f"{self.begin}{key}{middle}{value}{self.end}" for key, middle, value in values)

    def expression(self, rules: Rules) -> str:
        """Return the Lark expression for arguments that obey the schema of `rules`."""
        properties, required, other = properties_of(rules.resolved(rules.root))
        parts = []
        for name, part in properties.items():
            element = self._element(name, part, rules)
            parts.append(element if name in required else f"({element})?")
        if other is not False:
            parts.append(f"({self._element(None, other, rules)})*")
        return rules.add(" ".join(parts) or '""')

    def _element(self, name: str | None, schema: Any, rules: Rules) -> str:
        """Return the expression for an element; `name` is None if it may be any."""

        def opening(middle: str) -> str:
            if name is not None:
                return rules.literal(self.begin + name + middle)
            return f"{rules.literal(self.begin)} {rules.add(KEY, terminal=True)} {rules.literal(middle)}"

        kinds = Kinds.of(schema, rules)
        values = [rules.text_until(part, self.end) for part in kinds.strings]
        end = rules.literal(self.end)
        others = [f"{rules.json(part)} {end}" for part in kinds.others]
        if self.before_json:
            forms = [(self.middle, values), (self.before_json, others)]
            return rules.add(
                " | ".join(f"{opening(text)} {rules.add(' | '.join(some))}" for text, some in forms if some)
            )
        if kinds.strings and not all("enum" in part for part in kinds.strings):
            others = []  # any JSON text is a text as well
        return f"{opening(self.middle)} {rules.add(' | '.join([*values, *others]))}"

    def reader(self, _schema: Mapping[str, Any]) -> Reader:
        """Return a reader of the arguments of one call."""
        return _TaggedReader(self, _schema)


class _TaggedReader(Reader):
    def __init__(self, syntax: Tagged, schema: Mapping[str, Any]) -> None:
        super().__init__()
        self._syntax = syntax
        self._rules = Rules("", str, SchemaTerm(schema=schema))
        self._schema = self._rules.resolved(schema)
        self._state: Literal["begin", "next", "value", "text", "json"] = "begin"
        self._kinds = Kinds([], [])
        self._separator = ""
        """JSON text before the next name."""

    def _step(self) -> str | None:
        match self._state:
            case "begin":
                self._state = "next"
                return "{"
            case "next":
                return self._next()
            case "value":
                return self._begin_value()
            case _:
                return self._value()

    def _next(self) -> str | None:
        begin = self._syntax.begin
        if begin.startswith(self._held) and self._held != begin:
            return None
        if not self._held.startswith(begin):
            self.done = True
            return "}"
        held = self._held.removeprefix(begin)
        middles = [text for text in (self._syntax.middle, self._syntax.before_json) if text and text in held]
        if not middles:
            return None
        middle = min(middles, key=held.index)
        key, _, self._held = held.partition(middle)
        self._state = "value"
        properties, _, other = properties_of(self._schema)
        self._kinds = Kinds.of(properties.get(key, {} if isinstance(other, bool) else other), self._rules)
        separator, self._separator = self._separator, ", "
        opening = f"{separator}{json.dumps(key, ensure_ascii=False)}: "
        if not self._syntax.before_json:
            return opening
        self._state = "text" if middle == self._syntax.middle else "json"
        return opening + '"' * (self._state == "text")

    def _begin_value(self) -> str | None:
        if not self._held:
            return None
        if not self._kinds.others and not self._kinds.anything:
            self._state = "text"
            return '"'
        if not self._kinds.strings and self._held[0] not in "TFN":
            self._state = "json"
            return ""
        text, found, rest = self._held.partition(self._syntax.end)
        if not found:
            return None
        self._held, self._state = rest, "next"
        return self._converted(text)

    def _converted(self, text: str) -> str:
        """Return the JSON text of a value that may be a string or not."""
        plain = WORDS.get(text, text)
        try:
            value = json.loads(plain)
        except ValueError:
            value = text
        types = {name for part in self._kinds.others for name in types_of(part)}
        if isinstance(value, str) or not (self._kinds.anything or type_of(value) & types):
            return json.dumps(text, ensure_ascii=False)
        return plain

    def _value(self) -> str | None:
        end = self._syntax.end
        at = self._held.find(end)
        size = at if at >= 0 else len(self._held) - overlap(self._held, end)
        piece = self._take(size)
        if self._state == "text":
            piece = json.dumps(piece, ensure_ascii=False)[1:-1]
        if at < 0:
            return piece or None
        self._take(len(end))
        piece += '"' if self._state == "text" else ""
        self._state = "next"
        return piece
