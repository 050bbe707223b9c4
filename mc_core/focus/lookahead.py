"""Look-ahead: the tail's queries against the lens keys of all LOD1 nodes, so that no fact is too deep to be found.

A node's score is the maximum over queries and over its sub-keys of their dot product. Up to ``flat_nodes`` every node
is scored: one matrix product, in chunks. Beyond that the search goes by level: a group of nodes is bounded from
above by the box around its keys (Quest, Tang et al. 2024), and groups are opened best bound first until no bound
exceeds what was found, or ``flat_nodes`` nodes were scored: so time stays flat, and the result is exact if the first
happens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.focus.targets import apart
from mc_core.focus.tuning import APART, CERTAIN, CROWD

PRODUCTS = 1 << 22
"""Dot products held at a time (16 MiB in float32)."""
GROUPS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Found:
    """nodes [m] int64 and their scores [m], best first; mean and deviation over all nodes that were scored."""

    nodes: Tensor
    scores: Tensor
    mean: Tensor
    deviation: Tensor
    scored: int

    def deviations(self) -> Tensor:
        """How many deviations each score stands above the mean [m]."""
        return (self.scores - self.mean) / self.deviation.clamp_min(1e-6)


def standing(deviations: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far scores stand out from the rest, 0 (average or below) to 1 [m]."""
    return np.tanh(np.square(deviations.clip(0) / CERTAIN)).astype(np.float32)


def distinct(nodes: NDArray[np.int64], deviations: NDArray[np.float32]) -> float:
    """How far the best hit stands out from the next best, 0 (one of a crowd) to 1; hits best first.

    Nodes next to a better hit are the same hit.
    """
    hits = deviations[apart(nodes, CROWD, 2)]
    if len(hits) < 2:
        return 0.0
    return float(np.clip((hits[0] / max(hits[-1], 1e-6) - 1) / APART, 0, 1))


def node_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Best dot product of any query [q, D] with any sub-key of each node, keys [n, S, D] -> [n] float32."""
    count, subkeys, dim = keys.shape
    step = max(1, PRODUCTS // max(1, subkeys * len(queries)))
    turned = queries.float().T
    parts = [
        (keys[at : at + step].reshape(-1, dim).float() @ turned).amax(1).view(-1, subkeys).amax(1)
        for at in range(0, count, step)
    ]
    return torch.cat(parts) if parts else keys.new_empty(0, dtype=torch.float32)


class LookAhead:
    """Search over the lens keys of one growing history. Holds nothing but the boxes of complete groups of nodes."""

    def __init__(self, fanout: int = 32, flat_nodes: int = 327_680) -> None:
        """fanout: nodes in a group; flat_nodes: nodes scored at most (10 M tokens at K = 32)."""
        if fanout < 2:
            raise ConfigError(f"fanout must be at least 2, got {fanout}")
        if flat_nodes < 1:
            raise ConfigError(f"flat_nodes must be at least 1, got {flat_nodes}")
        self.fanout, self.flat_nodes = fanout, flat_nodes
        self._boxes: Tensor | None = None  # [low and high, groups, D]
        self._groups = 0

    def rewind(self, num_nodes: int) -> None:
        """Forget the boxes of groups that reach beyond the first ``num_nodes`` nodes."""
        self._groups = min(self._groups, num_nodes // self.fanout)

    def search(self, queries: Tensor, keys: Tensor, k: int) -> Found:
        """The k best nodes: queries [q, D], keys [n, S, D] of all nodes in order, the same device."""
        if not len(keys) or not len(queries):
            nothing = torch.zeros(1, device=keys.device)
            return Found(torch.empty(0, dtype=torch.int64, device=keys.device), nothing[:0], nothing[0], nothing[0], 0)
        if len(keys) <= self.flat_nodes:
            nodes = torch.arange(len(keys), device=keys.device)
            return best_of(nodes, node_scores(queries, keys), k)
        return self._by_level(queries, keys, k)

    def _by_level(self, queries: Tensor, keys: Tensor, k: int) -> Found:
        low, high = self._cover(keys)
        positive, negative = queries.float().clamp_min(0).T, queries.float().clamp_max(0).T
        bounds, order = (high @ positive + low @ negative).amax(1).sort(descending=True)
        # The newest nodes, not yet a whole group, are always scored.
        nodes = torch.arange(self._groups * self.fanout, len(keys), device=keys.device)
        scores = node_scores(queries, keys[self._groups * self.fanout :])
        within = torch.arange(self.fanout, device=keys.device)
        for at in range(0, len(order), GROUPS_AT_ONCE):
            if len(nodes) >= self.flat_nodes or (len(scores) >= k and bounds[at] <= scores.topk(k).values[-1]):
                break
            opened = (order[at : at + GROUPS_AT_ONCE, None] * self.fanout + within).reshape(-1)
            nodes = torch.cat([nodes, opened])
            scores = torch.cat([scores, node_scores(queries, keys[opened])])
        return best_of(nodes, scores, k)

    def _cover(self, keys: Tensor) -> Tensor:
        """Boxes of all complete groups [2, groups, D]; those completed since the last search are computed now."""
        groups = len(keys) // self.fanout
        if self._boxes is None or self._boxes.shape[1] < groups:
            grown = torch.empty(2, 2 * groups, keys.shape[-1], device=keys.device)
            if self._boxes is not None:
                grown[:, : self._groups] = self._boxes[:, : self._groups]
            self._boxes = grown
        while self._groups < groups:
            end = min(groups, self._groups + GROUPS_AT_ONCE)
            part = keys[self._groups * self.fanout : end * self.fanout].float()
            part = part.reshape(end - self._groups, -1, keys.shape[-1])
            self._boxes[:, self._groups : end] = torch.stack(part.aminmax(dim=1))
            self._groups = end
        return self._boxes[:, :groups]


def best_of(nodes: Tensor, scores: Tensor, k: int) -> Found:
    """The k best of nodes [n] by scores [n]; of nothing, nothing."""
    if not len(scores):
        nothing = torch.zeros(1, device=scores.device)
        return Found(nodes, scores, nothing[0], nothing[0], 0)
    top = scores.topk(min(k, len(scores)))
    return Found(nodes[top.indices], top.values, scores.mean(), scores.std(correction=0), len(scores))
