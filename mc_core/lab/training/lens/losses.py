"""Losses of lens training, each a pure function of tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def best_products(queries: Tensor, keys: Tensor) -> Tensor:
    """Scores as the look-ahead gives them: best dot product of any query of a tail with any sub-key of a block.

    queries [Q, t, D] (those of padding are zero), keys [n, S, D] -> [Q, n].
    """
    (count, length, dim), (blocks, subkeys) = queries.shape, keys.shape[:2]
    # The winners are found without a graph; their products alone are computed again, with one.
    with torch.no_grad():
        products = (queries.reshape(-1, dim) @ keys.reshape(-1, dim).T).view(count, length, blocks * subkeys)
        best, token = products.max(1)
        subkey = best.view(count, blocks, subkeys).argmax(2)
        token = token.view(count, blocks, subkeys).gather(2, subkey[..., None])[..., 0]
    query_rows = token + torch.arange(count, device=token.device)[:, None] * length
    key_rows = subkey + torch.arange(blocks, device=subkey.device) * subkeys
    asked = queries.reshape(-1, dim).index_select(0, query_rows.flatten())
    found = keys.reshape(-1, dim).index_select(0, key_rows.flatten())
    return (asked * found).sum(-1).view(count, blocks)


def soft_products(queries: Tensor, keys: Tensor, softness: float) -> Tensor:
    """Between the mean (softness large) and the maximum (0) of the same products -> [Q, n].

    softness * log(mean(exp(product / softness))): where only the best product counts from the start, the rest of the
    queries and sub-keys learn nothing.
    """
    if softness <= 0:
        return best_products(queries, keys)
    products = (queries.flatten(0, 1) @ keys.flatten(0, 1).T).view(*queries.shape[:2], *keys.shape[:2])
    count = queries.shape[1] * keys.shape[1]
    return softness * ((products / softness).logsumexp(dim=(1, 3)) - math.log(count))


def contrastive(scores: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """InfoNCE with several positives: mean over rows of -log(share of the positives in exp(score / temperature)).

    scores [Q, n]; positive, negative [Q, n] bool: what is neither is left out. Rows without a positive count nothing;
    0 if there are no others.
    """
    logits = scores.float() / temperature
    nothing = torch.finfo(logits.dtype).min
    wanted = logits.masked_fill(~positive, nothing).logsumexp(1)
    given = logits.masked_fill(~(positive | negative), nothing).logsumexp(1)
    rows = positive.any(1)
    return ((given - wanted) * rows).sum() / rows.sum().clamp_min(1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean where ``mask`` holds; 0, with a gradient of 0, where it never does."""
    return torch.where(mask, values, values.new_zeros(())).sum() / mask.sum().clamp_min(1)


def utility_error(predicted: Tensor, utility: Tensor, legal: Tensor) -> Tensor:
    """Mean squared error over legal actions; all [B, n], ``legal`` bool."""
    return _mean((predicted - utility).square(), legal)


def rank_error(predicted: Tensor, utility: Tensor, legal: Tensor, margin: float = 0.0) -> Tensor:
    """Mean of softplus(-(p_i - p_j)) over pairs of legal actions of a row with utility_i > utility_j + margin."""
    above = utility[:, :, None] > utility[:, None, :] + margin
    pairs = above & legal[:, :, None] & legal[:, None, :]
    return _mean(F.softplus(predicted[:, None, :] - predicted[:, :, None]), pairs)


def budget_balance(score: Tensor, cost: Tensor, mask: Tensor) -> Tensor:
    """Mean of ((P - N) / (P + N))^2, P and N the cost-weighted positive and negative mass of a row's signed scores.

    A lens that wants to expand everything, or to collapse everything, is of no use within a budget. All [B, n].
    """
    mass = torch.where(mask, score * cost, score.new_zeros(()))
    expand, collapse = mass.clamp_min(0).sum(1), (-mass).clamp_min(0).sum(1)
    whole = expand + collapse
    return ((expand - collapse) / whole.clamp_min(1e-6)).square().mean()


def illegal_wish(score: Tensor, can_expand: Tensor, can_collapse: Tensor, mask: Tensor) -> Tensor:
    """Mean square of what the signed score asks for and cannot have; all [B, n].

    score above 0 wants to expand, below 0 to collapse.
    """
    wrong = score.clamp_min(0) * ~can_expand + score.clamp_max(0) * ~can_collapse
    return _mean(wrong.square(), mask)


def preference(
    score: Tensor, better_levels: Tensor, worse_levels: Tensor, difference: Tensor, temperature: float = 1.0
) -> Tensor:
    """Bradley-Terry loss of two views of one history, the better by ``difference`` [B] >= 0 nats.

    score [B, n]; levels [B, n]: what each entry is shown at in either view. Where the better view shows an entry finer,
    its score should be above 0, and the reverse; entries shown alike count nothing. softplus(-sign * score *
    max(1, difference) / temperature), weighted by tanh(difference).
    """
    sign = torch.sign((worse_levels - better_levels).to(score.dtype))
    strength = difference.abs()[:, None]
    losses = F.softplus(-sign * score * strength.clamp_min(1.0) / temperature) * torch.tanh(strength)
    return _mean(losses, sign != 0)
