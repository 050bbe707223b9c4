"""Passages as tensors: all that a step of focus training needs of them, made on the host and away from the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from mc_core.context.working_context import WorkingContext
from mc_core.lab.training.focus.contexts import ContextKind, ContextShape, Passage, sample_context, view_of
from mc_core.lab.training.focus.view import View, ViewBatch, collate
from mc_core.models.rotary import Rotary
from mc_core.positions.policies import Policy


@dataclass(frozen=True, eq=False)
class GistSources:
    """Token ids that the gists of a batch are made of.

    ids: by level, lowest first, [g, K^level]; order [n]: where each node of the batch stands among those of all levels.
    """

    ids: dict[int, Tensor]
    order: Tensor


@dataclass(frozen=True, eq=False)
class FocusBatch:
    """B passages, each seen through one working context.

    neighbours [m, 2]: gists' vectors of one level that stand side by side, as indices of the batch's. blocks [n, K]:
    flat places in the batch whose targets are whole blocks of the future, and runs: how many of them each sample has
    that has any. full: the passages of ``fits`` [B] bool as the base sees them whole, None where that isn't asked for.
    """

    seen: ViewBatch
    sources: GistSources
    neighbours: Tensor
    blocks: Tensor
    runs: tuple[int, ...]
    full: ViewBatch | None
    fits: Tensor


@dataclass(frozen=True, eq=False)
class BatchMaker:
    """Samples working contexts and collates what they show. rotary: on the CPU; window: of the base, in tokens.

    whole: also see the passages whole, for the KL.
    """

    policy: Policy
    rotary: Rotary
    window: int
    block_size: int
    whole: bool

    def make(
        self, rng: Generator, passages: Sequence[Passage], kinds: Sequence[ContextKind], shapes: Sequence[ContextShape]
    ) -> tuple[FocusBatch, list[WorkingContext]]:
        """The passages through one working context each, of the given kind and shape; and those."""
        contexts = [sample_context(rng, *each) for each in zip(passages, kinds, shapes, strict=True)]
        views = [view_of(*each) for each in zip(passages, contexts, shapes, strict=True)]
        fits = [
            self.whole and len(p.ids) <= self.window and kind != "full" for p, kind in zip(passages, kinds, strict=True)
        ]
        whole = [
            view_of(passage, sample_context(rng, passage, "full", shape), shape)
            for passage, shape, fit in zip(passages, shapes, fits, strict=True)
            if fit
        ]
        full = collate(whole, self.policy, self.rotary) if whole else None
        return replace(self.shown(passages, views), full=full, fits=torch.tensor(fits)), contexts

    def shown(self, passages: Sequence[Passage], views: Sequence[View]) -> FocusBatch:
        """The passages as the views show them, and nothing else."""
        seen = collate(views, self.policy, self.rotary)
        blocks, runs = _future_blocks(views, seen, self.block_size)
        return FocusBatch(
            seen=seen,
            sources=gist_sources(passages, views, self.block_size),
            neighbours=_neighbours(views),
            blocks=blocks,
            runs=runs,
            full=None,
            fits=torch.zeros(len(views), dtype=torch.bool),
        )


def gist_sources(passages: Sequence[Passage], views: Sequence[View], block_size: int) -> GistSources:
    """What the gists that the views show are made of, in order of the views."""
    shown = [view.nodes for view in views]
    levels = np.concatenate([of for of, _ in shown])
    ids: dict[int, Tensor] = {}
    order, first = np.empty(len(levels), np.int64), 0
    for level in sorted(set(levels.tolist())):
        span = block_size**level
        rows = [
            passage.ids[node * span : (node + 1) * span]
            for passage, (of, nodes) in zip(passages, shown, strict=True)
            for node in nodes[of == level].tolist()
        ]
        ids[level] = torch.from_numpy(np.stack(rows).astype(np.int64))
        order[levels == level] = first + np.arange(len(rows))
        first += len(rows)
    return GistSources(ids, torch.from_numpy(order))


def _neighbours(views: Sequence[View]) -> Tensor:
    pairs, base = [np.empty(0, np.int64)], 0
    for view in views:
        ranks, levels, _ = view.gists
        pairs.append(np.flatnonzero((np.diff(ranks) == 1) & (levels[1:] == levels[:-1])) + base)
        base += len(ranks)
    first = torch.from_numpy(np.concatenate(pairs))
    return torch.stack([first, first + 1], dim=1)


def _future_blocks(views: Sequence[View], batch: ViewBatch, size: int) -> tuple[Tensor, tuple[int, ...]]:
    """Where the future begins at a block border: its whole blocks, those of one LOD2 node at most."""
    width, places, runs = batch.ids.shape[1], [torch.empty(0, size, dtype=torch.int64)], []
    for sample, view in enumerate(views):
        blocks = min(size, len(view.future) // size)
        if blocks and view.layout.ends[-1] % size == 0:
            columns = batch.future[sample].nonzero()[: blocks * size, 0]
            places.append((sample * width + columns).view(blocks, size))
            runs.append(blocks)
    return torch.cat(places), tuple(runs)
