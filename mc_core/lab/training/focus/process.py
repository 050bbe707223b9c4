"""``process_batch``: from token ids to trees, working contexts and losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from mc_core.context.working_context import WorkingContext
from mc_core.lab.training.device import on_device
from mc_core.lab.training.focus.batch import BatchMaker, FocusBatch
from mc_core.lab.training.focus.contexts import ContextKind, ContextShape, Passage
from mc_core.lab.training.focus.focus_training import LossWeights
from mc_core.lab.training.focus.losses import kl_to_full, mean_over, separation
from mc_core.lab.training.focus.model import FocusModel, ViewOutput
from mc_core.lab.training.haystack import VALUE_WEIGHT
from mc_core.lab.training.tree_builder import TreeBuilder
from mc_core.models.rotary import Rotary, Rotation
from mc_core.tree.tree import MegaContextTree, TreeConfig


@dataclass(frozen=True, eq=False)
class FocusLosses:
    """Losses of a batch, each a scalar with a gradient; ``total`` is their weighted sum.

    token: weighted mean NLL of the tail and of the horizon; horizon, answer: that of the horizon of plain text, and of
    the values in answers, without a gradient; all in nats a token. positional_caches: rotations [B, T, D / 2], each
    sample's own. embeddings: cached input embeddings [N, d] of each sample's history, to be used again, and the
    contexts that it was seen through: as ``BatchProcessor.process`` gives them.
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
    embeddings: list[Tensor] = field(default_factory=list)
    contexts: list[WorkingContext] = field(default_factory=list)

    def figures(self) -> dict[str, Tensor]:
        """For the log."""
        names = ("token", "horizon", "answer", "kl", "lod1", "lod2", "separation")
        return {name: getattr(self, name).detach() for name in names}


class BatchProcessor:
    """Builds trees and working contexts for passages, and measures what the model makes of them."""

    def __init__(self, model: FocusModel, weights: LossWeights) -> None:
        self.model, self.weights = model, weights
        config = TreeConfig(model.gistnet.block_size, device=str(model.decoder.device))
        self.builder = TreeBuilder(
            lambda: MegaContextTree(config, model.gistnet, lambda ids: model.decoder.embed(ids).float())
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
        batch, contexts = self.maker().make(rng, passages, kinds, shapes)
        device = self.model.decoder.device
        histories = [torch.from_numpy(p.ids[: p.history].astype(np.int64)).to(device) for p in passages]
        with torch.no_grad():
            embeddings = [self.model.decoder.embed(ids).float() for ids in histories]
        return replace(self.losses(on_device(batch, device)), embeddings=embeddings, contexts=contexts)

    def maker(self) -> BatchMaker:
        """Makes this model's batches; needs neither the model nor its device."""
        model, config = self.model, self.model.decoder.config
        window, whole = config.max_position_embeddings, self.weights.kl > 0
        return BatchMaker(model.policy, Rotary(config), window, model.gistnet.block_size, whole)

    def losses(self, batch: FocusBatch) -> FocusLosses:
        """Losses of a batch that is on the model's device."""
        gists = self.model.made(batch.sources)
        output = self.model.read(batch.seen, gists, tail=self.weights.token > 0)
        losses = output.losses()
        nothing = output.logits.sum() * 0
        token = (losses * output.weights).sum() / output.weights.sum().clamp_min(1e-6)
        weights = self.weights
        kl = self._kl(output, batch) if weights.kl and batch.full is not None else nothing
        regress = weights.lod1 or weights.lod2
        lod1, lod2 = self.model.regression(output, batch.blocks, batch.runs) if regress else (nothing, nothing)
        apart = separation(gists, batch.neighbours) if weights.separation else nothing
        total = weights.token * token + weights.kl * kl
        total = total + weights.lod1 * lod1 + weights.lod2 * lod2 + weights.separation * apart
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
        )

    def _kl(self, output: ViewOutput, batch: FocusBatch) -> Tensor:
        """KL to the full view on the horizon, of those passages that the base can see whole."""
        assert batch.full is not None
        chosen = batch.fits[output.where.nonzero()[:, 0]] & output.future
        with torch.no_grad(), self.model.stock():
            full = self.model.read(batch.full, output.logits.new_empty(0, self.model.gistnet.dim), tail=False)
        return kl_to_full(output.logits[chosen], full.logits, torch.ones_like(full.future))
