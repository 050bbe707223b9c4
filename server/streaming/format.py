"""What an API says of how its turns are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mc_core.engine.requests import Finished, TokenLogprob
from server.errors import ApiError
from server.streaming.frames import KEEP_ALIVE, Frame
from server.streaming.pieces import Piece
from server.streaming.reply import Reply


class Format(Protocol):
    """How one API writes a choice of an answer: as frames while it is generated, or whole.

    One object writes one choice, once. keep_alive: what is sent at once, and while there is nothing to tell.
    """

    keep_alive: bytes = KEEP_ALIVE

    def opening(self) -> Sequence[Frame]:
        """Before anything of the turn is known."""
        ...

    def piece(self, piece: Piece, logprobs: tuple[TokenLogprob, ...]) -> Sequence[Frame]:
        """What was generated; logprobs that no text was made of yet come with an empty one."""
        ...

    def closing(self, finished: Finished, session_id: str | None) -> Sequence[Frame]:
        """The choice is whole, and stored."""
        ...

    def failed(self, error: ApiError) -> Sequence[Frame]:
        """Instead of the rest. Never a false end: the client sees that this reply is not whole."""
        ...

    def ending(self, finished: Sequence[Finished]) -> Sequence[Frame]:
        """Behind all choices, by the first one's format."""
        ...

    def whole(self, reply: Reply, finished: Finished, session_id: str | None) -> dict[str, Any]:
        """The body that tells this choice."""
        ...

    def together(self, bodies: Sequence[dict[str, Any]], finished: Sequence[Finished]) -> dict[str, Any]:
        """The answer of the bodies of all choices, by the first one's format."""
        ...
