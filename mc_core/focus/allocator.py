"""Allocators by name. Two explore: by a softmax over the best wishes, and by what earlier ones turned out to be worth.

Random numbers depend on the seed and the number of the plan alone, so a session that comes back goes on alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mc_core.context.working_context import WorkingContext
from mc_core.focus.allocator_base import Allocator, Wish
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.tuning import FADE, PRIOR
from mc_core.focus.view import Scores


class StochasticGreedyAllocator(Allocator):
    """Ranks the ``top_k`` best wishes by draws from the softmax of utility / temperature, without putting back."""

    kind = "stochastic_greedy"

    def _begin(self, wc: WorkingContext, scores: Scores) -> None:
        self._random = np.random.default_rng([self.config.seed, self.plans])

    def _ranked(self, wishes: list[Wish]) -> list[Wish]:
        ranked = super()._ranked(wishes)
        top = ranked[: self.config.top_k]
        # Sorting by utility / T + Gumbel noise is drawing from the softmax without putting back.
        noisy = np.array([wish.utility for wish in top]) / self.config.temperature + self._random.gumbel(size=len(top))
        return [top[i] for i in np.argsort(-noisy).tolist()] + ranked[len(top) :]


class BanditAllocator(Allocator):
    """Thompson sampling: ranks wishes by draws from what is believed of their worth.

    An arm is a kind of wish (target or entry, and the level that covers it). Its reward, one refocus later, is the
    harm that the lens then sees in collapsing what was opened. The belief in a wish is a Beta distribution: its
    utility counts for PRIOR observations, its arm's rewards for as many as there were.
    """

    kind = "bandit"

    def __init__(self, config: FocusConfig) -> None:
        super().__init__(config)
        self._arms: dict[str, tuple[float, float]] = {}
        self._opened: list[tuple[str, int, int]] = []

    def snapshot(self) -> dict[str, Any]:
        arms = {arm: list(evidence) for arm, evidence in self._arms.items()}
        return super().snapshot() | {"arms": arms, "opened": [list(entry) for entry in self._opened]}

    def restore(self, snapshot: Mapping[str, Any]) -> bool:
        if not super().restore(snapshot):
            return False
        self._arms = {arm: (float(good), float(bad)) for arm, (good, bad) in snapshot["arms"].items()}
        self._opened = [(str(arm), int(start), int(end)) for arm, start, end in snapshot["opened"]]
        return True

    def _begin(self, wc: WorkingContext, scores: Scores) -> None:
        self._random = np.random.default_rng([self.config.seed, self.plans])
        starts = wc.starts()
        for arm, start, end in self._opened:
            first, last = np.searchsorted(starts, [start, end])
            if first == last:  # collapsed into something coarser meanwhile, or rewound
                continue
            reward = float(np.clip(scores.harm[first:last].max(), 0.0, 1.0))
            good, bad = self._arms.get(arm, (0.0, 0.0))
            self._arms[arm] = (FADE * good + reward, FADE * bad + 1.0 - reward)
        self._opened = []

    def _ranked(self, wishes: list[Wish]) -> list[Wish]:
        if not wishes:
            return []
        utility = np.clip([wish.utility for wish in wishes], 0.0, 1.0)
        evidence = np.array([self._arms.get(_arm(wish), (0.0, 0.0)) for wish in wishes])
        belief = self._random.beta(1 + PRIOR * utility + evidence[:, 0], 1 + PRIOR * (1 - utility) + evidence[:, 1])
        return [wishes[i] for i in np.argsort(-belief).tolist()]

    def _remember(self, wc: WorkingContext, granted: list[Wish]) -> None:
        starts, ends = wc.starts(), wc.ends()
        for wish in granted:
            if wish.block is None:
                span = (int(starts[wish.row]), int(ends[wish.row]))
            else:
                span = (wish.block * wc.block_size, (wish.block + 1) * wc.block_size)
            self._opened.append((_arm(wish), *span))


def _arm(wish: Wish) -> str:
    return f"{'entry' if wish.block is None else 'target'}:{wish.level}"


KINDS: dict[str, type[Allocator]] = {
    kind.kind: kind for kind in (Allocator, StochasticGreedyAllocator, BanditAllocator)
}


def make_allocator(config: FocusConfig) -> Allocator:
    """The allocator that ``config.allocator`` names; it serves one session."""
    return KINDS[config.allocator](config)
