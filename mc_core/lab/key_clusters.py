"""What gists would be that are no input embeddings: keys and values of blocks that the base has read, a few a head.

The keys of a block are put into m clusters, each head's by itself; a cluster has the mean of its keys, turned to the
block's centre, the mean of its values, and the attention of as many keys as it holds: log n is added to its score
(Bolya et al. 2022, https://arxiv.org/abs/2210.09461, section 3, proportional attention; merging keys and values of
neighbours: Wang et al. 2024, https://arxiv.org/abs/2407.08454).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.models.attention import Attention, attend
from mc_core.models.rotary import Rotary, Rotation, rotate

STEPS = 4
"""Of k-means (Lloyd); more change little with 32 keys."""


class ClusteredPast:
    """``inner`` for all units but those from ``start`` on: these see block 0, clusters of the blocks up to ``start``,
    and each other. For sequences of one length, whose units stand where the tokens do."""

    def __init__(
        self, inner: Attention, place: Rotation, rotary: Rotary, *, block_size: int, start: int, clusters: int
    ) -> None:
        """place [B, T, D/2]: of each unit. start: a border of blocks, behind the second block at least."""
        self.inner, self.place, self.block_size, self.start = inner, place, block_size, start
        self.clusters = clusters
        blocks = torch.arange(1, start // block_size, device=rotary.inv_freq.device)
        centres = block_size * blocks.repeat_interleave(clusters).double() + (block_size - 1) / 2
        self.gists = rotary.table(centres[None])

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first, start, length = self.block_size, self.start, q.shape[1] - self.start
        batch, _, kv_heads, dim = k.shape
        keys, values, mass = clustered(self._blocks(k), self._blocks(v), self.clusters)
        keys, values = (x.transpose(1, 2).reshape(batch, -1, kv_heads, dim) for x in (keys, values))
        placed = rotate(k, self.place)
        seen_keys = torch.cat([placed[:, :first], rotate(keys, self.gists), placed[:, start:]], dim=1)
        seen_values = torch.cat([v[:, :first], values, v[:, start:]], dim=1)
        mass = mass.view(batch, -1, kv_heads, self.clusters).transpose(1, 2).flatten(2)  # [B, kv_heads, blocks m]
        mask = F.pad(mass, (first, length)).repeat_interleave(q.shape[2] // kv_heads, dim=1)[:, :, None]
        mask = mask.repeat(1, 1, length, 1)
        later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        mask[..., -length:].masked_fill_(later, -torch.inf)
        queries = rotate(q[:, start:], (self.place[0][:, start:], self.place[1][:, start:]))
        seen = attend(queries, seen_keys, seen_values, mask)
        return torch.cat([self.inner(layer, q, k, v)[:, :start], seen], dim=1)

    def _blocks(self, x: Tensor) -> Tensor:
        """[B, T, heads, D] -> of the blocks between [B n, heads, K, D]."""
        return x[:, self.block_size : self.start].reshape(-1, self.block_size, *x.shape[2:]).transpose(1, 2)


def clustered(keys: Tensor, values: Tensor, clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clusters of the keys of blocks, each head's by itself.

    keys, values [n, heads, K, d] -> means of both [n, heads, m, d], and log of how many each holds [n, heads, m], -inf
    for a cluster that is empty. Centres begin as the keys that are farthest from each other, so that a key unlike all
    others stays by itself, and blocks of at most m different keys lose nothing.
    """
    centres = keys[:, :, :1]
    for _ in range(clusters - 1):
        nearest = torch.cdist(keys, centres).amin(-1, keepdim=True)
        farthest = nearest.argmax(2, keepdim=True).expand(*keys.shape[:2], 1, keys.shape[-1])
        centres = torch.cat([centres, keys.gather(2, farthest)], dim=2)
    for _ in range(STEPS):
        own = F.one_hot(torch.cdist(keys, centres).argmin(-1), clusters).transpose(2, 3).to(keys.dtype)
        size = own.sum(-1, keepdim=True)
        centres = torch.where(size > 0, own @ keys / size.clamp_min(1), centres)
    return centres, own @ values / size.clamp_min(1), size.squeeze(-1).log()
