"""From the best blocks of a look-ahead to targets: hits that lie apart, and their neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mc_core.focus.tuning import AHEAD, BEHIND, REACH

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def apart(blocks: Ints, limit: int, distance: int) -> Ints:
    """Indices of the first ``limit`` blocks (best first) that lie more than ``distance`` from all better ones."""
    chosen: list[int] = []
    taken: set[int] = set()
    for i, block in enumerate(blocks.tolist()):
        if block in taken:
            continue
        chosen.append(i)
        if len(chosen) == limit:
            break
        taken.update(range(block - distance, block + distance + 1))
    return np.array(chosen, np.int64)


def with_neighbours(
    first: Ints, last: Ints, scores: Floats, neighbours: int, end: int, further: int = 1
) -> tuple[Ints, Floats]:
    """Spread hits to ``neighbours`` blocks around them -> (blocks within [0, end), scores), best first, distinct.

    A hit is the run of blocks first[i]..last[i] with one score; a block that several hits reach keeps the best.
    With neighbours, the best hits reach ``further`` more blocks ahead.
    """
    blocks, worth = [first, last], [scores, scores]
    for step in range(1, neighbours + 1):
        blocks += [last + step, first - step]
        worth += [scores * AHEAD**step, scores * BEHIND**step]
    if neighbours and len(scores):
        far = scores >= REACH * scores.max()
        for step in range(neighbours + 1, neighbours + further + 1):
            blocks.append(last[far] + step)
            worth.append(scores[far] * AHEAD**step)
    flat, value = np.concatenate(blocks), np.concatenate(worth).astype(np.float32)
    inside = (flat >= 0) & (flat < end)
    flat, value = flat[inside], value[inside]
    return _best_first(flat, value)


def merged(parts: Sequence[tuple[Ints, Floats]]) -> tuple[Ints, Floats]:
    """Several lists of targets with their scores as one: best first, distinct."""
    blocks, scores = zip(*parts, strict=True)
    return _best_first(np.concatenate(blocks), np.concatenate(scores).astype(np.float32))


def _best_first(blocks: Ints, scores: Floats) -> tuple[Ints, Floats]:
    order = np.lexsort((blocks, -scores))
    blocks, scores = blocks[order], scores[order]
    _, kept = np.unique(blocks, return_index=True)
    kept.sort()
    return blocks[kept], scores[kept]
