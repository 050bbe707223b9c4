"""Attention over a batch of views: histories by segment, tails over everything, each sample at its own positions."""

from __future__ import annotations

import torch
from torch import Tensor

from mc_core.lab.training.focus.view import ViewBatch
from mc_core.models.attention import attend
from mc_core.models.rotary import rotate
from mc_core.positions.policies import Policy


class ViewAttention:
    """What ``mc_core.kv`` computes for one session at a time, for B views at once and with gradients.

    A history unit sees the units of its segment up to itself, and the first block; it is encoded at canonical
    positions. A tail unit sees every real unit before it, at the places of the position policy.
    """

    def __init__(self, batch: ViewBatch, policy: Policy) -> None:
        self.batch, self.history = batch, batch.history
        length = batch.ids.shape[1]
        rank = torch.arange(length, device=batch.ids.device)
        # A padded query sees itself: a softmax over nothing would be NaN.
        itself = rank[:, None] == rank[None, :]
        visible = (rank[:, None] >= rank[None, :]) & batch.real[:, None] | itself
        self.inside, self.outside = _segment_mask(batch.segments), visible[:, None, batch.history :]
        if policy.has_bias:
            bias = torch.stack([policy.bias(row, row) for row in batch.positions])
            self.inside = _added(bias[:, :, : self.history, : self.history], self.inside)
            self.outside = _added(bias[:, :, self.history :], self.outside)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        h, batch = self.history, self.batch
        parts = []
        if h:
            queries, keys = rotate(q[:, :h], batch.local), rotate(k[:, :h], batch.local)
            parts.append(attend(queries, keys, v[:, :h], self.inside))
        if h < q.shape[1]:
            place = (batch.place[0][:, h:], batch.place[1][:, h:])
            parts.append(attend(rotate(q[:, h:], place), rotate(k, batch.place), v, self.outside))
        return torch.cat(parts, dim=1)


def _segment_mask(segments: Tensor) -> Tensor:
    """segments [B, h] -> visible [B, 1, h, h]: the own segment so far, and the first block."""
    rank = torch.arange(segments.shape[1], device=segments.device)
    same = segments[:, :, None] == segments[:, None, :]
    first = (segments == 0)[:, None, :] & (segments > 0)[:, :, None]
    return (same & (rank[:, None] >= rank[None, :]) | first)[:, None]


def _added(bias: Tensor, visible: Tensor) -> Tensor:
    return bias.masked_fill(~visible, torch.finfo(bias.dtype).min)
