"""Trees, the slow and obvious way: one GistNet call a node, recursively; the oracle of the tree's tests."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mc_core.nets.gistnet import GistNet
from mc_core.tree.tree import MegaContextTree, TreeConfig

Ids = NDArray[np.int32]
K, DIM, VOCABULARY = 16, 12, 97
TABLE = torch.randn(VOCABULARY, DIM, generator=torch.Generator().manual_seed(3))


class CountingGistNet(GistNet):
    """A GistNet that notes how many nodes each call is for, and can be told to fail."""

    def __init__(self, kind: str = "mean", scale: float = 0.3, vectors: int = 1) -> None:
        torch.manual_seed(0)
        super().__init__(DIM, K, kind=kind, heads=2, vectors=vectors)  # type: ignore[arg-type]
        self.scale.data.fill_(scale)
        self.calls: list[int] = []
        self.fail_at: int | None = None
        self.eval()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.calls.append(len(x))
        if self.fail_at == len(self.calls):
            raise RuntimeError("out of memory")
        return super().forward(x, mask)


class CountingTable:
    """Input embeddings that note how many tokens they were asked for."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.table, self.tokens = TABLE.to(dtype), 0

    def __call__(self, ids: Tensor) -> Tensor:
        self.tokens += ids.numel()
        return self.table[ids]


class FirstTokens(nn.Module):
    """Lens keys that can be checked by hand: the first numbers of the first two tokens of a block."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x[:, :2, :4]


def make_tree(gistnet: GistNet | None = None, embed: CountingTable | None = None, **config: object) -> MegaContextTree:
    keys = FirstTokens() if config.get("lens_keys") else None
    settings = TreeConfig(block_size=K, lens_key_dim=4, **config)  # type: ignore[arg-type]
    return MegaContextTree(settings, gistnet or CountingGistNet(), embed or CountingTable(), keys)


def random_ids(count: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)


@torch.no_grad()
def gist_of(gistnet: GistNet, ids: Ids, level: int, index: int) -> Tensor:
    """The gist of one node, from its tokens up."""
    if level == 1:
        children = TABLE[torch.from_numpy(ids[index * K : (index + 1) * K].astype(np.int64))]
    else:
        children = torch.cat([gist_of(gistnet, ids, level - 1, index * K + child) for child in range(K)]).view(-1, DIM)
    return GistNet.forward(gistnet, children[None], torch.ones(1, len(children), dtype=torch.bool))[0]


def assert_same(tree: MegaContextTree, ids: Ids) -> None:
    """Sizes, gists, keys of all nodes equal those of a tree that is built of ``ids`` at once."""
    whole = make_tree(tree.gistnet, lens_keys=tree.config.lens_keys, gist_dtype=tree.config.gist_dtype)
    whole.append(ids)
    assert tree.num_tokens == whole.num_tokens == len(ids)
    assert tree.num_blocks == len(ids) // K
    assert tree.num_levels == whole.num_levels
    for level in range(1, whole.num_levels + 2):
        assert tree.count(level) == whole.count(level) == len(ids) // K**level
    for level in range(1, whole.num_levels + 1):
        count = tree.count(level)
        torch.testing.assert_close(tree.gist_range(level, 0, count), whole.gist_range(level, 0, count))
    if tree.config.lens_keys:
        torch.testing.assert_close(tree.lens_keys(0, tree.num_blocks), whole.lens_keys(0, tree.num_blocks))
