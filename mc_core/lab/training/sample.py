"""A training sample: tokens with weights, and the layout of a working context that it is cut to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mc_core.errors import ConfigError
from mc_core.lab.data.arrays import Ints

Weights = NDArray[np.float32]

BLOCK = 32


@dataclass(frozen=True)
class Layout:
    """length tokens, of which [0, tail_start) are the first block and history, the rest is the tail."""

    length: int
    tail_start: int

    def __post_init__(self) -> None:
        if self.tail_start < BLOCK or self.tail_start % BLOCK or self.tail_start >= self.length:
            raise ConfigError(
                f"tail_start must be a multiple of {BLOCK} in [{BLOCK}, length = {self.length}), got {self.tail_start}"
            )


@dataclass(frozen=True)
class Difficulty:
    """How many facts a recall sample plants and how long their numbers are, both ends included."""

    facts: tuple[int, int] = (1, 4)
    digits: tuple[int, int] = (3, 7)


@dataclass
class Sample:
    """ids [n]; weights [n] of predicting each token; marks [n]: j > 0 on the value tokens of answer j."""

    ids: Ints
    weights: Weights
    marks: Ints

    @classmethod
    def plain(cls, ids: Sequence[int] | Ints, weight: float = 1.0) -> Sample:
        """Tokens of one weight without marks."""
        n = len(ids)
        return cls(np.asarray(ids, np.int64), np.full(n, weight, np.float32), np.zeros(n, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Sample]) -> Sample:
        """Parts end to end."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "weights", "marks")))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice | Ints) -> Sample:
        return Sample(self.ids[index], self.weights[index], self.marks[index])
