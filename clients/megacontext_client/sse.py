"""Server-sent events from raw bytes, by the WHATWG rules.

Lines end at CR, LF or CRLF and nowhere else: Python's ``splitlines`` would also cut at U+2028 and friends, which JSON
may hold unescaped.
"""

from __future__ import annotations

from dataclasses import dataclass

DONE = "[DONE]"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Event:
    """One event: its name ("message" unless given), its data lines, joined by newlines, and the newest id so far."""

    name: str
    data: str
    id: str = ""


class EventDecoder:
    """Turns pieces of a body, cut anywhere, into events; comments (keep-alives) and unknown fields are skipped."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._after_cr = False
        self._begun = False
        self._name = self._id = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[Event]:
        """The events that ``piece`` completes; an event cut off by the end of the body never completes."""
        return [event for line in self._lines(piece) if (event := self._line(line))]

    def _lines(self, piece: bytes) -> list[str]:
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
            self._after_cr = False
        if not piece:
            return []
        self._after_cr = piece.endswith(b"\r")
        if b"\n" not in piece and b"\r" not in piece:
            self._pending += piece
            return []
        self._pending += piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = bytes(self._pending).split(b"\n")
        self._pending = bytearray(rest)
        if not self._begun:
            self._begun = True
            lines[0] = lines[0].removeprefix(_BOM)
        return [line.decode("utf-8", errors="replace") for line in lines]

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id" and "\0" not in value:
            self._id = value
        return None

    def _dispatch(self) -> Event | None:
        event = Event(self._name or "message", "\n".join(self._data), self._id) if self._data else None
        self._name = ""
        self._data = []
        return event
