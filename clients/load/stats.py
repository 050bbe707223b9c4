"""Percentiles and a straight line with its confidence interval; plain Python, since clients need no numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

Summary = dict[str, float | int]


def percentile(ordered: Sequence[float], q: float) -> float:
    """The q-th percentile (0 to 100) of sorted numbers, linear between neighbours. ValueError without any."""
    if not ordered:
        raise ValueError("no numbers, no percentile")
    place = (len(ordered) - 1) * q / 100
    low = min(int(place), len(ordered) - 1)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarize(seconds: Sequence[float]) -> Summary | None:
    """Times -> count, mean, median, p95, p99 and max in milliseconds; None without any."""
    if not seconds:
        return None
    ordered = sorted(1000 * value for value in seconds)
    return {
        "count": len(ordered),
        "mean": fmean(ordered),
        "median": percentile(ordered, 50),
        "p95": percentile(ordered, 95),
        "p99": percentile(ordered, 99),
        "max": ordered[-1],
    }


@dataclass(frozen=True)
class Line:
    """y = intercept + slope * x by least squares; [low, high] holds the slope with ``confidence``.

    The interval takes the errors for independent and alike, which turns under load are only roughly.
    """

    slope: float
    intercept: float
    low: float
    high: float
    count: int
    confidence: float


def fit(xs: Sequence[float], ys: Sequence[float], confidence: float = 0.95) -> Line | None:
    """None with fewer than three points or a single x: they have no slope with an interval."""
    n = len(xs)
    if n < 3 or min(xs) == max(xs):
        return None
    mean_x, mean_y = fmean(xs), fmean(ys)
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    if spread == 0:
        return None
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    rest = math.fsum((y - intercept - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    half = t_quantile((1 + confidence) / 2, n - 2) * math.sqrt(rest / (n - 2) / spread)
    return Line(slope, intercept, slope - half, slope + half, n, confidence)


def t_quantile(p: float, freedom: int) -> float:
    """Student's t: exact for one and two degrees of freedom, within 1 % above (Hill's expansion), for p up to 0.975."""
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    z = NormalDist().inv_cdf(p)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))
