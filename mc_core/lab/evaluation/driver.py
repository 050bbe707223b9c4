"""How questions are put to a system: in this process, or over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mc_core.lab.tasks.history import History, Question


@dataclass(frozen=True)
class Answer:
    """A reply. gold_open: whether all blocks of the question's gold statements stood raw after the turn's first
    refocus; None for a question without gold. seconds: of the whole turn."""

    text: str
    gold_open: bool | None
    seconds: float


class Driver(Protocol):
    """Holds one history at a time and asks about it, by several methods of focusing."""

    def read(self, history: History) -> Mapping[str, str]:
        """Take in a history in place of the last one -> methods that cannot see it, and why."""
        ...

    def ask(self, method: str, question: Question, max_tokens: int) -> Answer:
        """Ask in a turn of its own, greedily; the history is afterwards as it was read."""
        ...
