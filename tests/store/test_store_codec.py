"""Rows as bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.errors import ConfigError
from server.stores.codec import RowFormat
from store_harness import make_record


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([16, 32, 64]), first=st.integers(0, 1 << 32), count=st.integers(0, 20), seed=st.integers(0, 99)
)
def test_spans_come_back_as_they_went_in(size, first, count, seed):
    """Law: decode(encode(x)) == x for any ids, blocks and K."""
    form = RowFormat.of(make_record(block_size=size), 0)
    ids = np.random.default_rng(seed).integers(-(1 << 31), 1 << 31, (count, size)).astype(np.int32)
    table, sound = form.decode(first + np.arange(count), form.encode(first, {"ids": ids}))
    assert sound.all()
    assert np.array_equal(table["ids"], ids)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damage_is_noticed_row_by_row(data):
    """Law: any damage to some rows of a batch makes exactly those unsound."""
    form = RowFormat.of(make_record(gist_keys=2, key_dim=3), data.draw(st.integers(0, 3)))
    shapes = {name: (6, *form.dtype[name].shape) for name in form.payload}
    rows = form.encode(9, {name: np.ones(shape, form.dtype[name].base) for name, shape in shapes.items()})
    hurt = data.draw(st.sets(st.integers(0, 5)))
    for index in hurt:
        kind = data.draw(st.sampled_from(["flip", "cut", "longer", "empty", "moved"]))
        at = data.draw(st.integers(0, len(rows[index]) - 1))
        flipped = bytes([rows[index][at] ^ data.draw(st.integers(1, 255))])
        rows[index] = {
            "flip": rows[index][:at] + flipped + rows[index][at + 1 :],
            "cut": rows[index][:at],
            "longer": rows[index] + b"\0",
            "empty": b"",
            "moved": form.encode(77, {name: np.ones((1, *shape[1:])) for name, shape in shapes.items()})[0]
            if form.level
            else form.encode(77, {"ids": np.ones((1, 4), np.int32)})[0],
        }[kind]
    _, sound = form.decode(9 + np.arange(6), rows)
    assert set(np.flatnonzero(~sound)) == hurt


def test_formats_refuse_what_a_session_can_not_have():
    """Law: a level or a number that can't be stored is a ConfigError, not a silent change."""
    with pytest.raises(ConfigError, match="level"):
        RowFormat.of(make_record(), 16)
    with pytest.raises(ConfigError, match="gist_dim"):
        RowFormat.of(make_record(gist_dim=0), 1)
    form = RowFormat.of(make_record(gist_dtype="float16"), 2)
    with pytest.raises(ConfigError, match="finite in float16"):
        form.encode(0, {"gist": np.full((1, 2), 1e6)})
