"""Request bodies in which nothing is ignored, a null means absent, and the schema says exactly what is taken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

NULL = {"type": "null"}


class StrictModel(BaseModel):
    """An object of a request. A field that is not honoured is an error; one that is null counts as absent."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        own = handler.resolve_ref_schema(schema)
        for name, field in own.get("properties", {}).items():
            if name not in own.get("required", ()) and NULL not in field.get("anyOf", ()):
                own["properties"][name] = _or_null(field)
        own["additionalProperties"] = NULL
        return schema


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    about = {key: value for key, value in field.items() if key in ("title", "description", "default")}
    rest = {key: value for key, value in field.items() if key not in about}
    if rest in ({}, NULL):  # whatever it is, null is part of it
        return field
    return about | {"anyOf": [rest, NULL]}


def wrong(param: str, message: str) -> PydanticCustomError:
    """An error about fields that don't go together, for validators of a whole object. param: the one to blame."""
    return PydanticCustomError("inconsistent", "{message}", {"param": param, "message": message})


class Only:
    """Annotates a field of which no other values are taken than those that ask for nothing."""

    def __init__(self, *values: Any) -> None:
        self.values: Sequence[Any] = values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self.values)} if self.values else NULL

    def _check(self, value: Any) -> Any:
        if any(_same(value, one) for one in self.values):
            return value
        values = " or ".join(json.dumps(one) for one in [*self.values, None])
        raise PydanticCustomError("unsupported", "except as {values}", {"values": values})


def _same(value: Any, other: Any) -> bool:
    # In JSON, true is not 1.
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def _integral(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_integral)
"""In JSON, 8.0 is an integer."""
Natural = Annotated[int, Field(ge=0), WHOLE]
Positive = Annotated[int, Field(ge=1), WHOLE]
