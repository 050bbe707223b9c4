"""Intervals against known values, and the laws that they keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mc_core.errors import ConfigError
from mc_core.lab.evaluation.statistics import bootstrap, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_known_values(right: int, n: int, low: float, high: float) -> None:
    """The interval is that of tables (Newcombe 1998 gives 81 of 263), not that of the normal approximation."""
    found = wilson(right, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


@given(n=st.integers(1, 500), data=st.data())
def test_wilson_laws(n: int, data: st.DataObject) -> None:
    """It lies in [0, 1], holds the share, mirrors when hits and misses are swapped."""
    right = data.draw(st.integers(0, n))
    found, mirrored = wilson(right, n), wilson(n - right, n)
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert found.low == pytest.approx(1 - mirrored.high)


def test_bootstrap_covers_as_often_as_it_says() -> None:
    """Of 200 samples of a known mean, about 95 % have it in their interval."""
    rng = np.random.default_rng(0)
    draws = [bootstrap(rng.normal(1.0, 2.0, 60), seed=i, rounds=400) for i in range(200)]
    assert 180 <= sum(found.low <= 1.0 <= found.high for found in draws) <= 199


def test_bootstrap_is_paired_by_its_argument() -> None:
    """A constant difference has an interval of no width, however much the samples vary."""
    rng = np.random.default_rng(0)
    before = rng.normal(0, 100, 50)
    found = bootstrap((before - 0.25) - before)
    assert (found.low, found.high) == pytest.approx((-0.25, -0.25))


@pytest.mark.parametrize("figure", [lambda: wilson(0, 0), lambda: bootstrap(np.empty(0))])
def test_nothing_has_no_interval(figure) -> None:  # type: ignore[no-untyped-def]
    """No trial is an error, not a share of 0."""
    with pytest.raises(ConfigError, match="at least 1"):
        figure()
