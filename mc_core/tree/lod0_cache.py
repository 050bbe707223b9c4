"""Input embeddings of the newest tokens, kept so that slices need not be embedded twice."""

from __future__ import annotations

from torch import Tensor

from mc_core.tree.pool import Pool


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
