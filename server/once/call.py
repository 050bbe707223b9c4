"""One request with an Idempotency-Key, while it is carried out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mc_core.engine.jobs import sequence_to_come
from mc_core.engine.requests import Delta, Event, Finished
from mc_core.notes import Note
from mc_core.session.session import Session
from server.errors import ApiError, bad_request
from server.once.book import Book
from server.once.kept import Asked, Kept
from server.sessions.slots import Lease
from server.streaming.choice import pieces_of
from server.streaming.format import Format
from server.streaming.pieces import PieceReader
from server.streaming.reply import Reply
from server.streaming.turn_stream import TurnStream
from server.turns.service import Prepare, Prompt

Watch = Callable[[Event], None]


@dataclass
class Call:
    """A request, and what it does to have its answer stored as one with its turn. Without a key it does nothing.

    stream: the turn that carries it out.
    """

    book: Book
    tenant: str
    asked: Asked | None
    stream: TurnStream | None = None
    session: str | None = None
    _told: list[Delta] = field(default_factory=list)

    def over(self) -> None:
        """It is carried out, or has failed, once its turn is over."""
        if self.asked is not None:
            self.book.end(self.tenant, self.asked, None if self.stream is None else self._counted(self.stream))

    async def _counted(self, stream: TurnStream) -> None:
        await stream.over()
        self.count()

    def count(self) -> None:
        """Have the book know of an answer that was stored."""
        if self.session is not None:
            self.book.stored(self.session, self.tenant)

    def needs_kept(self, kept: bool) -> None:
        """ApiError 400 for a key where nothing is kept."""
        if self.asked is not None and not kept:
            raise bad_request(
                "an Idempotency-Key needs a request that is kept: not with store false, nor a completion of no session",
                "Idempotency-Key",
            )

    def watch(self, event: Event) -> None:
        """Told what is generated, on the engine's thread."""
        if self.asked is not None and isinstance(event, Delta):
            self._told.append(event)

    def prepares(self, prepare: Prepare, form: Callable[[], Format], reader: PieceReader, *, stream: bool) -> Prepare:
        """The same, with the answer in the turn's commit. form: a fresh one that writes what the client gets.

        ApiError 409 if another server carried the request out in the meantime.
        """
        if self.asked is None:
            return prepare

        async def prepared(held: Lease) -> Prompt:
            await self.check_new()
            prompt = await prepare(held)

            def commit(reply: str, finished: Finished) -> None:
                if prompt.commit is not None:
                    prompt.commit(reply, finished)
                kept = self._kept(form(), reader, finished, held.session.id, stream)
                held.session.note(self.note(held.session.id, kept))

            return replace(prompt, commit=commit)

        return prepared

    async def check_new(self) -> None:
        """ApiError 409 if another server carried the request out since it was looked for."""
        if self.asked is not None and await self.book.find(self.tenant, self.asked.note) is not None:
            raise ApiError(
                409,
                "another server carried this request out in the meantime; ask again for its answer",
                code="idempotency_key_answered",
                param="Idempotency-Key",
            )

    def note(self, session_id: str, kept: Kept) -> Note:
        """The answer, for a commit."""
        assert self.asked is not None
        self.session = session_id
        return kept.note(self.asked.note)

    async def begun(self, session: Session, response_id: str) -> list[Note]:
        """For the commit of a response that goes on by itself: it is found by its id. Raises as ``check_new``."""
        if self.asked is None:
            return []
        await self.check_new()
        return [self.note(session.id, Kept(self.asked.digest, time.time(), response=response_id))]

    def ingested(self, session: Session, digest: str, body: dict[str, Any]) -> Note:
        """The answer of an ingest, for its last commit; digest: as now known of the request."""
        return self.note(session.id, Kept(digest, time.time(), session.id, session.sequence + 1, body))

    def added(self, session: Session, body: dict[str, Any]) -> list[Note]:
        """The answer of a request that adds to a history without a turn, for the commit that is about to come."""
        if self.asked is None:
            return []
        kept = Kept(self.asked.digest, time.time(), session.id, sequence_to_come(session), body)
        return [self.note(session.id, kept)]

    def _kept(self, form: Format, reader: PieceReader, finished: Finished, session_id: str, stream: bool) -> Kept:
        assert self.asked is not None
        kept = Kept(self.asked.digest, time.time(), session_id, finished.context.sequence)
        events: list[Delta | Finished] = [*self._told, finished]
        pieces = [piece for event in events for piece in pieces_of(reader, event)]
        if not stream:
            reply = Reply()
            for piece, logprobs in pieces:
                reply.add(piece, logprobs)
            return replace(kept, body=form.together([form.whole(reply, finished, session_id)], [finished]))
        frames = [*form.opening()]
        for piece, logprobs in pieces:
            frames += form.piece(piece, logprobs)
        return replace(kept, frames=[*frames, *form.closing(finished, session_id), *form.ending([finished])])
