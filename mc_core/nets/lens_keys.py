"""Lens keys: a few small vectors a block, and the queries that look for them. Both are unit vectors times a weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.nets.layers import BidirectionalLayer, without_masked

LOUD = 3.0
FLOOR = 0.02
"""Share of the mean variance that is added to each direction's own."""


def clean(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [B, T, d] at unit root mean square a row, rows that ``mask`` [B, T] (True = real) hides set to zero."""
    if mask is not None:
        x = torch.where(mask[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))
    return F.rms_norm(x.float(), (x.shape[-1],), eps=1e-12)


class KeyNet(nn.Module):
    """Token embeddings of a block -> sub-keys, each its own weighted mean of the tokens: one mean loses needles.

    A token is read with ``reach`` tokens on each side, as far as the block goes: "My father is" says more than its
    words. Deeper reading would cost more than all else that an ingest does.
    """

    def __init__(self, dim: int, keys: int, key_dim: int, width: int, reach: int) -> None:
        super().__init__()
        self.keys, self.reach = keys, reach
        self.enter = nn.Linear(dim, width)
        self.read = nn.Conv1d(width, width, 2 * reach + 1, padding=reach)
        self.weigh = nn.Linear(width, keys)
        self.project = nn.Linear(width, key_dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, K, d], mask [B, K] bool (True = real) -> unit keys [B, keys, key_dim]."""
        tokens = without_masked(self.enter(clean(x, mask)), mask)
        tokens = tokens + F.gelu(self.read(tokens.mT).mT)
        logits = self.weigh(tokens)
        if mask is not None:
            logits = logits.masked_fill(~mask[..., None], torch.finfo(logits.dtype).min)
        return F.normalize(logits.softmax(1).mT @ self.project(tokens), dim=-1)


class QueryNet(nn.Module):
    """The tail's embeddings -> queries, each its own weighted mean of tokens read in context, as loud as it matters.

    Not one query a token: the best of those was always that of a control token, which all tails share, and nothing was
    learned of what they ask for.
    """

    def __init__(self, dim: int, width: int, heads: int, queries: int, key_dim: int) -> None:
        super().__init__()
        self.enter = nn.Linear(dim, width)
        self.read = BidirectionalLayer(width, heads)
        self.weigh = nn.Linear(width, queries)
        self.project = nn.Linear(width, key_dim, bias=False)
        self.salience = nn.Linear(width, 1)
        # Loud at first: a network that knows nothing yet would lower its loss by asking for nothing.
        nn.init.constant_(self.salience.bias, LOUD)

    def forward(self, tail: Tensor, mask: Tensor | None = None) -> Tensor:
        """tail [B, t, d], mask [B, t] bool (True = real) -> queries [B, queries, key_dim]; zero without any token."""
        x = self.read(self.enter(clean(tail, mask)), mask, None)
        logits = self.weigh(x)
        if mask is not None:
            logits = logits.masked_fill(~mask[..., None], torch.finfo(logits.dtype).min)
        pooled = logits.softmax(1).mT @ x
        return F.normalize(self.project(pooled), dim=-1) * self.salience(pooled).sigmoid()


@torch.no_grad()
def whiten(enter: nn.Linear, vectors: Tensor, generator: torch.Generator) -> None:
    """Start a layer that reads embeddings so that those in ``vectors`` [n, d] come out centred and equally long.

    Token embeddings share a direction, and most of what tells rare words apart lies in directions of little variance:
    a gradient would reach those last.
    """
    known = clean(vectors[None], None)[0].double()
    mean = known.mean(0)
    values, directions = torch.linalg.eigh((known - mean).mT @ (known - mean) / len(known))
    scale = (values.clamp_min(0) + FLOOR * values.mean()).rsqrt()
    width, dim = enter.weight.shape
    turn = torch.randn(max(width, dim), dim, generator=generator, dtype=torch.float64).to(known.device)
    turn = torch.linalg.qr(turn)[0][:width] * max(1.0, (width / dim) ** 0.5)
    weight = turn @ directions @ scale.diag() @ directions.mT
    enter.weight.copy_(weight)
    enter.bias.copy_(-(weight @ mean))
