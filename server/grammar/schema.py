"""JSON schemas as grammars, and where in a schema something stands that no grammar can keep."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
OPTIONS = "x-guidance"
READABLE = {"whitespace_pattern": r"\n[ ]{0,32}| ", "lenient": False}
"""How JSON for people and programs may be written: on one line, or indented. Without an end to its blanks, a reply
could consist of them."""
SLASH_FREE = 'nrbtf\\"'
"""Escapes that ``json.dumps`` makes, but for control characters: with these, a text is written in one way alone."""
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems", "items")
_SINGLES = ("items", "additionalItems", "additionalProperties", "contains", "not", "propertyNames", "if", "then")
_UNKNOWN = re.compile(r"Unimplemented keys: \[(.*)\]")


def spaced(comma: str, colon: str, *, lenient: bool) -> dict[str, Any]:
    """JSON with these separators and no other blanks, as a template writes it."""
    return {
        "item_separator": re.escape(comma),
        "key_separator": re.escape(colon),
        "whitespace_flexible": False,
        "json_allowed_escapes": SLASH_FREE,
        "lenient": lenient,
    }


def with_options(schema: Schema, options: Mapping[str, Any]) -> dict[str, Any]:
    """A schema that says how its JSON is written; what it says of that itself is not heard."""
    return {**schema, OPTIONS: dict(options)}


def place_of(schema: Schema, error_of: Callable[[Schema], str]) -> tuple[str, str]:
    """(JSON pointer of the innermost part with the error that the whole has, the error in plain words)."""
    error, path, node = error_of(schema), "#", schema
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    while (inner := _culprit(node, lambda part: error_of({**shared, **part}) == error)) is not None:
        path, node = f"{path}/{inner[0]}", inner[1]
    return path, in_words(error)


def in_words(error: str) -> str:
    if found := _UNKNOWN.search(error):
        return f"the keyword {found[1]} is not supported"
    return " ".join(error.split())[:300]


def _culprit(node: Schema, fails: Callable[[Schema], bool]) -> tuple[str, Schema] | None:
    return next(((path, part) for path, part in _parts(node) if fails(part)), None)


def _parts(node: Schema) -> Iterator[tuple[str, Schema]]:
    """(pointer, schema) of the schemas right inside one."""
    for name in _MAPS:
        inside = node.get(name)
        for key, part in inside.items() if isinstance(inside, dict) else ():
            yield from _if_schema(f"{name}/{_escaped(key)}", part)
    for name in _LISTS:
        inside = node.get(name)
        for number, part in enumerate(inside) if isinstance(inside, list) else ():
            yield from _if_schema(f"{name}/{number}", part)
    for name in _SINGLES:
        yield from _if_schema(name, node.get(name))


def _if_schema(path: str, part: Any) -> Iterator[tuple[str, Schema]]:
    if isinstance(part, dict):
        yield path, part


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def written(schema: Schema) -> str:
    return json.dumps(schema, ensure_ascii=False)
