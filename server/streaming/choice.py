"""A turn and how it is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mc_core.engine.requests import Delta, Event, Finished, TokenLogprob
from server.streaming.format import Format
from server.streaming.pieces import Piece, PieceReader, TextPiece
from server.streaming.turn_stream import TurnStream

logger = logging.getLogger(__name__)
Observe = Callable[[Event, float], None]
"""Told of each event and when it came (monotonic seconds)."""


@dataclass
class Choice:
    """A turn, how it is written, and who is told of its events."""

    stream: TurnStream
    form: Format
    observe: Observe

    def observed(self, event: Event) -> None:
        """Tell who measures; what fails there harms no stream."""
        try:
            self.observe(event, time.monotonic())
        except Exception:
            logger.exception("an event of a turn could not be measured")

    def pieces(self, event: Delta | Finished) -> Iterator[tuple[Piece, tuple[TokenLogprob, ...]]]:
        """What an event turns out to be."""
        return pieces_of(self.stream.pieces, event)


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
