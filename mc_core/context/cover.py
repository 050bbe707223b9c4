"""Tiling a stretch of blocks with the fewest complete nodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.int8]
Indices = NDArray[np.int64]


def coarsest_cover(start_block: int, end_block: int, block_size: int) -> tuple[Levels, Indices]:
    """Fewest nodes (l >= 1) that tile blocks [start_block, end_block), chronological -> (levels [n], indices [n])."""
    before: list[tuple[int, int, int]] = []
    after: list[tuple[int, int, int]] = []
    level, low, high = 1, start_block, end_block
    while low < high:
        # What sticks out on either side of whole parents stays at this level.
        inner_low, inner_high = -(-low // block_size), high // block_size
        if inner_low >= inner_high:
            before.append((level, low, high))
            break
        before.append((level, low, inner_low * block_size))
        after.append((level, inner_high * block_size, high))
        level, low, high = level + 1, inner_low, inner_high
    runs = before + after[::-1]
    counts = [end - start for _, start, end in runs]
    levels = np.repeat(np.array([run[0] for run in runs], np.int8), counts)
    indices = [np.arange(start, end, dtype=np.int64) for _, start, end in runs]
    return levels, np.concatenate(indices) if indices else np.empty(0, np.int64)
