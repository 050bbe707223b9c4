"""How a system puts text to its model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mc_core.lab.data.arrays import Ids

Turns = Sequence[tuple[str, str]]
"""(what the user says, what the assistant replies) in order."""


class Prompt(Protocol):
    """Token ids as the server would have them, by the model's own template."""

    def __call__(self, question: str) -> tuple[Ids, Ids]:
        """A question behind a history -> the ids of its turn, up to where the reply begins, and what closes a reply."""
        ...

    def alone(self, text: str) -> tuple[Ids, Ids]:
        """The same for a message with nothing before it."""
        ...

    def chat(self, turns: Turns) -> Ids:
        """A conversation from its beginning to the end of its last reply."""
        ...
