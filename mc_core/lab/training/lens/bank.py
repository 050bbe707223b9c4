"""Blocks of real text with their keys, and the ones among them that are taken for what was asked."""

from __future__ import annotations

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from mc_core.lab.training.haystack import Haystack
from mc_core.lab.training.lens.keys import KeyModel
from mc_core.lab.training.lens.samples import random_blocks

LOUD_TOKENS = 4
"""Query tokens of a tail that are compared with the bank: the ones of most weight, which the best score comes from."""
HARDEST = 4


class Bank:
    """A ring of blocks whose keys are at most size / fresh steps old; part of a run's state."""

    def __init__(self, model: KeyModel, maker: Haystack, size: int, fresh: int, block_size: int) -> None:
        """fresh: blocks replaced each step."""
        self.model, self.maker, self.fresh = model, maker, min(fresh, size)
        config, device = model.net.config, model.device
        self.blocks = torch.zeros(size, block_size, dtype=torch.int64, device=device)
        self.keys = torch.zeros(size, config.keys, config.key_dim, device=device)
        self.state = torch.zeros(2, dtype=torch.int64)  # where to write next, and how many are filled

    def refresh(self, rng: Generator) -> None:
        """Replace the oldest blocks; all of them the first time."""
        at, filled = self.state.tolist()
        count = self.fresh if filled else len(self.blocks)
        new = torch.from_numpy(random_blocks(rng, self.maker, count, self.blocks.shape[1]).astype(np.int64))
        rows = (at + torch.arange(count)) % len(self.blocks)
        new, rows = new.to(self.blocks.device), rows.to(self.blocks.device)
        with torch.no_grad():
            self.blocks[rows], self.keys[rows] = new, self.model.keys(new)
        self.state[:] = torch.tensor([(at + count) % len(self.blocks), len(self.blocks)])

    @torch.no_grad()
    def hardest(self, queries: Tensor, most: int) -> Tensor:
        """Blocks [<= most, K] that score best for any of the queries [Q, t, D]; those that many find come first."""
        count = min(LOUD_TOKENS, queries.shape[1])
        loud = queries.norm(dim=-1).topk(count, dim=1).indices
        chosen = queries.gather(1, loud[..., None].expand(-1, -1, queries.shape[-1])).flatten(0, 1)
        products = self.keys.flatten(0, 1) @ chosen.T
        scores = products.view(*self.keys.shape[:2], -1, count).amax(dim=(1, 3))
        found = scores.topk(min(HARDEST, len(scores)), dim=0).indices.flatten()
        rows, times = torch.unique(found, return_counts=True)
        return self.blocks[rows[times.argsort(descending=True, stable=True)[:most]]]

    def tensors(self) -> dict[str, Tensor]:
        """State of the bank; live tensors."""
        return {"bank.blocks": self.blocks, "bank.keys": self.keys, "bank.state": self.state}
