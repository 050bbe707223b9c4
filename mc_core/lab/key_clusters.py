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


class Recorded:
    """``inner``, and the keys and values [B, T, kv_heads, D], un-rotated, that each layer gave it."""

    def __init__(self, inner: Attention) -> None:
        self.inner = inner
        self.layers: list[tuple[Tensor, Tensor]] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.layers.append((k, v))
        return self.inner(layer, q, k, v)


class ClusteredPast:
    """What the units from ``start`` on see where the others were read before: block 0, clusters of the blocks up to
    ``start``, and each other. For sequences of one length, whose units stand where the tokens do."""

    def __init__(
        self, read: Recorded, place: Rotation, rotary: Rotary, *, block_size: int, start: int, clusters: int
    ) -> None:
        """place [B, T, D/2]: of each unit. start: a border of blocks, behind the second block at least."""
        self.read, self.block_size, self.start, self.clusters = read, block_size, start, clusters
        self.first, self.place = ((place[0][:, at], place[1][:, at]) for at in (slice(block_size), slice(start, None)))
        blocks = torch.arange(1, start // block_size, device=rotary.inv_freq.device)
        centres = block_size * blocks.repeat_interleave(clusters).double() + (block_size - 1) / 2
        self.gists = rotary.table(centres[None])

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v of the units from ``start`` on, as their attention."""
        first, length = self.block_size, q.shape[1]
        batch, _, kv_heads, dim = k.shape
        past_keys, past_values = self.read.layers[layer]
        keys, values, mass = clustered(self._blocks(past_keys), self._blocks(past_values), self.clusters)
        keys, values = (x.transpose(1, 2).reshape(batch, -1, kv_heads, dim) for x in (keys, values))
        opening = rotate(past_keys[:, :first], self.first)
        seen_keys = torch.cat([opening, rotate(keys, self.gists), rotate(k, self.place)], dim=1)
        seen_values = torch.cat([past_values[:, :first], values, v], dim=1)
        mass = mass.view(batch, -1, kv_heads, self.clusters).transpose(1, 2).flatten(2)  # [B, kv_heads, blocks m]
        mask = F.pad(mass, (first, length)).repeat_interleave(q.shape[2] // kv_heads, dim=1)[:, :, None]
        mask = mask.repeat(1, 1, length, 1)
        later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        mask[..., -length:].masked_fill_(later, -torch.inf)
        return attend(rotate(q, self.place), seen_keys, seen_values, mask)

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
