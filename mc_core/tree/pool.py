"""Growable pools: append and truncate are amortised O(1) a row, and nothing that is there is copied to be read."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FIRST_CAPACITY = 64
SHRINK_BELOW = 4
"""A truncate gives memory back once less than one in so many rows is used."""


class Pool:
    """Rows of one shape on one device; capacity grows by doubling."""

    def __init__(self, row_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> None:
        self._rows = torch.empty((0, *row_shape), dtype=dtype, device=device)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, rows: Tensor) -> None:
        """Add rows [n, ...] at the end, in the pool's dtype."""
        needed = self._length + len(rows)
        if needed > len(self._rows):
            self._resize(max(FIRST_CAPACITY, needed, 2 * len(self._rows)))
        self._rows[self._length : needed] = rows
        self._length = needed

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` rows. IndexError if there are fewer."""
        if not 0 <= length <= self._length:
            raise IndexError(f"cannot truncate {self._length} rows to {length}")
        self._length = length
        if len(self._rows) > SHRINK_BELOW * max(length, FIRST_CAPACITY):
            self._resize(max(FIRST_CAPACITY, 2 * length))

    def view(self, start: int, end: int) -> Tensor:
        """Rows [start, end) without a copy; good until the next change. IndexError outside [0, length]."""
        if not 0 <= start <= end <= self._length:
            raise IndexError(f"rows [{start}, {end}) lie outside [0, {self._length})")
        return self._rows[start:end]

    def gather(self, indices: NDArray[np.int64]) -> Tensor:
        """Rows at ``indices`` [n] -> a copy [n, ...]. IndexError outside [0, length)."""
        if len(indices) and (indices.min() < 0 or indices.max() >= self._length):
            raise IndexError(f"row indices must lie in [0, {self._length}), got {indices.min()} to {indices.max()}")
        return self._rows[torch.from_numpy(indices.astype(np.int64)).to(self._rows.device)]

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes

    def _resize(self, capacity: int) -> None:
        rows = torch.empty((capacity, *self._rows.shape[1:]), dtype=self._rows.dtype, device=self._rows.device)
        rows[: self._length] = self._rows[: self._length]
        self._rows = rows


class Lod0Cache:
    """Embeddings of tokens [first, end) of a history, in the dtype that the base model gives them."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self._pool: Pool | None = None

    def __len__(self) -> int:
        """Tokens kept."""
        return len(self._pool) if self._pool is not None else 0

    @property
    def end(self) -> int:
        return self.first + len(self)

    def append(self, rows: Tensor) -> None:
        """Add the embeddings [n, d] of tokens [end, end + n)."""
        if self._pool is None:
            self._pool = Pool(tuple(rows.shape[1:]), rows.dtype, rows.device)
        self._pool.append(rows)

    def view(self, start: int, end: int) -> Tensor:
        """Embeddings [end - start, d], without a copy; good until the next change. IndexError outside [first, end)."""
        if self._pool is None:
            raise IndexError(f"embeddings [{start}, {end}) are not kept, nothing is")
        return self._pool.view(start - self.first, end - self.first)

    def truncate(self, position: int, block_size: int) -> None:
        """Forget tokens from ``position`` on. If that is all, the next to come is the block of ``position``."""
        if position > self.first:
            if self._pool is not None:
                self._pool.truncate(min(len(self), position - self.first))
        else:
            self.first, self._pool = position - position % block_size, None

    def drop_before(self, position: int) -> None:
        """Forget tokens before ``position``, as soon as they are half of what is kept: O(1) a token, amortised."""
        dead = min(position, self.end) - self.first
        if self._pool is None or position >= self.end:
            self.first, self._pool = max(self.first, position), None
        elif dead > 0 and 2 * dead >= len(self):
            live = self._pool.view(dead, len(self)).clone()
            self.first, self._pool = position, None
            self.append(live)

    @property
    def nbytes(self) -> int:
        return self._pool.nbytes if self._pool is not None else 0
