"""Takes down a response while it is generated, so that it is stored as one with its turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mc_core.engine.engine import Engine
from mc_core.engine.requests import Delta, Event, Finished
from mc_core.models.tokenizer import Tokenizer
from mc_core.notes import Note
from mc_core.session.session import Session
from server.apis.responses.ending import Clock, ending
from server.apis.responses.format import ResponseFormat, logprobs_of
from server.apis.responses.parts import parts_given, parts_told
from server.apis.responses.stored import Place, Stored, Told, Unread
from server.futures import settled
from server.streaming.choice import Choice
from server.streaming.pieces import TextPiece
from server.streaming.turn_stream import TurnStream
from server.tools.shape import Shape
from server.turns.parts import Named, Parts
from server.turns.service import Prompt


@dataclass
class Recording:
    """One response. Its turn tells ``watch`` what is generated, on the engine's thread."""

    head: dict[str, Any]
    input: list[dict[str, Any]]
    tokenizer: Tokenizer
    shape: Shape
    clock: Clock = field(default_factory=Clock)
    told: list[Told] = field(default_factory=list)
    is_begun: bool = False
    is_cut: bool = False

    def __post_init__(self) -> None:
        self.reader = self.shape.reader()

    @property
    def id(self) -> str:
        """The response's."""
        return str(self.head["id"])

    def form(self) -> ResponseFormat:
        return ResponseFormat(self.head, self.tokenizer, self.clock)

    def tell(self, stream: TurnStream) -> Choice:
        """One telling of its turn."""
        return Choice(stream, self.form(), self.shape.reader())

    def watch(self, event: Event) -> None:
        if isinstance(event, Delta):
            logprobs = logprobs_of(event.logprobs, self.tokenizer)
            pieces = self.reader.feed(event.text) or ([TextPiece("")] if logprobs else [])
            self.told += [(piece, () if number else logprobs) for number, piece in enumerate(pieces)]

    def named(self, before: Sequence[Parts]) -> Named:
        """How its items are called in the list of its conversation: as here. before: those of messages of a history
        that are read again in front of its own."""
        stem = self.head["id"].removeprefix("resp_")
        return Named(stem, [*before, *parts_given(self.input)], lambda: parts_told(self.told, stem, cut=self.is_cut))

    def stored(self, ended: dict[str, Any]) -> Stored:
        return Stored(self.head, self.input, self.told, ended)

    async def begun(self, engine: Engine, session: Session, unread: Unread, notes: Sequence[Note] = ()) -> None:
        """Store that this response is under way, and notes with that."""
        stored = Stored(self.head, self.input, unread=unread)
        await settled(engine.commit(session, [stored.note(session.tokens), *notes]))
        self.is_begun = True

    def with_turn(self, prompt: Prompt, session: Session) -> Prompt:
        """The same prompt; the response is stored with its reply."""

        def commit(reply: str, finished: Finished) -> None:
            assert prompt.commit is not None
            self.is_cut = finished.reason == "length"
            self.told += [(piece, ()) for piece in self.reader.end(cut=self.is_cut)]
            prompt.commit(reply, finished)
            place = Place(dict(session.chat), session.tokens)
            stored = replace(self.stored(ending(finished, session.id, self.clock)), place=place)
            # Later turns may write the messages that are open now once more, but nothing in front of them. Where they
            # are too long to be kept, what follows shares them as they stand.
            kept = session.chat["messages"] is not None
            session.note(stored.note(session.chat["start"] if kept else session.tokens))

        return replace(prompt, commit=commit)
