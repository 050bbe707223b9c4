"""Gists that the base model's own first layers make: no second model is in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import ConfigError
from mc_core.models.attention import FullAttention
from mc_core.models.decoder import Decoder
from mc_core.models.rotary import Rotary
from mc_core.nets.gist_maker import GistMaker
from mc_core.nets.layers import without_masked

ROWS_AT_ONCE = 8192
"""Children that the base reads at once when nothing is learned: what its layers hold of them stays small."""


class EncoderGistNet(GistMaker):
    """The base's first ``layers`` layers read each node's children by themselves; a small adapter makes vectors of it.

    A vector is the sum of its part's children, weighed by a score of what the layers make of each, and of what an MLP
    of ``wide`` channels makes of them; it is as long as the node's children are on average, times a learned size.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, base: Decoder, block_size: int, layers: int = 3, wide: int = 1024, vectors: int = 4) -> None:
        """base: shared, and none of this network's own weights. ConfigError for settings that don't fit it."""
        dim = base.config.hidden_size
        super().__init__(dim, block_size, vectors)
        if not 1 <= layers <= base.config.num_layers:
            raise ConfigError(f"layers must lie in [1, {base.config.num_layers}], got {layers}")
        if wide < 1:
            raise ConfigError(f"wide must be at least 1, got {wide}")
        self.layers, self._base = layers, (base,)  # in a tuple, so that it is not registered
        cos, sin = Rotary(base.config).table(torch.arange(vectors * block_size))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Linear(dim, 1, bias=False)
        self.place = nn.Parameter(torch.randn(block_size, dim) * 0.02)
        self.up, self.down = nn.Linear(dim, wide), nn.Linear(wide, dim)
        self.size = nn.Parameter(torch.zeros(()))
        for start in (self.score.weight, self.down.weight, self.down.bias):
            nn.init.zeros_(start)

    def make(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Starts as the children's mean in each part, at their length."""
        if not len(x):
            return x.new_zeros(0, self.width)
        if torch.is_grad_enabled():
            return self._make(x, mask)
        nodes = max(1, ROWS_AT_ONCE // x.shape[1])
        batches = torch.split(x, nodes)
        masks = [None] * len(batches) if mask is None else torch.split(mask, nodes)
        return torch.cat([self._make(*some) for some in zip(batches, masks, strict=True)])

    def _make(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = without_masked(x, mask)
        real = x.new_ones(x.shape[:2]) if mask is None else mask.to(x.dtype)
        length = x.norm(dim=-1).sum(1) / real.sum(1).clamp_min(1)
        read, own, there = self.parts(self.norm(self.read(x, mask))), self.parts(x), self.parts(real)[..., None]
        scores = self.score(read).masked_fill(there == 0, torch.finfo(x.dtype).min)
        kept = (scores.softmax(1) * own).sum(1)
        more = self.down(F.gelu(self.up(read + self.place[: read.shape[1]])))
        gist = kept + (more * there).sum(1) / there.sum(1).clamp_min(1)
        gist = gist / gist.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return gist * self.size.exp() * length.repeat_interleave(self.vectors)[:, None]

    def read(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, T, d], each node by itself -> what the base's first layers make of it, in float32."""
        (base,), count = self._base, x.shape[1]
        causal = None
        if mask is not None:
            # A masked row sees itself: a softmax over nothing would be NaN.
            itself = torch.eye(count, dtype=torch.bool, device=x.device)
            causal = (torch.ones_like(itself).tril() & mask[:, None] | itself)[:, None]
        attention = FullAttention((self.cos[None, :count], self.sin[None, :count]), causal)
        return base.first_layers(x.to(base.dtype), attention, self.layers).float()
