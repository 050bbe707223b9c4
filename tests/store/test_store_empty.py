"""States of size zero: sessions without tokens, without complete blocks, without gists, and calls about no rows."""

from dataclasses import replace

import numpy as np
import pytest

from mc_core.errors import ConfigError
from store_harness import begin, fill, make_record, some_ids

KEYED = {"gist_keys": 2, "key_dim": 3}
NOTHING = np.zeros(0, np.int64)


def check_empty(store, name, keys=True):
    """Every way of reading a session without blocks gives rows of the right shape, none of them, and no error."""
    for batch in (store.read_spans(name, NOTHING).result(), store.read_span_range(name, 0, 0).result()):
        assert (batch.ids.shape, len(batch.missing), len(batch.corrupt)) == ((0, 4), 0, 0)
    assert store.read_span_range(name, 0, 3).result().missing.tolist() == [0, 1, 2]
    for level in (1, 2, 15):
        batch = store.read_gist_range(name, level, 0, 0).result()
        assert batch.gists.shape == (0, 2)
        assert (batch.keys.shape if batch.keys is not None else None) == ((0, 2, 3) if keys and level == 1 else None)
        assert store.read_gist_range(name, level, 0, 2).result().missing.tolist() == [0, 1]


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_a_session_without_a_complete_block_lives_like_any_other(harness, tokens):
    """Law: it commits, restarts, opens, forks, rewinds, reshapes and grows; its lens keys are those of 0 blocks."""
    store, ids = harness.open(), some_ids(43)
    record = begin(store, implicit=True, **KEYED)
    record = replace(record, tokens=tokens, tail=ids[:tokens], prefixes=[("h", 0)], state={"n": tokens})
    assert store.commit(record).result() == 1
    store.close()
    store = harness.open()
    check_empty(store, "s")
    opened = store.open("s", "alice", "me").result().record
    assert (opened.tokens, opened.tail.tolist(), opened.state) == (tokens, ids[:tokens].tolist(), {"n": tokens})
    assert store.find_prefix("alice", "base", ["h"]).result().position == 0
    store.fork("s", "alice", make_record("c", tokens=tokens, tail=ids[:tokens], **KEYED)).result()
    check_empty(store, "c")
    store.reshape("s", opened.fence, gist_dim=2, gist_dtype="float32", gist_keys=0, key_dim=0).result()
    check_empty(store, "s", keys=False)
    opened = replace(opened, gist_keys=0, key_dim=0)
    assert store.commit(opened).result() == 3
    grown = fill(store, opened, ids)
    store.commit(replace(grown, tokens=tokens, tail=ids[:tokens])).result()
    check_empty(store, "s", keys=False)
    for name in ("s", "c"):
        store.delete(name, "alice").result()
    assert harness.count_everything() == 0
    store.close()


def test_writes_of_no_rows_change_nothing(store):
    """Law: an empty write is taken wherever a next row could be written."""
    record = begin(store, **KEYED)
    none, keys = np.zeros((0, 2), np.float32), np.zeros((0, 2, 3), np.float32)
    store.write_spans("s", record.fence, 0, np.zeros((0, 4), np.int32)).result()
    store.write_gists("s", record.fence, 1, 0, none, keys).result()
    store.write_gists("s", record.fence, 2, 0, none).result()
    check_empty(store, "s")
    assert store.commit(record).result() == 1
    check_empty(store, "s")


def test_gists_of_a_session_that_keeps_none(store):
    """Law: asking for them names gist_dim, whatever the session's length."""
    record = begin(store, gist_dim=0)
    for tokens in (0, 16):
        store.write_spans("s", record.fence, 0, some_ids(tokens).reshape(-1, 4))
        store.commit(replace(record, tokens=tokens)).result()
        with pytest.raises(ConfigError, match="gist_dim"):
            store.read_gist_range("s", 1, 0, 4).result()


def test_calls_about_nobody(store):
    """Law: no leases, no hashes, no sessions and no unused ones are empty answers."""
    assert store.renew({}).result() == ()
    assert store.find_prefix("alice", "base", []).result() is None
    for implicit in (None, True, False):
        page = store.list("alice", implicit=implicit).result()
        assert (page.sessions, page.next) == ((), None)
    assert store.expire(1, implicit=0, explicit=0).result() == 0
