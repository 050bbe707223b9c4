"""The gists of all complete nodes, one pool a level, and how new ones are made: in batches, level by level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.nets.gist_maker import GistMaker
from mc_core.tree.pool import Pool
from mc_core.tree.tree_config import TreeConfig

MAX_NODES = 4096
MAX_VALUES = 1 << 24
"""Nodes, and numbers in their children, of one GistNet call at most: a long document is read in bounded memory."""


def nodes_at_once(block_size: int, dim: int) -> int:
    """Nodes of one GistNet call at most."""
    return max(1, min(MAX_NODES, MAX_VALUES // (block_size * dim)))


class GistLevels:
    """Level l >= 1 holds the gists of nodes 0, 1, ... in order.

    ``lost``: blocks without ids, ascending. Their gists are zero, and count nothing in those above.
    """

    def __init__(self, config: TreeConfig, gistnet: GistMaker) -> None:
        self._config, self._gistnet = config, gistnet
        self._pools: list[Pool] = []
        self.lost = np.empty(0, np.int64)

    @property
    def highest(self) -> int:
        """The highest level that has a node, 0 if none."""
        return sum(len(pool) > 0 for pool in self._pools)

    @property
    def nbytes(self) -> int:
        return sum(pool.nbytes for pool in self._pools)

    def count(self, level: int) -> int:
        """Nodes at ``level``."""
        return len(self._pools[level - 1]) if level <= len(self._pools) else 0

    def __getitem__(self, level: int) -> Pool:
        if not 1 <= level <= len(self._pools):
            raise IndexError(f"level must lie in [1, {len(self._pools)}], got {level}")
        return self._pools[level - 1]

    def append(self, level: int, rows: Tensor) -> None:
        """Add gists [n, m d] to a level, which may be the next one up."""
        if level > len(self._pools):
            self._pools.append(Pool((self._gistnet.width,), self._config.gist_dtype, self._config.device))
        self._pools[level - 1].append(rows)

    def truncate(self, blocks: int) -> None:
        """Keep what ``blocks`` complete blocks make; levels that have less yet stay as they are."""
        for pool in self._pools:
            pool.truncate(min(blocks, len(pool)))
            blocks //= self._config.block_size

    def complete(
        self, first: int, end: int, embeddings: Callable[[int, int], Tensor], on_blocks: Callable[[Tensor], None]
    ) -> int:
        """Make all nodes that blocks [first, end) complete -> GistNet calls.

        embeddings: token range -> [n, d]; on_blocks is shown the block vectors [n, K, d] of new LOD1 nodes.
        """
        calls, level = 0, 1
        while end > first:
            read = embeddings if level == 1 else self[level - 1].view
            calls += self._summarize(level, first, end, read, on_blocks)
            level, first, end = level + 1, self.count(level + 1), end // self._config.block_size
        return calls

    def _summarize(
        self, level: int, first: int, end: int, read: Callable[[int, int], Tensor], on_blocks: Callable[[Tensor], None]
    ) -> int:
        k, dim = self._config.block_size, self._gistnet.dim
        most = nodes_at_once(k, self._gistnet.width)
        parts = range(first, end, most)
        for at in parts:
            stop = min(end, at + most)
            children = read(at * k, stop * k).float().reshape(stop - at, -1, dim)
            self.append(level, self._gistnet(children, self._known(level, at, stop, children)))
            if level == 1:
                on_blocks(children)
        return len(parts)

    def _known(self, level: int, at: int, stop: int, children: Tensor) -> Tensor | None:
        """Which of the vectors [n, T, d] beneath nodes [at, stop) count [n, T]; None: all."""
        k, lost = self._config.block_size, self.lost
        for _ in range(level - 2):
            parents, counts = np.unique(lost // k, return_counts=True)
            lost = parents[counts == k]
        first, last, each = (at, stop, k) if level == 1 else (at * k, stop * k, self._gistnet.vectors)
        lost = lost[(lost >= first) & (lost < last)]
        if not len(lost):
            return None
        known: NDArray[np.bool_] = np.ones(last - first, bool)
        known[lost - first] = False
        return torch.from_numpy(np.repeat(known, each).reshape(stop - at, -1)).to(children.device)
