"""Validation errors in OpenAI's shape: status 400, and the name of the field at fault."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from server.errors import ApiError, bad_request

WHERE = ("body", "query", "path", "header")
BRANCH = re.compile(r"str|int|float|bool|(list|dict|constrained|function|literal)\W.*|constrained-\w+|[A-Z]\w*")
"""What a validator adds to a place to say which branch of a union it means; no field of ours is called so."""

UNSUPPORTED = ("extra_forbidden", "unsupported")
NO_OBJECT = ("model_attributes_type", "model_type", "dict_type")
"""Errors of a body that is no object, as text without the content type of JSON isn't."""


def explain(errors: Sequence[Any]) -> ApiError:
    """The error that goes deepest, as one sentence; input values are not repeated.

    A field that may be several things has an error for each; the deepest is about what the caller meant. Of two on one
    level, what is there and wrong goes before what is missing.
    """
    error = max(errors, key=lambda one: (len(one["loc"]), one["type"] != "missing"))
    place = [str(part) for part in error["loc"] if part not in WHERE]
    field = ".".join(part for i, part in enumerate(place) if i == 0 or not BRANCH.fullmatch(part)) or None
    if field is not None:
        field = field.encode("utf-8", "replace").decode()[:200]
    kind = error["type"]
    if kind in UNSUPPORTED:
        taken = f", {error['msg']}" if kind == "unsupported" else ""
        message = f"the parameter '{field}' is not supported by this server{taken}"
        return bad_request(message, field, "unsupported_parameter")
    if kind == "missing":
        what = f"the parameter '{field}'" if field else "the body"
        return bad_request(f"{what} is missing", field, "missing_parameter")
    if field is None and kind in NO_OBJECT:
        return bad_request(
            "the body must be a JSON object, sent with Content-Type: application/json", None, "invalid_json"
        )
    if kind == "json_invalid":
        return bad_request("the body is not valid JSON", None, "invalid_json")
    message = error["msg"].removeprefix("Value error, ")
    return bad_request(f"'{field}': {message}" if field else message, field, "invalid_value")
