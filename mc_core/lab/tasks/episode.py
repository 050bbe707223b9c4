"""An episode: what is said in the course of a long history, and what is asked at its end."""

from __future__ import annotations

from dataclasses import dataclass

from mc_core.errors import ConfigError
from mc_core.lab.tasks.loose import tells


@dataclass(frozen=True)
class Asked:
    """One question.

    answer: the whole reply that is right. values: what a right reply must hold, each of them. gold: indices of the
    statements that the answer needs, so the blocks that must be open; empty where nothing in the history answers it.
    wrong: what a right reply must not hold, such as a value that a later statement replaced. loose: values are told
    in people's ways of writing them (``loose.tells``), not letter by letter.
    """

    question: str
    answer: str
    values: tuple[str, ...]
    gold: tuple[int, ...]
    wrong: tuple[str, ...] = ()
    loose: bool = False

    def score(self, reply: str) -> float:
        """Share of ``values`` that the reply holds, 0 if it holds something wrong (as RULER does, arXiv 2404.06654)."""
        if any(self._in(reply, value) for value in self.wrong):
            return 0.0
        return sum(self._in(reply, value) for value in self.values) / len(self.values)

    def _in(self, reply: str, value: str) -> bool:
        return tells(reply, value) if self.loose else value in reply


@dataclass(frozen=True)
class Episode:
    """statements: in the order in which they must stand in the history, each at a place of its own. distractors:
    indices of those that no question is about, which may stand anywhere."""

    task: str
    statements: tuple[str, ...]
    asked: tuple[Asked, ...]
    distractors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for asked in self.asked:
            if not asked.values:
                raise ConfigError(f"values of a {self.task} question must name at least one substring")
            if any(not 0 <= i < len(self.statements) for i in asked.gold):
                raise ConfigError(f"gold of a {self.task} question must be indices of its statements, got {asked.gold}")
