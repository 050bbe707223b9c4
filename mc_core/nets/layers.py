"""Bidirectional transformer layers that GistNet and LensNet share. Masked rows change nothing, whatever they hold."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import ConfigError
from mc_core.models.rotary import Rotation, turn


def check_heads(dim: int, heads: int) -> None:
    """ConfigError unless ``heads`` divides ``dim`` into even parts."""
    if heads < 1 or dim % heads:
        raise ConfigError(f"dim ({dim}) must be a multiple of heads ({heads})")
    if dim // heads % 2:
        raise ConfigError(f"dim / heads ({dim // heads}) must be even for rotary positions")


class MultiHeadAttention(nn.Module):
    """Every query sees every key that the mask leaves."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None, rotation: Rotation | None = None) -> Tensor:
        """x [B, T, d], context [B, S, d], mask [B, S] (True = real) or None -> [B, T, d].

        A row whose context is masked throughout gets zeros. rotation [T, d / heads / 2]: of queries and keys, T = S.
        """

        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:-1], self.heads, y.shape[-1] // self.heads).transpose(1, 2)

        q = split(self.q(x))
        k, v = (split(part) for part in self.kv(context).chunk(2, dim=-1))
        if rotation is not None:
            q, k = turn(q, rotation), turn(k, rotation)
        if mask is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            some = mask.any(-1)
            # A softmax over nothing is NaN: such rows look at everything, and their result is dropped.
            visible = mask | ~some[:, None]
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None])
            out = out * some[:, None, None, None].to(out.dtype)
        return self.out(out.transpose(1, 2).flatten(-2))


class FeedForward(nn.Sequential):
    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))


def without_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero masked rows: not even a NaN in padding may reach a product."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0.0)


class BidirectionalLayer(nn.Module):
    """Pre-norm self-attention and MLP; no causal mask: every row sees every real row."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(dim), MultiHeadAttention(dim, heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), FeedForward(dim, mlp_ratio)

    def forward(self, x: Tensor, mask: Tensor | None = None, rotation: Rotation | None = None) -> Tensor:
        """x [B, T, d], mask [B, T] bool (True = real) -> [B, T, d]; masked rows come out as zeros."""
        x = without_masked(x, mask)
        y = self.norm(x)
        x = x + self.attention(y, y, mask, rotation)
        return without_masked(x + self.mlp(self.mlp_norm(x)), mask)


class CrossLayer(nn.Module):
    """Pre-norm cross-attention and MLP: x reads a context."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm, self.context_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = MultiHeadAttention(dim, heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), FeedForward(dim, mlp_ratio)

    def forward(self, x: Tensor, context: Tensor, context_mask: Tensor | None = None) -> Tensor:
        """x [B, T, d], context [B, S, d], context_mask [B, S] bool (True = real) -> [B, T, d]."""
        context = self.context_norm(without_masked(context, context_mask))
        x = x + self.attention(self.norm(x), context, context_mask)
        return x + self.mlp(self.mlp_norm(x))
