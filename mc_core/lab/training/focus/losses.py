"""Losses of focus training, each a pure function of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.errors import ConfigError

IGNORED = -1
"""A target that is not there."""


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [..., vocabulary] of the next token, targets [...] (``IGNORED``: none) -> nats [...], 0 where ignored.

    ``targets[t]`` is the token that follows the input at t, never that input itself.
    """
    flat = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view_as(targets)


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask`` holds; 0, with a gradient of 0, where it never does."""
    return (values * mask).sum() / mask.sum().clamp_min(1)


def kl_to_full(logits: Tensor, full: Tensor, mask: Tensor) -> Tensor:
    """Mean KL(full view || this view) in nats over the positions of ``mask`` [...]; logits [..., vocabulary]."""
    if logits.shape != full.shape:
        raise ConfigError(f"logits {list(logits.shape)} and those of the full view {list(full.shape)} must match")
    here, there = logits.float().log_softmax(-1), full.float().log_softmax(-1)
    return mean_over((there.exp() * (there - here)).sum(-1), mask)


def expected_embeddings(logits: Tensor, embedding: Tensor, top: int = 64) -> Tensor:
    """Expected input embedding of the next token over its ``top`` likeliest, renormalised.

    logits [..., vocabulary], embedding [vocabulary, d] -> [..., d].
    """
    if top < 1:
        raise ConfigError(f"top must be at least 1, got {top}")
    values, ids = logits.float().topk(min(top, logits.shape[-1]), dim=-1)
    return (values.softmax(-1)[..., None] * embedding[ids]).sum(-2)


def gist_regression(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean cosine distance of gists of predicted tokens to gists of the true ones, both [n, d]; 0 for n = 0.

    The true ones are a target: no gradient goes into them.
    """
    if not len(predicted):
        return predicted.sum()
    return (1 - F.cosine_similarity(predicted, true.detach(), dim=-1)).mean()


def separation(gists: Tensor, neighbours: Tensor, margin: float = 0.2) -> Tensor:
    """Mean of max(0, margin - cosine distance) over neighbouring gists, so that they stay apart.

    gists [n, d]; neighbours [m, 2]: indices of gists that stand next to each other; 0 for m = 0.
    """
    if not len(neighbours):
        return gists.sum() * 0
    distance = 1 - F.cosine_similarity(gists[neighbours[:, 0]], gists[neighbours[:, 1]], dim=-1)
    return torch.relu(margin - distance).mean()
