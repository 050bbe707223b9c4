"""What counts as found in ``bench.gist_attention``."""

from __future__ import annotations

import numpy as np

from bench.gist_attention import Row, alone, by_lens, figures, fused


def test_a_place_holds_its_neighbours_and_better_places_take_theirs() -> None:
    """Evidence in blocks 10 and 11: found by the second place, which holds both; a lens's worth outweighs attention."""
    scores = np.zeros(40, np.float32)
    scores[[30, 31, 29, 10]] = 4, 3.5, 3, 2  # 31 and 29 belong to the place of 30
    found = {"lexical": (np.array([11, 5]), np.array([1.0, 0.5], np.float32))}
    row = Row("real", np.array([10, 11]), found, {}, {})
    np.testing.assert_array_equal(figures([row], alone(lambda row: scores)), [[0, 1, 1, 0, 0.5]])
    np.testing.assert_array_equal(figures([row], by_lens("lexical")), [[1, 1, 1, 1, 1]])
    assert fused("lexical", lambda row: scores, 0.01)(row)[0] == 11
    assert fused("lexical", lambda row: scores, 1.0)(row)[0] == 30
