"""The entries of a working context as columns, chronological. Metadata on the host; no vectors."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Rows = NDArray[np.bool_] | NDArray[np.int64]


@cache
def spans_by_level(block_size: int) -> Ints:
    """Tokens that a node of level 0 (a block), 1, 2, .. covers: K, K, K^2, .."""
    powers = [block_size**level for level in range(1, 64) if block_size**level < 2**62]
    return np.array([block_size, *powers], np.int64)


@dataclass(frozen=True, eq=False)
class Entries:
    """n entries that tile [0, num_tokens); an immutable value.

    levels, indices: the node of each. residency: refocuses since it last changed level. cooldown: for how many more
    refocuses an entry that an expand brought shall not collapse (positive), one that a collapse brought not expand
    (negative). held: how much the last plan wants a raw block kept, 0 for not at all. gist_cost: of a gist, as many as
    it has vectors, or 0 where the model is not shown any.
    """

    block_size: int
    num_tokens: int
    levels: NDArray[np.int8]
    indices: Ints
    residency: NDArray[np.int32]
    cooldown: NDArray[np.int8]
    held: NDArray[np.int16]
    gist_cost: int = 1

    @classmethod
    def fresh(cls, block_size: int, num_tokens: int, levels: NDArray[np.int8], indices: Ints) -> Entries:
        """Entries that just came to their level."""
        n = len(levels)
        zero = np.zeros(n, np.int32)
        return cls(block_size, num_tokens, levels, indices, zero, np.zeros(n, np.int8), np.zeros(n, np.int16))

    @classmethod
    def none(cls, block_size: int, gist_cost: int = 1) -> Entries:
        """Of a history without tokens."""
        return replace(cls.raw(block_size, 0, 0, 0), gist_cost=gist_cost)

    @classmethod
    def raw(cls, block_size: int, num_tokens: int, start: int, end: int) -> Entries:
        """Raw blocks [start, end)."""
        indices = np.arange(start, end, dtype=np.int64)
        return cls.fresh(block_size, num_tokens, np.zeros(len(indices), np.int8), indices)

    def __len__(self) -> int:
        return len(self.levels)

    def starts(self) -> Ints:
        """First token of each [n]."""
        return self.indices * spans_by_level(self.block_size)[self.levels]

    def ends(self) -> Ints:
        """Token after the last of each [n]; the open block ends with the history."""
        spans = spans_by_level(self.block_size)[self.levels]
        return np.minimum((self.indices + 1) * spans, self.num_tokens)

    def costs(self) -> NDArray[np.int32]:
        """Tokens of a raw block, ``gist_cost`` for a gist [n]."""
        costs = np.where(self.levels == 0, self.block_size, self.gist_cost).astype(np.int32)
        if self.open_length:
            costs[-1] = self.open_length
        return costs

    @property
    def open_length(self) -> int:
        """Tokens of the open block at the end, 0 if there is none."""
        return self.num_tokens % self.block_size

    @property
    def cost(self) -> int:
        gists = int(np.count_nonzero(self.levels))
        short = self.block_size - self.open_length if self.open_length else 0
        return gists * self.gist_cost + (len(self) - gists) * self.block_size - short

    def step(self, level: int) -> int:
        """What an expand of a node of this level adds to the cost, and its collapse saves."""
        return (self.block_size if level == 1 else self.block_size * self.gist_cost) - self.gist_cost

    def take(self, rows: Rows) -> Entries:
        """The chosen rows; the caller sees to it that the result tiles."""
        columns = {name: getattr(self, name)[rows] for name in COLUMNS}
        return replace(self, **columns)

    def joined(self, *others: Entries) -> Entries:
        """These entries and then the others, which know the same or a later end of history."""
        parts = (self, *others)
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
        return Entries(self.block_size, parts[-1].num_tokens, **columns, gist_cost=self.gist_cost)


SCALARS = ("block_size", "num_tokens", "gist_cost")
COLUMNS = tuple(field.name for field in fields(Entries) if field.name not in SCALARS)
