"""Laying pieces of text into other text, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mc_core.lab.data.arrays import Ints, Range


def interleaved(filler: Ints, stated: Sequence[Ints], offsets: Ints) -> tuple[Ints, list[Range]]:
    """Insert ``stated[i]`` into the filler before token ``offsets[i]``; also where each then stands."""
    parts: list[Ints] = []
    ranges = [(0, 0)] * len(stated)
    at = done = 0
    for i in np.argsort(offsets, kind="stable"):
        parts += [filler[done : offsets[i]], stated[i]]
        at += int(offsets[i]) - done
        ranges[i] = (at, at + len(stated[i]))
        at, done = at + len(stated[i]), int(offsets[i])
    return np.concatenate([*parts, filler[done:]]), ranges
