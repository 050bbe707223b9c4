"""Keys and values of segments that left a working context lately, in host memory: going back to them computes nothing.

Only what does not depend on what stands before it can be kept so: the segments of history under the block mask.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mc_core.kv.layout import LEVEL_SHIFT


class Segment(NamedTuple):
    """A history segment: its name within a session, and its units' ranks [low, high)."""

    first: int
    end: int
    low: int
    high: int

    @property
    def key(self) -> tuple[int, int]:
        """The identity of the first unit, which tells gists from tokens, and the token behind the last."""
        return self.first, self.end


class Units(Protocol):
    """What a ``Layout`` and a ``Cached`` have in common, in rank order."""

    @property
    def identity(self) -> NDArray[np.int64]: ...
    @property
    def segment_start(self) -> NDArray[np.int64]: ...
    @property
    def segment_end(self) -> NDArray[np.int64]: ...


def whole_segments(units: Units, of: NDArray[np.bool_]) -> Iterator[Segment]:
    """The segments of history whose units are all in ``of`` and all there: a rewind may have cut the last."""
    starts = units.segment_start
    history = int(np.count_nonzero(starts >= 0))  # history stands before the tail
    lows = np.flatnonzero(np.diff(starts[:history], prepend=-1))
    highs = np.append(lows[1:], history)
    present = np.add.reduceat(of[:history], lows, dtype=np.int64) if len(lows) else lows
    raw = units.identity[lows] >> LEVEL_SHIFT == 0
    whole = present == np.where(raw, units.segment_end[lows] - starts[lows], 1)
    lows, highs = lows[whole], highs[whole]
    columns = units.identity[lows], units.segment_end[lows], lows, highs
    return (Segment(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


@dataclass(frozen=True)
class Kept:
    """One segment's keys, not rotated where places move, and values, [layers, kv_heads, T, head_dim] each."""

    keys: Tensor
    values: Tensor

    @property
    def bytes(self) -> int:
        return int(self.keys.nbytes + self.values.nbytes)


class RecentKV:
    """The cache of all sessions: at most ``limit`` bytes, and what left a context longest ago goes first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[tuple[Shelf, tuple[int, int]], Kept] = OrderedDict()

    def put(self, shelf: Shelf, key: tuple[int, int], kept: Kept) -> None:
        """Keep a segment, if it can be."""
        if key in shelf.keys:
            self.take(shelf, key)
        if kept.bytes > self.limit:
            return
        self._kept[shelf, key] = kept
        shelf.keys.add(key)
        self.bytes += kept.bytes
        while self.bytes > self.limit:
            (oldest, name), gone = self._kept.popitem(last=False)
            oldest.keys.discard(name)
            self.bytes -= gone.bytes

    def take(self, shelf: Shelf, key: tuple[int, int]) -> Kept:
        """Take a segment of a shelf out."""
        kept = self._kept.pop((shelf, key))
        shelf.keys.remove(key)
        self.bytes -= kept.bytes
        return kept


class Shelf:
    """One session's part of the cache. It holds what the session's slab does not."""

    def __init__(self, cache: RecentKV) -> None:
        self.cache = cache
        self.keys: set[tuple[int, int]] = set()

    def holds(self, units: Units) -> NDArray[np.bool_]:
        """Which of the units could be had from here, by rank."""
        held = np.zeros(len(units.identity), bool)
        if self.keys:
            for segment in whole_segments(units, np.ones(len(held), bool)):
                held[segment.low : segment.high] = segment.key in self.keys
        return held

    def put(self, segment: Segment, kept: Kept) -> None:
        """Keep a segment that leaves the slab."""
        self.cache.put(self, segment.key, kept)

    def take(self, segment: Segment) -> Kept:
        """A segment that is held, for the slab; it is then no longer here."""
        return self.cache.take(self, segment.key)

    def rewind(self, position: int) -> None:
        """Forget what covers tokens at or after ``position``: those tokens may come back different."""
        for key in [key for key in self.keys if key[1] > position]:
            self.cache.take(self, key)

    def clear(self) -> None:
        """Forget everything."""
        self.rewind(-1)
