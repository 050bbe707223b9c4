"""A turn and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mc_core.engine.requests import Delta, Event, Finished, TokenLogprob
from server.streaming.format import Format
from server.streaming.pieces import Piece, PieceReader, PlainReader, TextPiece
from server.streaming.turn_stream import TurnStream

Observe = Callable[[Event, float], None]
"""Told of each event and when it came (monotonic seconds)."""


@dataclass
class Choice:
    """A turn, how it is written, who is told of its events, and what finds calls of tools in its words."""

    stream: TurnStream
    form: Format
    observe: Observe
    reader: PieceReader = field(default_factory=PlainReader)

    def pieces(self, event: Delta | Finished) -> Iterator[tuple[Piece, tuple[TokenLogprob, ...]]]:
        """What an event turns out to be; logprobs go with its first piece."""
        match event:
            case Delta(text, _, logprobs):
                found = self.reader.feed(text)
                if not found and logprobs:
                    found = [TextPiece("")]
            case Finished():
                logprobs, found = (), self.reader.end()
        for number, piece in enumerate(found):
            yield piece, () if number else logprobs
