"""What a history is, block by block, as one number each: tells in microseconds how far two histories are the same.

The numbers are multilinear in the tokens, modulo 2^64, by factors that only this server knows: who doesn't know them
can't write two blocks that have the same number, and so be given the keys and values of another history.
"""

from __future__ import annotations

import secrets
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.int64]
SEED = secrets.token_bytes()
"""Of this process: for who keeps no hashes beyond it."""


@cache
def _factors(length: int, seed: bytes) -> Hashes:
    rng = np.random.default_rng([length, int.from_bytes(seed)])
    factors: Hashes = rng.integers(-(1 << 63), 1 << 63, length, np.int64)
    return factors | 1


def row_hashes(rows: NDArray[np.integer], seed: bytes) -> Hashes:
    """A number for each row [n, length] of integers -> [n]."""
    # The offset keeps zeros from counting nothing.
    return (rows.astype(np.int64) + 1) @ _factors(rows.shape[1], seed)


class Trail:
    """A number for each complete block of a history. Only trails of one seed can be compared."""

    def __init__(self, seed: bytes = SEED) -> None:
        self.seed = seed
        self._hashes, self._length = np.empty(64, np.int64), 0

    def __len__(self) -> int:
        return self._length

    def append(self, ids: NDArray[np.int32]) -> None:
        """Blocks [n, K] at the end of the history."""
        end = self._length + len(ids)
        if end > len(self._hashes):
            more = max(end, 2 * len(self._hashes)) - len(self._hashes)
            self._hashes = np.concatenate([self._hashes, np.empty(more, np.int64)])
        self._hashes[self._length : end] = row_hashes(ids, self.seed)
        self._length = end

    def rewind(self, blocks: int) -> None:
        """The history was cut to so many complete blocks."""
        self._length = min(blocks, self._length)

    def hashes(self) -> Hashes:
        """Of all blocks [n], without a copy; good until the next change."""
        return self._hashes[: self._length]
