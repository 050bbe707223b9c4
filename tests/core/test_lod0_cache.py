"""The LOD0 cache: slices are right with it, without it, after it is released and after what comes then."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.errors import SpanMissingError
from mc_core.tree import pool
from mc_core.tree.tree import MegaContextTree
from tests.core.tree_oracle import DIM, TABLE, CountingTable, Ids, K, assert_same, make_tree, random_ids

NO_BLOCKS = np.empty(0, np.int64)
CACHED = {"cache_lod0": True}
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 5 * K)),
        st.tuples(st.just("rewind"), st.integers(0, 3 * K)),
        st.tuples(st.just("evict"), st.integers(0, 4 * K)),
        st.tuples(st.just("read"), st.integers(0, 4 * K)),
    ),
    min_size=4,
    max_size=20,
)


def assert_slice(tree: MegaContextTree, ids: Ids, start: int, end: int) -> None:
    expected = tree.embed(torch.from_numpy(ids[start:end].astype(np.int64)))
    actual = tree.embeddings(start, end)
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


def step(tree: MegaContextTree, history: Ids, name: str, argument: int) -> Ids:
    """One change, or a read of what is hot -> the history after it."""
    if name == "append":
        new = random_ids(argument, seed=len(history))
        tree.append(new)
        return np.concatenate([history, new])
    if name == "rewind":
        position = max(0, len(history) - argument)
        blocks = tree.missing(np.array([position // K] if position < len(history) // K * K else [], np.int64))
        tree.restore(blocks, history[blocks[:, None] * K + np.arange(K)])
        tree.rewind(position)
        return history[:position]
    if name == "evict":
        tree.evict(argument, NO_BLOCKS)
    else:
        hot = len(tree.missing(np.arange(tree.num_blocks))) * K
        middle = max(hot, len(history) - argument)
        assert_slice(tree, history, hot, middle)
        assert_slice(tree, history, middle, len(history))
    return history


@settings(max_examples=200, deadline=None)
@given(
    STEPS, st.sampled_from([None, None, 8 * K]), st.integers(0, 60), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_slices_are_always_right(
    steps: list[tuple[str, int]], limit: int | None, release_at: int, dtype: torch.dtype
) -> None:
    """Whatever happened before, a slice of embeddings is the embedding of the ids there, in the base's dtype."""
    with mock.patch.object(pool, "FIRST_CAPACITY", 4):
        tree = make_tree(embed=CountingTable(dtype), cache_lod0=True, cache_lod0_max_tokens=limit)
        history = random_ids(0)
        for number, (name, argument) in enumerate(steps):
            if number == release_at:
                tree.release_lod0_cache()
            history = step(tree, history, name, argument)
        history = step(tree, history, "read", 2 * K)
        blocks = tree.missing(np.arange(tree.num_blocks))
        tree.restore(blocks, history[blocks[:, None] * K + np.arange(K)])
        assert_slice(tree, history, 0, len(history))


def test_half_a_block_left_by_a_rewind_is_embedded_once() -> None:
    """A rewind to before the cache starts it again at the block that was cut, so that it serves the next ones."""
    tree, ids = make_tree(embed=(embed := CountingTable()), **CACHED), random_ids(10 * K)
    tree.append(ids)
    tree.evict(2 * K, np.array([4]))
    tree.rewind(4 * K + 5)
    embed.tokens = 0
    tree.append(ids[4 * K + 5 : 6 * K])
    assert embed.tokens == 2 * K
    assert_slice(tree, ids, 4 * K, 6 * K)
    assert embed.tokens == 4 * K  # the oracle's own


def test_slices_are_not_embedded_twice() -> None:
    """With the cache on each token is embedded once; with it off, at each read."""
    for config, expected in ((CACHED, 10 * K), ({}, 10 * K + 3 * 8 * K)):
        tree = make_tree(embed=(embed := CountingTable()), **config)
        tree.append(random_ids(10 * K))
        for _ in range(3):
            tree.embeddings(K, 9 * K)
        assert embed.tokens == expected


def test_open_block_is_embedded_when_read() -> None:
    """Token by token, nothing is embedded until a block completes or someone looks, and then once."""
    tree, ids = make_tree(embed=(embed := CountingTable()), **CACHED), random_ids(K)
    for at in range(K - 1):
        tree.append(ids[at : at + 1])
    assert embed.tokens == 0
    assert_slice(tree, ids, 2, 5)
    before = embed.tokens
    tree.append(ids[K - 1 :])
    assert embed.tokens - before == K - 5
    assert_slice(tree, ids, 0, K)


def test_release_frees_and_stays_right() -> None:
    """Releasing gives the memory back; slices and later appends are as before, and it does not come back."""
    tree, ids = make_tree(**CACHED), random_ids(20 * K)
    tree.append(ids[: 10 * K + 3])
    assert tree.lod0_cached
    assert tree.hot_bytes()["lod0_cache"] >= 10 * K * DIM * 4
    tree.release_lod0_cache()
    assert not tree.lod0_cached
    assert tree.hot_bytes()["lod0_cache"] == 0
    assert_slice(tree, ids, 5, 9 * K)
    tree.append(ids[10 * K + 3 :])
    assert tree.hot_bytes()["lod0_cache"] == 0
    assert_slice(tree, ids, 9 * K, 20 * K)
    assert_same(tree, ids)


@pytest.mark.parametrize("parts", [[100, 28, 1], [129], [128, 1]])
def test_releases_itself_past_the_limit(parts: list[int]) -> None:
    """The cache goes as soon as it would hold more than ``cache_lod0_max_tokens``, and not before."""
    tree, ids, total = make_tree(cache_lod0=True, cache_lod0_max_tokens=128), random_ids(200), 0
    for count in parts:
        tree.append(ids[total : total + count])
        total += count
        assert tree.lod0_cached == (total <= 128)
    assert_slice(tree, ids, 90, 129)
    assert_same(tree, ids[:129])


def test_evicted_embeddings_leave_memory() -> None:
    """Embeddings follow the hot tail: memory does not grow with an evicted history, and nothing is embedded twice."""
    tree = make_tree(embed=(embed := CountingTable()), cache_lod0=True, cache_lod0_max_tokens=40 * K)
    for seed in range(60):
        tree.append(random_ids(10 * K, seed))
        tree.evict(5 * K, np.array([0]))
        tree.embeddings(tree.num_tokens - 5 * K, tree.num_tokens)
    assert embed.tokens == 600 * K
    assert tree.lod0_cached
    assert tree.hot_bytes()["lod0_cache"] < 40 * K * DIM * 4
    assert_slice(tree, np.concatenate([random_ids(10 * K, seed) for seed in range(60)]), 598 * K + 3, 600 * K)


def test_evicted_slices_are_an_error() -> None:
    """A slice whose ids are gone and whose embeddings are too is refused, never made up."""
    tree, ids = make_tree(**CACHED), random_ids(10 * K)
    tree.append(ids)
    tree.evict(2 * K, np.array([0]))
    assert_slice(tree, ids, 0, K)
    with pytest.raises(SpanMissingError):
        tree.embeddings(0, 3 * K)
    tree.release_lod0_cache()
    with pytest.raises(SpanMissingError):
        tree.embeddings(7 * K, 9 * K)


def test_slices_outside_the_history() -> None:
    """Tokens that the history has not have no embeddings, cached or not."""
    for config in (CACHED, {}):
        tree = make_tree(**config)
        tree.append(random_ids(40))
        for start, end in ((0, 41), (-1, 4), (9, 8)):
            with pytest.raises(IndexError):
                tree.embeddings(start, end)
        assert tree.embeddings(40, 40).shape == (0, DIM)


def test_cache_of_a_loaded_tree() -> None:
    """A tree from a store caches what comes after the load, and makes the rest from ids that are there."""
    tree, ids = make_tree(**CACHED), random_ids(12 * K + 5)
    tree.append(ids[: 6 * K + 5])
    loaded = MegaContextTree.load(
        tree.config,
        tree.gistnet,
        tree.embed,
        gists=[tree.gist_range(1, 0, 6)],
        hot_ids=ids[4 * K : 6 * K + 5],
        num_tokens=6 * K + 5,
    )
    loaded.append(ids[6 * K + 5 :])
    assert loaded.lod0_cached
    assert_slice(loaded, ids, 4 * K, 12 * K + 5)
    assert_slice(loaded, ids, 7 * K, 12 * K + 5)
    assert_same(loaded, ids)


def test_cached_values_hold_no_graph() -> None:
    """A trainable embedding table leaves no autograd graph in the cache."""
    table = TABLE.clone().requires_grad_()
    tree = make_tree(embed=lambda ids: table[ids], **CACHED)  # type: ignore[arg-type]
    tree.append(random_ids(3 * K + 2))
    assert not tree.embeddings(0, 3 * K + 2).requires_grad
