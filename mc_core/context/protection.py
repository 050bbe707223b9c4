"""What must stay raw (pinned blocks and the tail), and what else must always hold of a working context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mc_core.context.entries import COLUMNS, Bools, Entries, Ints, spans_by_level
from mc_core.errors import ConfigError

Range = tuple[int, int]
"""Tokens [start, end)."""


class Protection:
    """Pins as runs of whole blocks, block 0 among them, and the length of the tail.

    ``pins`` hold for good; ``chosen`` are those that were asked for, and may be let go again.
    """

    def __init__(
        self, block_size: int, recent_tokens: int, pins: Sequence[Range] = (), chosen: Sequence[Range] = ()
    ) -> None:
        """pins, chosen: token ranges [start, end), widened to whole blocks."""
        if recent_tokens < 0:
            raise ConfigError(f"recent_tokens must not be negative, got {recent_tokens}")
        for start, end in (*pins, *chosen):
            if not 0 <= start < end:
                raise ConfigError(
                    f"a pin must be a token range [start, end) with 0 <= start < end, got [{start}, {end})"
                )
        self.block_size, self.recent_tokens = block_size, recent_tokens
        self.pins = tuple((int(start), int(end)) for start, end in pins)
        self.chosen = widened(chosen, block_size)
        blocks = [(start // block_size, -(-end // block_size)) for start, end in (*pins, *chosen)]
        runs = merged([(0, 1), *blocks])
        self.first = np.array([run[0] for run in runs], np.int64)
        self.last = np.array([run[1] for run in runs], np.int64)

    @property
    def pinned_blocks(self) -> int:
        return int((self.last - self.first).sum())

    def tail_start(self, num_tokens: int) -> int:
        """First token of the tail: ``recent_tokens`` back from the end, then back to a block border."""
        return max(0, num_tokens - self.recent_tokens) // self.block_size * self.block_size

    def pinned(self, blocks: Ints) -> Bools:
        """Whether each block is pinned [n]."""
        run = np.searchsorted(self.first, blocks, side="right") - 1
        return (run >= 0) & (blocks < self.last[run])

    def over(self, first: Ints, last: Ints) -> Bools:
        """Whether any of the blocks [first, last) of each entry is pinned [n]."""
        run = np.searchsorted(self.first, last) - 1
        return (run >= 0) & (self.last[run] > first)

    def of(self, entries: Entries) -> Bools:
        """Whether each entry must stay raw [n]. (A gist never covers what must, so its first block tells.)"""
        starts = entries.starts()
        return (starts >= self.tail_start(entries.num_tokens)) | self.pinned(starts // self.block_size)

    def touches(self, start: int, end: int, num_tokens: int) -> bool:
        """Whether any of the tokens [start, end) must stay raw."""
        if end > self.tail_start(num_tokens):
            return True
        run = int(np.searchsorted(self.first * self.block_size, end)) - 1
        return run >= 0 and bool(self.last[run] * self.block_size > start)

    def gaps(self, start: int, end: int) -> list[tuple[int, int, bool]]:
        """Cut blocks [start, end) at the pins -> (first, end, pinned) in order."""
        parts: list[tuple[int, int, bool]] = []
        at = start
        for first, last in zip(self.first.tolist(), self.last.tolist(), strict=True):
            first, last = max(first, at), min(last, end)
            if first >= last:
                continue
            if first > at:
                parts.append((at, first, False))
            parts.append((first, last, True))
            at = last
        if at < end:
            parts.append((at, end, False))
        return parts


def merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same places in order, as few ranges as can be."""
    parts: list[Range] = []
    for start, end in sorted(ranges):
        if parts and start <= parts[-1][1]:
            parts[-1] = parts[-1][0], max(parts[-1][1], end)
        else:
            parts.append((int(start), int(end)))
    return tuple(parts)


def widened(ranges: Iterable[Range], block_size: int) -> tuple[Range, ...]:
    """Token ranges as whole blocks, merged."""
    return merged((start // block_size * block_size, -(-end // block_size) * block_size) for start, end in ranges)


def without(ranges: Iterable[Range], gone: Iterable[Range]) -> tuple[Range, ...]:
    """What of the ranges is in none of ``gone``."""
    left = list(ranges)
    for cut_start, cut_end in gone:
        parts = [((start, min(end, cut_start)), (max(start, cut_end), end)) for start, end in left]
        left = [(start, end) for pair in parts for start, end in pair if start < end]
    return tuple(left)


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
