"""What gists are worth: loss after a history that is shown whole, as gists, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from mc_core.lab.data.cache import Stream
from mc_core.lab.training.focus.contexts import ContextKind, ContextShape, sample_context, view_of
from mc_core.lab.training.focus.losses import mean_over
from mc_core.lab.training.focus.passages import cut
from mc_core.lab.training.focus.process import BatchProcessor

VIEWS: dict[str, ContextKind] = {"full": "full", "lod1": "lod1", "lod2": "coarse", "none": "coarse"}


@dataclass(frozen=True)
class GistWorth:
    """Mean NLL in nats of the horizon after a view: full (all raw), lod1 and lod2 (history as gists of that level),
    none (the first block and the tail alone).

    kept_lod1, kept_lod2: share of the context's gain that gists keep, (none - gists) / (none - full).
    """

    source: str
    samples: int
    full: float
    lod1: float
    lod2: float
    none: float

    @property
    def kept_lod1(self) -> float:
        return (self.none - self.lod1) / (self.none - self.full)

    @property
    def kept_lod2(self) -> float:
        return (self.none - self.lod2) / (self.none - self.full)


@torch.no_grad()
def gist_worth(
    processor: BatchProcessor,
    streams: Sequence[Stream],
    shape: ContextShape,
    *,
    history: int = 1856,
    horizon: int = 64,
    samples: int = 64,
    seed: int = 0,
    batch: int = 8,
) -> list[GistWorth]:
    """Measure each held-out stream that is long enough; ``history`` + ``horizon`` must fit the base's window."""
    found = []
    for stream in streams:
        if len(stream) <= history + horizon:
            continue
        sums: dict[str, float] = dict.fromkeys(("full", "lod1", "lod2", "none"), 0.0)
        for start in range(0, samples, batch):
            count = min(batch, samples - start)
            for name, value in _views_losses(processor, stream, shape, history, horizon, count, [seed, start]).items():
                sums[name] += value * count
        found.append(GistWorth(stream.name, samples, **{name: total / samples for name, total in sums.items()}))
    return found


def _views_losses(
    processor: BatchProcessor,
    stream: Stream,
    shape: ContextShape,
    history: int,
    horizon: int,
    count: int,
    seed: list[int],
) -> Mapping[str, float]:
    rng = np.random.default_rng(seed)
    passages = [cut(rng, stream, history, horizon) for _ in range(count)]
    trees, losses = processor.trees(passages), dict[str, float]()
    for name, kind in VIEWS.items():
        views = [view_of(p, sample_context(rng, p, kind, shape), shape, hidden_gists=name == "none") for p in passages]
        gists = processor.model.gists(trees, views)
        # What gists are worth is worth beside the base as it is without them.
        with nullcontext() if name.startswith("lod") else processor.model.stock():
            output = processor.model(views, gists)
        losses[name] = float(mean_over(output.losses(), output.future))
    return losses
