"""FocusConfig refuses what cannot work, with the field and the limit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mc_core.context.working_context import WorkingContext
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import ALLOCATORS, FocusConfig, least_budget


def test_defaults_are_the_documented_ones() -> None:
    """Recent 128, thresholds 0.1, N_diff 4, iterations 2, cooldown 2, a refocus every K tokens."""
    config = FocusConfig()
    assert (config.budget, config.block_size, config.recent_tokens) == (1024, 32, 128)
    assert (config.expand_threshold, config.collapse_threshold) == (0.1, 0.1)
    assert (config.edits_per_iteration, config.iterations, config.cooldown) == (4, 2, 2)
    assert config.refocus_interval == 32
    assert FocusConfig(block_size=16).refocus_interval == 16
    assert FocusConfig(allocator="bandit").allocator in ALLOCATORS


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("budget", 300, "418"),
        ("block_size", 24, "16, 32, 64"),
        ("recent_tokens", -1, "at least 0"),
        ("expand_threshold", 1.5, "between 0 and 1"),
        ("collapse_threshold", float("nan"), "between 0 and 1"),
        ("edits_per_iteration", 0, "at least 1"),
        ("iterations", 0, "at least 1"),
        ("cooldown", 200, "between 0 and 127"),
        ("refocus_interval", 31, "at least block_size 32"),
        ("lens", "psychic", "lexical"),
        ("allocator", "lottery", "stochastic_greedy"),
        ("temperature", 0.0, "positive"),
        ("top_k", 0, "at least 1"),
        ("look_ahead", -1, "at least 0"),
        ("neighbours", -1, "at least 0"),
        ("repair_price", -0.5, "at least 0"),
        ("fill", 1.01, "between 0 and 1"),
        ("seed", -1, "at least 0"),
    ],
)
def test_bad_values_name_field_and_limit(field: str, value: Any, limit: str) -> None:
    """Each field's error says which field and what it may be."""
    with pytest.raises(ConfigError, match=field) as caught:
        replace(FocusConfig(), **{field: value})
    assert limit in str(caught.value)


@pytest.mark.parametrize(("block_size", "gist_cost"), [(16, 1), (32, 1), (64, 1), (16, 8), (32, 4)])
def test_the_least_budget_holds_any_history_up_to_ten_million(block_size: int, gist_cost: int) -> None:
    """A budget that the settings accept never fails later, wherever the history ends."""
    budget = least_budget(block_size, 128, block_size, gist_cost=gist_cost)
    config = FocusConfig(budget=budget, block_size=block_size)
    rng = np.random.default_rng(0)
    lengths = [
        10_000_000,
        *rng.integers(1, 10_000_000, 300).tolist(),
        *(10_000_000 - rng.integers(1, 999, 50)).tolist(),
    ]
    worst = 0
    for length in lengths:
        wc = WorkingContext(block_size, budget, config.recent_tokens, gist_cost=gist_cost)
        wc.cover(length, reserve=config.refocus_interval)
        worst = max(worst, wc.cost)
    assert worst + config.refocus_interval <= budget
    assert worst > 0.6 * budget, "the bound is far from what can happen"
