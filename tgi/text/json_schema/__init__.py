"""JSON schemas: from what clients send to what llguidance enforces.

A schema has the meaning of JSON Schema 2020-12, with the spellings of older drafts. It is narrowed as in TGI
(R2.52) to keep a model from rambling: a text has at most one space between its parts, and a schema with
`properties` describes an object that has no others, unless the schema allows them.
"""

import json
from typing import Any, ClassVar

import attrs
import msgspec

from .errors import GrammarError
from .keywords import KEYWORDS
from .rewriter import MAX_DEPTH, Rewriter

__all__ = ["MAX_DEPTH", "GrammarError", "PreparedSchema", "SchemaTerm", "prepare_schema", "read_schema"]
_SPACED = {
    "whitespace_pattern": None,
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""llguidance options under which a text is made of the same lexemes as a tool call without a mark."""


class SchemaTerm(msgspec.Struct, frozen=True, kw_only=True):
    """A schema in a Lark grammar, where `GrammarCompiler` replaces it by what llguidance reads."""

    SIGN: ClassVar[str] = "%schema\t"
    """Text before the term's JSON; a tab is in no literal of a Lark grammar that `json` has written."""
    schema: Any
    owner: str = ""
    """Owner of the schema, for messages, as "the parameters of `f`"; "" for that of a whole answer."""
    lenient: bool = False
    """Whether keywords that cannot be enforced are left out, with a remark, instead of refused."""
    closed: bool = True
    """Whether objects have no other properties than those that are listed, unless the schema allows them."""
    is_object: bool = False
    """Whether only objects are possible."""
    ordered: bool = True
    """Whether properties come in the order of the schema. Beside thoughts and calls they always do."""
    spaced: bool = False
    """Whether a space is behind each comma and colon and nowhere else, as in a call without a mark."""

    def __str__(self) -> str:
        return self.SIGN + json.dumps(msgspec.to_builtins(self), ensure_ascii=False)

    def prepare(self) -> "PreparedSchema":
        """Return the schema for llguidance. Raises GrammarError."""
        try:
            prepared = prepare_schema(self.schema, lenient=self.lenient, closed=self.closed)
        except GrammarError as error:
            raise GrammarError(f"{self.owner}: {error}" if self.owner else str(error)) from error
        schema = prepared.schema
        if self.spaced:
            schema = schema | {"x-guidance": schema["x-guidance"] | _SPACED}
        if self.is_object and schema.get("type") != "object":
            general: dict[str, Any] = {
                name: schema[name] for name in ("x-guidance", "$defs") if name in schema
            }
            rest = {name: value for name, value in schema.items() if name not in general}
            schema = {"type": "object", "allOf": [rest]} | general
        remarks = tuple(f"{self.owner}: {one}" if self.owner else one for one in prepared.remarks)
        return PreparedSchema(schema, remarks)


@attrs.frozen
class PreparedSchema:
    """A schema for llguidance, alone or after `%json` in a Lark grammar."""

    schema: dict[str, Any]
    remarks: tuple[str, ...] = ()
    """Demands of the schema that are not enforced, a sentence each."""


def prepare_schema(schema: Any, *, lenient: bool = False, closed: bool = True) -> PreparedSchema:
    """Rewrite a schema for llguidance, with the options of a `SchemaTerm`.

    Raises GrammarError if `schema` is not a schema that any value obeys.
    """
    rewriter = Rewriter(schema, KEYWORDS, lenient=lenient)
    try:
        prepared = rewriter.rewrite("whole" if closed else "exact")
    except RecursionError as error:
        raise GrammarError(f"the schema is nested more than {MAX_DEPTH} deep") from error
    prepared["x-guidance"] = {
        "whitespace_pattern": "[ ]",
        "item_separator": ",",
        "key_separator": ":",
        "coerce_one_of": False,
        "lenient": False,
    }
    if rewriter.has_names_to_evade:
        prepared["x-guidance"]["json_allowed_escapes"] = 'nrbtf\\"'
    return PreparedSchema(prepared, tuple(dict.fromkeys(rewriter.remarks)))


def read_schema(text: str) -> Any:
    """Return the schema in a JSON text. Raises GrammarError."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        raise GrammarError(f"the schema is not JSON: {error}") from error
    except RecursionError as error:
        raise GrammarError(f"the schema is nested more than {MAX_DEPTH} deep") from error


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")
