"""Working contexts to train on: sampled by hand instead of by a lens, so that every mixture of levels is met."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mc_core.context.working_context import Edit, Plan, WorkingContext
from mc_core.errors import ConfigError
from mc_core.kv.layout import SEGMENT_BLOCKS, layout_of
from mc_core.lab.data.arrays import Ints
from mc_core.lab.training.focus.view import View

ContextKind = Literal["full", "lod1", "coarse", "mixed", "recent"]
KINDS: tuple[ContextKind, ...] = ("full", "lod1", "coarse", "mixed", "recent")
RUN = 4
"""Blocks of a run that a ``mixed`` context opens at most."""


@dataclass(frozen=True)
class Passage:
    """N tokens of history and H that follow: ids [N + H], weights [N + H] of foretelling each; opened: blocks of the
    history that every context of it shows raw."""

    ids: Ints
    history: int
    weights: NDArray[np.float32]
    opened: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.history <= len(self.ids) == len(self.weights):
            raise ConfigError(
                f"history must lie in [1, {len(self.ids)}] and weights be as many as ids, got {self.history} and "
                f"{len(self.weights)}"
            )


@dataclass(frozen=True)
class ContextShape:
    """budget: W; recent: tokens that are always raw; segment_blocks: of the block mask, None = the full mask;
    vectors: of a gist."""

    budget: int
    recent: int = 128
    block_size: int = 32
    segment_blocks: int | None = SEGMENT_BLOCKS
    vectors: int = 1


def sample_context(rng: Generator, passage: Passage, kind: ContextKind, shape: ContextShape) -> WorkingContext:
    """A working context of the passage's history.

    full: all raw, whatever it costs. lod1: everything before the tail as LOD1 gists, or as fine as W allows. coarse:
    the coarsest cover. mixed: the coarsest cover, with runs of blocks opened to LOD1 and to raw until W is full.
    recent: as coarse (whoever sees it hides the gists), but the newest tokens raw up to W.
    """
    k, n = shape.block_size, passage.history
    if kind == "full":
        wc = WorkingContext(k, n + 2 * k + shape.recent, shape.recent, gist_cost=shape.vectors)
        wc.extend(n)
        return wc
    wc = WorkingContext(k, shape.budget, shape.recent, gist_cost=shape.vectors)
    wc.cover(n)
    before = wc.tail_start // k
    open_blocks(wc, passage.opened, 0)
    if kind == "lod1":
        open_blocks(wc, range(before), 1)
    elif kind == "recent":
        open_blocks(wc, range(before - 1, -1, -1), 0)
    elif kind == "mixed":
        for level in rng.permutation([0, 0, 1]).tolist():
            runs = rng.integers(0, max(1, before), int(rng.integers(0, 8)))
            wanted = [
                block for run in runs.tolist() for block in range(run, min(before, run + 1 + int(rng.integers(RUN))))
            ]
            open_blocks(wc, wanted, level)
    return wc


def open_blocks(wc: WorkingContext, blocks: Iterable[int], level: int) -> None:
    """Bring blocks down to ``level`` (0: raw), one after the other, as far as the budget goes."""
    k, edits, cost, step = wc.block_size, dict[Edit, None](), wc.cost, wc.entries.step
    starts, levels = wc.starts(), wc.levels
    for block in blocks:
        row = int(np.searchsorted(starts, block * k, side="right")) - 1
        path = [Edit("expand", above, block // k ** (above - 1)) for above in range(int(levels[row]), level, -1)]
        new = [edit for edit in path if edit not in edits]
        cost += sum(step(edit.level) for edit in new)
        if cost > wc.budget:
            break
        edits.update(dict.fromkeys(new))
    wc.commit(Plan(tuple(edits), wc.num_tokens))


def view_of(passage: Passage, wc: WorkingContext, shape: ContextShape, *, hidden_gists: bool = False) -> View:
    """The passage as a working context shows it, its remaining tokens as the future."""
    layout = layout_of(wc, hidden_gists=hidden_gists, segment_blocks=shape.segment_blocks)
    raw = layout.is_raw
    ids = passage.ids.astype(np.int64)
    tokens = np.where(raw, ids[layout.starts], 0)
    weights = np.where(raw, passage.weights[layout.starts], np.float32(0))
    future = slice(passage.history, None)
    return View(
        layout,
        tokens,
        ids[future],
        np.concatenate([weights, passage.weights[future]]).astype(np.float32),
        wc.block_size,
    )
