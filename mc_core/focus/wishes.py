"""What a refocus would like to open, and what that is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mc_core.context.working_context import WorkingContext
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.scores import Scores

MOST_ENTRIES = 64
"""Entries wished for by their own gain, at most: a refocus makes only a few such edits."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Open what the entry of ``row`` covers: down to ``block``, or one level if there is none.

    utility: its worth less the price of repair. place: targets that lie side by side share one.
    """

    utility: float
    row: int
    level: int
    place: int
    block: int | None = None


def wishes_of(wc: WorkingContext, scores: Scores, rows: NDArray[np.int64], config: FocusConfig) -> list[Wish]:
    """Targets that do not stand raw, and entries of positive gain that cover no target; thresholds are not applied.

    rows: of the entries that cover the targets [m].
    """
    price = _price(wc, config)
    places = _places(scores.targets)
    utility = scores.target_scores - price[rows]
    levels = wc.levels[rows]
    hidden = np.flatnonzero(levels > 0)
    columns = (utility, rows, levels, places, scores.targets)
    targets = [Wish(*wish) for wish in zip(*(column[hidden].tolist() for column in columns), strict=True)]
    return targets + _entry_wishes(wc, scores.gain - price, rows, int(places.max(initial=-1)) + 1)


def _entry_wishes(
    wc: WorkingContext, utility: NDArray[np.float32], covered: NDArray[np.int64], place: int
) -> list[Wish]:
    # Where gists cost nothing, those above LOD1 stand as coarse as raw blocks allow.
    may_open = wc.levels > 0 if wc.gist_cost else wc.levels == 1
    free = (utility > 0) & may_open & (wc.cooldown >= 0)
    free[covered] = False
    rows = np.flatnonzero(free)
    rows = rows[np.argsort(-utility[rows], kind="stable")][:MOST_ENTRIES]
    columns = (utility[rows], rows, wc.levels[rows], np.arange(place, place + len(rows)))
    return [Wish(*wish) for wish in zip(*(column.tolist() for column in columns), strict=True)]


def _price(wc: WorkingContext, config: FocusConfig) -> NDArray[np.float32]:
    """What an edit at each entry costs in repair: ``repair_price`` times the share of the budget behind it [n]."""
    if not config.repair_price:
        return np.zeros(len(wc), np.float32)
    costs = wc.entry_costs()
    behind = costs[::-1].cumsum()[::-1]
    return (config.repair_price * behind / wc.budget).astype(np.float32)


def _places(blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the runs of neighbouring blocks [m]."""
    order = np.argsort(blocks)
    steps = np.diff(blocks[order]) > 1
    places = np.empty(len(blocks), np.int64)
    places[order] = np.concatenate([[0], np.cumsum(steps)])[: len(blocks)]
    return places
