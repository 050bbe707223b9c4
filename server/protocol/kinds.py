"""Objects of a request that are told apart by their ``type``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

UNKNOWN_KIND = "unknown_kind"
"""The error of an object of none of the types; its context says which ones there are (``kinds``)."""


class ByType:
    """Annotates a class, or a union of classes, with a ``type`` each: an object is judged as what it says it is.

    A class whose ``type`` has a default also takes objects without one.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        classes: tuple[type[BaseModel], ...] = get_args(source) or (source,)
        # Named by their classes, so that the name is told from a field's where an error says its place.
        names = {kind: one.__name__ for one in classes for kind in get_args(get_type_hints(one)["type"])}
        silent = [one.__name__ for one in classes if not one.model_fields["type"].is_required()]
        return core_schema.tagged_union_schema(
            {one.__name__: handler.generate_schema(one) for one in classes},
            discriminator=lambda value: _name(value, names, (*silent, classes[0].__name__)[0]),
            custom_error_type=UNKNOWN_KIND,
            custom_error_message="an object of none of the types {kinds}",
            custom_error_context={"kinds": ", ".join(names)},
        )


def _name(value: Any, names: Mapping[str, str], silent: str) -> str | None:
    """The class that reads a value; what has no type, or is no object, meets one that says so. None: another type."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind is None:
        return silent
    # What is no text may not be hashable.
    return names.get(kind) if isinstance(kind, str) else None
