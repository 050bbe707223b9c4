"""Token ids in memory: the hot tail of a history, and single older blocks that were kept or fetched back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mc_core.errors import ConfigError, SpanMissingError

Ids = NDArray[np.int32]
Blocks = NDArray[np.int64]
FIRST_CAPACITY = 1024


class HotIds:
    """ids of [first hot token, length) in one growable array, plus blocks before it by number."""

    def __init__(self, block_size: int, first: int = 0) -> None:
        """first: where the hot tail begins, a block border; everything before it is cold."""
        assert first % block_size == 0
        self.block_size = block_size
        self.length = first
        self._buffer = np.empty(FIRST_CAPACITY, np.int32)
        self._offset = 0  # place of the first hot token in the buffer
        self._first = first
        self._kept: dict[int, Ids] = {}

    @property
    def first_hot_block(self) -> int:
        """Blocks from here on are in memory, and the open block with them."""
        return self._first // self.block_size

    @property
    def nbytes(self) -> int:
        return self._buffer.nbytes + len(self._kept) * self.block_size * 4

    def append(self, ids: Ids) -> None:
        """Add ids at the end, amortised O(1) an id."""
        end = self._offset + self.length - self._first
        if end + len(ids) > len(self._buffer):
            live = self._buffer[self._offset : end]
            grown = np.empty(max(FIRST_CAPACITY, 2 * (len(live) + len(ids))), np.int32)
            grown[: len(live)] = live
            self._buffer, self._offset, end = grown, 0, len(live)
        self._buffer[end : end + len(ids)] = ids
        self.length += len(ids)

    def range(self, start: int, end: int) -> Ids:
        """ids [start, end), a copy. SpanMissingError if a block of them is not in memory."""
        if not 0 <= start <= end <= self.length:
            raise IndexError(f"ids [{start}, {end}) lie outside [0, {self.length})")
        if start >= self._first or start == end:
            at = self._offset + max(start, self._first) - self._first
            return self._buffer[at : at + end - start].copy()
        k = self.block_size
        cut = min(end, self._first)
        old = self.blocks(np.arange(start // k, -(-cut // k))).reshape(-1)
        old = old[start % k :][: cut - start]
        return np.concatenate([old, self.range(cut, end)])

    def blocks(self, blocks: Blocks) -> Ids:
        """ids [n, K] of complete blocks. SpanMissingError names those that are not in memory."""
        self._check(blocks)
        missing = self.missing(blocks)
        if len(missing):
            raise SpanMissingError(
                f"the ids of blocks {missing[:8].tolist()} are not in memory ({len(missing)} in all)"
            )
        k = self.block_size
        hot = blocks >= self.first_hot_block
        out = np.empty((len(blocks), k), np.int32)
        at = self._offset + blocks[hot] * k - self._first
        out[hot] = self._buffer[at[:, None] + np.arange(k)]
        for row in np.flatnonzero(~hot).tolist():
            out[row] = self._kept[int(blocks[row])]
        return out

    def missing(self, blocks: Blocks) -> Blocks:
        """Those of ``blocks`` whose ids are not in memory."""
        cold = blocks[blocks < self.first_hot_block]
        kept = np.fromiter(self._kept, np.int64, len(self._kept)) if len(cold) else np.empty(0, np.int64)
        return cold[~np.isin(cold, kept)].astype(np.int64)

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` ids. SpanMissingError if the block that is cut is not in memory."""
        k = self.block_size
        if length < self._first:
            border = length - length % k
            open_ids = self.range(border, length)
            self._first, self._offset, self.length = border, 0, border
            self.append(open_ids)
            self._kept = {block: ids for block, ids in self._kept.items() if block < border // k}
        self.length = length
        self._shrink()

    def evict(self, first_hot_block: int, keep: Blocks) -> Blocks:
        """Free the blocks before ``first_hot_block`` except ``keep`` -> the blocks freed, ascending."""
        old = np.sort(np.fromiter(self._kept, np.int64, len(self._kept)))
        dropped = old[(old < first_hot_block) & ~np.isin(old, keep)]
        for block in dropped.tolist():
            del self._kept[block]
        if first_hot_block <= self.first_hot_block:
            return dropped
        leaving = np.arange(self.first_hot_block, first_hot_block)
        stays = np.isin(leaving, keep)
        for block, ids in zip(leaving[stays].tolist(), self.blocks(leaving[stays]), strict=True):
            self._kept[block] = ids.copy()  # a row alone would hold on to the whole array
        self._offset += len(leaving) * self.block_size
        self._first = first_hot_block * self.block_size
        self._shrink()
        return np.concatenate([dropped, leaving[~stays]])

    def restore(self, blocks: Blocks, ids: Ids) -> None:
        """Put ids [n, K] of complete blocks back; those that are in the hot tail anyway are left as they are."""
        self._check(blocks)
        if ids.shape != (len(blocks), self.block_size):
            raise ConfigError(f"ids must be [{len(blocks)}, {self.block_size}], got {list(ids.shape)}")
        for row in np.flatnonzero(blocks < self.first_hot_block).tolist():
            self._kept[int(blocks[row])] = np.array(ids[row], np.int32)

    def _check(self, blocks: Blocks) -> None:
        count = self.length // self.block_size
        if len(blocks) and (blocks.min() < 0 or blocks.max() >= count):
            raise IndexError(f"blocks must lie in [0, {count}), got {blocks.min()} to {blocks.max()}")

    def _shrink(self) -> None:
        """Give memory back once most of the buffer is dead."""
        live = self.length - self._first
        if len(self._buffer) > 4 * max(live, FIRST_CAPACITY):
            smaller = np.empty(max(FIRST_CAPACITY, 2 * live), np.int32)
            smaller[:live] = self._buffer[self._offset : self._offset + live]
            self._buffer, self._offset = smaller, 0
