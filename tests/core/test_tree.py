"""The tree, law by law: what an append makes and costs, what can be read, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mc_core.errors import ConfigError
from mc_core.nets.gistnet import GistNet
from mc_core.tree import levels
from mc_core.tree.tree import Appended, MegaContextTree, TreeConfig
from tests.core.tree_oracle import (
    DIM,
    TABLE,
    VOCABULARY,
    CountingGistNet,
    CountingTable,
    Ids,
    K,
    assert_same,
    gist_of,
    make_tree,
    random_ids,
)

NO_BLOCKS = np.empty(0, np.int64)


@pytest.mark.parametrize(("kind", "vectors"), [("mean", 1), ("transformer", 1), ("mean", 4), ("transformer", 8)])
def test_gists_equal_one_call_a_node(kind: str, vectors: int) -> None:
    """Batched by level, each gist is what GistNet makes of that node's children alone."""
    gistnet, ids = CountingGistNet(kind, vectors=vectors), random_ids(K**3 + 2 * K**2 + 5)
    tree = make_tree(gistnet)
    for part in np.split(ids, [1, K, K * K - 1, K * K + 3, K**3 - 2]):
        tree.append(part)
    assert tree.num_levels == 3
    for level, index in [(1, 0), (1, K * K + 2 * K - 1), (2, 0), (2, K + 1), (3, 0)]:
        torch.testing.assert_close(
            tree.gists(level, np.array([index]))[0], gist_of(gistnet, ids, level, index), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("vectors", [1, 2, 4, 8])
def test_untrained_gist_is_the_mean_of_its_tokens(vectors: int) -> None:
    """With a GistNet that learned nothing, a node of any level is the mean of the embeddings that it covers; each of
    several vectors is that of its part."""
    tree, ids = make_tree(CountingGistNet(scale=0.0, vectors=vectors)), random_ids(2 * K * K)
    tree.append(ids)
    for level in (1, 2):
        means = TABLE[torch.from_numpy(ids.astype(np.int64))].reshape(-1, vectors, K**level // vectors, DIM).mean(2)
        torch.testing.assert_close(tree.gist_vectors(level, np.arange(tree.count(level))), means)


def test_one_call_a_level() -> None:
    """All nodes that an append completes cost one GistNet call a level, and are reported by level."""
    tree = make_tree(gistnet := CountingGistNet())
    appended = tree.append(random_ids(K**3 + 3 * K + 1))
    assert gistnet.calls == [K * K + 3, K, 1]
    assert appended == Appended(0, K * K + 3, 3)
    assert [tree.count(level) for level in (1, 2, 3)] == [K * K + 3, K, 1]
    appended = tree.append(random_ids((K - 3) * K))
    assert appended == Appended(K * K + 3, K - 3, 2)
    assert [tree.count(level) for level in (1, 2, 3)] == [K * K + K, K + 1, 1]
    assert gistnet.calls[3:] == [K - 3, 1]


def test_no_call_without_a_new_block() -> None:
    """Tokens of an open block run no network at all; the one that completes it runs one call."""
    tree = make_tree(gistnet := CountingGistNet(), embed := CountingTable(), lens_keys=2)
    for token in random_ids(K - 1):
        assert tree.append(np.array([token])) == Appended(0, 0)
    assert (gistnet.calls, embed.tokens) == ([], 0)
    assert tree.append(random_ids(1)).gist_calls == 1
    assert (gistnet.calls, embed.tokens) == ([1], K)


def test_token_by_token_equals_at_once() -> None:
    """A reply appended token by token gives the tree of the whole text."""
    tree, ids = make_tree(CountingGistNet("transformer"), lens_keys=2), random_ids(K * K + 2 * K + 3)
    for at in range(len(ids)):
        tree.append(ids[at : at + 1])
    assert_same(tree, ids)


def test_huge_appends_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document of any length runs in bounded batches, with the same result."""
    ids = random_ids(23 * K * 5)
    whole = make_tree(lens_keys=2)
    whole.append(ids)
    monkeypatch.setattr(levels, "MAX_NODES", 9)
    tree = make_tree(gistnet := CountingGistNet(), lens_keys=2, cache_lod0=True)
    assert tree.append(ids).gist_calls == len(gistnet.calls) == -(-115 // 9) + 1
    assert max(gistnet.calls) == 9
    assert_same(tree, ids)


def test_batches_shrink_with_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers in one call are bounded, not only its nodes: wide models take fewer nodes at once."""
    monkeypatch.setattr(levels, "MAX_VALUES", 5 * K * DIM)
    tree = make_tree(gistnet := CountingGistNet())
    tree.append(random_ids(12 * K))
    assert gistnet.calls == [5, 5, 2]


@pytest.mark.parametrize("fail_at", [1, 2, 3])
@pytest.mark.parametrize("cache", [False, True])
def test_failed_append_changes_nothing(fail_at: int, cache: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """If GistNet fails at any call, the tree is as before the append, and the append can be repeated."""
    monkeypatch.setattr(levels, "MAX_NODES", K)
    tree = make_tree(gistnet := CountingGistNet(), lens_keys=2, cache_lod0=cache)
    ids = random_ids(K * K + 7 + 2 * K)
    tree.append(ids[: K * K - K + 7])
    gistnet.fail_at = len(gistnet.calls) + fail_at
    monkeypatch.setattr(levels, "MAX_NODES", 2)
    with pytest.raises(RuntimeError, match="out of memory"):
        tree.append(ids[K * K - K + 7 :])
    assert_same(tree, ids[: K * K - K + 7])
    assert np.array_equal(tree.ids(0, tree.num_tokens), ids[: K * K - K + 7])
    tree.append(ids[K * K - K + 7 :])
    assert_same(tree, ids)


def test_grows_to_any_depth() -> None:
    """As many levels as the history needs: the top level has fewer than K nodes."""
    tree = make_tree(CountingGistNet(scale=0.0), gist_dtype=torch.float16)
    tree.append(random_ids(K**4 + 1))
    assert [tree.count(level) for level in range(6)] == [K**3, K**3, K**2, K, 1, 0]
    assert tree.num_levels == 4


def test_tree_holds_no_graph() -> None:
    """Gists of a tree are values: a session must not grow an autograd graph."""
    tree = make_tree(CountingGistNet(), lens_keys=2)
    tree.append(random_ids(3 * K))
    assert not tree.gist_range(1, 0, 3).requires_grad
    assert not tree.lens_keys(0, 3).requires_grad


def test_gists_by_node() -> None:
    """Nodes are read by level and index, in the order asked for; a node that is not there is an error."""
    tree = make_tree(CountingGistNet())
    tree.append(random_ids(K * K + 4 * K))
    rows = tree.gist_range(1, 0, K + 4)
    assert torch.equal(tree.gists(1, np.array([5, 0, 5])), rows[[5, 0, 5]])
    assert torch.equal(tree.gists(1, torch.tensor([19, 2])), rows[[19, 2]])
    for level, index in [(1, K + 4), (1, -1), (2, 1), (3, 0), (0, 0)]:
        with pytest.raises(IndexError):
            tree.gists(level, np.array([index]))


def test_ids_outside_the_history() -> None:
    """Blocks and tokens that are not complete or not there are an error, not some old memory."""
    tree = make_tree()
    tree.append(random_ids(5 * K))
    tree.rewind(3 * K + 2)
    for block in (-1, 3, 4):
        with pytest.raises(IndexError, match=r"blocks must lie in \[0, 3\)"):
            tree.block_ids(np.array([0, block]))
    for start, end in ((0, 3 * K + 3), (-1, 2), (5, 4)):
        with pytest.raises(IndexError):
            tree.ids(start, end)


def test_lens_keys_follow_blocks() -> None:
    """Each LOD1 node has the keys of its own tokens, and ``block_keys`` makes the same ones for a reload."""
    tree, ids = make_tree(lens_keys=2, gist_dtype=torch.float16), random_ids(9 * K + 3)
    for part in np.split(ids, [10, 3 * K, 3 * K + 1]):
        tree.append(part)
    blocks = ids[: 9 * K].reshape(9, K)
    expected = TABLE[torch.from_numpy(blocks[:, :2].astype(np.int64))][..., :4].half()
    assert torch.equal(tree.lens_keys(0, 9), expected)
    assert torch.equal(tree.block_keys(tree.block_vectors(blocks[4:7])), expected[4:7])


def test_evicted_ids_leave_memory() -> None:
    """After an eviction the ids take memory for the hot tail, not for the history; gists stay."""
    tree = make_tree()
    for seed in range(40):
        tree.append(random_ids(100 * K, seed))
        tree.evict(8 * K, np.array([0, 1]))
    assert tree.hot_bytes()["ids"] < 50_000
    assert tree.count(1) == 4_000
    assert tree.missing(np.arange(4_000)).tolist() == list(range(2, 3_992))


def test_rewound_blocks_are_forgotten() -> None:
    """A block that was kept and then rewound is gone: the new text in its place is the only one, and evicted once."""
    tree, ids = make_tree(), random_ids(10 * K)
    tree.append(ids)
    tree.evict(0, np.array([3, 5]))
    tree.rewind(2 * K)
    tree.append(ids[: 6 * K])
    assert np.array_equal(tree.block_ids(np.array([3])), ids[None, K : 2 * K])
    assert tree.evict(0, NO_BLOCKS).tolist() == [2, 3, 4, 5, 6, 7]


def test_restore_refuses_what_does_not_fit() -> None:
    """Ids of another shape, or of blocks that the history has not, are refused and nothing changes."""
    tree, ids = make_tree(), random_ids(10 * K)
    tree.append(ids)
    tree.evict(0, NO_BLOCKS)
    with pytest.raises(ConfigError, match=r"ids must be \[2, 16\], got \[2, 15\]"):
        tree.restore(np.array([1, 2]), np.zeros((2, K - 1), np.int32))
    for block in (-1, 10):
        with pytest.raises(IndexError, match=r"\[0, 10\)"):
            tree.restore(np.array([block]), np.zeros((1, K), np.int32))
    assert len(tree.missing(np.arange(10))) == 10


def test_restored_ids_are_a_copy() -> None:
    """The tree does not hold on to a store's buffer, nor change when that is used again."""
    tree, ids = make_tree(), random_ids(4 * K)
    tree.append(ids)
    tree.evict(0, NO_BLOCKS)
    buffer = ids[:K].reshape(1, K).copy()
    tree.restore(np.array([0]), buffer)
    buffer[:] = 0
    assert np.array_equal(tree.block_ids(np.array([0]))[0], ids[:K])
    tree.ids(0, K)[:] = 0
    assert np.array_equal(tree.ids(0, K), ids[:K])


@pytest.mark.parametrize("position", [-1, 101])
def test_rewind_outside_the_history(position: int) -> None:
    """A position that the history has not is named, and nothing is cut."""
    tree = make_tree()
    tree.append(random_ids(100))
    with pytest.raises(ConfigError, match=r"position must lie in \[0, 100\]"):
        tree.rewind(position)
    assert tree.num_tokens == 100


@pytest.mark.parametrize("ids", [np.zeros((1, 4), np.int32), np.zeros(4, np.float32)])
def test_append_refuses_what_is_no_row_of_ids(ids: Ids) -> None:
    """Only one row of integers is a text."""
    tree = make_tree()
    with pytest.raises(ConfigError, match="ids must be one row of integers"):
        tree.append(ids)
    assert tree.num_tokens == 0


def test_negative_hot_tokens() -> None:
    """The hot tail can be empty, not negative."""
    with pytest.raises(ConfigError, match="hot_tokens must be at least 0"):
        make_tree().evict(-1, NO_BLOCKS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"block_size": 24}, "block_size must be one of"),
        ({"cache_lod0_max_tokens": -1}, "cache_lod0_max_tokens must be at least 0"),
        ({"lens_keys": -1}, "lens_keys must be at least 0"),
        ({"lens_key_dim": 0}, "lens_key_dim must be at least 1"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    """Each setting is checked once, by name."""
    with pytest.raises(ConfigError, match=message):
        TreeConfig(**setting)


def test_networks_must_fit_the_settings() -> None:
    """A GistNet for another block size, or lens keys without their network, are refused."""
    with pytest.raises(ConfigError, match="block_size of the GistNet is 32, of the tree 16"):
        MegaContextTree(TreeConfig(block_size=16), GistNet(DIM, 32, kind="mean"), CountingTable())
    with pytest.raises(ConfigError, match="no key network"):
        MegaContextTree(TreeConfig(block_size=16, lens_keys=2), CountingGistNet(), CountingTable())


@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_all_block_sizes(block_size: int) -> None:
    """K of 16, 32 and 64 work alike."""
    gistnet = GistNet(DIM, block_size, kind="mean").eval()
    tree = MegaContextTree(TreeConfig(block_size=block_size), gistnet, CountingTable())
    tree.append(random_ids(block_size**2 + block_size + 1))
    assert [tree.count(level) for level in (1, 2, 3)] == [block_size + 1, 1, 0]
    tokens = tree.embeddings(0, block_size**2).reshape(block_size, block_size, DIM)
    torch.testing.assert_close(tree.gist_range(1, 0, block_size), tokens.mean(1))
    torch.testing.assert_close(tree.gist_range(2, 0, 1)[0], tokens.mean((0, 1)))


def test_half_precision_base() -> None:
    """A base in bfloat16 has gists made in float32 of its embeddings, kept as the tree's dtype says."""
    ids = random_ids(2 * K)
    tree = make_tree(CountingGistNet(scale=0.0), CountingTable(torch.bfloat16), gist_dtype=torch.float16)
    tree.append(ids)
    expected = TABLE.bfloat16()[torch.from_numpy(ids.astype(np.int64))].float().reshape(2, K, DIM).mean(1).half()
    assert torch.equal(tree.gist_range(1, 0, 2), expected)


def test_only_ids_of_the_vocabulary() -> None:
    """An id that the base has no embedding for fails the append whole."""
    tree = make_tree()
    tree.append(random_ids(K + 3))
    with pytest.raises(IndexError):
        tree.append(np.full(2 * K, VOCABULARY, np.int32))
    assert tree.num_tokens == K + 3
    assert tree.count(1) == 1
