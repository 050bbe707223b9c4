"""The look-ahead over lens keys: equal to scoring every node, at any depth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.focus import lookahead
from mc_core.focus.lookahead import LookAhead, distinct, node_scores, standing


def _vectors(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _oracle(queries: Tensor, keys: Tensor) -> Tensor:
    return torch.einsum("qd,nsd->nsq", queries, keys).amax((1, 2))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1_000), st.integers(1, 300), st.integers(1, 9), st.integers(1, 4), st.integers(1, 20))
def test_flat_search_is_the_top_of_all_nodes(seed: int, nodes: int, queries: int, subkeys: int, k: int) -> None:
    """The best nodes are those whose best sub-key fits the best query, however the product is cut into chunks."""
    q, keys = _vectors(seed, queries, 8), _vectors(seed + 1, nodes, subkeys, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookahead, "PRODUCTS", 100)
        found = LookAhead().search(q, keys, k)
    expected = _oracle(q, keys)
    torch.testing.assert_close(found.scores, expected.topk(min(k, nodes)).values)
    torch.testing.assert_close(expected[found.nodes], found.scores)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1_000), st.lists(st.tuples(st.booleans(), st.integers(1, 200)), min_size=1, max_size=6))
def test_search_by_level_is_exact_after_any_history(seed: int, steps: list[tuple[bool, int]]) -> None:
    """By level, the best nodes are the same as by scanning all, also after appends and rewinds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookahead, "GROUPS_AT_ONCE", 3)
        search, keys = LookAhead(fanout=4), _vectors(seed, 0, 2, 6)
        search.flat_nodes = 0  # never flat ..
        queries = _vectors(seed + 1, 3, 6)
        for i, (cut, amount) in enumerate(steps):
            if cut:
                keys = keys[: max(0, len(keys) - amount)]
                search.rewind(len(keys))
            else:
                # Topics drift, as in a text: groups of neighbours are alike, so boxes mean something.
                keys = torch.cat([keys, _vectors(seed + i, amount, 2, 6) * 0.3 + _vectors(seed - i, 1, 1, 6)])
            if len(keys):
                search.flat_nodes = len(keys) - 1  # .. but free to open every group
                found = search.search(queries, keys, 5)
                torch.testing.assert_close(found.scores, _oracle(queries, keys).topk(min(5, len(keys))).values)


def test_search_by_level_opens_few_groups_and_never_more_than_its_limit() -> None:
    """Bounds spare most of a history whose topics differ, and the limit holds even when they spare nothing."""
    topics = _vectors(0, 500, 1, 1, 16).expand(500, 32, 1, 16).reshape(-1, 1, 16) * 4
    keys = topics + 0.1 * _vectors(1, *topics.shape)
    query = keys[7_777, 0][None]
    found = LookAhead(fanout=32, flat_nodes=15_000).search(query, keys, 4)
    assert found.nodes[0] // 32 == 7_777 // 32
    assert found.scored <= 256 * 32
    noise = _vectors(2, 16_000, 1, 16)
    assert LookAhead(fanout=32, flat_nodes=3_000).search(query, noise, 4).scored <= 3_000 + 256 * 32


def test_standing_is_calibrated_by_the_rest() -> None:
    """A node that stands out is worth almost 1 and an average one little, whatever the scale of the keys."""
    keys = _vectors(3, 5_000, 2, 32)
    query = torch.nn.functional.normalize(_vectors(4, 1, 32), dim=-1)
    keys[4_321, 1] = query[0] * 20
    for scale in (0.01, 100.0):
        found = LookAhead().search(query, keys * scale, 2_000)
        worth = standing(found.deviations().numpy())
        assert found.nodes[0] == 4_321
        assert worth[0] > 0.95
        assert worth[-1] < 0.2
        assert distinct(found.nodes.numpy(), found.deviations().numpy()) == 1.0


@given(st.lists(st.floats(0.5, 30, width=32), min_size=2, max_size=12), st.floats(0.01, 100))
def test_one_of_a_crowd_is_not_distinct(deviations: list[float], scale: float) -> None:
    """How far the best hit stands out depends on the fourth alone, on no scale, and never on its own neighbours."""
    above = np.sort(np.array(deviations, np.float32))[::-1]
    apart = 10 * np.arange(len(above), dtype=np.int64)
    found = distinct(apart, above)
    assert 0 <= found <= 1
    fourth = above[:4][-1]
    assert found == pytest.approx(np.clip((above[0] / fourth - 1) / 0.4, 0, 1), abs=1e-5)
    assert distinct(apart, above * np.float32(scale)) == pytest.approx(found, abs=1e-3)
    beside = np.concatenate([[apart[0], apart[0] + 1, apart[0] + 2], apart[1:]])
    assert distinct(beside, np.concatenate([[above[0]] * 3, above[1:]])) == pytest.approx(found, abs=1e-5)
    assert distinct(apart, np.full_like(above, above[0])) == 0


def test_a_single_hit_is_not_distinct() -> None:
    """Nothing tells a hit from look-alikes where there is nothing to compare it with."""
    assert distinct(np.empty(0, np.int64), np.empty(0, np.float32)) == 0
    assert distinct(np.array([5, 6]), np.array([9.0, 3.0], np.float32)) == 0


def test_nothing_to_search() -> None:
    """No nodes or no queries give no targets, not an error; a fanout that can't shrink the search is refused."""
    assert not len(LookAhead().search(_vectors(0, 1, 4), _vectors(0, 0, 2, 4), 3).nodes)
    assert not len(LookAhead().search(_vectors(0, 0, 4), _vectors(0, 5, 2, 4), 3).deviations())
    with pytest.raises(ConfigError, match="fanout"):
        LookAhead(fanout=1)


def test_half_precision_keys() -> None:
    """Keys kept in half precision are scored in float32."""
    queries, keys = _vectors(0, 4, 64), _vectors(1, 100, 4, 64)
    torch.testing.assert_close(node_scores(queries, keys.half()), _oracle(queries, keys.half().float()))
