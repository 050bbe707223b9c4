"""What must always hold of a working context, checked from the entries alone."""

from __future__ import annotations

import numpy as np

from mc_core.context.entries import COLUMNS, Entries, spans_by_level
from mc_core.context.protection import Protection


def broken_law(entries: Entries, protection: Protection, budget: int) -> str | None:
    """The first law that the entries break, in words; None if all hold."""
    if any(len(getattr(entries, name)) != len(entries) for name in COLUMNS):
        return "the columns differ in length"
    if len(entries) and (entries.levels.min() < 0 or entries.indices.min() < 0):
        return "a level or an index is negative"
    if len(entries) and entries.levels.max() >= len(spans_by_level(entries.block_size)):
        return f"level {entries.levels.max()} is too high"
    starts, ends = entries.starts(), entries.ends()
    borders = np.concatenate([[0], ends])
    if borders[-1] != entries.num_tokens or not np.array_equal(borders[:-1], starts) or (ends <= starts).any():
        return f"the entries do not tile [0, {entries.num_tokens})"
    gists = entries.take(entries.levels > 0)
    begin, end = gists.starts(), (gists.indices + 1) * spans_by_level(entries.block_size)[gists.levels]
    if (end > protection.tail_start(entries.num_tokens)).any():
        return "a gist reaches into the tail"
    pins = np.append(protection.first * entries.block_size, np.iinfo(np.int64).max)
    inside = protection.pinned(begin // entries.block_size) | (pins[np.searchsorted(pins, begin)] < end)
    if inside.any():
        return "a gist covers a pinned block"
    if entries.cost > budget:
        return f"the cost of {entries.cost} exceeds the budget of {budget}"
    return None
