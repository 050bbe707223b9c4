"""Gists that are copies: the input embeddings of the rarest few neighbouring tokens of a block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import ConfigError
from mc_core.nets.gist_maker import GistMaker
from mc_core.nets.layers import without_masked
from mc_core.nets.lens_keys import clean

GRAINS = 256
"""Of a nat. Rarities are whole grains, so that their sums are exact, and runs of the same words equally rare."""


class ExcerptGistNet(GistMaker):
    """Of a node's children the m neighbours that are the rarest together, as they are and in order.

    A small MLP tells a token's rarity from its embedding. It is fitted to a corpus once, and has no gradient: what
    can learn is the base that reads excerpts. Up to K rows are taken for tokens, and any m of them that stand next to
    each other, masked rows left out, can be chosen; more are gists, of which one is chosen whole. Of equally rare ones
    the first; where less than m rows are real, all of them, and zeros behind.
    """

    def __init__(self, dim: int, block_size: int, vectors: int = 4, wide: int = 1024) -> None:
        """wide: channels of the MLP. ConfigError for settings that no such network has."""
        super().__init__(dim, block_size, vectors)
        if wide < 1:
            raise ConfigError(f"wide must be at least 1, got {wide}")
        self.enter, self.leave = nn.Linear(dim, wide), nn.Linear(wide, 1)
        self.requires_grad_(False)

    def rarity(self, x: Tensor) -> Tensor:
        """Embeddings [..., d] -> how rare their tokens are [...], in nats."""
        return self.leave(F.gelu(self.enter(clean(x, None)))).squeeze(-1)

    def make(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Vectors [B, m, d], which are rows of x; gradients reach those rows."""
        run, rows = self.vectors, x.shape[1]
        step = run if rows > self.block_size else 1
        real = None if mask is None else mask.sum(1, keepdim=True)
        if mask is not None:
            # Real rows first, so that those on both sides of a masked one are neighbours.
            order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
            x = without_masked(x, mask).gather(1, order[..., None].expand_as(x))
        # Whole precision under autocast too: a base has to be served the choices that it was trained with.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            rarity = (self.rarity(x.float()) * GRAINS).round().unfold(1, run, step).sum(-1)
            if real is not None:
                starts = torch.arange(0, rows - run + 1, step, device=x.device)
                rarity = rarity.masked_fill((starts > 0) & (starts + run > real), -torch.inf)
            first = rarity.argmax(1, keepdim=True) * step
        chosen = first + torch.arange(run, device=x.device)
        return x.gather(1, chosen[..., None].expand(-1, -1, self.dim))
