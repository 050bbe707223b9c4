"""What a lens says about a working context: the currency between lenses and allocators."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


def _no_targets() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


def _no_scores() -> NDArray[np.float32]:
    return np.empty(0, np.float32)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of the n entries of a working context, in its order, and what the look-ahead found in all history.

    gain: worth of expanding each entry [n]; harm: cost of collapsing it [n]; both about 0 (none) to 1 (certain).
    targets: LOD1 nodes (= block indices) that should stand raw, best first, neighbours included [m];
    target_scores: their worth, on the same scale as gain [m].
    """

    gain: NDArray[np.float32]
    harm: NDArray[np.float32]
    targets: NDArray[np.int64] = field(default_factory=_no_targets)
    target_scores: NDArray[np.float32] = field(default_factory=_no_scores)

    @property
    def signed(self) -> NDArray[np.float32]:
        """gain - harm within [-1, 1]: what telemetry shows [n]."""
        return np.clip(self.gain - self.harm, -1.0, 1.0)
