"""A turn and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from mc_core.engine.requests import Delta, Finished, TokenLogprob
from server.streaming.format import Format
from server.streaming.pieces import Piece, PieceReader, TextPiece
from server.streaming.turn_stream import TurnStream


@dataclass
class Choice:
    """A turn, what finds calls in its words, and how it is written: for one telling of it."""

    stream: TurnStream
    form: Format
    reader: PieceReader

    def pieces(self, event: Delta | Finished) -> Iterator[tuple[Piece, tuple[TokenLogprob, ...]]]:
        """What an event turns out to be."""
        return pieces_of(self.reader, event)


Tell: TypeAlias = Callable[[TurnStream], Choice]
"""Makes a telling of a turn, each time the same."""


def pieces_of(reader: PieceReader, event: Delta | Finished) -> Iterator[tuple[Piece, tuple[TokenLogprob, ...]]]:
    """What an event turns out to be for a reader; logprobs go with its first piece."""
    match event:
        case Delta(text, _, logprobs):
            found = reader.feed(text)
            if not found and logprobs:
                found = [TextPiece("")]
        case Finished():
            logprobs, found = (), reader.end(cut=event.reason == "length")
    for number, piece in enumerate(found):
        yield piece, () if number else logprobs
