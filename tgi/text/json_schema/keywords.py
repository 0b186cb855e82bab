"""The keywords of JSON Schema that restrict a value, and how far each is enforced."""

from . import arrays, combining, formats, objects, scalars
from .negation import WITHOUT_OPPOSITE
from .rewriter import Keyword

_CONSTANT = "Refused with integers beyond 2^53."
_BOUND = Keyword(
    scalars.bounds, "Refused beyond 2^53, unless it allows almost all numbers: then it is 10^18 at most."
)
_ITEMS = Keyword(arrays.items)
_COUNT = f"Refused if optional properties make more than {arrays.MAX_CASES} cases."
_DEPENDENT = Keyword(objects.dependencies)
_REFERENCE = Keyword(combining.reference, "Refused if it leads out of the schema.")
_OPPOSITE = "Refused if the opposite of a schema cannot be said, see `not`."
KEYWORDS: dict[str, Keyword] = {
    "type": Keyword(scalars.types, "Integers have no fraction, not even `.0`."),
    "enum": Keyword(scalars.constants, _CONSTANT),
    "const": Keyword(scalars.constant, _CONSTANT),
    "minimum": _BOUND,
    "maximum": _BOUND,
    "exclusiveMinimum": _BOUND,
    "exclusiveMaximum": _BOUND,
    "multipleOf": Keyword(scalars.multiple, "Refused with more than nine digits."),
    "minLength": Keyword(scalars.counted("minLength")),
    "maxLength": Keyword(scalars.counted("maxLength")),
    "pattern": Keyword(
        scalars.pattern,
        "ECMA-262. Refused with look-ahead elsewhere than behind `^`, look-behind, back-references, `\\b`, "
        "flags, and anchors within.",
    ),
    "format": Keyword(
        scalars.string_format,
        ", ".join(f"`{name}`" for name in sorted(formats.ALL)) + " are enforced; others never are.",
    ),
    "items": _ITEMS,
    "prefixItems": _ITEMS,
    "additionalItems": _ITEMS,
    "minItems": Keyword(scalars.counted("minItems")),
    "maxItems": Keyword(scalars.counted("maxItems")),
    "contains": Keyword(arrays.contains, f"The items are among the first {arrays.POSITIONS}."),
    "minContains": Keyword(arrays.contained),
    "maxContains": Keyword(arrays.contained, f"Refused without `maxItems` of {arrays.POSITIONS} at most."),
    "uniqueItems": Keyword(
        arrays.unique_items,
        f"Refused unless `enum` lists the items, with at most {arrays.MAX_CASES} lists of different ones.",
    ),
    "unevaluatedItems": Keyword(arrays.unevaluated_items, "Refused beside schemas for the same array."),
    "properties": Keyword(objects.properties, "They come in the order of the schema."),
    "patternProperties": Keyword(objects.pattern_properties, "Patterns as in `pattern`."),
    "additionalProperties": Keyword(objects.additional_properties, "They come after those of `properties`."),
    "required": Keyword(objects.required),
    "minProperties": Keyword(objects.property_count, f"{_COUNT} A name that comes twice counts twice."),
    "maxProperties": Keyword(objects.property_count, _COUNT),
    "propertyNames": Keyword(
        objects.property_names,
        "`pattern`, `enum`, `const`, `minLength`, `maxLength`. Refused with others, and beside "
        "`patternProperties`.",
    ),
    "dependentRequired": _DEPENDENT,
    "dependentSchemas": _DEPENDENT,
    "dependencies": _DEPENDENT,
    "unevaluatedProperties": Keyword(
        objects.unevaluated_properties,
        "Refused beside other schemas for the same object than those of `allOf` and `$ref`.",
    ),
    "allOf": Keyword(combining.all_of),
    "anyOf": Keyword(combining.any_of),
    "oneOf": Keyword(
        combining.one_of, f"{_OPPOSITE} Not if at most one can hold. Where it is relaxed, it means `anyOf`."
    ),
    "not": Keyword(
        combining.negation,
        "Refused around "
        + ", ".join(f"`{keyword}`" for keyword in sorted(WITHOUT_OPPOSITE - {"$ref"}))
        + ", `type` with `integer`, and references in circles.",
    ),
    "if": Keyword(combining.condition, _OPPOSITE),
    "then": Keyword(combining.consequence),
    "else": Keyword(combining.consequence),
    "$ref": _REFERENCE,
    "$dynamicRef": _REFERENCE,
    "$recursiveRef": _REFERENCE,
}
"""All others are remarks."""
