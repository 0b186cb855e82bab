"""The keywords of JSON Schema that restrict a value, and how far each is enforced."""

from . import arrays, combining, formats, objects, scalars
from .negation import WITHOUT_OPPOSITE
from .rewriter import Keyword

_CONSTANT = "with integers beyond 2^53"
_BOUND = Keyword(
    scalars.bounds,
    narrower="a bound beyond 2^53 that excludes little is rounded, to 10^18 at most; "
    "an exclusive bound also excludes what is within a 10^12th of it, or of 1",
    refused="if it is beyond 2^53 and excludes much",
)
_ITEMS = Keyword(arrays.items)
_CASES = f"if optional properties make more than {arrays.MAX_CASES} cases"
_DEPENDENT = Keyword(objects.dependencies)
_REFERENCE = Keyword(combining.reference, refused="if it leads out of the schema")
_OPPOSITE = "if the opposite of a schema is needed and cannot be said, see `not`"
_WITHIN_NOT = ", ".join(f"`{keyword}`" for keyword in sorted(WITHOUT_OPPOSITE - {"$ref"}))
KEYWORDS: dict[str, Keyword] = {
    "type": Keyword(scalars.types, narrower="an integer has no fraction, not even `.0`"),
    "enum": Keyword(scalars.constants, refused=_CONSTANT),
    "const": Keyword(scalars.constant, refused=_CONSTANT),
    "minimum": _BOUND,
    "maximum": _BOUND,
    "exclusiveMinimum": _BOUND,
    "exclusiveMaximum": _BOUND,
    "multipleOf": Keyword(scalars.multiple, refused="with more than nine digits"),
    "minLength": Keyword(scalars.counted("minLength")),
    "maxLength": Keyword(scalars.counted("maxLength")),
    "pattern": Keyword(
        scalars.pattern,
        refused="with look-ahead elsewhere than behind `^`, look-behind, back-references, `\\b`, flags, "
        "anchors in the middle, and what ECMA-262 does not know, as `\\Z`",
    ),
    "format": Keyword(
        scalars.string_format,
        refused="never; relaxed but for " + ", ".join(f"`{name}`" for name in sorted(formats.ALL)),
    ),
    "items": _ITEMS,
    "prefixItems": _ITEMS,
    "additionalItems": _ITEMS,
    "minItems": Keyword(scalars.counted("minItems")),
    "maxItems": Keyword(scalars.counted("maxItems")),
    "contains": Keyword(arrays.contains, narrower=f"the item is among the first {arrays.POSITIONS}"),
    "minContains": Keyword(arrays.contained, narrower=f"the items are among the first {arrays.POSITIONS}"),
    "maxContains": Keyword(
        arrays.contained, refused=f"without `maxItems` of {arrays.POSITIONS} at most; {_OPPOSITE}"
    ),
    "uniqueItems": Keyword(
        arrays.unique_items,
        refused="unless `enum` lists the items, and there are at most "
        f"{arrays.MAX_CASES} lists of different ones",
    ),
    "unevaluatedItems": Keyword(arrays.unevaluated_items, refused="beside schemas for the same array"),
    "properties": Keyword(
        objects.properties, narrower="they come in the order of the schema, and only they (see above)"
    ),
    "patternProperties": Keyword(objects.pattern_properties, refused="with patterns that `pattern` refuses"),
    "additionalProperties": Keyword(
        objects.additional_properties, narrower="they come after those of `properties` and `required`"
    ),
    "required": Keyword(objects.required),
    "minProperties": Keyword(
        objects.property_count, narrower="*wider*: a name that comes twice counts twice", refused=_CASES
    ),
    "maxProperties": Keyword(objects.property_count, refused=_CASES),
    "propertyNames": Keyword(
        objects.property_names,
        refused="with others than `type`, `pattern`, `enum`, `const`, `minLength`, `maxLength`, `allOf`, and "
        "`format` of dates and `ipv6`; beside `patternProperties`",
    ),
    "dependentRequired": _DEPENDENT,
    "dependentSchemas": _DEPENDENT,
    "dependencies": _DEPENDENT,
    "unevaluatedProperties": Keyword(
        objects.unevaluated_properties,
        refused="beside other schemas for the same object than those of `allOf` and `$ref`",
    ),
    "allOf": Keyword(combining.all_of),
    "anyOf": Keyword(combining.any_of),
    "oneOf": Keyword(
        combining.one_of, refused=f"{_OPPOSITE}; not if at most one can hold; relaxed, it means `anyOf`"
    ),
    "not": Keyword(
        combining.negation, refused=f"around {_WITHIN_NOT}, the type `integer`, and references in circles"
    ),
    "if": Keyword(combining.condition, refused=_OPPOSITE),
    "then": Keyword(combining.consequence),
    "else": Keyword(combining.consequence),
    "$ref": _REFERENCE,
    "$dynamicRef": _REFERENCE,
    "$recursiveRef": _REFERENCE,
}
"""All others are remarks."""
