"""Pools: a list of rows that grows and is cut, without copies of what is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.tree.pool import Pool

DTYPES = (torch.float32, torch.float16)


def _rows(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count).float()[:, None].expand(count, 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 200), st.floats(0, 1)), max_size=25), st.sampled_from(DTYPES))
def test_is_a_list_of_rows(steps: list[int | float], dtype: torch.dtype) -> None:
    """After any sequence of appends (integers) and cuts (a share of the length), a pool holds what a list would."""
    pool, oracle, written = Pool((3,), dtype, "cpu"), torch.empty(0, 3), 0
    for step in steps:
        if isinstance(step, int):
            rows, written = _rows(written, step), written + step
            pool.append(rows)
            oracle = torch.cat([oracle, rows])
        else:
            oracle = oracle[: int(step * len(oracle))]
            pool.truncate(len(oracle))
        assert len(pool) == len(oracle)
        assert pool.nbytes <= max(64, 4 * len(oracle) + 400) * 3 * dtype.itemsize * 2
    expected = oracle.to(dtype)
    assert torch.equal(pool.view(0, len(pool)), expected)
    picks = np.arange(len(oracle))[::-3]
    assert torch.equal(pool.gather(picks), expected[picks.copy()])
    assert pool.gather(picks).dtype == dtype


def test_append_copies_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Appending row by row moves the pool O(log n) times, not once a row."""
    moves: list[int] = []
    resize = Pool._resize
    monkeypatch.setattr(Pool, "_resize", lambda pool, capacity: (moves.append(capacity), resize(pool, capacity))[1])
    pool = Pool((3,), torch.float32, "cpu")
    for at in range(5_000):
        pool.append(_rows(at, 1))
    assert len(moves) <= 8
    assert moves == sorted(moves)
    for length in range(5_000, 0, -1):
        pool.truncate(length)
    assert len(moves) <= 16


def test_view_is_no_copy() -> None:
    """Reading a range touches no row: the view shares the pool's memory."""
    pool = Pool((3,), torch.float32, "cpu")
    pool.append(_rows(0, 100))
    view = pool.view(10, 20)
    assert view.data_ptr() == pool.view(0, 100)[10:].data_ptr()
    assert torch.equal(view, _rows(10, 10))


def test_cut_gives_memory_back() -> None:
    """A long history that is rewound does not keep the memory of what is gone."""
    pool = Pool((3,), torch.float32, "cpu")
    pool.append(_rows(0, 100_000))
    pool.truncate(100)
    assert pool.nbytes < 10_000
    assert torch.equal(pool.view(0, 100), _rows(0, 100))


def test_outside_is_an_error() -> None:
    """Rows beyond the length, also those that a cut left in memory, can't be read."""
    pool = Pool((3,), torch.float32, "cpu")
    pool.append(_rows(0, 50))
    pool.truncate(40)
    for start, end in ((0, 41), (-1, 3), (5, 4)):
        with pytest.raises(IndexError):
            pool.view(start, end)
    for index in (-1, 40, 49):
        with pytest.raises(IndexError):
            pool.gather(np.array([0, index]))
    with pytest.raises(IndexError):
        pool.truncate(41)


def test_reads_by_frozen_indices() -> None:
    """Indices may be a read-only view of someone else's array, and of any integer type."""
    pool = Pool((3,), torch.float32, "cpu")
    pool.append(_rows(0, 50))
    indices = np.array([7, 3, 7], np.int32)
    indices.flags.writeable = False
    assert torch.equal(pool.gather(indices), _rows(0, 50)[[7, 3, 7]])
