"""What messages are called where they are seen as items: words, and each call, by an id of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mc_core.notes import Note


@dataclass(frozen=True)
class Part:
    """An item that a message is told as: its words, or one of its calls. size: characters of the words, 0 of a call.
    cut: whether it ends where the longest reply did."""

    id: str
    size: int = 0
    cut: bool = False


Parts = tuple[Part, ...]


@dataclass(frozen=True)
class Named:
    """How those who see a turn's messages as items call them. stem: stands in all of these ids and in no others; None
    for messages that were there before. given: of the messages that were given, the last ones. told: those of the
    reply, once it is there."""

    stem: str | None
    given: Sequence[Parts]
    told: Callable[[], Parts] = tuple

    def owns(self, parts: Parts) -> bool:
        """Whether a message was given or told here, and not before."""
        return self.stem is not None and any(self.stem in part.id for part in parts)

    def note(self, number: int, position: int) -> Note:
        """Which message of the list they begin at, for who looks for one of them."""
        assert self.stem is not None
        return Note(stem_key(self.stem), position, str(number).encode())


def stem_key(stem: str) -> str:
    return f"items:{stem}"
