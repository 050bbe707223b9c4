"""Passages of real text: a history, and what follows it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mc_core.errors import ConfigError
from mc_core.training.cache import Stream
from mc_core.training.focus.contexts import Passage

TAIL_WEIGHT = 0.25
"""Of foretelling a token that the working context already holds, beside 1 for one after it."""


class PassageMaker:
    """Cuts passages out of streams, a stream by its share."""

    def __init__(self, streams: Sequence[Stream], mix: dict[str, float] | None = None, block_size: int = 32) -> None:
        """mix: share by stream name (others get none); by default a stream counts by the square root of its size."""
        unknown = set(mix or ()) - {stream.name for stream in streams}
        if unknown:
            raise ConfigError(f"mix: no such file in the corpus: {sorted(unknown)}")
        sizes = np.array([len(s) ** 0.5 if mix is None else mix.get(s.name, 0.0) for s in streams], np.float64)
        if not sizes.sum() > 0:
            raise ConfigError("mix: at least one file needs a share above 0")
        self.streams, self.shares, self.block_size = list(streams), sizes / sizes.sum(), block_size

    def text(self, rng: Generator, history: int, future: int) -> Passage:
        """``history`` tokens and the ``future`` ones after them, from one stream; repeated if that is too short."""
        stream = self.streams[int(rng.choice(len(self.streams), p=self.shares))]
        return self.cut(rng, stream, history, future)

    def cut(self, rng: Generator, stream: Stream, history: int, future: int) -> Passage:
        """The same from a given stream."""
        count = history + future
        start = int(rng.integers(max(1, len(stream) - count)))
        window = stream.ids[start : start + count].astype(np.int64)
        ids = window if len(window) == count else np.resize(window, count)
        weights = np.full(count, TAIL_WEIGHT, np.float32)
        weights[history:] = 1.0
        return Passage(ids, history, weights)


def passage_of(row: NDArray[np.int64], horizon: int) -> Passage:
    """A row of token ids, padded at the end with -1, as a passage whose last ``horizon`` tokens are to be foretold."""
    padding = row < 0
    length = int(np.argmax(padding)) if padding.any() else len(row)
    if not padding[length:].all() or length <= horizon:
        raise ConfigError(
            f"ids must have a history before the horizon of {horizon} tokens and be padded at their end only, "
            f"got a row of {length} tokens"
        )
    weights = np.full(length, TAIL_WEIGHT, np.float32)
    weights[length - horizon :] = 1.0
    return Passage(row[:length], length - horizon, weights)
