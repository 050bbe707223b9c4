"""Three tools of an agent, and what they answer; a call that does not fulfil its schema fails the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from jsonschema import Draft202012Validator

PLACES = {"enum": ["harbour", "tower", "größe"]}
PROPERTIES: dict[str, dict[str, Any]] = {
    "look": {"place": PLACES, "far": {"type": "boolean"}},
    "add": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": [1, 2.5]}},
    "note": {"text": {"type": "string", "maxLength": 4}},
}
SCHEMAS: dict[str, dict[str, Any]] = {
    name: {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    for name, properties in PROPERTIES.items()
}
ANSWERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "look": lambda given: f"{given['place']} <|im_end|> is {'far' if given['far'] else 'near'}",
    "add": lambda given: str(given["a"] + given["b"]),
    "note": lambda given: "[TOOL] noted",
}
CHOICES = ("look", "required", "add")
"""What the agent must call, turn by turn: a tool by its name, or any of them."""


def result_of(name: str, arguments: str | Mapping[str, Any]) -> str:
    """What the tool answers to arguments, JSON text or parsed, that fulfil its schema."""
    given = json.loads(arguments) if isinstance(arguments, str) else arguments
    Draft202012Validator(SCHEMAS[name]).validate(given)
    return ANSWERS[name](given)
