"""Writes an answer down while it is told, so that next to nothing is left to do when its turn is stored."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import orjson

from mc_core.engine.requests import Delta, Finished
from mc_core.notes import MAX_NOTE, Note
from server.once.kept import Kept, note_of
from server.streaming.choice import Choice
from server.streaming.frames import Frame
from server.streaming.reply import Reply


class Record:
    """The answer of one turn, as ``choice`` tells it; ``tell`` and ``note`` are called on the engine's thread.

    events: it is a stream's. Its frames are packed as they come, so that a long one holds little memory.
    """

    def __init__(self, choice: Choice, *, events: bool) -> None:
        self._choice, self._events, self._reply = choice, events, Reply()
        self._packing, self._packed, self._size = zlib.compressobj(1), list[bytes](), 0
        self._before = b'{"frames":['
        self._add(choice.form.opening())

    def tell(self, event: Delta | Finished) -> None:
        for piece, logprobs in self._choice.pieces(event):
            if self._events:
                self._add(self._choice.form.piece(piece, logprobs))
            else:
                self._reply.add(piece, logprobs)

    def note(self, key: str, kept: Kept, finished: Finished, session_id: str) -> Note:
        """All of it. kept: what else is to be known of the request; that alone where the answer is too large."""
        self.tell(finished)
        form = self._choice.form
        if not self._events:
            body = form.together([form.whole(self._reply, finished, session_id)], [finished])
            return replace(kept, body=body).note(key)
        self._add([*form.closing(finished, session_id), *form.ending([finished])])
        told = replace(kept, tag=self._choice.stream.tag)
        self._pack(b"]," + orjson.dumps(told.fields())[1:])
        self._packed.append(self._packing.flush())
        value = b"".join(self._packed)
        return note_of(key, value) if len(value) <= MAX_NOTE else kept.note(key)

    def _add(self, frames: Sequence[Frame]) -> None:
        self._choice.stream.recorded += len(frames)
        for frame in frames:
            self._pack(self._before + orjson.dumps([frame.data, frame.event, frame.id]))
            self._before = b","

    def _pack(self, data: bytes) -> None:
        if self._size <= MAX_NOTE and (packed := self._packing.compress(data)):
            self._packed.append(packed)
            self._size += len(packed)
