"""Losses of lens training: values by hand, and which way their gradients point."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mc_core.focus.lookahead import node_scores
from mc_core.lab.training.lens.losses import (
    best_products,
    budget_balance,
    contrastive,
    illegal_wish,
    preference,
    rank_error,
    soft_products,
    utility_error,
)


def row(*values: float) -> Tensor:
    return torch.tensor([values], requires_grad=True)


def true(*values: int) -> Tensor:
    return torch.tensor([values], dtype=torch.bool)


def slope(loss: Tensor, at: Tensor) -> list[float]:
    """Gradient of the loss at a row of scores."""
    (gradient,) = torch.autograd.grad(loss, at)
    return gradient[0].tolist()


def test_scores_are_those_of_the_look_ahead() -> None:
    """Training scores blocks as serving does, and the gradient reaches the winning query and sub-key alone."""
    draw = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(3, 5, 8, generator=draw), torch.randn(7, 4, 8, generator=draw)
    queries.requires_grad_()
    scores = best_products(queries, keys)
    for one, tail in zip(scores, queries.detach(), strict=True):
        torch.testing.assert_close(one, node_scores(tail, keys))
    (gradient,) = torch.autograd.grad(scores[0, 2], queries)
    winner = int((queries[0] @ keys[2].T).amax(1).argmax())
    assert gradient.abs().sum(-1).nonzero().tolist() == [[0, winner]]


def test_soft_scores_lie_between_mean_and_maximum() -> None:
    """Softness 0 is the look-ahead's own score, a large one the mean of all products, and every one gets a gradient."""
    draw = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(3, 5, 8, generator=draw), torch.randn(7, 4, 8, generator=draw).requires_grad_()
    best = best_products(queries, keys)
    mean = torch.einsum("qad,nsd->qnas", queries, keys).mean((2, 3))
    torch.testing.assert_close(soft_products(queries, keys, 0.0), best)
    torch.testing.assert_close(soft_products(queries, keys, 1e4), mean, rtol=1e-3, atol=1e-2)
    soft = soft_products(queries, keys, 0.3)
    assert ((mean <= soft) & (soft <= best)).all()
    (gradient,) = torch.autograd.grad(soft[0, 2], keys)
    assert (gradient[2].abs().sum(-1) > 0).all()


def test_contrastive_by_hand() -> None:
    """-log of the positives' share; what is neither right nor wrong is left out, and so are rows without a positive."""
    scores = torch.tensor([[0.2, 0.1, 0.0, 5.0], [1.0, 1.0, 1.0, 1.0]])
    positive, negative = torch.zeros(2, 4, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    positive[0, :2] = True
    negative[0] = torch.tensor([False, False, True, False])
    weights = [math.exp(s / 0.1) for s in (0.2, 0.1, 0.0)]
    expected = -math.log((weights[0] + weights[1]) / sum(weights))
    assert float(contrastive(scores, positive, negative, 0.1)) == pytest.approx(expected, rel=1e-5)
    assert float(contrastive(scores[1:], positive[1:], negative[1:], 0.1)) == 0.0


def test_contrastive_pulls_and_pushes() -> None:
    """Right blocks gain, wrong ones lose, the best of them most; others feel nothing."""
    scores = row(0.5, 0.4, 0.1, 0.9)
    push = slope(contrastive(scores, true(1, 0, 0, 0), true(0, 1, 1, 0), 0.1), scores)
    assert push[0] < 0 < push[2] < push[1]
    assert push[3] == 0


def test_utility_counts_legal_actions_alone() -> None:
    """Mean of squares over what is legal; an illegal action's prediction feels nothing."""
    predicted = row(1.0, 2.0, 9.0)
    loss = utility_error(predicted, torch.tensor([[0.0, 4.0, 0.0]]), true(1, 1, 0))
    assert float(loss.detach()) == pytest.approx((1 + 4) / 2)
    push = slope(loss, predicted)
    assert push[0] > 0 > push[1]
    assert push[2] == 0
    assert float(utility_error(predicted.detach(), predicted.detach(), true(0, 0, 0))) == 0.0


def test_rank_orders_pairs() -> None:
    """softplus of the difference, for each pair that differs by more than the margin; both are pushed apart."""
    predicted, utility = row(0.3, 0.1, 5.0), torch.tensor([[0.0, 2.0, 1.0]])
    loss = rank_error(predicted, utility, true(1, 1, 0))
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp(0.2)), rel=1e-5)
    push = slope(loss, predicted)
    assert push[0] > 0 > push[1]
    assert push[2] == 0
    assert float(rank_error(predicted, utility, true(1, 1, 0), margin=2.0)) == 0.0


def test_balance_is_one_for_a_one_sided_lens() -> None:
    """((P - N) / (P + N))^2 weighted by cost: 1 if everything shall expand, 0 if both sides weigh the same."""
    cost = torch.tensor([[32.0, 1.0, 1.0]])
    assert float(budget_balance(row(0.1, 0.2, 0.3), cost, true(1, 1, 1))) == pytest.approx(1.0)
    assert float(budget_balance(row(-0.01, 0.32, 0.7), cost, true(1, 1, 0))) == pytest.approx(0.0, abs=1e-9)
    score = row(0.1, -0.1, 0.0)
    loss = budget_balance(score, cost, true(1, 1, 0))
    assert float(loss.detach()) == pytest.approx((31 / 33) ** 2, rel=1e-5)
    assert slope(loss, score)[0] > 0


def test_illegal_wishes_cost_their_square() -> None:
    """Only a wish in a forbidden direction costs, and only where there is an entry."""
    score = row(0.5, 0.5, -0.4, -0.4, 1.0)
    expand, collapse, real = true(0, 1, 1, 1, 0), true(1, 0, 0, 1, 0), true(1, 1, 1, 1, 0)
    loss = illegal_wish(score, expand, collapse, real)
    assert float(loss.detach()) == pytest.approx((0.25 + 0.16) / 4)
    push = slope(loss, score)
    assert push[0] > 0 > push[2]
    assert push[1] == push[3] == push[4] == 0


def test_preference_follows_the_better_view() -> None:
    """Softplus of the signed score, weighted by tanh of the difference; entries shown alike count nothing."""
    score, better, worse = row(0.5, 0.5, 0.5), torch.tensor([[0, 2, 1]]), torch.tensor([[1, 1, 1]])
    loss = preference(score, better, worse, torch.tensor([2.0]))
    expected = math.tanh(2.0) * (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(1.0))) / 2
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    push = slope(loss, score)
    assert push[0] < 0 < push[1]
    assert push[2] == 0
    assert float(preference(score, better, worse, torch.tensor([0.0]))) == 0.0
