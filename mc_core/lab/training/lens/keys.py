"""The lens' keys and queries in training: from token ids, and the loss of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mc_core.lab.training.lens.batch import LensBatch
from mc_core.lab.training.lens.losses import contrastive, soft_products
from mc_core.nets.lensnet import LensNet

Embed = Callable[[Tensor], Tensor]


class KeyModel:
    """Key and query networks over a frozen base's input embeddings."""

    def __init__(self, net: LensNet, embed: Embed) -> None:
        """embed: ids [...] -> [..., d], float32, without gradient."""
        assert net.key_net is not None
        assert net.query_net is not None
        self.key_net, self.query_net = net.key_net, net.query_net
        self.net, self.embed = net, embed

    @property
    def device(self) -> torch.device:
        return self.net.rest.device

    def keys(self, blocks: Tensor) -> Tensor:
        """blocks [n, K] ids -> keys [n, S, D]."""
        keys: Tensor = self.key_net(self.embed(blocks), None)
        return keys

    def queries(self, tails: Tensor, mask: Tensor) -> Tensor:
        """tails [Q, t] ids, mask [Q, t] -> queries [Q, q, D]."""
        queries: Tensor = self.query_net(self.embed(tails), mask)
        return queries

    def losses(self, batch: LensBatch, queries: Tensor, temperature: float, softness: float) -> dict[str, Tensor]:
        """Contrastive loss by kind of row; queries [Q, q, D] of the batch's tails. softness: of ``soft_products``."""
        scores = soft_products(queries, self.keys(batch.blocks), softness)[batch.query]
        return {
            kind: contrastive(scores[rows], batch.positive[rows], batch.negative[rows], temperature)
            for number, kind in enumerate(batch.kinds)
            if len(rows := (batch.kind == number).nonzero()[:, 0])
        }


def with_wrong(batch: LensBatch, blocks: Tensor) -> LensBatch:
    """The batch with blocks [m, K] that hold nothing of what any row looks for."""
    none = batch.positive.new_zeros(len(batch.query), len(blocks))
    return replace(
        batch,
        blocks=torch.cat([batch.blocks, blocks]),
        positive=torch.cat([batch.positive, none], dim=1),
        negative=torch.cat([batch.negative, ~none], dim=1),
    )
