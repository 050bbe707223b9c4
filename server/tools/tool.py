"""Tools and their calls, whatever the API that tells of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.errors import bad_request

MAX_TOOLS = 128
CHOICES = ("auto", "none", "required")
NAME = r"^[a-zA-Z0-9_.:-]{1,128}$"
"""Of a tool: nothing that a template or JSON would write otherwise."""


@dataclass(frozen=True)
class Tool:
    """A function that the client offers. parameters: a JSON schema, None if it takes none. strict: calls keep to it.

    param: where the request says it, for errors.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False
    param: str = field(default="tools", compare=False)

    def told(self) -> dict[str, Any]:
        """As chat templates want to see it."""
        about: dict[str, Any] = {"name": self.name}
        if self.description:
            about["description"] = self.description
        about["parameters"] = dict(self.parameters or {"type": "object", "properties": {}})
        return {"type": "function", "function": about}


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request. choice: "auto", "none", "required" or the name of the one that must be called."""

    tools: tuple[Tool, ...]
    choice: str = "auto"
    parallel: bool = True

    def __post_init__(self) -> None:
        """ApiError 400 for what no model could tell apart."""
        names = [tool.name for tool in self.tools]
        for place, tool in enumerate(self.tools):
            if not re.match(NAME, tool.name) or tool.name in CHOICES:
                raise bad_request(f"{tool.name[:200]!r} cannot be a tool's name", tool.param)
            if tool.name in names[:place]:
                raise bad_request(f"two tools are called {tool.name!r}", tool.param)
        if self.choice not in (*CHOICES, *names):
            raise bad_request(f"tool_choice names {self.choice[:200]!r}, which is none of the tools", "tool_choice")
        if not self.tools and self.choice not in ("auto", "none"):
            raise bad_request("tool_choice asks for a call, but there are no tools", "tool_choice")

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that the reply may call."""
        if self.choice == "none":
            return ()
        return tuple(tool for tool in self.tools if self.choice in ("auto", "required", tool.name))

    @property
    def demanded(self) -> bool:
        """The reply must be a call."""
        return self.choice not in ("auto", "none")

    @property
    def named(self) -> bool:
        return self.choice not in CHOICES

    def told(self) -> list[dict[str, Any]]:
        return [tool.told() for tool in self.tools]

    @property
    def digest(self) -> str:
        """Of what a model is told of them."""
        return hashlib.sha256(json.dumps(self.told(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ToolCall:
    """A call in a reply. arguments: JSON text."""

    id: str
    name: str
    arguments: str

    @property
    def canonical(self) -> str:
        """The arguments, the same however a client writes them anew."""
        try:
            return json.dumps(_plain(json.loads(self.arguments)), sort_keys=True)
        except (ValueError, RecursionError):
            return self.arguments


def call_names(calls: Sequence[ToolCall]) -> dict[str, str]:
    """Id -> name of the function."""
    return {call.id: call.name for call in calls}


def _plain(value: Any) -> Any:
    """1.0 is 1 in JavaScript's JSON."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {key: _plain(one) for key, one in value.items()}
        case list():
            return [_plain(one) for one in value]
    return value
