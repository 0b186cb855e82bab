"""Random JSON schemas and regular expressions that use all supported keywords and have short texts."""

import random
import string
from typing import Any

PATTERNS = ("^[a-z]{2,6}$", r"^\d{3}-\d{4}$", "^(red|green|blue)$", "[0-9]", "^A", "x$", r"^[A-Z]\w{0,5}$")
FORMATS = ("date", "ipv4", "ipv6", "uuid", "email", "date-time", "time", "of-our-own")
NAMES = ("name", "age", "id", "tags", "is ok", "größe", 'a "b"', "parent", "$x", "", "back\\slash")


class SchemaMaker:
    """Makes one random schema. Definitions refer to each other, and to themselves where a text can end."""

    def __init__(self, rng: random.Random, closed: bool) -> None:
        self.rng = rng
        self.closed = closed
        """Whether objects have only the properties that are listed."""
        self.definitions: list[str] = []

    def make(self) -> dict[str, Any]:
        rng = self.rng
        if rng.random() < 0.3:
            self.definitions = [f"d{i}" for i in range(rng.randint(1, 3))]
        schema = self.object(0) if rng.random() < 0.8 else self.any(0)
        if self.definitions:
            names, self.definitions = self.definitions, []
            definitions = {}
            for name in names:
                definitions[name] = self.any(2)
                self.definitions.append(name)  # a later one may refer to it
            if rng.random() < 0.5:
                leaf = self.leaf()
                definitions["tree"] = {
                    "type": "object",
                    "properties": {
                        "value": leaf,
                        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]},
                    },
                    "required": ["value"],
                    "additionalProperties": False,
                }
            schema["$defs"] = definitions
        return schema

    def any(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        draw = rng.random() + (0.4 if depth > 2 else 0)
        if draw < 0.2:
            return self.object(depth)
        if draw < 0.35:
            return self.array(depth)
        if draw < 0.5:
            return self.combined(depth)
        if draw < 0.55 and self.definitions:
            return {"$ref": f"#/$defs/{rng.choice(self.definitions)}"}
        return self.leaf()

    def leaf(self) -> dict[str, Any]:
        maker = self.rng.choice((self.string, self.string, self.number, self.integer, self.fixed, self.plain))
        schema = maker()
        if self.rng.random() < 0.2:
            schema |= {"title": "a title", "description": "of no effect", "default": None, "x-own": [1]}
        return schema

    def plain(self) -> dict[str, Any]:
        types = ["boolean", "null", "integer"]
        return {"type": self.rng.choice((*types, self.rng.sample(types, 2)))}

    def string(self) -> dict[str, Any]:
        rng = self.rng
        kind = rng.randrange(4)
        if kind == 0:
            return {"type": "string", "pattern": rng.choice(PATTERNS), "maxLength": 12}
        if kind == 1:
            return {"type": "string", "format": rng.choice(FORMATS)}
        least = rng.randrange(4)
        return {"type": "string", "minLength": least, "maxLength": least + rng.randrange(12)}

    def number(self) -> dict[str, Any]:
        least = round(self.rng.uniform(-100, 100), self.rng.randrange(3))
        schema: dict[str, Any] = {"type": "number"}
        if self.rng.random() < 0.7:
            schema[self.rng.choice(("minimum", "exclusiveMinimum"))] = least
        if self.rng.random() < 0.7:
            schema[self.rng.choice(("maximum", "exclusiveMaximum"))] = least + self.rng.randint(1, 500)
        return schema

    def integer(self) -> dict[str, Any]:
        least = self.rng.randint(-1000, 1000)
        schema: dict[str, Any] = {"type": "integer"}
        if self.rng.random() < 0.6:
            schema |= {"minimum": least, "maximum": least + self.rng.randint(20, 5000)}
        if self.rng.random() < 0.3:
            schema["multipleOf"] = self.rng.choice((2, 3, 5, 10))
        return schema

    def fixed(self) -> dict[str, Any]:
        values = [1, -2.5, None, True, "é\n", "", "plain", {"a": [1, {}]}, ["x", 2]]
        chosen = self.rng.sample(values, self.rng.randint(1, 4))
        return {"const": chosen[0]} if len(chosen) == 1 else {"enum": chosen}

    def object(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        names = rng.sample(NAMES, rng.randint(0, 4))
        schema: dict[str, Any] = {"type": "object"}
        if names or rng.random() < 0.5:
            schema["properties"] = {name: self.any(depth + 1) for name in names}
        if names and rng.random() < 0.8:
            schema["required"] = rng.sample(names, rng.randint(0, len(names)))
        draw = rng.random()
        if draw < 0.4 or self.closed:
            schema["additionalProperties"] = False
        elif draw < 0.5:
            schema["additionalProperties"] = self.leaf()
        elif draw < 0.55 and "properties" in schema:
            del schema["type"]
        return schema

    def array(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        least = rng.randrange(3)
        schema: dict[str, Any] = {"type": "array", "items": self.any(depth + 1)}
        schema |= {"minItems": least, "maxItems": least + rng.randrange(3)}
        if rng.random() < 0.3:
            schema["prefixItems"] = [self.leaf() for _ in range(rng.randint(1, 2))]
        return schema

    def combined(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        kind = rng.randrange(3)
        if kind == 0:
            return {"anyOf": [self.any(depth + 1) for _ in range(rng.randint(1, 3))]}
        if kind == 1:
            return {"oneOf": [self.string(), self.integer(), {"type": "null"}]}
        if self.closed:
            return {"allOf": [{"type": "integer", "minimum": -9}, {"maximum": 99}, {"multipleOf": 3}]}
        return {
            "allOf": [
                {"type": "object", "properties": {"left": self.leaf()}, "required": ["left"]},
                {"type": "object", "properties": {"right": self.leaf()}},
            ]
        }


def random_schema(rng: random.Random, *, closed: bool = False) -> dict[str, Any]:
    return SchemaMaker(rng, closed).make()


_CLASSES = (r"\d", r"\w", "[a-f]", '[^\\n"]', "[A-Z0-9_]", r"\s", ".", r"[\w.-]", "[éü日]", r"\D", "[^a-z]")


def random_regex(rng: random.Random, depth: int = 0) -> str:
    """Return a random expression in the syntax that Rust and Python share."""
    draw = rng.random()
    if depth > 3 or draw < 0.25:
        letters = string.ascii_letters + string.digits + " _-:/\"'<>=%éж😀"
        return "".join(rng.choice(letters) for _ in range(rng.randint(1, 5)))
    if draw < 0.45:
        return rng.choice(_CLASSES)
    if draw < 0.7:
        return "".join(random_regex(rng, depth + 1) for _ in range(rng.randint(2, 3)))
    if draw < 0.85:
        parts = [random_regex(rng, depth + 1) for _ in range(rng.randint(2, 3))]
        return f"({rng.choice(('', '?:'))}{'|'.join(parts)})"
    part = random_regex(rng, depth + 1)
    least = rng.randrange(3)
    many = (f"{{{least},{least + rng.randint(1, 4)}}}", f"{{{least + 1}}}", "?", "?", "*", "+")
    return f"(?:{part}){rng.choice(many)}"
