"""Losses of focus training against values worked out by hand, and the guards against what went wrong elsewhere."""

from __future__ import annotations

import pytest
import torch

from mc_core.errors import ConfigError
from mc_core.lab.training.focus.losses import (
    IGNORED,
    expected_embeddings,
    gist_regression,
    kl_to_full,
    mean_over,
    separation,
    token_losses,
)


def test_token_losses_are_nats_and_skip_what_is_ignored() -> None:
    """The loss is minus the log of the probability given to the target, and 0 where there is none."""
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    losses = token_losses(logits, torch.tensor([1, IGNORED]))
    assert losses.tolist() == pytest.approx([1.386294, 0.0])


def test_mean_over_nothing_is_zero() -> None:
    """An empty mask gives 0 and not NaN, so that a batch without a horizon still has a loss."""
    assert mean_over(torch.ones(3), torch.zeros(3)) == 0


def test_kl_is_that_of_the_full_view() -> None:
    """KL(full || here) is 0 for equal views and the hand-computed value for unlike ones, in that direction."""
    full, here = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    mask = torch.ones(1)
    assert float(kl_to_full(full, full, mask)) == pytest.approx(0.0, abs=1e-7)
    assert float(kl_to_full(here, full, mask)) == pytest.approx(0.143841, abs=1e-5)
    with pytest.raises(ConfigError, match="full view"):
        kl_to_full(here, full[:, :1], mask)


def test_expected_embeddings_are_renormalised_over_the_likeliest() -> None:
    """Only the top tokens count, and their shares add up to 1."""
    logits = torch.log(torch.tensor([[0.6, 0.2, 0.15, 0.05]]))
    embedding = torch.eye(4)
    assert torch.allclose(expected_embeddings(logits, embedding, 2), torch.tensor([[0.75, 0.25, 0.0, 0.0]]))
    assert torch.allclose(expected_embeddings(logits, embedding, 64), torch.tensor([[0.6, 0.2, 0.15, 0.05]]))
    with pytest.raises(ConfigError, match="top"):
        expected_embeddings(logits, embedding, 0)


def test_gist_regression_is_a_cosine_distance_to_a_fixed_target() -> None:
    """0 for equal directions, 1 at right angles, and no gradient into the target."""
    true = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    predicted = torch.tensor([[2.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = gist_regression(predicted, true)
    assert float(loss.detach()) == pytest.approx(0.5)
    loss.backward()
    assert true.grad is None
    assert predicted.grad is not None


def test_separation_pushes_alike_neighbours_apart() -> None:
    """Neighbours nearer than the margin cost the rest of the way to it; a step down the gradient parts them."""
    gists = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]], requires_grad=True)
    pairs = torch.tensor([[0, 1], [1, 2]])
    loss = separation(gists, pairs)
    near = 1 - float(torch.cosine_similarity(gists[0], gists[1], dim=0).detach())
    assert float(loss.detach()) == pytest.approx((0.2 - near) / 2, abs=1e-6)
    loss.backward()
    assert gists.grad is not None
    moved = (gists - gists.grad).detach()
    assert 1 - torch.cosine_similarity(moved[0], moved[1], dim=0) > near
    assert separation(gists, pairs[:0]) == 0
