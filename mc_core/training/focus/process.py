"""``process_batch``: from token ids to trees, working contexts and losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from mc_core.context.working_context import WorkingContext
from mc_core.positions.rotary import Rotation
from mc_core.training.focus.config import LossWeights
from mc_core.training.focus.contexts import ContextKind, ContextShape, Passage, sample_context, view_of
from mc_core.training.focus.losses import kl_to_full, mean_over
from mc_core.training.focus.model import FocusModel, ViewOutput
from mc_core.training.focus.view import View
from mc_core.training.haystack import VALUE_WEIGHT
from mc_core.tree.builder import TreeBuilder
from mc_core.tree.tree import MegaContextTree, TreeConfig


@dataclass(frozen=True, eq=False)
class FocusLosses:
    """Losses of a batch, each a scalar with a gradient; ``total`` is their weighted sum.

    token: weighted mean NLL of the tail and of the horizon; horizon, answer: that of the horizon of plain text, and of
    the values in answers, without a gradient; all in nats a token. positional_caches: rotations [B, T, D / 2], each
    sample's own. embeddings: the trees' cached input embeddings [N, d] of each sample, to be used again.
    """

    token: Tensor
    horizon: Tensor
    answer: Tensor
    kl: Tensor
    lod1: Tensor
    lod2: Tensor
    separation: Tensor
    total: Tensor
    positional_caches: Rotation
    embeddings: list[Tensor]
    contexts: list[WorkingContext]

    def figures(self) -> dict[str, Tensor]:
        """For the log."""
        names = ("token", "horizon", "answer", "kl", "lod1", "lod2", "separation")
        return {name: getattr(self, name).detach() for name in names}


class BatchProcessor:
    """Builds trees and working contexts for passages, and measures what the model makes of them."""

    def __init__(self, model: FocusModel, weights: LossWeights, *, build_workers: int = 1) -> None:
        self.model, self.weights = model, weights
        config = TreeConfig(model.gistnet.block_size, cache_lod0=True, device=str(model.decoder.device))
        self.builder = TreeBuilder(
            lambda: MegaContextTree(config, model.gistnet, lambda ids: model.decoder.embed(ids).float()), build_workers
        )

    def trees(self, passages: Sequence[Passage]) -> list[MegaContextTree]:
        """A tree a passage's history, built without gradients by the present GistNet."""
        training = self.model.gistnet.training
        self.model.gistnet.eval()
        try:
            return self.builder.build([passage.ids[: passage.history].astype(np.int32) for passage in passages])
        finally:
            self.model.gistnet.train(training)

    def process(
        self, rng: Generator, passages: Sequence[Passage], kinds: Sequence[ContextKind], shapes: Sequence[ContextShape]
    ) -> FocusLosses:
        """Losses of the passages, each seen through one working context of the given kind and shape."""
        trees = self.trees(passages)
        contexts = [sample_context(rng, *each) for each in zip(passages, kinds, shapes, strict=True)]
        views = [view_of(*each) for each in zip(passages, contexts, shapes, strict=True)]
        gists = self.model.gists(trees, views)
        output = self.model(views, gists)
        losses = output.losses()
        nothing = output.logits.sum() * 0
        token = (losses * output.weights).sum() / output.weights.sum().clamp_min(1e-6)
        weights = self.weights
        kl = self._kl(rng, output, passages, kinds, shapes) if weights.kl else nothing
        lod1, lod2 = self.model.regression(output, views) if weights.lod1 or weights.lod2 else (nothing, nothing)
        apart = self.model.separation(views, gists) if weights.separation else nothing
        total = token + weights.kl * kl + weights.lod1 * lod1 + weights.lod2 * lod2 + weights.separation * apart
        return FocusLosses(
            token=token,
            horizon=mean_over(losses.detach(), output.future & (output.weights == 1)),
            answer=mean_over(losses.detach(), output.future & (output.weights >= VALUE_WEIGHT)),
            kl=kl,
            lod1=lod1,
            lod2=lod2,
            separation=apart,
            total=total,
            positional_caches=output.batch.place,
            embeddings=[tree.embeddings(0, tree.num_tokens) for tree in trees],
            contexts=contexts,
        )

    def _kl(
        self,
        rng: Generator,
        output: ViewOutput,
        passages: Sequence[Passage],
        kinds: Sequence[ContextKind],
        shapes: Sequence[ContextShape],
    ) -> Tensor:
        """KL to the full view on the horizon, of those passages that the base can see whole."""
        window = self.model.decoder.config.max_position_embeddings
        fits = [len(p.ids) <= window and kind != "full" for p, kind in zip(passages, kinds, strict=True)]
        where = output.where.nonzero()[:, 0]
        chosen = torch.tensor(fits, device=where.device)[where] & output.future
        if not any(fits):
            return output.logits.sum() * 0
        views: list[View] = []
        for passage, shape, fit in zip(passages, shapes, fits, strict=True):
            if fit:
                views.append(view_of(passage, sample_context(rng, passage, "full", shape), shape))
        with torch.no_grad():
            full = self.model(views, output.logits.new_empty(0, self.model.gistnet.dim))
        return kl_to_full(output.logits[chosen], full.logits[full.future], torch.ones_like(full.future[full.future]))
