"""Which keys and values to keep, and which to compute, when the working context changes.

A plan compares what the slab holds with what the model must see, so it needs to know nothing of the edits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mc_core.kv.layout import Layout

RepairMode = Literal["exact", "block", "incremental"]
REPAIR_MODES: tuple[RepairMode, ...] = ("exact", "block", "incremental")


@dataclass(frozen=True)
class Cached:
    """What a slab holds, in rank order. ``exact`` units equal a fresh forward over the layout they were made in."""

    identity: NDArray[np.int64]
    segment_start: NDArray[np.int64]
    computed: NDArray[np.bool_]
    exact: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.identity)


@dataclass(frozen=True)
class Chunk:
    """One forward pass. ``segment``: units see their segment so far and block 0. ``causal``: all of lower rank."""

    kind: Literal["segment", "causal"]
    ranks: NDArray[np.int64]


@dataclass(frozen=True)
class RepairPlan:
    """``kept_old[i]`` in the cached ranks stays as ``kept_new[i]`` in the layout's; ``restored`` are had back from host
    memory, ``chunks`` compute the rest.

    ``approximate``: kept units of rank at or above this one were computed under an older view.
    """

    layout: Layout
    kept_old: NDArray[np.int64]
    kept_new: NDArray[np.int64]
    restored: NDArray[np.int64]
    chunks: tuple[Chunk, ...]
    approximate: int

    @property
    def reused(self) -> int:
        """Units that are not computed."""
        return len(self.kept_new) + len(self.restored)

    @property
    def recomputed(self) -> int:
        return len(self.layout) - self.reused

    @property
    def sought(self) -> int:
        """Units of history that the slab lacks."""
        return len(self.restored) + sum(len(chunk.ranks) for chunk in self.chunks if chunk.kind == "segment")


def plan_repair(
    mode: RepairMode,
    cached: Cached,
    layout: Layout,
    *,
    chunk_tokens: int,
    need_last: bool,
    refresh: bool = False,
    held: NDArray[np.bool_] | None = None,
) -> RepairPlan:
    """Plan the repair from ``cached`` to ``layout``.

    need_last: the last unit is computed in any case, for its logits. refresh: keep units that are exact only, so that
    the result equals a fresh forward (under the block mask, with ``block``). Without it, ``incremental`` keeps what was
    computed under an older view, and ``block`` does so in the tail. held: units of history, by rank, that host memory
    has.
    """
    if mode == "block":
        kept_old, kept_new = _kept_block(cached, layout, exact_tail=refresh)
    elif mode == "incremental" and not refresh:
        kept_old, kept_new = _kept_incremental(cached, layout)
    else:
        prefix = _common_prefix(cached, layout)
        kept_old = kept_new = np.arange(prefix)
    if need_last and len(layout):
        kept = kept_new != len(layout) - 1
        kept_old, kept_new = kept_old[kept], kept_new[kept]
    missing = np.ones(len(layout), bool)
    missing[kept_new] = False
    history = layout.segment_start >= 0
    restored = np.flatnonzero(missing & history & held) if held is not None else np.empty(0, np.int64)
    missing[restored] = False
    chunks = [
        *_segment_chunks(layout, np.flatnonzero(missing & history), chunk_tokens),
        *_causal_chunks(np.flatnonzero(missing & ~history), chunk_tokens),
    ]
    approximate = len(layout)
    if mode != "exact" and not refresh:
        # From the first difference on, what stays was computed under another view than the present one.
        prefix = max(_common_prefix(cached, layout), layout.tail if mode == "block" else 0)
        if (kept_new >= prefix).any():
            approximate = prefix
    return RepairPlan(layout, kept_old, kept_new, restored, tuple(chunks), approximate)


def _common_prefix(cached: Cached, layout: Layout) -> int:
    """Length of the longest common prefix of units that are computed, exact, and the same in every respect."""
    n = min(len(cached), len(layout))
    same = (
        (cached.identity[:n] == layout.identity[:n])
        & (cached.segment_start[:n] == layout.segment_start[:n])
        & cached.computed[:n]
        & cached.exact[:n]
    )
    return n if same.all() else int(np.argmin(same))


def _matches(cached: Cached, layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranks (old, new) of computed units that are in both, chronological."""
    old = np.flatnonzero(cached.computed)
    _, at_old, at_new = np.intersect1d(cached.identity[old], layout.identity, assume_unique=True, return_indices=True)
    order = np.argsort(at_new)
    return old[at_old][order], at_new[order]


def _kept_block(cached: Cached, layout: Layout, *, exact_tail: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """History stays where its segment begins as it did: a unit sees none behind it. The tail stays if all that it saw
    is unchanged, or need not be exact.
    """
    old, new = _matches(cached, layout)
    same = (layout.segment_start[new] >= 0) & (cached.segment_start[old] == layout.segment_start[new])
    prefix = _common_prefix(cached, layout)
    if not exact_tail:
        same |= (layout.segment_start[new] < 0) & (cached.segment_start[old] < 0)
    elif prefix > layout.tail:
        # The units of the tail up to here saw exactly what they would see now.
        same |= (new < prefix) & (old == new)
    return old[same], new[same]


def _kept_incremental(cached: Cached, layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Everything stays but the entry after each cut, which is computed again under the new view (EPIC)."""
    old, new = _matches(cached, layout)
    if not len(new):
        return old, new
    follows = np.empty(len(new), bool)
    follows[0] = old[0] == new[0] == 0
    follows[1:] = (np.diff(old) == 1) & (np.diff(new) == 1)
    cut_entries = layout.entry[new[~follows]]
    kept = ~np.isin(layout.entry[new], cut_entries)
    return old[kept], new[kept]


def _causal_chunks(ranks: NDArray[np.int64], chunk_tokens: int) -> list[Chunk]:
    return [Chunk("causal", ranks[at : at + chunk_tokens]) for at in range(0, len(ranks), chunk_tokens)]


def _segment_chunks(layout: Layout, ranks: NDArray[np.int64], chunk_tokens: int) -> list[Chunk]:
    """Pack what is missing of segments into chunks; block 0 goes first and alone, since all others read its keys."""
    chunks = []
    first_block = layout.segment_start[ranks] == 0
    if first_block.any():
        chunks.append(Chunk("segment", ranks[first_block]))
        ranks = ranks[~first_block]
    while len(ranks):
        end = min(chunk_tokens, len(ranks))
        if end < len(ranks):
            segment = layout.segment_start[ranks]
            boundaries = np.flatnonzero(segment[1:] != segment[:-1]) + 1
            inside = boundaries[boundaries <= end]
            # A segment longer than a chunk is still computed whole.
            end = int(inside[-1]) if len(inside) else int(boundaries[0]) if len(boundaries) else len(ranks)
        chunks.append(Chunk("segment", ranks[:end]))
        ranks = ranks[end:]
    return chunks
