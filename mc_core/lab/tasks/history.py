"""A history with planted statements, and the questions about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mc_core.lab.data.arrays import Ids, Ints, Range
from mc_core.lab.tasks.episode import Asked


@dataclass(frozen=True)
class Question:
    """asked, of an episode of ``task``, in ``suite``; gold: statements of the history that the answer needs.

    depth: where these stand on average, 0 (oldest) to 1; None where nothing answers it. episode: its number in the
    history.
    """

    suite: str
    task: str
    asked: Asked
    gold: tuple[int, ...]
    depth: float | None
    episode: int


@dataclass(frozen=True, eq=False)
class History:
    """Token ids [N]; spans of the planted statements, in order of the episodes; what is asked about them.

    nominal: the length that it was to have, where that is not just what it has.
    """

    ids: Ids
    spans: tuple[Range, ...]
    questions: tuple[Question, ...]
    nominal: int | None = None

    @property
    def length(self) -> int:
        """Under which its figures are listed."""
        return len(self) if self.nominal is None else self.nominal

    def __len__(self) -> int:
        return len(self.ids)

    def pieces(self) -> list[tuple[int, int, int | None]]:
        """The history cut at its statements, in order: (start, end, which statement or None)."""
        found: list[tuple[int, int, int | None]] = []
        at = 0
        for i in sorted(range(len(self.spans)), key=lambda i: self.spans[i]):
            start, end = self.spans[i]
            if start > at:
                found.append((at, start, None))
            found.append((start, end, i))
            at = end
        if at < len(self):
            found.append((at, len(self), None))
        return found


def blocks_of(spans: tuple[Range, ...] | list[Range], block_size: int) -> Ints:
    """Every block that the spans touch, ascending."""
    parts = [np.arange(start // block_size, (end - 1) // block_size + 1) for start, end in spans]
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def all_open(spans: list[Range], raw: Ints, block_size: int) -> bool:
    """Whether every token of the spans stands raw, given the raw blocks."""
    return bool(np.isin(blocks_of(spans, block_size), raw).all())
