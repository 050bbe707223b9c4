"""Whatever happened to a tree, and wherever it was loaded from, it equals one built of the same ids at once."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.errors import ConfigError, SpanMissingError
from mc_core.tree import ids as ids_module
from mc_core.tree import pool
from mc_core.tree.tree import MegaContextTree
from tests.core.tree_oracle import (
    CountingGistNet,
    CountingTable,
    FirstTokens,
    K,
    assert_same,
    make_tree,
    random_ids,
)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from([0, 1, 7, K - 1, K, K + 1, 3 * K + 5, K * K, K * K + 40])),
        st.tuples(st.just("rewind"), st.integers(0, 9 * K)),
        st.tuples(st.just("evict"), st.integers(0, 6 * K)),
        st.tuples(st.just("restore"), st.integers(1, 9)),
        st.tuples(st.just("reload"), st.integers(0, 6 * K)),
    ),
    min_size=3,
    max_size=16,
)


class Driver:
    """A tree beside its plain history: the list of ids, and the blocks whose ids must be in memory."""

    def __init__(self, **config: object) -> None:
        self.config = config
        self.tree = make_tree(**config)
        self.ids = random_ids(0)
        self.hot: set[int] = set()
        self.seed = 0

    def step(self, name: str, argument: Any) -> None:
        getattr(self, name)(argument)
        self.check()

    def append(self, count: int) -> None:
        new = random_ids(count, self.seed)
        self.seed += 1
        before = len(self.ids) // K
        self.ids = np.concatenate([self.ids, new])
        appended = self.tree.append(new)
        after = len(self.ids) // K
        self.hot |= set(range(before, after))
        assert (appended.first_block, appended.new_blocks) == (before, after - before)

    def rewind(self, tokens: int) -> None:
        position = max(0, len(self.ids) - tokens)
        cut = position // K
        if position % K and cut < len(self.ids) // K and cut not in self.hot:
            with pytest.raises(SpanMissingError):
                self.tree.rewind(position)
            self.check()
            self.tree.restore(np.array([cut]), self.ids[None, cut * K : (cut + 1) * K])
        self.tree.rewind(position)
        self.ids = self.ids[:position]
        self.hot = {block for block in self.hot if block < cut}

    def evict(self, hot_tokens: int) -> None:
        border = max(0, len(self.ids) - hot_tokens) // K
        keep = np.arange(0, border, 3)
        freed = {block for block in self.hot if block < border and block % 3}
        assert self.tree.evict(hot_tokens, keep).tolist() == sorted(freed)
        self.hot -= freed

    def restore(self, every: int) -> None:
        chosen = self.tree.missing(np.arange(len(self.ids) // K))[::-every]
        self.tree.restore(chosen, self.ids[chosen[:, None] * K + np.arange(K)])
        self.hot |= set(chosen.tolist())

    def reload(self, hot_tokens: int) -> None:
        tree, first = self.tree, max(0, len(self.ids) - hot_tokens) // K * K
        self.tree = MegaContextTree.load(
            tree.config,
            tree.gistnet,
            tree.embed,
            gists=[tree.gist_range(at, 0, tree.count(at)).clone() for at in range(1, tree.num_levels + 1)],
            hot_ids=self.ids[first:],
            num_tokens=len(self.ids),
            keys=tree.lens_keys(0, tree.num_blocks).clone(),
            key_net=tree.key_net,
        )
        self.hot = set(range(first // K, len(self.ids) // K))

    def check(self) -> None:
        tree, blocks = self.tree, len(self.ids) // K
        assert tree.num_tokens == len(self.ids)
        cold = np.array(sorted(set(range(blocks)) - self.hot), np.int64)
        assert tree.missing(np.arange(blocks)).tolist() == cold.tolist()
        hot = np.array(sorted(self.hot), np.int64)[::-1]
        assert np.array_equal(tree.block_ids(hot), self.ids[hot[:, None] * K + np.arange(K)])
        assert np.array_equal(tree.ids(blocks * K, len(self.ids)), self.ids[blocks * K :])
        for block in cold[:2].tolist():
            with pytest.raises(SpanMissingError, match=rf"blocks \[{block}\]"):
                tree.block_ids(np.array([block]))
            with pytest.raises(SpanMissingError, match=str(block)):
                tree.ids(block * K + 3, len(self.ids))


@settings(max_examples=150, deadline=None)
@given(STEPS, st.booleans(), st.sampled_from([torch.float32, torch.float16]))
def test_any_history_equals_a_rebuild(steps: list[tuple[str, Any]], cache: bool, dtype: torch.dtype) -> None:
    """Appends, rewinds, evictions, restores and reloads in any order leave the tree of the ids that remain."""
    with mock.patch.object(pool, "FIRST_CAPACITY", 4), mock.patch.object(ids_module, "FIRST_CAPACITY", 4):
        driver = Driver(cache_lod0=cache, gist_dtype=dtype, lens_keys=2)
        for name, argument in steps:
            driver.step(name, argument)
        assert_same(driver.tree, driver.ids)
        driver.step("append", 2 * K)
        assert_same(driver.tree, driver.ids)


def _parts(tree: MegaContextTree) -> dict[str, Any]:
    return {
        "gists": [tree.gist_range(at, 0, tree.count(at)) for at in range(1, tree.num_levels + 1)],
        "hot_ids": tree.ids(tree.num_blocks * K, tree.num_tokens),
        "num_tokens": tree.num_tokens,
        "keys": tree.lens_keys(0, tree.num_blocks),
        "key_net": FirstTokens(),
    }


def test_load_runs_no_network() -> None:
    """A tree comes back from stored parts without a GistNet, embedding or key call."""
    tree, ids = make_tree(lens_keys=2), random_ids(K * K + 3 * K + 5)
    tree.append(ids)
    gistnet, embed = CountingGistNet(), CountingTable()
    with mock.patch.object(FirstTokens, "forward", side_effect=AssertionError):
        loaded = MegaContextTree.load(tree.config, gistnet, embed, **_parts(tree))
    assert (gistnet.calls, embed.tokens) == ([], 0)
    assert_same(loaded, ids)
    assert np.array_equal(loaded.ids(loaded.num_blocks * K, len(ids)), ids[-5:])
    assert len(loaded.missing(np.arange(loaded.num_blocks))) == loaded.num_blocks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts["gists"].pop(), "gists of level 2 are missing, there are 1"),
        (lambda parts: parts.update(gists=[rows[1:] for rows in parts["gists"]]), r"level 1 must be \[19, 12\]"),
        (lambda parts: parts.update(gists=[rows[:, 1:] for rows in parts["gists"]]), r"level 1 must be \[19, 12\]"),
        (lambda parts: parts["gists"].append(parts["gists"][1]), r"level 3 must be \[0, 12\]"),
        (lambda parts: parts.update(hot_ids=parts["hot_ids"][1:]), "begin at a block border"),
        (lambda parts: parts.update(hot_ids=np.zeros(1_000, np.int32)), "begin at a block border"),
        (lambda parts: parts.update(keys=None), "keys must be .* got none"),
        (lambda parts: parts.update(keys=parts["keys"][1:]), r"keys must be \[19, 2, 4\]"),
        (lambda parts: parts.update(key_net=None), "no key network"),
    ],
)
def test_load_refuses_parts_of_another_history(change: Any, message: str) -> None:
    """Parts that don't belong together are named instead of making a tree that lies."""
    tree = make_tree(lens_keys=2)
    tree.append(random_ids(K * K + 3 * K + 5))
    parts = _parts(tree)
    change(parts)
    with pytest.raises(ConfigError, match=message):
        MegaContextTree.load(tree.config, tree.gistnet, tree.embed, **parts)
