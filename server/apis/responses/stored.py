"""What is kept of a response: all that it takes to show it, to stream it again, and to go on from it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from mc_core.notes import Note
from mc_core.store import SessionStore
from server.apis.responses.format import ResponseFormat
from server.futures import settled
from server.streaming.frames import Frame
from server.streaming.pieces import CallArguments, CallEnd, CallStart, Piece, TextPiece

PIECES: dict[str, type[TextPiece | CallStart | CallArguments | CallEnd]] = {
    "t": TextPiece,
    "c": CallStart,
    "a": CallArguments,
    "e": CallEnd,
}
GONE = "it was not stored, was deleted, or went with its session, as one does that was not used for long"
Told = tuple[Piece, Sequence[dict[str, Any]]]
"""A piece of a reply, and the logprobs that came with it."""


@dataclass(frozen=True)
class Place:
    """Where a response ends. chat: the session's ``ChatState`` there; tokens: of its history."""

    chat: dict[str, Any]
    tokens: int


@dataclass(frozen=True)
class Unread:
    """What a response under way was about to read, for a server that begins it anew. messages: as a ``ChatState`` has
    them; whole: the history is a beginning of what a template writes of them."""

    request: dict[str, Any]
    messages: list[list[Any]]
    whole: bool
    seed: int | None


@dataclass(frozen=True)
class Stored:
    """A response as a note of its session. ended, place: None while it is under way; unread: only then."""

    head: dict[str, Any]
    input: list[dict[str, Any]]
    told: list[Told] = field(default_factory=list)
    ended: dict[str, Any] | None = None
    place: Place | None = None
    unread: Unread | None = None

    def note(self, position: int) -> Note:
        body = {
            "head": self.head,
            "input": self.input,
            "told": [_piece_json(*one) for one in self.told],
            "ended": self.ended,
            "place": None if self.place is None else vars(self.place),
            "unread": None if self.unread is None else vars(self.unread),
        }
        return Note(self.head["id"], position, zlib.compress(orjson.dumps(body), 1), indexed=True)

    @classmethod
    def of(cls, note: Note) -> Stored:
        body = orjson.loads(zlib.decompress(note.value))
        return cls(
            body["head"],
            body["input"],
            [_piece_of(one) for one in body["told"]],
            body["ended"],
            None if body["place"] is None else Place(**body["place"]),
            None if body["unread"] is None else Unread(**body["unread"]),
        )

    def frames(self, form: ResponseFormat) -> list[Frame]:
        """All of its stream, as it was told or would have been. form: a fresh one, which then has the whole object."""
        assert self.ended is not None
        frames = [*form.opening()]
        for piece, logprobs in self.told:
            frames += form.tell(piece, logprobs)
        return [*frames, *form.end(self.ended)]


async def find(store: SessionStore, tenant: str, id: str) -> tuple[str, Stored] | None:
    """(session, response) by its id."""
    found = await settled(store.find_note(tenant, id)) if id.startswith("resp_") else None
    return None if found is None else (found[0], Stored.of(found[1]))


def _piece_json(piece: Piece, logprobs: Sequence[dict[str, Any]]) -> list[Any]:
    name = next(name for name, kind in PIECES.items() if type(piece) is kind)
    return [name, list(asdict(piece).values()), *([list(logprobs)] if logprobs else [])]


def _piece_of(stored: Sequence[Any]) -> Told:
    name, values, *logprobs = stored
    return PIECES[name](*values), logprobs[0] if logprobs else ()


def ids_of(items: Sequence[Mapping[str, Any]]) -> list[str]:
    return [item["id"] for item in items]
