"""From the classes of requests and answers to OpenAPI 3.0 schemas.

Requests are attrs classes as json_body reads them; answers are msgspec structs. Ranges and descriptions of
the fields of requests come from field_docs.
"""

import enum
import inspect
import types
import typing
from typing import Annotated, Any

import attrs
import msgspec
from msgspec import UnsetType

from .field_docs import Docs
from .json_body import Custom, Whole, json_name, json_names

Schema = dict[str, Any]
_FORMATS = {"i32": "int32", "u32": "int32", "u64": "int64"}
_PLAIN: dict[Any, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number", "format": "float"},
    Any: {},
    dict: {"type": "object"},
}
_NULL: Schema = {"type": "string", "nullable": True, "enum": [None]}


class Schemas:
    """Makes schemas, and collects those that have names."""

    def __init__(self, docs: Docs, names: dict[type, str]) -> None:
        self.named: dict[str, Schema] = {}
        self._docs = docs
        self._names = names

    def of(self, annotation: Any) -> Schema:
        """The schema of values of this type; a schema may be given, with annotations inside."""
        if isinstance(annotation, dict):
            return {key: self._inside(value) for key, value in annotation.items()}
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is Annotated:
            return (
                self._whole(arguments[1]) if isinstance(arguments[1], Whole) else self._custom(arguments[1])
            )
        if origin in (typing.Union, types.UnionType):
            return self._union(arguments)
        if origin is typing.Literal:
            return {"type": "string", "enum": list(arguments)}
        if origin is list:
            return {"type": "array", "items": self.of(arguments[0])}
        if origin is dict:
            return {"type": "object", "additionalProperties": self.of(arguments[1])}
        return self._class(annotation)

    def _inside(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._inside(one) for one in value]
        return value if isinstance(value, str | int | float) else self.of(value)

    def _whole(self, kind: Whole) -> Schema:
        schema: Schema = {"type": "integer", "minimum": kind.low, "maximum": kind.high}
        if kind.name in _FORMATS:
            schema["format"] = _FORMATS[kind.name]
        return schema

    def _custom(self, custom: Custom) -> Schema:
        if custom.name is None:
            return self.of(custom.schema)
        return self._named(custom.name, lambda: self.of(custom.schema))

    def _union(self, arguments: tuple[Any, ...]) -> Schema:
        kinds = [one for one in arguments if one not in (types.NoneType, UnsetType)]
        schema = self.of(kinds[0]) if len(kinds) == 1 else {"anyOf": [self.of(one) for one in kinds]}
        return nullable(schema) if types.NoneType in arguments else schema

    def _class(self, kind: Any) -> Schema:
        if hasattr(kind, "json_custom"):
            return self._custom(kind.json_custom)
        if attrs.has(kind):
            return self._named(json_name(kind), lambda: self._request(kind))
        if kind is types.NoneType:
            return _NULL
        if kind in _PLAIN:
            return dict(_PLAIN[kind])
        if issubclass(kind, msgspec.Struct):
            return self._named(self._names.get(kind, kind.__name__), lambda: self._answer(kind))
        assert issubclass(kind, enum.Enum), kind
        values = [one.value for one in kind]
        return self._named(kind.__name__, lambda: {"type": "string", "enum": values})

    def _named(self, name: str, make: Any) -> Schema:
        if name not in self.named:
            self.named[name] = {}
            self.named[name] = make()
        return {"$ref": f"#/components/schemas/{name}"}

    def _request(self, kind: type) -> Schema:
        hints = typing.get_type_hints(kind, include_extras=True)
        properties: Schema = {}
        required = []
        for field in attrs.fields(kind):
            names = json_names(field)
            for name in names:
                properties[name] = self._field(kind, name, hints[field.name], field.default)
            if field.default is attrs.NOTHING:
                required.append(names[0])
        return _object(inspect.getdoc(kind), properties, required)

    def _field(self, kind: type, name: str, annotation: Any, default: Any) -> Schema:
        schema = self.of(annotation)
        docs = self._docs.of(json_name(kind), name)
        if isinstance(default, bool | str):
            docs = {"default": default, **docs}
        if "$ref" in schema:
            return {"allOf": [schema], **docs} if docs else schema
        return schema | docs

    def _answer(self, kind: type[msgspec.Struct]) -> Schema:
        hints = typing.get_type_hints(kind)
        properties: Schema = {}
        required = []
        for field in msgspec.structs.fields(kind):
            annotation = hints[field.name]
            properties[field.encode_name] = self._answered(annotation)
            if UnsetType not in typing.get_args(annotation):
                required.append(field.encode_name)
        return _object(inspect.getdoc(kind), properties, required)

    def _answered(self, annotation: Any) -> Schema:
        """A number that JSON does not have is written as null."""
        return nullable(self.of(float)) if annotation is float else self.of(annotation)


def nullable(schema: Schema) -> Schema:
    """The same, or null; in OpenAPI 3.0 `nullable` is about the `type` beside it and nothing else."""
    if "type" in schema:
        values = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
        return {**schema, **values, "nullable": True}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], _NULL]}
    return {"anyOf": [schema, _NULL]} if schema else schema


def _object(description: str | None, properties: Schema, required: list[str]) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    if description:
        schema["description"] = description
    if required:
        schema["required"] = required
    return schema
