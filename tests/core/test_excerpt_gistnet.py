"""Gists that are copies of a block's rarest run of tokens: which run, whatever is masked and whoever stands beside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mc_core.bundle.bundle import make_gistnet
from mc_core.errors import ConfigError
from mc_core.lab.training import vocabulary
from mc_core.lab.training.focus.rarity import fit_rarity
from mc_core.nets.excerpt_gistnet import GRAINS, ExcerptGistNet

K, DIM = 16, 12


def net(vectors: int) -> ExcerptGistNet:
    torch.manual_seed(0)
    made = ExcerptGistNet(DIM, K, vectors, wide=8)
    made.leave.weight.mul_(4)
    return made


def best_run(made: ExcerptGistNet, rows: Tensor, step: int) -> Tensor:
    """By hand, of one node's real rows [n, d]: the first of the runs with the greatest sum, zeros where rows lack."""
    m, grains = made.vectors, (made.rarity(rows) * GRAINS).round().tolist()
    starts = range(0, max(1, len(rows) - m + 1), step)
    first = max(starts, key=lambda at: (sum(grains[at : at + m]), -at))
    return torch.cat([rows[first : first + m], torch.zeros(m, DIM)])[:m]


@settings(max_examples=40, deadline=None)
@given(
    vectors=st.sampled_from((1, 2, 4, 8)), seed=st.integers(0, 2**32 - 1), gists=st.booleans(), words=st.integers(1, 40)
)
def test_the_rarest_run_is_copied(vectors: int, seed: int, gists: bool, words: int) -> None:
    """Of tokens any m neighbours among the real rows, of gists one whole: the vectors are those rows, the first among
    equally rare ones, whatever stands in masked rows and in the rest of the batch."""
    rng, made, nodes = np.random.default_rng(seed), net(vectors), 4
    children = int(rng.integers(2, K + 1)) if gists else int(rng.integers(1, K // vectors + 1)) * vectors
    each = vectors if gists else 1
    gists = children * each > K
    vocabulary = torch.from_numpy(rng.standard_normal((words, DIM)).astype(np.float32))
    x = vocabulary[torch.from_numpy(rng.integers(0, words, (nodes, children * each)))]
    known = torch.from_numpy(rng.random((nodes, children)) < rng.random((nodes, 1)))
    mask = known.repeat_interleave(each, 1)
    found = made(x, mask).view(nodes, vectors, DIM)
    for node in range(nodes):
        assert torch.equal(found[node], best_run(made, x[node][mask[node]], vectors if gists else 1))
        assert torch.equal(found[node], made(x[node, None], mask[node, None]).view(vectors, DIM))
    assert torch.equal(made(x).view_as(found), torch.stack([best_run(made, row, each if gists else 1) for row in x]))
    garbage = x.masked_fill(~mask[..., None], float("nan"))
    assert torch.equal(made(garbage, mask).view_as(found), found)


def test_the_fit_ranks_rare_tokens_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted to counts, a token that is ten times as rare is told to be rarer, control tokens are the least rare, and a
    word that the corpus has not takes nothing from a control token that looks like it."""
    monkeypatch.setattr(vocabulary, "FIT_BATCH", 256)
    made, size = ExcerptGistNet(32, K, 4, wide=128), 300
    embeddings = torch.randn(size, 32, generator=torch.Generator().manual_seed(1))
    counts = (1e7 / torch.arange(1, size + 1) ** 3).long()
    word = torch.arange(size) >= 3
    counts[-1], embeddings[-1] = 0, embeddings[0]
    fit_rarity(made, embeddings, counts, word, seed=0)
    rarity = made.rarity(embeddings)
    assert rarity[~word].max() < rarity[word & (counts > 0)].min()
    assert rarity[word & (counts >= 10_000)].max() < rarity[(counts > 0) & (counts < 1_000)].min()
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_excerpts_follow_autocast_in_nothing() -> None:
    """In a precision that computes coarser, the same runs are chosen as served, and gradients reach the chosen rows."""
    made, x = net(4), torch.randn(64, K, DIM, generator=torch.Generator().manual_seed(2)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    assert torch.equal(found, made(x))
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.sum() == 64 * 4 * DIM


def test_arguments_that_it_has_not() -> None:
    """What does not fit is told by name and limit."""
    with pytest.raises(ConfigError, match="wide must be at least 1"):
        make_gistnet(DIM, K, {"kind": "excerpt", "wide": 0})
    with pytest.raises(ConfigError, match="vectors must be one of"):
        make_gistnet(DIM, K, {"kind": "excerpt", "vectors": 3})
    with pytest.raises(ConfigError, match="GistNet has not"):
        make_gistnet(DIM, K, {"kind": "excerpt", "layers": 2})
