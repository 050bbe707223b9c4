"""JSON schemas at random, of the keywords that are enforced."""

from __future__ import annotations

import random
from typing import Any

WORDS = ["name", "größe", 'a "b"', "n", "tags", "x/y", "at", "ok?"]
FORMATS = ["date", "ipv4", "uuid", "date-time", "time"]
PATTERNS = ["^[a-c]{1,3}$", "^(on|off)$", "^[A-Z][a-z]{0,4}$", "^\\d{2}-\\d{2}$"]


def schema_of(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema whose values are short, most of them."""
    simple = [_string, _number, _integer, _choice, _constant, _flag]
    nested = [_object, _object, _array, _tuple, _any_of, _all_of]
    made = rng.choice(nested if depth == 3 else [*simple, *nested] if depth else simple)(rng, depth)
    return {"title": "made up", "description": "{", **made} if rng.random() < 0.1 else made


def document_of(rng: random.Random) -> dict[str, Any]:
    """A schema with a part that others name, at times inside itself."""
    schema = schema_of(rng)
    if rng.random() < 0.3:
        inner = {"type": "object", "properties": {"v": schema_of(rng, 1), "more": {"$ref": "#/$defs/node"}}}
        node = {**inner, "required": ["v"], "additionalProperties": False}
        return {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2, "$defs": {"node": node}}
    return schema


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    kind = rng.randrange(4)
    if kind == 0:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    if kind == 1:
        return {"type": "string", "format": rng.choice(FORMATS)}
    low = rng.randrange(3)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(1, 5)}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randrange(-50, 50)
    return {"type": "number", "exclusiveMinimum": low, "maximum": low + rng.randrange(1, 100) / 4}


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.3:
        return {"type": "integer", "multipleOf": rng.choice([2, 5, 10]), "minimum": 0, "maximum": 1000}
    low = rng.randrange(-1000, 1000)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(500)}


def _choice(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample([1, "a", None, True, {"k": [1]}, [], "größe\n", 2.5], rng.randrange(1, 5))}


def _constant(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice(["x", 0, None, {"a": {"b": [False]}}])}


def _flag(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(WORDS, rng.randrange(4))
    needed = [name for name in names if rng.random() < 0.7]
    rest: Any = rng.choice([False, False, False, schema_of(rng, 0)])
    properties = {name: schema_of(rng, depth - 1) for name in names}
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": rest}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randrange(2)
    return {"type": "array", "items": schema_of(rng, depth - 1), "minItems": low, "maxItems": low + rng.randrange(3)}


def _tuple(rng: random.Random, depth: int) -> dict[str, Any]:
    return {
        "type": "array",
        "prefixItems": [schema_of(rng, depth - 1) for _ in range(2)],
        "items": False,
        "minItems": 2,
    }


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [schema_of(rng, depth - 1) for _ in range(rng.randrange(1, 4))]}


def _all_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"allOf": [{"type": "object"}, _object(rng, 1)]}
