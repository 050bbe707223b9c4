"""Where the sentences of a history begin and end, to the block: two small numbers for each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
NONE = -1


class SentenceIndex:
    """Of each complete block, the places of the first and the last token that ends a sentence (``NONE``: none does)."""

    def __init__(self, stops: NDArray[np.bool_], block_size: int) -> None:
        """stops [vocabulary]: token ids that end a sentence."""
        self._stops, self._size = stops, block_size
        self._first = np.empty(64, np.int8)
        self._last = np.empty(64, np.int8)
        self._blocks = 0
        self._open = np.empty(0, np.int32)

    def append(self, ids: Ids) -> None:
        """Tokens [n] were added to the history."""
        joined = np.concatenate([self._open, ids]).astype(np.int32)
        count = len(joined) // self._size
        self._open = joined[count * self._size :]
        if not count:
            return
        stops = self._stops[joined[: count * self._size]].reshape(count, self._size)
        some, end = stops.any(1), self._blocks + count
        self._grow(end)
        self._first[self._blocks : end] = np.where(some, stops.argmax(1), NONE)
        self._last[self._blocks : end] = np.where(some, self._size - 1 - stops[:, ::-1].argmax(1), NONE)
        self._blocks = end

    def rewind(self, position: int, tail: Ids) -> None:
        """The history was cut at ``position``; tail: its newest tokens then, those of the open block at least."""
        self._blocks, length = divmod(position, self._size)
        self._open = tail[len(tail) - length :]

    def begins(self, block: int) -> int | None:
        """How many tokens of a complete block stand before the first sentence that begins in it, or behind it; None if
        none does."""
        if block == 0 or self._last[block - 1] == self._size - 1:
            return 0
        return None if self._first[block] == NONE else int(self._first[block]) + 1

    def ends(self, block: int) -> int | None:
        """How many tokens of a complete block stand up to the end of the last sentence that ends in it; None if none
        does."""
        return None if self._last[block] == NONE else int(self._last[block]) + 1

    def _grow(self, blocks: int) -> None:
        while len(self._first) < blocks:
            self._first = np.concatenate([self._first, np.empty_like(self._first)])
            self._last = np.concatenate([self._last, np.empty_like(self._last)])
