"""Assembling a working context from nothing, for any length of history and any scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mc_core.context.assembly import assemble
from mc_core.context.working_context import WorkingContext
from mc_core.errors import BudgetError
from tests.core.context_oracle import assert_laws, nodes

K, W = 16, 320


def by_hash(levels: NDArray[np.int8], indices: NDArray[np.int64]) -> NDArray[np.float64]:
    return ((levels.astype(np.int64) * 7919 + indices * 104729) % 1009) / 1009


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(0, 10**7), recent=st.integers(0, 64), reserve=st.integers(0, 32))
def test_any_length_fits_and_uses_its_room(tokens: int, recent: int, reserve: int) -> None:
    """Any history fits; what is expanded beyond the coarsest cover leaves less room than one expand takes."""
    wc = assemble(tokens, K, W, recent, scores=by_hash, reserve=reserve)
    assert_laws(wc, W - reserve)
    assert wc.num_tokens == tokens
    if (wc.levels > 0).any():
        assert wc.cost > W - reserve - (K - 1)


def test_the_best_nodes_are_expanded_first() -> None:
    """Top down, the expanded nodes are those that a step-by-step best-first search expands."""
    wc = assemble(50_000, K, W, 40, scores=by_hash)
    slow = WorkingContext(K, W, 40)
    slow.cover(50_000)
    standing = nodes(slow)
    cost = slow.cost
    while cost + K - 1 <= W:
        level, index = max(
            (node for node in standing if node[0]), key=lambda node: by_hash(np.array(node[0]), np.array(node[1]))
        )
        children = [(0, index)] if level == 1 else [(level - 1, index * K + i) for i in range(K)]
        standing.remove((level, index))
        standing += children
        cost += K - 1
    assert nodes(wc) == sorted(standing, key=lambda node: node[1] * K ** max(node[0], 1))


def test_scores_of_minus_infinity_forbid() -> None:
    """A node scored -inf is not expanded even if room is left."""
    wc = assemble(50_000, K, W, 40, scores=lambda levels, indices: np.full(len(levels), -np.inf))
    coarsest = WorkingContext(K, W, 40)
    coarsest.cover(50_000)
    assert nodes(wc) == nodes(coarsest)


def test_without_scores_the_newest_history_is_raw() -> None:
    """Plain recency: the same context as that of a session which grew in one go."""
    grown = WorkingContext(K, W, 40, [(200, 210)])
    grown.extend(50_000, reserve=16)
    assert nodes(assemble(50_000, K, W, 40, [(200, 210)], reserve=16)) == nodes(grown)


def test_too_small_a_budget_is_refused() -> None:
    """Where even the coarsest cover does not fit, the error says so."""
    with pytest.raises(BudgetError, match="coarsest cover"):
        assemble(100_000, K, 96, 40, scores=by_hash)
