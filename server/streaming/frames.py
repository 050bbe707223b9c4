"""Server-sent events, as any API writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True)
class Frame:
    """One event. data: a body that is written as JSON, or text that is written as it is."""

    data: Mapping[str, Any] | str
    event: str | None = None
    id: str | None = None

    @property
    def body(self) -> Mapping[str, Any]:
        """The body of an event that is written as JSON; nothing of one that is text."""
        return {} if isinstance(self.data, str) else self.data

    def encode(self) -> bytes:
        data = self.data.encode() if isinstance(self.data, str) else orjson.dumps(self.data)
        name = b"" if self.event is None else b"event: " + self.event.encode() + b"\n"
        number = b"" if self.id is None else b"id: " + self.id.encode() + b"\n"
        return name + number + b"data: " + data + b"\n\n"


KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: it tells nothing but that the connection lives."""
