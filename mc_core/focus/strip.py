"""The working context as a strip from the first token to the last: what stands at which level, in few runs.

Made of whole columns: what it costs does not grow with the history, and hardly with the entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mc_core.context.entries import Entries
from mc_core.focus.reasons import GIST

MOST_RUNS = 2_000
"""Runs of a strip at most."""
RUN_BYTES = 40_000
"""And no more than take so many bytes as JSON."""
Ints = NDArray[np.int64]
Codes = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Strip:
    """n runs that tile [0, tokens): where each starts and ends, its level, and why it stands (``STATES``)."""

    starts: Ints
    ends: Ints
    levels: Codes
    states: Codes

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self) -> list[list[int]]:
        """As JSON has it: [start, end, level, state] each."""
        columns = (self.starts, self.ends, self.levels, self.states)
        rows: list[list[int]] = np.stack([column.astype(np.int64) for column in columns], 1).tolist()
        return rows


def most_runs(tokens: int) -> int:
    """How many runs a strip of a history of so many tokens may have."""
    digits = len(str(tokens))
    return min(MOST_RUNS, RUN_BYTES // (2 * digits + len("[,,0,0],")))


def strip_of(entries: Entries, states: Codes) -> Strip:
    """The strip of entries that stand so [n]: neighbours that are alike are one run.

    Where that is too many, the finest gists are shown as coarser ones, and then places that lie close together as one:
    what stands raw is never left out.
    """
    limit = most_runs(entries.num_tokens)
    strip = _joined(entries.starts(), entries.ends(), entries.levels, states)
    for level in range(2, int(strip.levels.max(initial=0)) + 1):
        if len(strip) <= limit:
            return strip
        levels = np.where(strip.levels > 0, np.maximum(strip.levels, level), 0).astype(np.int8)
        strip = _joined(strip.starts, strip.ends, levels, strip.states)
    return strip if len(strip) <= limit else _on_grid(strip, entries.num_tokens, limit)


def _joined(starts: Ints, ends: Ints, levels: Codes, states: Codes) -> Strip:
    """Runs of neighbours of the same level and state."""
    if not len(starts):
        return Strip(starts, ends, levels, states)
    begins = np.ones(len(starts), bool)
    begins[1:] = (levels[1:] != levels[:-1]) | (states[1:] != states[:-1])
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(starts)) - 1
    return Strip(starts[first], ends[last], levels[first], states[first])


def _on_grid(strip: Strip, tokens: int, limit: int) -> Strip:
    """The same in ``limit`` steps of equal length: one that holds something raw is shown raw, as its first such run."""
    borders = np.arange(limit + 1) * tokens // limit
    raw = np.flatnonzero(strip.levels == 0)
    first = np.searchsorted(borders, strip.starts[raw], side="right") - 1
    last = np.searchsorted(borders, strip.ends[raw])
    touched = np.zeros(limit + 1, np.int64)
    np.add.at(touched, first, 1)
    np.add.at(touched, last, -1)
    shows = np.cumsum(touched[:-1]) > 0
    # Of each step: the first raw run that ends behind its beginning, or the gist that it begins with.
    ends_behind = np.minimum(np.searchsorted(strip.ends[raw], borders[:-1], side="right"), len(raw) - 1)
    whole = np.searchsorted(strip.starts, borders[:-1], side="right") - 1
    top = strip.levels.max(initial=0)
    levels = np.where(shows, 0, np.where(strip.levels[whole] > 0, strip.levels[whole], top)).astype(np.int8)
    states = np.where(shows, strip.states[raw[ends_behind]], GIST).astype(np.int8)
    return _joined(borders[:-1], borders[1:], levels, states)


@dataclass(frozen=True, eq=False)
class Moves:
    """What came to stand raw between two looks, and what was put away, as ranges of whole blocks.

    opened: first and last block, state and score of each; the score is what the last refocus gave it at best.
    """

    opened: list[tuple[int, int, int, float]]
    closed: list[tuple[int, int]]


def moves(before: Entries, now: Entries, states: Codes, scores: NDArray[np.float32], most: int) -> Moves:
    """What changed from ``before`` to ``now``, whose entries stand so, with these scores [n].

    What is new history, or is cut off, has not moved. most: ranges of either kind: the best of what was opened, and the
    newest of what was put away.
    """
    size = now.block_size
    blocks = min(before.num_tokens, now.num_tokens) // size
    was, raw = _raw(before, blocks), np.flatnonzero((now.levels == 0) & (now.indices < blocks))
    came = raw[~np.isin(now.indices[raw], was)]
    gone = np.setdiff1d(was, now.indices[raw])
    return Moves(_opened(now.indices[came], states[came], np.abs(scores[came]), most), _ranges(gone)[-most:])


def _raw(entries: Entries, blocks: int) -> Ints:
    return entries.indices[(entries.levels == 0) & (entries.indices < blocks)]


def _opened(blocks: Ints, states: Codes, scores: NDArray[np.float32], most: int) -> list[tuple[int, int, int, float]]:
    if not len(blocks):
        return []
    begins = np.ones(len(blocks), bool)
    begins[1:] = (np.diff(blocks) != 1) | (states[1:] != states[:-1])
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(blocks)) - 1
    best = np.maximum.reduceat(scores, first)
    kept = np.sort(np.argsort(-best, kind="stable")[:most])
    columns = (blocks[first][kept], blocks[last][kept] + 1, states[first][kept], np.round(best[kept].astype(float), 4))
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _ranges(blocks: Ints) -> list[tuple[int, int]]:
    """Neighbouring blocks, ascending, as [first, end)."""
    if not len(blocks):
        return []
    cut = np.flatnonzero(np.diff(blocks) != 1)
    firsts, lasts = blocks[np.append(0, cut + 1)], blocks[np.append(cut, len(blocks) - 1)]
    return list(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))
