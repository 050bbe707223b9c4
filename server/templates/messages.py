"""What a chat is made of."""

from __future__ import annotations

from dataclasses import dataclass

from server.tools.tool import ToolCall


@dataclass(frozen=True)
class Message:
    """One message of a chat: role is "system", "user", "assistant" or "tool"; name tells speakers of a role apart.

    tool_calls: what the assistant called beside its words. tool_call_id: which call a tool's message answers.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
