"""What the model sees of a working context, unit by unit: a unit is a token or a vector of a gist, one KV slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc_core.context.excerpts import Excerpt, Frame, Moved
from mc_core.context.working_context import WorkingContext

LEVEL_SHIFT = 56
"""A unit's identity packs its level above 56 bits of token or node index."""
FRAME = -1
"""Level of a frame's tokens, which are no part of the history."""
TOKEN_BITS, FRAME_BITS = 19, 7
"""The identity of a frame's token packs, from below, its id, its place in the frame, and the token of the history that
the frame stands before."""

SEGMENT_BLOCKS = 8
"""Neighbouring raw blocks that are encoded together under the block mask, unless settings say otherwise. What is cut
by a segment's border is often copied wrongly: docs/training.md."""


@dataclass(frozen=True)
class Layout:
    """The visible units in the order in which the model reads them: that of time, but for what an excerpt moves.

    ``rank`` is the place in these arrays, all of length n.

    ``starts``, ``ends``: the tokens that a unit stands for; the m vectors of a gist share its span in equal parts.
    ``identity`` names a unit by level and index; of the vectors of node i, the j-th has the index i m + j.
    ``segment_start`` is the token at which begins what a history unit is encoded with under the block mask, -1 for the
    tail and whenever there is no block mask.
    ``local`` is the canonical position of a history unit, at which its segment is encoded. A frame's tokens have
    level ``FRAME``, the token range [before, before), and belong to the entry that they stand before.
    """

    identity: NDArray[np.int64]
    levels: NDArray[np.int8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    entry: NDArray[np.int64]
    segment_start: NDArray[np.int64]
    local: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.identity)

    @property
    def tail(self) -> int:
        """Rank of the first unit that sees everything before it."""
        history = np.flatnonzero(self.segment_start >= 0)
        return int(history[-1]) + 1 if len(history) else 0

    def gist_vectors(self, ranks: NDArray[np.int64], block_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of units that are vectors of gists: the node of each, and which of its vectors it is."""
        spans = np.int64(block_size) ** self.levels[ranks].astype(np.int64)
        starts, ends = self.starts[ranks], self.ends[ranks]
        return starts // spans, starts % spans // (ends - starts)

    def frame_ids(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token ids of units that are of frames."""
        return self.identity[ranks] & ((1 << TOKEN_BITS) - 1)

    @property
    def is_raw(self) -> NDArray[np.bool_]:
        return self.levels == 0


def identity_of(levels: NDArray[np.int8], indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pack (level, token or node index) into one number a unit."""
    return (levels.astype(np.int64) << LEVEL_SHIFT) | indices


def layout_of(
    context: WorkingContext, *, hidden_gists: bool, segment_blocks: int | None, excerpt: Excerpt | None = None
) -> Layout:
    """The units of a working context.

    hidden_gists: gists are not shown to the model (no trained GistNet). segment_blocks: how many neighbouring raw
    blocks are encoded together under the block mask, at most; None = no block mask. excerpt: what is
    read of the raw entries, with which frames; None for all as it is, as it must be under the block mask.
    """
    levels, starts, ends = context.levels, context.starts(), context.ends()
    raw = levels == 0
    vectors = max(1, context.gist_cost)
    counts = np.where(raw, ends - starts, 0 if hidden_gists else vectors)
    entry = np.repeat(np.arange(len(levels)), counts)
    offset = np.arange(len(entry)) - np.repeat(np.cumsum(counts) - counts, counts)
    unit_raw = raw[entry]
    share = np.where(unit_raw, 1, (ends - starts)[entry] // vectors)
    unit_starts = starts[entry] + offset * share
    unit_ends = unit_starts + share
    indices = np.where(unit_raw, unit_starts, context.indices[entry] * vectors + offset)
    if segment_blocks is None:
        segment_start = np.full(len(entry), -1, np.int64)
        local = np.zeros(len(entry), np.int64)
    else:
        segment_start = _segments(context, starts, raw, segment_blocks)[entry]
        block = context.block_size
        # Block 0 is encoded at its own positions, every other segment right after it.
        inside = np.where(unit_raw, unit_starts - segment_start, offset)
        local = np.where(segment_start == 0, unit_starts, block + inside)
        local = np.where(segment_start < 0, 0, local)
    layout = Layout(
        identity=identity_of(levels[entry], indices),
        levels=levels[entry],
        starts=unit_starts,
        ends=unit_ends,
        entry=entry,
        segment_start=segment_start,
        local=local,
    )
    if excerpt is None:
        return layout
    return _with_frames(_reordered(_without(layout, excerpt.left_out), excerpt.moved), excerpt.frames)


def _without(layout: Layout, ranges: Sequence[tuple[int, int]]) -> Layout:
    """The layout without the tokens of some ranges, in order."""
    if not ranges:
        return layout
    firsts, lasts = np.array(ranges, np.int64).T
    row = np.searchsorted(firsts, layout.starts, side="right") - 1
    shown = (row < 0) | (layout.starts >= lasts[row]) | ~layout.is_raw
    return Layout(**{each.name: getattr(layout, each.name)[shown] for each in fields(layout)})


def _reordered(layout: Layout, moved: Moved | None) -> Layout:
    """The layout with a range of tokens before a later one."""
    if moved is None:
        return layout
    low, high, to = np.searchsorted(layout.starts, moved).tolist()
    order = np.concatenate([np.arange(low), np.arange(high, to), np.arange(low, high), np.arange(to, len(layout))])
    return Layout(**{each.name: getattr(layout, each.name)[order] for each in fields(layout)})


def _with_frames(layout: Layout, frames: Sequence[Frame]) -> Layout:
    """The layout with frames before their tokens."""
    if not frames:
        return layout
    before = np.array([frame.before for frame in frames], np.int64)
    sizes = np.array([len(frame.ids) for frame in frames], np.int64)
    order = np.argsort(layout.starts, kind="stable")
    ranks = np.repeat(order[np.searchsorted(layout.starts, before, sorter=order)], sizes)
    number = np.repeat(np.arange(len(frames)), sizes)
    offset = np.arange(len(number)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    ids, at = np.concatenate([frame.ids for frame in frames]).astype(np.int64), before[number]
    packed = ((at << FRAME_BITS | offset) << TOKEN_BITS) | ids
    none = np.full(len(ids), -1, np.int64)
    columns: dict[str, NDArray[Any]] = {
        "identity": identity_of(np.full(len(ids), FRAME, np.int8), packed),
        "levels": np.full(len(ids), FRAME, np.int8),
        "starts": at,
        "ends": at,
        "entry": layout.entry[ranks],
        "segment_start": none,
        "local": np.zeros(len(ids), np.int64),
    }
    return Layout(**{name: np.insert(getattr(layout, name), ranks, added) for name, added in columns.items()})


def _segments(
    context: WorkingContext,
    starts: NDArray[np.int64],
    raw: NDArray[np.bool_],
    segment_blocks: int,
) -> NDArray[np.int64]:
    """Where the segment of each entry begins; -1 for the tail.

    A run of neighbouring raw blocks is one segment, so that a fact that was opened with its neighbours is whole. A
    longer run is cut at aligned groups, so that its growth at either end leaves the segments in between as they are.
    """
    if not len(starts):
        return starts
    block = starts // context.block_size
    history = starts < context.tail_start
    begins = np.ones(len(starts), bool)
    # Block 0 is shared by all segments, so it is a segment by itself.
    begins[1:] = ~(raw[1:] & raw[:-1] & (block[:-1] > 0) & (history[1:] == history[:-1]))
    lengths = np.diff(np.append(np.flatnonzero(begins), len(starts)))
    too_long = np.repeat(lengths > segment_blocks, lengths)
    begins[1:] |= too_long[1:] & (block[1:] // segment_blocks != block[:-1] // segment_blocks)
    first = np.flatnonzero(begins)
    number = np.cumsum(begins) - 1
    return np.where(history, starts[first][number], -1)
