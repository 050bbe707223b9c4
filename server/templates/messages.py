"""What a chat is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One message of a chat: role is "system", "user" or "assistant"; name tells several speakers of a role apart."""

    role: str
    content: str
    name: str | None = None
