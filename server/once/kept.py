"""Answers that are kept for requests with an Idempotency-Key, each as a note of the session that it is about."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from fastapi import Response

from mc_core.notes import MAX_NOTE, Note
from server.condition import etag
from server.errors import ApiError
from server.streaming.frames import EventId, Frame, with_ids
from server.streaming.response import FramesResponse

PREFIX = "once:"
REPLAYED = "Idempotent-Replayed"
"""Header of an answer that was kept."""


@dataclass(frozen=True)
class Asked:
    """A request by its key. note: the key of the note with its answer. digest: of all that it asks, "" while its body
    is not read yet."""

    note: str
    digest: str = ""

    @classmethod
    def of(cls, key: str, *parts: bytes) -> Asked:
        """parts: what makes the request what it is: its address, the session that it names, the digest of its body."""
        return cls(PREFIX + hashlib.sha256(key.encode()).hexdigest(), digest_of(*parts) if parts else "")

    def check(self, digest: str) -> None:
        """ApiError 409 if the key was first used for another request, of that digest."""
        if digest != self.digest:
            raise reused()


def reused() -> ApiError:
    return ApiError(
        409,
        "this Idempotency-Key came with another request before: a key is for one request and its repetitions",
        code="idempotency_key_reused",
        param="Idempotency-Key",
    )


def digest_of(*parts: bytes) -> str:
    """Of all parts, each for itself."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def note_of(key: str, value: bytes) -> Note:
    """At the history's beginning, where no rewind takes it: what was asked once is not done again."""
    return Note(key, 0, value, indexed=True)


@dataclass(frozen=True)
class Kept:
    """The answer of a request that was carried out: a whole body, the frames of a stream, or a response by its id.

    created: seconds since 1970. session, sequence: told as X-Session-ID and ETag. tag: of the stream. None of the
    three: it was too large to be kept.
    """

    digest: str
    created: float
    session: str | None = None
    sequence: int | None = None
    body: dict[str, Any] | None = None
    frames: Sequence[Frame] | None = None
    response: str | None = None
    tag: str = ""

    def note(self, key: str) -> Note:
        """Without its body where that is too large."""
        value = self._encoded()
        return note_of(key, value if len(value) <= MAX_NOTE else replace(self, body=None)._encoded())

    def fields(self) -> dict[str, Any]:
        """All but the frames, which a ``Record`` writes in front of them."""
        return {name: value for name, value in vars(self).items() if name != "frames"}

    def _encoded(self) -> bytes:
        return zlib.compress(orjson.dumps(self.fields()), 1)

    @classmethod
    def of(cls, note: Note) -> Kept:
        fields = orjson.loads(zlib.decompress(note.value))
        frames = fields.pop("frames", None)
        return cls(**fields, frames=None if frames is None else [Frame(*parts) for parts in frames])

    def answer(self, after: EventId | None = None) -> Response:
        """The answer, as it was; a stream in one go, or what of it comes behind an event. ApiError 409 if it was too
        large to be kept, 410 if the event is none of its."""
        first = 0 if after is None else after.next_in(self.tag, len(self.frames or ()))
        if self.frames is not None:
            frames = with_ids(self.frames, self.tag, 0) if self.tag else self.frames
            response: Response = FramesResponse(_in_one_go(frames[first:]), b"")
        elif self.body is not None:
            response = Response(orjson.dumps(self.body), media_type="application/json")
        else:
            raise ApiError(
                409,
                "the request of this Idempotency-Key was carried out, but its answer was too large to be kept: look at"
                " the session",
                code="idempotency_answer_too_large",
                param="Idempotency-Key",
            )
        response.headers[REPLAYED] = "true"
        if self.session is not None:
            response.headers["X-Session-ID"] = self.session
        if self.body is not None and self.sequence is not None:
            response.headers["ETag"] = etag(self.sequence)
        return response


async def _in_one_go(frames: Sequence[Frame]) -> AsyncIterator[Sequence[Frame]]:
    yield frames
