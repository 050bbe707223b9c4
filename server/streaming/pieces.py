"""What a reply consists of while it is written: text, and calls of tools. A reader finds them in the model's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True)
class TextPiece:
    """Words for the person who asked."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call of a tool begins. index: its place among the reply's calls."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A fragment of a call's arguments, which are JSON when all of them are there."""

    index: int
    json: str


@dataclass(frozen=True)
class CallEnd:
    """A call's arguments are whole."""

    index: int


Piece: TypeAlias = TextPiece | CallStart | CallArguments | CallEnd


class PieceReader(Protocol):
    """Reads one reply. Every call that it starts it also ends, at the latest in ``end``."""

    def feed(self, text: str) -> list[Piece]:
        """What further text of the model turns out to be; what may yet become a call is held back."""
        ...

    def end(self, *, cut: bool = False) -> list[Piece]:
        """What was held back, when the reply is over. cut: it could have gone on, so what may be the beginning of a
        call is no text; nobody shall see half of its markup."""
        ...


class PlainReader:
    """All of a reply is text."""

    def feed(self, text: str) -> list[Piece]:
        return [TextPiece(text)] if text else []

    def end(self, *, cut: bool = False) -> list[Piece]:
        return []
