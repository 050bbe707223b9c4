"""Several trees at once: as many threads as allowed, and the same trees."""

from __future__ import annotations

import threading

import pytest
import torch

from mc_core.errors import ConfigError
from mc_core.lab.training.tree_builder import TreeBuilder
from mc_core.tree.tree import MegaContextTree
from tests.core.tree_oracle import CountingGistNet, CountingTable, K, assert_same, make_tree, random_ids


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_same_trees_as_one_after_the_other(workers: int) -> None:
    """However many threads build, each history gets its own tree, in order."""
    gistnet = CountingGistNet("transformer")
    histories = [random_ids(seed * 37 + K * K, seed) for seed in range(7)]
    trees = TreeBuilder(lambda: make_tree(gistnet, lens_keys=2), workers).build(histories)
    for tree, ids in zip(trees, histories, strict=True):
        assert_same(tree, ids)


def test_runs_at_most_its_workers_and_really_at_once() -> None:
    """Three workers build three trees at the same time, and never a fourth."""
    barrier, lock, running, most = threading.Barrier(3, timeout=20), threading.Lock(), 0, 0

    class Meeting(CountingTable):
        def __call__(self, ids: torch.Tensor) -> torch.Tensor:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            barrier.wait()  # breaks unless three are here at once
            with lock:
                running -= 1
            return super().__call__(ids)

    TreeBuilder(lambda: make_tree(embed=Meeting()), 3).build([random_ids(K)] * 6)
    assert most == 3


def test_nothing_to_build() -> None:
    """No histories give no trees, and an empty history an empty one."""
    builder = TreeBuilder(make_tree, 2)
    assert builder.build([]) == []
    assert [tree.num_tokens for tree in builder.build([random_ids(0), random_ids(3)])] == [0, 3]


@pytest.mark.parametrize("workers", [1, 3])
def test_errors_come_through(workers: int) -> None:
    """A history that can't be built fails the batch instead of leaving a hole in it."""

    def make() -> MegaContextTree:
        return make_tree()

    with pytest.raises(IndexError):
        TreeBuilder(make, workers).build([random_ids(K), random_ids(K) + 1_000, random_ids(K)])


def test_threads_do_not_switch_gradients_off() -> None:
    """Building in threads leaves the caller's autograd mode alone."""
    TreeBuilder(make_tree, 2).build([random_ids(5 * K)] * 4)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_must_be_positive(workers: int) -> None:
    """A pool without threads is refused by name."""
    with pytest.raises(ConfigError, match="workers must be at least 1"):
        TreeBuilder(make_tree, workers)
