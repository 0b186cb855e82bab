"""Fields that hold a text to a format, under the names of OpenAI, TGI, vLLM and llama.cpp."""

import json
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import msgspec

from tgi.api.native_bodies import Grammar, JsonGrammar, JsonSchemaConfig, RegexGrammar, Schema
from tgi.api.validate import grammar_spec
from tgi.errors import ValidationError
from tgi.sampling import OpenAIFields, about
from tgi.text.grammar import GrammarSpec


class TextFormat(msgspec.Struct, tag_field="type", tag="text"):
    """Any text."""

    @property
    def spec(self) -> None:
        """No grammar."""
        return


class JsonObjectFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    """A JSON object, or a value that obeys a schema in TGI's, LangChain's or OpenAI's spelling."""

    value: Any = None
    schema: Any = None
    json_schema: JsonSchemaConfig | None = None

    @property
    def spec(self) -> GrammarSpec:
        """Grammar for the compiler. Raises ValidationError."""
        if self.json_schema is not None:
            return grammar_spec("json", self.json_schema.schema, self.json_schema.strict)
        schema = _first_given(self.value, self.schema)
        return grammar_spec("json", {"type": "object"} if schema in (None, {}) else schema)


class JsonSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    """A value that obeys a schema, in OpenAI's, TGI's or llama.cpp's spelling."""

    json_schema: JsonSchemaConfig | None = None
    value: JsonSchemaConfig | None = None
    schema: Any = None

    def __post_init__(self) -> None:
        if _first_given(self.json_schema, self.value, self.schema) is None:
            raise ValueError("Object missing required field `json_schema`")

    @property
    def spec(self) -> GrammarSpec:
        """Grammar for the compiler. Raises ValidationError."""
        config = self.value or self.json_schema
        if config is None:
            return grammar_spec("json", self.schema)
        return grammar_spec("json", config.schema, config.strict)


ResponseFormat: TypeAlias = TextFormat | JsonGrammar | JsonObjectFormat | RegexGrammar | JsonSchemaFormat


def _first_given(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


class StructuredOutputs(msgspec.Struct):
    """Format of the text, in vLLM's spelling: one of `json`, `regex`, `choice`, `grammar`, `json_object`."""

    json: Annotated[Any, about("A JSON schema, or a string that holds one.")] = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: Annotated[str | None, about("A grammar in llama.cpp's GBNF or in Lark.")] = None
    json_object: bool | None = None
    structural_tag: Annotated[Any, about("Refused.")] = None
    disable_any_whitespace: Annotated[bool | None, about("Refused.")] = None
    disable_additional_properties: Annotated[bool | None, about("Refused.")] = None
    whitespace_pattern: Annotated[str | None, about("Refused.")] = None

    def __post_init__(self) -> None:
        for name in (
            "structural_tag", "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern",
        ):  # fmt: skip
            if getattr(self, name) not in (None, False):
                raise ValidationError(f"`structured_outputs.{name}` is not supported")
        if len(self._given()) != 1:
            raise ValidationError(
                "`structured_outputs` must have one of `json`, `regex`, `choice`, `grammar` and `json_object`"
            )

    def _given(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _MAKERS if name != "json_object"}
        return {name: value for name, value in values.items() if value is not None} | (
            {"json_object": True} if self.json_object else {}
        )

    @property
    def spec(self) -> GrammarSpec:
        """Grammar for the compiler. Raises ValidationError."""
        ((name, value),) = self._given().items()
        return _MAKERS[name](value)


def _choice(texts: list[str]) -> GrammarSpec:
    if not texts:
        raise ValidationError("grammar is not valid: the list of choices is empty")
    alternatives = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    return grammar_spec("ebnf", f"start: {alternatives}")


def _llama_grammar(value: str | Grammar) -> GrammarSpec:
    return grammar_spec("ebnf", value) if isinstance(value, str) else value.spec


_MAKERS: dict[str, Callable[[Any], GrammarSpec]] = {
    "json": lambda value: grammar_spec("json", value),
    "regex": lambda value: grammar_spec("regex", value),
    "choice": _choice,
    "grammar": _llama_grammar,
    "json_object": lambda _: grammar_spec("json", {"type": "object"}),
}
"""Makers of grammars, by the name of vLLM's field."""
_FIELDS: dict[str, Callable[[Any], GrammarSpec]] = {
    "response_format": lambda value: value.spec,
    "structured_outputs": lambda value: value.spec,
    "grammar": _llama_grammar,
    "json_schema": _MAKERS["json"],
    **{f"guided_{name}": _MAKERS[name] for name in ("json", "regex", "choice", "grammar")},
}
"""Makers of grammars, by the name of a request's field."""


class FormatFields(OpenAIFields, kw_only=True):
    """Fields of which one may hold the text to a format."""

    response_format: Annotated[ResponseFormat | None, about("Format that the text obeys.")] = None
    structured_outputs: Annotated[StructuredOutputs | None, about("Format that the text obeys.")] = None
    grammar: Annotated[
        str | Grammar | None, about("A grammar in llama.cpp's GBNF or in Lark, or TGI's `grammar`.")
    ] = None
    json_schema: Annotated[Schema | None, about("A JSON schema that the text obeys.")] = None
    guided_json: Annotated[Schema | None, about("A JSON schema that the text obeys.")] = None
    guided_regex: Annotated[str | None, about("A regular expression that the text matches.")] = None
    guided_choice: Annotated[list[str] | None, about("Texts of which one is answered.")] = None
    guided_grammar: Annotated[str | None, about("A grammar in llama.cpp's GBNF or in Lark.")] = None

    @property
    def text_grammar(self) -> GrammarSpec | None:
        """Grammar that the text obeys; None: it is free. Raises ValidationError."""
        values = {name: getattr(self, name) for name in _FIELDS}
        if isinstance(self.response_format, TextFormat):
            del values["response_format"]
        given = [(name, value) for name, value in values.items() if value is not None]
        if len(given) > 1:
            raise ValidationError(f"`{given[0][0]}` and `{given[1][0]}` cannot be combined")
        return _FIELDS[given[0][0]](given[0][1]) if given else None
