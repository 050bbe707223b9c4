"""Server-sent events, as any API writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import orjson

from server.errors import stream_lost


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


def with_ids(frames: Sequence[Frame], tag: str, first: int) -> list[Frame]:
    """The frames with the ids of events ``first``, ``first`` + 1, ... of the stream that is called so."""
    return [replace(frame, id=str(EventId(tag, number))) for number, frame in enumerate(frames, first)]


@dataclass(frozen=True)
class EventId:
    """Names an event: the stream's tag, since a turn that is begun anew may tell something else, and its number."""

    tag: str
    number: int
    PATTERN: ClassVar[str] = r"[0-9a-f]{8}-[0-9]{1,9}"

    def __str__(self) -> str:
        return f"{self.tag}-{self.number}"

    @classmethod
    def of(cls, text: str) -> EventId:
        """From an id as ``PATTERN`` has it."""
        tag, number = text.split("-")
        return cls(tag, int(number))

    def next_in(self, tag: str, told: int) -> int:
        """The number of the event behind this one. ApiError 410 if it is none of the ``told`` events of that stream."""
        if tag != self.tag or self.number >= told:
            raise stream_lost()
        return self.number + 1


KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: it tells nothing but that the connection lives."""
