"""How sure a figure is: Wilson's interval of a share, a bootstrap interval of a mean."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from mc_core.errors import ConfigError

NORMAL_95 = 1.959963984540054
ROUNDS = 10_000
AT_ONCE = 1 << 20
"""Values drawn at a time."""


@dataclass(frozen=True)
class Estimate:
    """A figure of n samples with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    n: int

    def rounded(self, digits: int = 4) -> dict[str, float | int]:
        """As JSON can hold it."""
        shown = {name: round(getattr(self, name), digits) for name in ("value", "low", "high")}
        return {**shown, "n": self.n}


def wilson(right: float, n: int, z: float = NORMAL_95) -> Estimate:
    """A share of n trials (Wilson 1927): never outside [0, 1], and honest about 0 and n of n.

    right: trials won, or the sum of their scores in [0, 1], for which the interval is on the wide side.
    """
    if n < 1:
        raise ConfigError(f"a share needs at least 1 trial, got {n}")
    share = right / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * sqrt(max(0.0, share * (1 - share)) / n + z * z / (4 * n * n)) / scale
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), n)


def bootstrap(values: NDArray[np.floating], seed: int = 0, rounds: int = ROUNDS) -> Estimate:
    """The mean of values [n] with its percentile interval over ``rounds`` draws with replacement.

    Of differences between two measurements of the same samples this is the paired bootstrap.
    """
    n = len(values)
    if n < 1:
        raise ConfigError("a mean needs at least 1 value")
    rng, step = np.random.default_rng(seed), max(1, AT_ONCE // n)
    parts = [values[rng.integers(0, n, (min(step, rounds - at), n))].mean(axis=1) for at in range(0, rounds, step)]
    low, high = np.quantile(np.concatenate(parts), (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high), n)
