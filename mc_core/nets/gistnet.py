"""GistNet: K children -> a gist of one or several vectors in the base model's input-embedding space."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mc_core.errors import ConfigError
from mc_core.models.rotary import Rotation
from mc_core.nets.gist_maker import GistMaker
from mc_core.nets.layers import BidirectionalLayer, check_heads, without_masked

GistKind = Literal["mean", "transformer"]
Pooling = Literal["mean", "query", "cls"]
Head = Literal["linear", "mlp"]
CHOICES = {"kind": ("mean", "transformer"), "pooling": ("mean", "query", "cls"), "head": ("linear", "mlp")}


class GistNet(GistMaker):
    """Summarizes K children. Starts as their mean: the learned part is a residual whose scale is 0 at first.

    Of several vectors each is made so of its part of the children, with the same weights.

    kind ``mean``: pool, then head, no attention. ``transformer``: 2 or 4 bidirectional layers with their own rotary
    over the K places, then pool, then head. pooling ``cls`` adds a learned row that the layers fill, ``query`` weighs
    the rows by a learned query. ConfigError for settings that don't go together.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        dim: int,
        block_size: int,
        kind: GistKind = "transformer",
        layers: int = 2,
        heads: int = 4,
        pooling: Pooling = "mean",
        head: Head = "linear",
        vectors: int = 1,
    ) -> None:
        super().__init__(dim, block_size, vectors)
        _check(kind, pooling, head)
        self.kind, self.pooling = kind, pooling
        self.layers = nn.ModuleList()
        if kind == "transformer":
            if layers not in (2, 4):
                raise ConfigError(f"layers must be 2 or 4, got {layers}")
            check_heads(dim, heads)
            self.layers.extend(BidirectionalLayer(dim, heads) for _ in range(layers))
            cos, sin = _places(block_size + 1, dim // heads)  # one place more than K, for the cls row
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        if pooling == "query":
            self.query = nn.Parameter(torch.randn(dim) * dim**-0.5)
        if pooling == "cls":
            self.cls = nn.Parameter(torch.randn(dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.head: nn.Module = nn.Linear(dim, dim)
        if head == "mlp":
            self.head = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.scale = nn.Parameter(torch.zeros(()))

    def make(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Where all rows of a part are masked, the learned part has nothing to add to."""
        mask = None if mask is None else self.parts(mask)
        x = without_masked(self.parts(x), mask)
        mean = masked_mean(x, mask)
        if self._adds_nothing():
            return mean
        learned = self.head(self.norm(self._pool(x, mask)))
        # In units of the mean's own norm, so that one scale suits all bases and levels.
        size = mean.norm(dim=-1, keepdim=True) / learned.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return mean + self.scale * learned * size

    def _adds_nothing(self) -> bool:
        """Whether the learned part can be skipped: most bases have no trained GistNet, and ingest is all GistNet.

        Never where gradients are wanted (scale has one at 0), nor off the CPU, where to look would wait for the device.
        """
        return not torch.is_grad_enabled() and self.scale.device.type == "cpu" and float(self.scale) == 0.0

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.pooling == "cls":
            x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1)
            mask = mask if mask is None else torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        if self.layers:
            rotation: Rotation = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
            for layer in self.layers:
                x = layer(x, mask, rotation)
        if self.pooling == "cls":
            return x[:, 0]
        if self.pooling == "query":
            logits = x @ self.query
            if mask is not None:
                logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
            return (logits.softmax(-1)[..., None] * x).sum(1)
        return masked_mean(x, mask)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [B, T, d] whose masked rows are zero, mask [B, T] bool -> the mean [B, d] of the real rows, zero of none."""
    return x.mean(1) if mask is None else x.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


def _check(kind: str, pooling: str, head: str) -> None:
    for name, value in (("kind", kind), ("pooling", pooling), ("head", head)):
        if value not in CHOICES[name]:
            raise ConfigError(f"{name} must be one of {CHOICES[name]}, got {value!r}")
    if kind == "mean" and pooling == "cls":
        raise ConfigError("pooling=cls needs kind=transformer: without layers nothing fills the cls row")


def _places(count: int, head_dim: int) -> Rotation:
    rates = 1.0 / (100.0 ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    angles = torch.arange(count, dtype=torch.float32)[:, None] * rates
    return angles.cos(), angles.sin()
