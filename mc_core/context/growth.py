"""How a working context follows its history when that grows or is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mc_core.context.entries import Entries
from mc_core.context.groups import tidied
from mc_core.context.protection import Protection

Levels = NDArray[np.int8]
Indices = NDArray[np.int64]


def coarsest_cover(start_block: int, end_block: int, block_size: int) -> tuple[Levels, Indices]:
    """Fewest nodes (l >= 1) that tile blocks [start_block, end_block), chronological -> (levels [n], indices [n])."""
    before: list[tuple[int, int, int]] = []
    after: list[tuple[int, int, int]] = []
    level, low, high = 1, start_block, end_block
    while low < high:
        # What sticks out on either side of whole parents stays at this level.
        inner_low, inner_high = -(-low // block_size), high // block_size
        if inner_low >= inner_high:
            before.append((level, low, high))
            break
        before.append((level, low, inner_low * block_size))
        after.append((level, inner_high * block_size, high))
        level, low, high = level + 1, inner_low, inner_high
    runs = before + after[::-1]
    counts = [end - start for _, start, end in runs]
    levels = np.repeat(np.array([run[0] for run in runs], np.int8), counts)
    indices = [np.arange(start, end, dtype=np.int64) for _, start, end in runs]
    return levels, np.concatenate(indices) if indices else np.empty(0, np.int64)


def grown(entries: Entries, num_tokens: int, protection: Protection, raw_tokens: int) -> Entries:
    """Follow a history that grew to ``num_tokens``.

    New tokens stand raw if they are pinned or among the newest ``raw_tokens`` (at least the tail is); the middle of a
    bulk is covered by the coarsest nodes.
    """
    size = entries.block_size
    first, end = -(-entries.num_tokens // size), -(-num_tokens // size)
    newest = min(protection.tail_start(num_tokens), max(0, num_tokens - raw_tokens)) // size
    middle_end = min(end, max(first, newest))
    old = replace(entries, num_tokens=num_tokens)
    covered = _covered(first, middle_end, num_tokens, protection)
    longer = old.joined(*covered, Entries.raw(size, num_tokens, middle_end, end))
    return tidied(longer) if covered else longer


def rewound(entries: Entries, position: int, protection: Protection) -> Entries:
    """Follow a history that was cut at ``position``: what the tail now reaches back to stands raw again."""
    size = entries.block_size
    tail = protection.tail_start(position)
    starts, ends = entries.starts(), entries.ends()
    whole = ends <= tail
    kept = replace(entries.take(whole), num_tokens=position)
    cut = int(np.count_nonzero(whole))
    # A node that reaches over the new tail's border leaves the coarsest nodes before that border.
    cover_start = int(starts[cut]) // size if cut < len(entries) else tail // size
    parts = _covered(min(cover_start, tail // size), tail // size, position, protection)
    raw = Entries.raw(size, position, tail // size, -(-position // size))
    old = np.minimum(np.searchsorted(starts, raw.starts()), len(entries) - 1)
    if len(raw):
        stood = (entries.levels[old] == 0) & (entries.indices[old] == raw.indices)
        raw.residency[stood] = entries.residency[old[stood]]
        raw.held[stood] = entries.held[old[stood]]
    return tidied(kept.joined(*parts, raw))


def opened(entries: Entries, protection: Protection) -> Entries:
    """Pinned blocks stand raw where gists covered them; beside them all stays as coarse as it can."""
    size = entries.block_size
    first, last = entries.starts() // size, -(-entries.ends() // size)
    rows = np.flatnonzero((entries.levels > 0) & protection.over(first, last))
    if not len(rows):
        return entries
    parts: list[Entries] = []
    for start, end in zip(first[rows].tolist(), last[rows].tolist(), strict=True):
        parts += _covered(start, end, entries.num_tokens, protection)
    kept = np.ones(len(entries), bool)
    kept[rows] = False
    longer = entries.take(kept).joined(*parts)
    return tidied(longer.take(np.argsort(longer.starts())))


def _covered(start: int, end: int, num_tokens: int, protection: Protection) -> list[Entries]:
    """Entries of blocks [start, end): pins raw, the rest as coarse as can be."""
    size, parts = protection.block_size, []
    for first, last, pinned in protection.gaps(start, end):
        if pinned:
            parts.append(Entries.raw(size, num_tokens, first, last))
        else:
            parts.append(Entries.fresh(size, num_tokens, *coarsest_cover(first, last, size)))
    return parts
