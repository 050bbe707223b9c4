"""Assembling a working context for a given history from nothing, top down."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc_core.context.entries import Ints
from mc_core.context.plan import Edit, Plan
from mc_core.context.working_context import WorkingContext

NodeScores = Callable[[NDArray[np.int8], Ints], NDArray[Any]]
"""(levels [n], indices [n]) -> worth of expanding each node [n]."""


def assemble(
    num_tokens: int,
    block_size: int,
    budget: int,
    recent_tokens: int = 128,
    pins: Sequence[tuple[int, int]] = (),
    scores: NodeScores | None = None,
    reserve: int = 0,
) -> WorkingContext:
    """The context of a history of any length: coarsest nodes, of which the best-scored are expanded while room is left.

    Without ``scores`` the newest history stands raw, as after ``extend``. A node scored -inf is never expanded.
    BudgetError if pins, tail and the coarsest cover cost too much.
    """
    wc = WorkingContext(block_size, budget, recent_tokens, pins)
    if scores is None:
        wc.extend(num_tokens, reserve)
        return wc
    wc.cover(num_tokens, reserve)
    spare = (budget - reserve - wc.cost) // (block_size - 1)
    wc.commit(Plan(tuple(_best_expands(wc, scores, spare)), num_tokens))
    return wc


def _best_expands(wc: WorkingContext, scores: NodeScores, limit: int) -> list[Edit]:
    """Expand the best node again and again; children compete with the nodes that stand."""
    heap: list[tuple[float, int, int]] = []

    def offer(levels: NDArray[np.int8], indices: Ints) -> None:
        worth = np.asarray(scores(levels, indices), np.float64)
        for value, level, index in zip(worth.tolist(), levels.tolist(), indices.tolist(), strict=True):
            if value > -np.inf:
                heapq.heappush(heap, (-value, level, index))

    gist = wc.levels > 0
    offer(wc.levels[gist], wc.indices[gist])
    edits: list[Edit] = []
    while heap and len(edits) < limit:
        _, level, index = heapq.heappop(heap)
        edits.append(Edit("expand", level, index))
        if level > 1:
            children = np.arange(index * wc.block_size, (index + 1) * wc.block_size)
            offer(np.full(wc.block_size, level - 1, np.int8), children)
    return edits
