"""What the client saw of one turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["completed", "failed", "disconnected"]


@dataclass
class Record:
    """One turn that was sent. Times are in seconds after the start of the measurement.

    due: when it should have been sent; of a closed loop when it was. first: its first text, None if none came.
    pieces: when each piece of its text came. status: the HTTP status, or what went wrong instead.
    Tokens are the server's count, of turns that completed: the prompt's new ones, the history before it, the reply's.
    """

    session: str
    turn: int
    due: float
    sent: float
    asked_prompt_tokens: int
    asked_output_tokens: int
    outcome: Outcome = "failed"
    status: str = ""
    pieces: list[float] = field(default_factory=list)
    done: float = 0.0
    prompt_tokens: int | None = None
    history_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def lateness(self) -> float:
        """How long it was sent after it was due."""
        return self.sent - self.due

    @property
    def time_to_first_token(self) -> float | None:
        """From when it was due, so that waiting for a slow server counts; None without any text."""
        return self.pieces[0] - self.due if self.pieces else None

    @property
    def end_to_end(self) -> float:
        """From when it was due."""
        return self.done - self.due

    @property
    def gaps(self) -> list[float]:
        """Between the pieces of its text."""
        return [after - before for before, after in zip(self.pieces, self.pieces[1:], strict=False)]

    @property
    def seconds_per_token(self) -> float | None:
        """Of the reply after its first piece; None with less than two tokens or before the turn is complete."""
        if not self.pieces or self.completion_tokens is None or self.completion_tokens < 2:
            return None
        return (self.pieces[-1] - self.pieces[0]) / (self.completion_tokens - 1)
