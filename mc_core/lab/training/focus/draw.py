"""Draws a run's batches: a function of (settings, seed, number) alone, so that any process may make any of them."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from mc_core.errors import ConfigError
from mc_core.lab.training.base.batches import Batch, make_batch, stage_of, thinned
from mc_core.lab.training.focus.batch import BatchMaker, FocusBatch
from mc_core.lab.training.focus.contexts import ContextKind, ContextShape, Passage, view_of
from mc_core.lab.training.focus.focus_training import FocusStage, FocusTrainConfig
from mc_core.lab.training.focus.passages import PassageMaker
from mc_core.lab.training.focus.served import ServedQuestions
from mc_core.lab.training.sample_maker import SampleMaker

HISTORY_WEIGHT = 0.5
"""Of history tokens in the base's own batches under the block mask, as in ``BaseTrainConfig``."""
TRIES = 20
"""Histories drawn until one has a question whose gold has room in the budget."""


class FocusBatches:
    """What each step learns from; holds nothing of the model but its shape."""

    def __init__(
        self,
        config: FocusTrainConfig,
        samples: SampleMaker,
        maker: BatchMaker,
        segment_blocks: int | None,
        served: ServedQuestions | None = None,
    ) -> None:
        """segment_blocks: of the block mask that the base is served with, None = the full mask. served: needed where a
        stage has such batches."""
        self.config, self.samples, self.maker, self.segment_blocks = config, samples, maker, segment_blocks
        self.served = served
        self.passages = PassageMaker(samples, config.block_size)

    def batch(self, number: int) -> Batch | FocusBatch:
        """The batch of that number; each step has ``accumulate`` of them. On the CPU."""
        config = self.config
        step, part = divmod(number, config.accumulate)
        rng = np.random.default_rng([config.seed, step, part])
        if config.mode == "joint" and rng.random() < config.base_share:
            return self._base(rng, step)
        return self._focus(rng, stage_of(config.stages, step, config.steps))

    def _base(self, rng: Generator, step: int) -> Batch:
        config = self.config
        shares = np.array([stage.share for stage in config.base_stages])
        stage = config.base_stages[int(rng.choice(len(shares), p=shares / shares.sum()))]
        seed = int(rng.integers(2**31))
        batch = make_batch(self.samples, stage, config.batch_tokens, HISTORY_WEIGHT, seed, step)
        return thinned(batch, rng, config.text_share)

    def _focus(self, rng: Generator, stage: FocusStage) -> FocusBatch:
        if stage.served and rng.random() < stage.served:
            return self._served(rng, stage)
        names = list(stage.kinds)
        shares = np.array([stage.kinds[name] for name in names])
        passages, kinds, shapes = [], list[ContextKind](), []
        for _ in range(stage.views):
            kind: ContextKind = names[int(rng.choice(len(names), p=shares / shares.sum()))]  # type: ignore[assignment]
            passage, shape = self._passage(rng, stage, kind)
            passages.append(passage)
            kinds.append(kind)
            shapes.append(shape)
        return self.maker.make(rng, passages, kinds, shapes)[0]

    def _served(self, rng: Generator, stage: FocusStage) -> FocusBatch:
        assert self.served is not None
        for _ in range(TRIES):
            tokens, budget = self._history(rng, stage), self._budget(rng, stage)
            seen = self.served.draw(rng, tokens, budget, stage.asked, stage.views, stage.turns)
            if seen:
                break
        else:
            raise ConfigError(f"served: what was asked for had no room in any of {TRIES} histories; raise budget")
        config = self.config
        shape = ContextShape(0, config.recent_tokens, config.block_size, self.segment_blocks, config.gist.vectors)
        hidden = self.served.bundle.hidden_gists
        views = [view_of(each.passage, each.context, shape, hidden_gists=hidden) for each in seen]
        return self.maker.shown([each.passage for each in seen], views)

    def _history(self, rng: Generator, stage: FocusStage) -> int:
        """Log-uniform: as many short histories as long ones."""
        low, high = stage.history
        return int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))

    def _budget(self, rng: Generator, stage: FocusStage) -> int:
        return min(int(rng.integers(stage.budget[0], stage.budget[1] + 1)), self.maker.window - stage.horizon)

    def _passage(self, rng: Generator, stage: FocusStage, kind: ContextKind) -> tuple[Passage, ContextShape]:
        config, window = self.config, self.maker.window
        history, budget = self._history(rng, stage), self._budget(rng, stage)
        if kind == "full":
            history = min(history, budget - config.block_size)
        vectors = config.gist.vectors
        shape = ContextShape(budget, config.recent_tokens, config.block_size, self.segment_blocks, vectors)
        if stage.rebuild and rng.random() < stage.rebuild:
            return self.passages.rebuild(rng, history, config.recent_tokens), shape
        if rng.random() < stage.memory:
            passage = self.passages.memory(rng, history, gisted=stage.gisted)
            if kind != "full" or len(passage.ids) <= window:
                return passage, shape
        if rng.random() < 0.5:
            history -= history % config.block_size
        return self.passages.text(rng, history, stage.horizon), shape
