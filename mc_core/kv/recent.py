"""Keys and values of segments that left a working context lately, in host memory: going back to them computes nothing.

Only what does not depend on what stands before it can be kept so: the segments of history under the block mask. Within
a segment each unit sees those before it, so a segment's beginning serves for every shorter one that begins alike.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Segment(NamedTuple):
    """A history segment: the identity of its first unit, which names it, and its units' ranks [low, high)."""

    name: int
    low: int
    high: int


def segments_of(identity: NDArray[np.int64], segment_start: NDArray[np.int64]) -> Iterator[Segment]:
    """The segments of history, in rank order."""
    history = int(np.count_nonzero(segment_start >= 0))  # history stands before the tail
    lows = np.flatnonzero(np.diff(segment_start[:history], prepend=-1))
    columns = identity[lows], lows, np.append(lows[1:], history)
    return (Segment(*row) for row in zip(*(column.tolist() for column in columns), strict=False))


@dataclass(frozen=True)
class Kept:
    """A segment's beginning: keys, not rotated where places move, and values, [layers, kv_heads, T, head_dim] each.

    ``end``: the token behind the last that it covers.
    """

    keys: Tensor
    values: Tensor
    end: int

    @property
    def units(self) -> int:
        return self.keys.shape[2]

    @property
    def bytes(self) -> int:
        return int(self.keys.nbytes + self.values.nbytes)


class RecentKV:
    """The cache of all sessions: at most ``limit`` bytes, and what was used longest ago goes first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._order: OrderedDict[tuple[Shelf, int], None] = OrderedDict()

    def put(self, shelf: Shelf, name: int, kept: Kept) -> None:
        """Keep a segment, if it can be, in place of what was kept by its name."""
        self.drop(shelf, name)
        if kept.bytes > self.limit:
            return
        shelf.kept[name] = kept
        self._order[shelf, name] = None
        self.bytes += kept.bytes
        while self.bytes > self.limit:
            self.drop(*next(iter(self._order)))

    def drop(self, shelf: Shelf, name: int) -> None:
        """Forget a segment, if it is kept."""
        kept = shelf.kept.pop(name, None)
        if kept is not None:
            del self._order[shelf, name]
            self.bytes -= kept.bytes

    def use(self, shelf: Shelf, name: int) -> None:
        """A segment that is kept was of use."""
        self._order.move_to_end((shelf, name))


class Shelf:
    """One session's part of the cache. ``kept`` is changed by the cache alone."""

    def __init__(self, cache: RecentKV) -> None:
        self.cache = cache
        self.kept: dict[int, Kept] = {}

    def held(self, identity: NDArray[np.int64], segment_start: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which units could be had from here, by rank."""
        held = np.zeros(len(identity), bool)
        if self.kept:
            for name, low, high in segments_of(identity, segment_start):
                kept = self.kept.get(name)
                if kept is not None:
                    held[low : min(high, low + kept.units)] = True
        return held

    def put(self, name: int, kept: Kept) -> None:
        """Keep a segment's beginning that leaves the slab, unless more of it is here."""
        here = self.kept.get(name)
        if here is None or here.units < kept.units:
            self.cache.put(self, name, kept)
        else:
            self.cache.use(self, name)

    def take(self, name: int, units: int) -> Kept:
        """What is kept of a segment whose first ``units`` go into the slab; it stays here only if there is more."""
        kept = self.kept[name]
        if kept.units <= units:
            self.cache.drop(self, name)
        else:
            self.cache.use(self, name)
        return kept

    def rewind(self, position: int) -> None:
        """Forget what covers tokens at or after ``position``: those tokens may come back different."""
        for name in [name for name, kept in self.kept.items() if kept.end > position]:
            self.cache.drop(self, name)

    def clear(self) -> None:
        """Forget everything."""
        self.rewind(-1)
