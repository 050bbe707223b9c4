"""One request with an Idempotency-Key, while it is carried out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mc_core.engine.jobs import sequence_to_come
from mc_core.engine.requests import Delta, Event, Finished
from mc_core.notes import Note
from mc_core.session.session import Session
from server.errors import answered_elsewhere, bad_request
from server.once.book import Book, Running
from server.once.kept import Asked, Kept
from server.once.record import Record
from server.sessions.slots import Lease
from server.streaming.choice import Tell
from server.streaming.turn_stream import TurnStream
from server.turns.service import Prepare, Prompt

Watch = Callable[[Event], None]


@dataclass
class Call:
    """A request, and what it does to have its answer stored as one with its turn. Without a key it does nothing.

    session: where its answer is kept.
    """

    book: Book
    tenant: str
    asked: Asked | None
    running: Running | None = None
    session: str | None = None
    _stream: TurnStream | None = None
    _tell: Tell | None = None
    _record: Record | None = None

    def over(self) -> None:
        """It is carried out, or has failed, once its turn is over."""
        if self.asked is not None:
            self.book.end(self.tenant, self.asked, None if self._stream is None else self._counted(self._stream))

    async def _counted(self, stream: TurnStream) -> None:
        await stream.over()
        self.count()

    def count(self) -> None:
        """Have the book know of an answer that was stored."""
        if self.session is not None:
            self.book.stored(self.session, self.tenant)

    def needs_kept(self, kept: bool, background: bool = False) -> None:
        """ApiError 400 for a key where nothing is kept, or for a turn in the background."""
        for name, given in (("an Idempotency-Key", self.asked is not None), ("background", background)):
            if given and not kept:
                raise bad_request(
                    f"{name} needs a request that is kept: not with store false, nor a completion of no session",
                    name.rpartition(" ")[2],
                )

    def turn(self, stream: TurnStream, *, events: bool) -> None:
        """Its turn has begun. events: it is told as events, also to those who come back."""
        if self.running is not None and self._tell is not None:
            self._stream, self._record = stream, Record(self._tell(stream), events=events)
            self.running.begins(stream, self._tell if events else None)

    def watch(self, event: Event) -> None:
        """Told what is generated, on the engine's thread."""
        if self._record is not None and isinstance(event, Delta):
            self._record.tell(event)

    def prepares(self, prepare: Prepare, tell: Tell) -> Prepare:
        """The same, with the answer in the turn's commit.

        ApiError 409 if another server carried the request out in the meantime.
        """
        if (asked := self.asked) is None:
            return prepare
        self._tell = tell

        async def prepared(held: Lease) -> Prompt:
            await self.check_new()
            prompt = await prepare(held)

            def commit(reply: str, finished: Finished) -> None:
                if prompt.commit is not None:
                    prompt.commit(reply, finished)
                held.session.note(self._answered(asked, held.session.id, finished))

            return replace(prompt, commit=commit)

        return prepared

    def _answered(self, asked: Asked, session_id: str, finished: Finished) -> Note:
        assert self._record is not None
        self.session = session_id
        kept = Kept(asked.digest, time.time(), session_id, finished.context.sequence)
        return self._record.note(asked.note, kept, finished, session_id)

    async def check_new(self) -> None:
        """ApiError 409 if another server carried the request out since it was looked for."""
        if self.asked is not None and await self.book.find(self.tenant, self.asked.note) is not None:
            raise answered_elsewhere()

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
