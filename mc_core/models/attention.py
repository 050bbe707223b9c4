"""Ways to attend. The decoder hands over queries, keys and values before rotation; who calls it decides the rest.

An ``Attention`` is called once a layer and may keep keys and values (serving) or not (training). So one decoder
serves training, prefill, KV repair and batched decode, and none of them has a second copy of the layers.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.models.rotary import Rotation, rotate

# Masks of many shapes are attended under here, and cuDNN plans for each shape anew. With it on, training on a Hopper
# card under torch 2.11 ended in an illegal memory access; with it off it never did.
torch.backends.cuda.enable_cudnn_sdp(False)


class Attention(Protocol):
    """The contract: ``(layer, q, k, v) -> out``."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, heads, D], k and v [B, T, kv_heads, D], all un-rotated -> out [B, T, heads, D]."""
        ...


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Grouped-query scaled dot-product attention on rotated q, k.

    q [B, T, H, D]; k, v [B, S, Hkv, D]; mask broadcastable to [B, H, T, S], bool (True = visible) or additive.
    """
    groups = q.shape[2] // k.shape[2]
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2)


class FullAttention:
    """Causal attention over the sequence itself, every entry at its own position; optional extra mask."""

    def __init__(self, rotation: Rotation, mask: Tensor | None = None) -> None:
        """rotation [B or 1, T, D/2]; mask replaces the causal one, broadcastable to [B, H, T, T]."""
        self.rotation, self.mask = rotation, mask

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(rotate(q, self.rotation), rotate(k, self.rotation), v, self.mask, causal=self.mask is None)


class BlockMaskAttention:
    """The block mask over one sequence [first block | history segments | tail] (Block-Attention, 2409.15355).

    The first ``first`` tokens see themselves causally. Each history segment of ``segment`` tokens sees itself
    causally and the whole first block. The tail, from ``tail_start`` on, sees everything before it. History is
    encoded at canonical positions (first, first + 1, ..), so what a segment holds is a function of the segment
    alone; the tail reads all keys at their global positions.
    """

    def __init__(self, local: Rotation, place: Rotation, first: int, segment: int, tail_start: int) -> None:
        """local: rotations for canonical positions [first + segment, D/2]; place: global ones, [1 or B, T, D/2]."""
        if tail_start < first or (tail_start - first) % segment:
            raise ValueError(f"tail_start {tail_start} must be first ({first}) plus a multiple of segment ({segment})")
        self.local, self.place = local, place
        self.first, self.segment, self.tail_start = first, segment, tail_start

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first, seg, tail = self.first, self.segment, self.tail_start
        batch, length, heads, dim = q.shape
        head_rotation = (self.local[0][:first], self.local[1][:first])
        parts = []
        first_k = rotate(k[:, :first], head_rotation)
        if first:
            parts.append(attend(rotate(q[:, :first], head_rotation), first_k, v[:, :first], causal=True))
        count = (tail - first) // seg
        if count:
            seg_rotation = (self.local[0][first : first + seg], self.local[1][first : first + seg])

            def fold(x: Tensor) -> Tensor:
                return x[:, first:tail].reshape(batch * count, seg, x.shape[2], dim)

            def with_first(x_first: Tensor, x: Tensor) -> Tensor:
                shared = x_first[:, None].expand(batch, count, *x_first.shape[1:]).flatten(0, 1)
                return torch.cat([shared, x], dim=1)

            keys = with_first(first_k, rotate(fold(k), seg_rotation))
            values = with_first(v[:, :first], fold(v))
            mask = torch.ones(seg, first + seg, dtype=torch.bool, device=q.device).tril(first)
            out = attend(rotate(fold(q), seg_rotation), keys, values, mask)
            parts.append(out.reshape(batch, count * seg, heads, dim))
        if tail < length:
            tail_rotation = (self.place[0][:, tail:], self.place[1][:, tail:])
            mask = torch.ones(length - tail, length, dtype=torch.bool, device=q.device).tril(tail)
            parts.append(attend(rotate(q[:, tail:], tail_rotation), rotate(k, self.place), v, mask))
        return torch.cat(parts, dim=1)
