"""Reshaping: a session drops its gists and keeps its spans; forks that share rows keep theirs."""

from dataclasses import replace

import numpy as np
import pytest

from mc_core.errors import ConfigError, StoreError
from mc_core.store import FencedError
from store_harness import begin, fill, fill_gists, make_gists, make_record, some_ids

IDS = some_ids(4 * 70 + 2)
WIDER = {"gist_dim": 3, "gist_dtype": "float32", "gist_keys": 0, "key_dim": 0}


def reshape(store, record, **changes):
    shape = {**WIDER, **changes}
    store.reshape(record.session_id, record.fence, **shape).result()
    return replace(record, **shape)


def remade(store, record, ids=IDS, **changes):
    """Reshapes, makes the gists anew, commits."""
    record = reshape(store, record, **changes)
    fill_gists(store, record, ids)
    store.commit(record).result()
    return record


def check(store, name, ids, dim):
    """All spans are there; all gists with width ``dim``, or none if that is 0."""
    blocks = len(ids) // 4
    assert np.array_equal(store.read_span_range(name, 0, blocks).result().ids.ravel(), ids[: blocks * 4])
    for level in (1, 2, 3, 4):
        expected = make_gists(ids, 4, level, 0)
        batch = store.read_gist_range(name, level, 0, len(expected)).result()
        if dim:
            assert np.array_equal(batch.gists, make_gists(ids, 4, level, 0, dim))
        assert len(batch.missing) == (0 if dim else len(expected))
        assert len(batch.corrupt) == 0


def test_a_reshape_drops_gists_and_keeps_spans(harness):
    """Law: it takes effect at once, committed and staged gists are gone from the disk too, and spans, staged ones
    included, stay; the record keeps its tokens."""
    store, ids = harness.open(), some_ids(4 * 64)
    record = fill(store, begin(store), ids[: 4 * 32])
    rows = [harness.count_everything()]
    fill(store, record, ids, commit=False)
    reshape(store, record)
    rows.append(harness.count_everything())
    assert rows[1] - rows[0] - 32 + (32 + 8 + 2) <= 1, "at most a storage is new"
    assert store.read_span_range("s", 0, 64).result().missing.tolist() == []
    assert store.read_gist_range("s", 1, 0, 64).result().missing.tolist() == list(range(64))
    found = store.record("s", "alice").result()
    assert (found.tokens, found.gist_dim, found.sequence) == (128, 3, 2)
    store.close()


def test_gists_are_written_from_the_first_and_the_commit_needs_them_all(store):
    """Law: after a reshape gists begin at index 0 below the committed length, without gaps, in the new shape, and no
    commit is acknowledged before all are there."""
    record = fill(store, begin(store), IDS)
    record = reshape(store, record, gist_keys=2, key_dim=3, gist_dtype="float16")
    with pytest.raises(StoreError, match="282 tokens need 70 rows of level 1"):
        store.commit(record).result()
    gists, keys = np.ones((70, 3), np.float32), np.ones((70, 2, 3), np.float32)
    for bad in (gists[:, :2], gists):
        with pytest.raises(ConfigError, match=r"must have shape|keeps"):
            store.write_gists("s", record.fence, 1, 0, bad).result()
    with pytest.raises(StoreError, match="gaps"):
        store.write_gists("s", record.fence, 1, 1, gists[1:], keys[1:]).result()
    store.write_gists("s", record.fence, 1, 0, gists[:30], keys[:30])
    store.write_gists("s", record.fence, 1, 30, gists[30:], keys[30:])
    with pytest.raises(StoreError, match="level 2"):
        store.commit(record).result()
    for level, count in ((2, 17), (3, 4), (4, 1)):
        store.write_gists("s", record.fence, level, 0, gists[:count])
    assert store.commit(record).result() == 3
    batch = store.read_gist_range("s", 1, 0, 70).result()
    assert batch.keys is not None
    assert (batch.keys.shape, batch.gists.dtype) == ((70, 2, 3), np.float16)


def test_an_old_fence_can_not_reshape(store):
    """Law: an outdated lease changes nothing; a bad shape is named and changes nothing either."""
    old = fill(store, begin(store), IDS)
    new = store.open("s", "alice", "me").result().record
    for fence in (old.fence, 0):
        with pytest.raises(FencedError):
            store.reshape("s", fence, **WIDER).result()
    for name, value in (("gist_dim", -1), ("gist_dtype", "int8"), ("key_dim", -3)):
        with pytest.raises(ConfigError, match=name):
            store.reshape("s", new.fence, **{**WIDER, name: value}).result()
    check(store, "s", IDS, 2)
    store.delete("s", "alice").result()
    with pytest.raises(FencedError):
        store.reshape("s", new.fence, **WIDER).result()


@pytest.mark.parametrize("same_server", [True, False])
def test_gists_are_made_good_block_by_block(harness, same_server):
    """Law: after a reshape, gists of committed blocks stay for good once all that these complete are there, without a
    commit; those of other blocks go with their lease, and no record of all gists is taken before they are all there."""
    store, longer = harness.open(), np.concatenate([IDS, some_ids(46, seed=1)])
    record = reshape(store, fill(store, begin(store), IDS))
    for made in (0, 20, 70, 82):
        record = fill(store, record, longer, commit=False) if made == 82 else record
        fill_gists(store, record, longer[: made * 4])
        if not same_server:
            store.close()
            store = harness.open()
        record = store.open("s", "alice", "me").result().record
        assert (record.tokens, record.gist_dim, record.gist_blocks) == (282, 3, made if made < 70 else None)
        there = store.read_gist_range("s", 1, 0, 90).result().indices
        assert there.tolist() == list(range(min(made, 70)))
        if made < 70:
            with pytest.raises(StoreError, match="70 rows of level 1, only"):
                store.commit(replace(record, gist_blocks=None)).result()
            record = replace(record, sequence=store.commit(record).result())
    check(store, "s", IDS, 3)
    store.delete("s", "alice").result()
    assert harness.count_everything() == 0
    store.close()


def test_a_session_without_gists_gains_them_and_one_with_them_loses_them(harness):
    """Law: gist_dim may go from 0 and to 0; then a commit needs as many gists as the new shape has."""
    store, ids = harness.open(), some_ids(4 * 9)
    record = begin(store, gist_dim=0)
    store.write_spans("s", record.fence, 0, ids.reshape(-1, 4))
    record = replace(record, tokens=36)
    store.commit(record).result()
    record = remade(store, record, ids)
    check(store, "s", ids, 3)
    record = reshape(store, record, gist_dim=0)
    assert store.commit(replace(record, state={"bare": True})).result() == 5
    with pytest.raises(ConfigError, match="gist_dim"):
        store.read_gist_range("s", 1, 0, 9).result()
    store.delete("s", "alice").result()
    assert harness.count_everything() == 0
    store.close()


@pytest.mark.parametrize("order", [("s", "c", "d"), ("d", "c", "s"), ("c", "s", "d")])
def test_forks_keep_their_gists_and_are_deleted_in_any_order(harness, order):
    """Law: of a parent, a fork and a fork of the fork each reshapes alone; the last to go leaves nothing."""
    store = harness.open()
    parent = fill(store, begin(store), IDS)
    store.fork("s", "alice", make_record("c", tokens=4 * 40)).result()
    child = store.open("c", "alice", "me").result().record
    longer = np.concatenate([IDS[:160], some_ids(90, seed=1)])
    child = fill(store, child, longer)
    store.fork("c", "alice", make_record("d", tokens=4 * 50)).result()
    remade(store, child, longer)
    check(store, "s", IDS, 2)
    check(store, "c", longer, 3)
    check(store, "d", longer[:200], 2)
    remade(store, parent, gist_dim=5)
    check(store, "s", IDS, 5)
    check(store, "c", longer, 3)
    check(store, "d", longer[:200], 2)
    left = {"s": (IDS, 5), "c": (longer, 3), "d": (longer[:200], 2)}
    for name in order:
        store.delete(name, "alice").result()
        del left[name]
        for other, expected in left.items():
            check(store, other, *expected)
    assert harness.count_everything() == 0
    store.close()


def test_a_fork_made_after_a_reshape_shares_the_new_gists(harness):
    """Law: it copies nothing, needs the new shape, and grows and rewinds alone."""
    store = harness.open()
    parent = remade(store, fill(store, begin(store), IDS))
    before = harness.count_everything()
    with pytest.raises(StoreError, match="gist_dim"):
        store.fork("s", "alice", make_record("c", tokens=160)).result()
    store.fork("s", "alice", make_record("c", tokens=160, gist_dim=3)).result()
    assert harness.count_everything() - before < 10, "a fork copies no rows"
    child = store.open("c", "alice", "me").result().record
    longer = np.concatenate([IDS[:160], some_ids(90, seed=1)])
    store.write_spans("c", child.fence, 40, longer[160:248].reshape(-1, 4))
    for level in (1, 2, 3):
        first = child.rows(level)
        store.write_gists("c", child.fence, level, first, make_gists(longer, 4, level, first, 3))
    store.commit(replace(child, tokens=250, tail=longer[248:])).result()
    check(store, "c", longer, 3)
    check(store, "s", IDS, 3)
    store.commit(replace(parent, tokens=4 * 10, tail=())).result()
    check(store, "s", IDS[:40], 3)
    check(store, "c", longer, 3)
    for name in ("s", "c"):
        store.delete(name, "alice").result()
    assert harness.count_everything() == 0
    store.close()


@pytest.mark.parametrize("made", [0, 13, 30])
def test_a_fork_shares_the_gists_that_are_made_and_makes_the_others_itself(harness, made):
    """Law: parent and fork write what is missing apart from each other, and either commits, reshapes and rewinds
    alone."""
    store = harness.open()
    parent = reshape(store, fill(store, begin(store), IDS))
    fill_gists(store, parent, IDS[: made * 4])
    store.fork("s", "alice", make_record("c", tokens=160, gist_dim=3)).result()
    child = store.open("c", "alice", "me").result().record
    assert (child.gist_blocks, store.record("s", "alice").result().gist_blocks) == (made, made)
    for name in ("s", "c"):
        check(store, name, IDS[: made * 4], 3)
    with pytest.raises(StoreError, match="40 rows of level 1, only"):
        store.commit(replace(child, gist_blocks=None)).result()
    for level in (1, 2, 3):
        first = child.rows(level)
        store.write_gists("c", child.fence, level, first, make_gists(IDS[:160], 4, level, first, 3)).result()
    assert store.read_gist_range("s", 1, 0, 70).result().indices.tolist() == list(range(made))
    store.commit(replace(child, gist_blocks=None)).result()
    check(store, "c", IDS[:160], 3)
    fill_gists(store, parent, IDS)
    store.commit(parent).result()
    remade(store, replace(child, gist_blocks=None), IDS[:160], gist_dim=4)
    check(store, "s", IDS, 3)
    check(store, "c", IDS[:160], 4)
    store.commit(replace(parent, tokens=4 * 10, tail=())).result()
    check(store, "s", IDS[:40], 3)
    check(store, "c", IDS[:160], 4)
    for name in ("s", "c"):
        store.delete(name, "alice").result()
    assert harness.count_everything() == 0
    store.close()


def test_rewinds_after_a_reshape(harness):
    """Law: a reshaped session rewinds, over the border of a fork too, and goes on from there with its new gists."""
    store = harness.open()
    fill(store, begin(store), IDS)
    store.fork("s", "alice", make_record("c", tokens=160)).result()
    child = store.open("c", "alice", "me").result().record
    longer = np.concatenate([IDS[:160], some_ids(90, seed=1)])
    child = reshape(store, fill(store, child, longer))
    fill_gists(store, child, longer)
    for tokens in (200, 100, 0):
        child = replace(child, tokens=tokens, tail=())
        store.commit(child).result()
        check(store, "c", longer[:tokens], 3)
        check(store, "s", IDS, 2)
    store.delete("s", "alice").result()
    fresh = some_ids(70, seed=3)
    store.write_spans("c", child.fence, 0, fresh[:68].reshape(-1, 4))
    fill_gists(store, child, fresh)
    store.commit(replace(child, tokens=70, tail=fresh[68:])).result()
    check(store, "c", fresh, 3)
    store.delete("c", "alice").result()
    assert harness.count_everything() == 0
    store.close()


def test_long_histories_are_reshaped_page_by_page(harness):
    """Law: it holds over thousands of rows, for a session and a fork that begins within a page."""
    store, ids = harness.open(), some_ids(4 * 3000)
    record = fill(store, begin(store), ids)
    store.fork("s", "alice", make_record("c", tokens=4 * 1500)).result()
    child = store.open("c", "alice", "me").result().record
    grown = np.concatenate([ids[:6000], some_ids(4 * 700, seed=5)])
    child = fill(store, child, grown)
    remade(store, child, grown)
    check(store, "c", grown, 3)
    check(store, "s", ids, 2)
    store.commit(replace(record, tokens=4 * 1200)).result()
    check(store, "c", grown, 3)
    check(store, "s", ids[:4800], 2)
    for name in ("c", "s"):
        store.delete(name, "alice").result()
    assert harness.count_everything() == 0
    store.close()
