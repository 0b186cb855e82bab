"""Expansion of the schemas in a Lark grammar, of which those parts are left out that llguidance refuses.

A schema is rewritten so that llguidance takes it, but some limits are known only to the library: how large an
expression may become, how references go in circles. The part that fails is found by trying smaller ones.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from .json_schema import GrammarError, SchemaTerm
from .json_schema.unordered import unordered

MAX_RELAXED = 16
"""Maximum number of keywords that are left out of one schema because llguidance refuses them."""
_TERM = re.compile(re.escape(SchemaTerm.SIGN) + "(?={)")
_GENERAL = ("$defs", "x-guidance", "$comment")
"""Keywords of a root that are no restriction."""
Problem = Callable[[str], str]
"""Returns why a Lark grammar cannot be compiled; "" if it can."""


@attrs.define
class Expansion:
    """A Lark grammar in which the schemas are those of llguidance."""

    pieces: list[str | dict[str, Any]]
    """Texts and schemas in turn."""
    terms: list[SchemaTerm]
    """The terms that the schemas are made of."""
    remarks: list[str]
    """Demands that the schemas leave out, a sentence each."""
    ordered: bool = False
    """Whether properties come in order although that need not be so."""

    @classmethod
    def of(cls, source: str) -> "Expansion":
        """Replace the terms of a grammar. Raises GrammarError."""
        expansion, end = cls([], [], []), 0
        for match in _TERM.finditer(source):
            value, stop = json.JSONDecoder().raw_decode(source, match.end())
            term = SchemaTerm(**value)
            prepared = term.prepare()
            expansion.remarks.extend(prepared.remarks)
            expansion.pieces.extend([source[end : match.start()], prepared.schema])
            expansion.terms.append(term)
            end = stop
        expansion.pieces.append(source[end:])
        return expansion

    @property
    def grammar(self) -> str:
        """The Lark grammar."""
        if not self.ordered and self.pieces[0] == "start: " and not self.terms[0].ordered:
            assert isinstance(self.pieces[1], dict)
            return unordered(self.pieces[1])
        return "".join(piece if isinstance(piece, str) else f"%json {_text(piece)}" for piece in self.pieces)

    def relax(self, problem: Problem) -> None:
        """Leave out what llguidance refuses. Raises GrammarError for a schema that is not lenient."""
        for term, schema in zip(self.terms, self.pieces[1::2], strict=True):
            assert isinstance(schema, dict)
            for remark in _relax(schema, term, problem):
                self.remarks.append(f"{term.owner}: {remark}" if term.owner else remark)
        self.ordered = bool(problem(self.grammar))  # rules for any order may be too large


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, ensure_ascii=False)


def _relax(schema: dict[str, Any], term: SchemaTerm, problem: Problem) -> Iterator[str]:
    """Leave out of a schema what cannot be compiled, and yield remarks.

    Raises GrammarError if the schema is not lenient.
    """
    general = {name: schema[name] for name in _GENERAL if name in schema}

    def failure(part: Any) -> str:
        return problem(f"start: %json {_text({**general, **part})}") if isinstance(part, dict) else ""

    for _ in range(MAX_RELAXED):
        why = failure(schema)
        if not why:
            return
        culprit = _culprit(schema, why, failure)
        place = culprit.get("$comment", "")
        at = f" at {place}" if place else ""
        keyword = _keyword(culprit, failure)
        problem_text = f"`{keyword}`{at}: {why}" if keyword else f"{why}{at}"
        if not term.lenient:
            raise GrammarError(f"{term.owner}: {problem_text}" if term.owner else problem_text)
        for name in [keyword] if keyword else [name for name in culprit if name not in _GENERAL]:
            del culprit[name]
        yield f"{problem_text}; it is not enforced"


def _culprit(schema: dict[str, Any], why: str, failure: Callable[[Any], str]) -> dict[str, Any]:
    """Return the smallest part of a schema that fails for the same reason."""
    for part in _parts(schema):
        if failure(part) == why:
            return _culprit(part, why, failure)
    return schema


def _keyword(schema: dict[str, Any], failure: Callable[[Any], str]) -> str:
    """Return the keyword without which a schema does not fail; "" if there is none."""
    for keyword in schema:
        if keyword in _GENERAL or keyword == "type":
            continue
        if not failure({name: value for name, value in schema.items() if name != keyword}):
            return keyword
    return ""


def _parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for keyword, value in schema.items():
        if keyword in ("properties", "patternProperties", "$defs"):
            yield from (part for part in value.values() if isinstance(part, dict))
        elif keyword in ("allOf", "anyOf", "prefixItems"):
            yield from (part for part in value if isinstance(part, dict))
        elif keyword in ("items", "additionalProperties") and isinstance(value, dict):
            yield value
