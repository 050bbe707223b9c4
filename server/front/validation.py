"""Validation errors in OpenAI's shape: status 400, and the name of the field at fault."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from server.errors import ApiError, bad_request
from server.protocol.kinds import UNKNOWN_KIND

WHERE = ("body", "query", "path", "header")
BRANCH = re.compile(
    r"str|int|float|bool|(list|dict|constrained|function|literal|tagged-union)\W.*|constrained-\w+|[A-Z]\w*"
)
"""What a validator adds to a place to say which branch of a union it means; no field of ours is called so."""

UNSUPPORTED = ("extra_forbidden", "unsupported")
NO_OBJECT = ("model_attributes_type", "model_type", "dict_type")
"""Errors of a body that is no object, as text without the content type of JSON isn't."""
KIND = re.compile(r"[a-zA-Z0-9_.:-]{1,64}", re.ASCII)
MEDIA = {
    "images are": ("image", "image_url", "image_file", "input_image"),
    "sounds are": ("audio", "input_audio"),
    "videos are": ("video", "video_url", "input_video"),
    "files are": ("document", "file", "input_file", "container_upload"),
}
"""What clients send that no model here can read, by the types of their parts."""


def explain(errors: Sequence[Any]) -> ApiError:
    """The error that goes deepest, as one sentence; input values are not repeated, but for the names of types.

    A field that may be several things has an error for each; the deepest is about what the caller meant.
    """
    error = max(errors, key=_weight)
    context = error.get("ctx", {})
    field = ".".join([*_place(error), *([str(context["param"])] if "param" in context else [])]) or None
    if field is not None:
        field = field.encode("utf-8", "replace").decode()[:200]
    kind = error["type"]
    if kind == UNKNOWN_KIND:
        return _unknown_kind(field or "the body", error["input"], context["kinds"])
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
    return bad_request(
        message if field is None or "param" in context else f"'{field}': {message}", field, "invalid_value"
    )


def _weight(error: Any) -> tuple[int, bool, bool, bool]:
    """Of two on one level, what says its ``type`` goes first, then what is of the right JSON type and wrong within it,
    and what is there before what is missing."""
    kind = error["type"]
    return len(_place(error)), kind == UNKNOWN_KIND, not kind.endswith("_type"), kind != "missing"


def _place(error: Any) -> list[str]:
    """The names that lead to the field at fault."""
    place = [str(part) for part in error["loc"] if part not in WHERE]
    return [part for i, part in enumerate(place) if i == 0 or not BRANCH.fullmatch(part)]


def _unknown_kind(field: str, value: Any, kinds: str) -> ApiError:
    """What is asked for, in plain words where it has a name; and what there is instead."""
    given = value.get("type") if isinstance(value, dict) else None
    kind = f"the type '{given}'" if isinstance(given, str) and KIND.fullmatch(given) else "a type that is not known"
    what = next((words for words, names in MEDIA.items() if given in names), None)
    if re.search(r"(^|\.)tools\.\d+$", field):
        message = f"'{field}' is of {kind}: this server runs no tools, but takes functions of your program ({kinds})"
    elif what:
        message = f"{what} not supported by this server: '{field}' is of {kind}, and may be: {kinds}"
    else:
        message = f"'{field}' is of {kind}, which is not supported by this server; it may be: {kinds}"
    return bad_request(message, f"{field}.type", "unsupported_parameter")
