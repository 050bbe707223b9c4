"""A fresh forward over a layout, written the slow and obvious way: the oracle of the KV tests."""

from __future__ import annotations

import torch
from torch import Tensor

from mc_core.kv.layout import Layout
from mc_core.kv.session_kv import KVModel
from mc_core.models.attention import attend
from mc_core.models.rotary import Rotation, rotate


class DenseAttention:
    """Every unit against every unit, with a boolean mask; history queries see rotations of canonical positions."""

    def __init__(self, place: Rotation, local: Rotation, history: Tensor, visible: Tensor, bias: Tensor | None) -> None:
        self.place, self.local, self.history, self.visible, self.bias = place, local, history, visible, bias

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.zeros(self.visible.shape).masked_fill(~self.visible, -torch.inf)
        if self.bias is not None:
            mask = mask + self.bias.to(mask.dtype)
        placed = attend(rotate(q, self.place), rotate(k, self.place), v, mask)
        canonical = attend(rotate(q, self.local), rotate(k, self.local), v, mask)
        return torch.where(self.history[None, :, None, None], canonical, placed)


def fresh_forward(model: KVModel, layout: Layout, embeddings: Tensor) -> Tensor:
    """Hidden states [n, d] of all units of a layout, from nothing."""
    n = len(layout)
    ranks = torch.arange(n).numpy()
    place = model.rotation(layout.levels, layout.starts, layout.ends, ranks)
    local = place if model.policy.absolute else model.rotary.table(torch.from_numpy(layout.local))
    segment = torch.from_numpy(layout.segment_start)
    history = segment >= 0
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    own_or_first = (segment[:, None] == segment[None, :]) | (segment == 0)[None, :]
    visible = causal & (own_or_first | ~history[:, None])
    bias = None
    if model.policy.has_bias:
        at = torch.from_numpy(model.positions(layout.levels, layout.starts, layout.ends, ranks))
        bias = model.policy.bias(at, at)
    attention = DenseAttention(place, local, history, visible, bias)
    return model.decoder(embeddings[None], attention)[0]
