"""Lens keys: a few small vectors a block, and the queries that look for them. Both are unit vectors times a weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.nets.layers import BidirectionalLayer


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
        self.enter = nn.Linear(dim, width, bias=False)
        self.read = nn.Conv1d(width, width, 2 * reach + 1, padding=reach)
        self.weigh = nn.Linear(width, keys)
        self.project = nn.Linear(width, key_dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, K, d], mask [B, K] bool (True = real) -> unit keys [B, keys, key_dim]."""
        tokens = self.enter(clean(x, mask))
        tokens = tokens + F.gelu(self.read(tokens.mT).mT)
        logits = self.weigh(tokens)
        if mask is not None:
            logits = logits.masked_fill(~mask[..., None], torch.finfo(logits.dtype).min)
        return F.normalize(logits.softmax(1).mT @ self.project(tokens), dim=-1)


class QueryNet(nn.Module):
    """The tail's embeddings -> one query a token, read in context, as long as the token matters."""

    def __init__(self, dim: int, width: int, heads: int, key_dim: int) -> None:
        super().__init__()
        self.enter = nn.Linear(dim, width)
        self.read = BidirectionalLayer(width, heads)
        self.project = nn.Linear(width, key_dim, bias=False)
        self.salience = nn.Linear(width, 1)

    def forward(self, tail: Tensor, mask: Tensor | None = None) -> Tensor:
        """tail [B, t, d], mask [B, t] bool (True = real) -> queries [B, t, key_dim]; those of hidden rows are zero."""
        x = self.read(self.enter(clean(tail, mask)), mask, None)
        queries = F.normalize(self.project(x), dim=-1) * self.salience(x).sigmoid()
        return queries if mask is None else queries.masked_fill(~mask[..., None], 0.0)
