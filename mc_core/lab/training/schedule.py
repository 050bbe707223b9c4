"""Learning rates over a run."""

from __future__ import annotations


def rate_at(step: int, steps: int, warmup: int, decay: float, floor: float) -> float:
    """Share of the full rate at ``step`` (from 0) of ``steps``: linear warm-up, plateau, linear fall to ``floor``.

    decay: the share of the run, at its end, over which the rate falls.
    """
    rising = min(1.0, (step + 1) / max(1, warmup))
    falling = min(1.0, (steps - step) / max(1.0, decay * steps))
    return rising * (floor + (1 - floor) * falling)
