"""What every store promises, one law a test."""

from dataclasses import replace

import numpy as np
import pytest

from mc_core.errors import ConfigError, StoreError
from mc_core.notes import Note
from mc_core.store import FencedError, LeaseHeldError, SessionStore, UnknownSessionError
from store_harness import begin, fill, lapse_soon, make_gists, make_record, some_ids
from support import wait_until


def test_the_store_fulfils_the_protocol(store):
    """Law: an implementation has every method of SessionStore."""
    assert isinstance(store, SessionStore)


def test_a_commit_survives_a_restart(harness):
    """Law: ids, tail, gists, state, metadata and prefixes of an acknowledged commit are all there after a restart."""
    store, ids = harness.open(), some_ids(4 * 70 + 3)
    record = begin(store, metadata={"name": "ü"})
    record = replace(record, state={"rng": [1 << 100, 0.5], "layout": [[0, 1]]}, prefixes=[("h1", 0), ("h2", 0)])
    fill(store, record, ids)
    store.close()
    store = harness.open()
    found = store.record("s", "alice").result()
    assert (found.tokens, found.sequence, found.metadata) == (283, 1, {"name": "ü"})
    assert found.state == {"rng": [1 << 100, 0.5], "layout": [[0, 1]]}
    assert found.prefixes == (("h1", 0), ("h2", 0))
    assert np.array_equal(found.tail, ids[280:])
    assert np.array_equal(store.read_span_range("s", 0, 70).result().ids.ravel(), ids[:280])
    for level in (1, 2, 3, 4):
        expected = make_gists(ids, 4, level, 0)
        assert np.array_equal(store.read_gist_range("s", level, 0, len(expected)).result().gists, expected)
    store.close()


def test_sessions_of_another_tokenizer_are_counted(store):
    """Law: those of all tenants count, but for those that are no sessions yet, and no more than the limit."""
    tokenizers = {"a": "abc", "b": "abc", "c": "other", "d": "third"}
    for number, (name, tokenizer) in enumerate(tokenizers.items()):
        store.create(make_record(name, tokenizer=tokenizer, tenant=f"t{number}/ü")).result()
    store.create(make_record("unborn", tokenizer="other", gist_dim=0)).result()
    assert [store.foreign(own, 100).result() for own in ("abc", "other", "new")] == [2, 3, 4]
    many = [store.create(make_record(f"s{number}", tokenizer="abc")) for number in range(2500)]
    assert all(one.result() for one in many)
    assert store.foreign("new", 10_000).result() == 2504
    assert store.foreign("new", 1000).result() < 2504


def test_lens_keys_are_kept_beside_level_one(store):
    """Law: a record with lens keys has them at level 1 and only there, in its own dtype."""
    record = begin(store, gist_dtype="float16", gist_keys=3, key_dim=5)
    gists, keys = np.ones((2, 2), np.float32), np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    store.write_gists("s", record.fence, 1, 0, gists, keys).result()
    batch = store.read_gist_range("s", 1, 0, 2).result()
    assert batch.keys is not None
    assert batch.keys.dtype == np.float16
    assert np.array_equal(batch.keys, keys.astype(np.float16))
    with pytest.raises(ConfigError, match="keys"):
        store.write_gists("s", record.fence, 1, 2, gists).result()
    with pytest.raises(ConfigError, match="keys"):
        store.write_gists("s", record.fence, 2, 0, gists, keys).result()


def test_staged_rows_are_gone_after_a_restart(harness):
    """Law: rows beyond the committed length are readable under their lease, and invisible after a restart."""
    store, ids = harness.open(), some_ids(40)
    record = fill(store, begin(store), ids[:20])
    fill(store, record, ids, commit=False)
    assert len(store.read_spans("s", np.arange(10)).result().blocks) == 10
    store.close()
    store = harness.open()
    assert store.read_spans("s", np.arange(10)).result().missing.tolist() == [5, 6, 7, 8, 9]
    assert store.read_gist_range("s", 1, 0, 10).result().missing.tolist() == [5, 6, 7, 8, 9]
    store.open("s", "alice", "me").result()
    assert store.read_span_range("s", 0, 10).result().missing.tolist() == [5, 6, 7, 8, 9]
    store.close()


def test_staged_rows_are_gone_after_a_takeover(store):
    """Law: opening again drops what the earlier lease staged and had not committed."""
    record = begin(store)
    fill(store, record, some_ids(8), commit=False)
    again = store.open("s", "alice", "me").result()
    assert again.fence > record.fence
    assert len(store.read_spans("s", np.arange(2)).result().blocks) == 0


def test_an_old_fence_is_refused(store):
    """Law: after a take-over the old owner can neither write nor commit, and changes nothing by trying."""
    old, ids = begin(store), some_ids(8)
    new = store.open("s", "alice", "me").result().record
    with pytest.raises(FencedError):
        store.write_spans("s", old.fence, 0, ids.reshape(2, 4)).result()
    with pytest.raises(FencedError):
        store.write_gists("s", old.fence, 1, 0, np.ones((1, 2), np.float32)).result()
    with pytest.raises(FencedError):
        store.commit(replace(old, state={"mine": 1})).result()
    with pytest.raises(FencedError):
        store.commit(replace(old, fence=0)).result()
    assert store.record("s", "alice").result().state == {}
    fill(store, new, ids)
    assert store.record("s", "alice").result().tokens == 8


def test_who_lost_its_lease_changes_nothing_in_any_way(store):
    """Law: no call of an old owner changes a session that another one opened, though that one has written nothing: no
    commit, with or without rows or notes, no reshape, no renewal, and no release ends the new lease."""
    old = fill(store, begin(store, owner="one"), some_ids(8))
    lapse_soon(store, old)
    store.lease_seconds = 600
    wait_until(lambda: store.open("s", "alice", "two").exception() is None)
    shape = {"gist_dim": 2, "gist_dtype": "float32", "gist_keys": 0, "key_dim": 0}
    late = [
        store.commit(replace(old, state={"late": True})),
        store.commit(replace(old, tokens=4)),
        store.commit(old, [Note("late", 0, b"late")]),
        store.reshape("s", old.fence, **shape),
        store.write_spans("s", old.fence, 2, some_ids(4, 1).reshape(1, 4)),
        store.write_gists("s", old.fence, 1, 2, np.ones((1, 2), np.float32)),
    ]
    assert [type(future.exception()) for future in late] == [FencedError] * len(late)
    assert store.renew({"s": old.fence}, "one").result() == ("s",)
    store.release("s", old.fence).result()
    with pytest.raises(LeaseHeldError):
        store.open("s", "alice", "one").result()
    found = store.record("s", "alice").result()
    assert (found.tokens, found.state, found.sequence) == (8, {}, 1)
    assert store.notes("s", "alice").result().notes == ()
    assert len(store.read_gist_range("s", 1, 0, 2).result().gists) == 2


def test_a_live_lease_keeps_other_owners_out_until_it_lapses(store):
    """Law: another owner gets LeaseHeldError while the lease lives, and takes over once it lapsed or was released."""
    first = begin(store, owner="one")
    with pytest.raises(LeaseHeldError) as held:
        store.open("s", "alice", "two").result()
    assert 0 < held.value.retry_after <= store.lease_seconds
    assert store.renew({"s": first.fence, "nobody": 7}).result() == ("nobody",)
    store.release("s", first.fence).result()
    second = store.open("s", "alice", "two").result()
    assert store.renew({"s": first.fence}).result() == ("s",)
    with pytest.raises(LeaseHeldError):
        store.open("s", "alice", "one").result()
    lapse_soon(store, second.record)
    wait_until(lambda: store.open("s", "alice", "one").exception() is None)
    with pytest.raises(FencedError):
        store.commit(second.record).result()


def test_a_wish_is_told_once_and_kept_for_who_wished(store):
    """Law: the holder is told who else wants a session; once it lets go, that one alone may open it, for a while."""
    first = begin(store, owner="one")
    with pytest.raises(LeaseHeldError):
        store.open("s", "alice", "three").result()
    assert store.asked("one").result() == ()
    with pytest.raises(LeaseHeldError):
        store.open("s", "alice", "two", wish=True).result()
    assert (store.asked("two").result(), store.asked("one").result(), store.asked("one").result()) == ((), ("s",), ())
    store.release("s", first.fence).result()
    for other in ("three", "one"):
        with pytest.raises(LeaseHeldError):
            store.open("s", "alice", other).result()
    second = store.open("s", "alice", "two").result()
    store.release("s", second.fence).result()
    assert store.open("s", "alice", "three").result().fence > second.fence, "the wish was granted once"


def test_a_wish_does_not_lock_a_session_up(store, monkeypatch):
    """Law: whoever wished and went away keeps nobody out: not past its time, and not at all with an old wish."""
    first = begin(store, owner="one")
    assert store.open("s", "alice", "two", wish=True).exception() is not None
    store.release("s", first.fence).result()
    assert store.open("s", "alice", "one").exception() is not None
    wait_until(lambda: store.open("s", "alice", "one").exception() is None)
    for place in ("server.stores.redis.store", "server.stores.sqlite.wishes"):
        monkeypatch.setattr(f"{place}.WISH_SECONDS", 0.0)
    again = store.open("s", "alice", "one").result()
    assert store.open("s", "alice", "two", wish=True).exception() is not None
    store.release("s", again.fence).result()
    assert store.open("s", "alice", "three").exception() is None


def test_a_released_lease_is_over(store):
    """Law: a renewal or a commit that comes after the release neither takes the session back nor changes it."""
    first = begin(store, owner="one")
    store.release("s", first.fence).result()
    assert store.renew({"s": first.fence}, "one").result() == ("s",)
    with pytest.raises(FencedError):
        store.commit(first).result()
    assert store.open("s", "alice", "two").exception() is None


def test_a_renewed_lease_may_change_its_owner(store):
    """Law: a renewal says whose the lease is from then on, if it says so: that owner may reopen, others may not."""
    record = begin(store, owner="me")
    assert store.renew({"s": record.fence}, "me~2").result() == ()
    assert store.renew({"s": record.fence}).result() == ()
    with pytest.raises(LeaseHeldError):
        store.open("s", "alice", "me").result()
    assert store.open("s", "alice", "me~2").result().fence > record.fence


def test_another_tenants_session_reads_like_no_session(store):
    """Law: tenant is part of every look-up, and a refusal does not tell whether the session exists."""
    fill(store, begin(store, implicit=True), some_ids(9))
    for call in (
        lambda name: store.open(name, "mallory", "me"),
        lambda name: store.record(name, "mallory"),
        lambda name: store.delete(name, "mallory"),
        lambda name: store.fork(name, "mallory", make_record("f", tenant="mallory")),
    ):
        errors = [call(name).exception() for name in ("s", "t")]
        assert [type(error) for error in errors] == [UnknownSessionError] * 2
        assert str(errors[0]).replace("'s'", "'t'") == str(errors[1])
    assert isinstance(errors[0], LookupError)
    assert store.list("mallory").result().sessions == ()
    assert store.record("s", "alice").result().tokens == 9


def test_a_commit_needs_its_rows(store):
    """Law: a turn whose rows were not all written is not acknowledged, whichever level is short."""
    record, ids = begin(store), some_ids(16)
    longer = replace(record, tokens=16)
    with pytest.raises(StoreError, match="level 0"):
        store.commit(longer).result()
    store.write_spans("s", record.fence, 0, ids.reshape(4, 4)).result()
    with pytest.raises(StoreError, match="level 1"):
        store.commit(longer).result()
    store.write_gists("s", record.fence, 1, 0, make_gists(ids, 4, 1, 0)).result()
    with pytest.raises(StoreError, match="level 2"):
        store.commit(longer).result()
    store.write_gists("s", record.fence, 2, 0, make_gists(ids, 4, 2, 0)).result()
    assert store.commit(longer).result() == 1
    with pytest.raises(StoreError, match="gaps"):
        store.write_spans("s", record.fence, 5, ids.reshape(4, 4)).result()


def test_a_session_without_gists_needs_only_spans(store):
    """Law: gist_dim 0 means that no gists are kept nor asked for."""
    record = begin(store, gist_dim=0)
    store.write_spans("s", record.fence, 0, some_ids(16).reshape(4, 4))
    assert store.commit(replace(record, tokens=16)).result() == 1
    with pytest.raises(ConfigError, match="gist_dim"):
        store.write_gists("s", record.fence, 1, 0, np.ones((1, 2), np.float32)).result()


def test_committed_rows_are_immutable_but_a_retry_is_safe(store):
    """Law: a committed row can be written again unchanged, never changed without a committed rewind."""
    ids = some_ids(20)
    record = fill(store, begin(store), ids)
    store.write_spans("s", record.fence, 2, ids[8:20].reshape(3, 4)).result()
    changed = ids[8:20].copy()
    changed[5] += 1
    with pytest.raises(StoreError, match="rewind"):
        store.write_spans("s", record.fence, 2, changed.reshape(3, 4)).result()
    store.commit(replace(record, tokens=8)).result()
    store.write_spans("s", record.fence, 2, changed.reshape(3, 4)).result()
    assert np.array_equal(store.read_span_range("s", 0, 5).result().ids.ravel(), np.concatenate([ids[:8], changed]))


def test_a_rewind_drops_rows_at_every_level(harness):
    """Law: rows beyond a smaller committed length are gone, and come back only if they are written again."""
    store, ids = harness.open(), some_ids(4 * 64)
    record = fill(store, begin(store), ids)
    before = harness.count_everything()
    store.commit(replace(record, tokens=4 * 16 + 1, tail=ids[64:65])).result()
    assert store.read_span_range("s", 0, 64).result().missing.tolist() == list(range(16, 64))
    assert store.read_gist_range("s", 2, 0, 16).result().missing.tolist() == list(range(4, 16))
    assert before - harness.count_everything() == 48 + 48 + 12 + 3 + 1
    again = replace(record, tokens=64, tail=())
    fill(store, again, ids)
    assert np.array_equal(store.read_gist_range("s", 4, 0, 1).result().gists, make_gists(ids, 4, 4, 0))
    store.close()


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_flipped_byte_anywhere_in_a_row_is_reported(harness, level):
    """Law: whichever byte of a stored row flips, that row and only that one is corrupt, in either way of reading."""
    store, ids = harness.open(), some_ids(64)
    fill(store, begin(store), ids)
    store.close()
    good = harness.raw_row("s", level, 2)
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        harness.put_row("s", level, 2, bytes(bad))
        store = harness.open()
        if level:
            batches = [store.read_gist_range("s", level, 0, 4).result()]
            assert batches[0].indices.tolist() == [0, 1, 3]
        else:
            batches = [store.read_spans("s", np.arange(4)).result(), store.read_span_range("s", 0, 4).result()]
            assert all(np.array_equal(batch.ids, ids[:16].reshape(4, 4)[[0, 1, 3]]) for batch in batches)
        assert all((batch.corrupt.tolist(), batch.missing.tolist()) == ([2], []) for batch in batches)
        store.close()


def test_cut_moved_and_lost_rows_are_reported_and_can_be_healed(harness):
    """Law: a shortened row or one from elsewhere is corrupt, a removed one missing; writing them again heals them."""
    store, ids = harness.open(), some_ids(32)
    fill(store, begin(store), ids)
    store.close()
    harness.put_row("s", 0, 1, harness.raw_row("s", 0, 1)[:-1])
    harness.put_row("s", 0, 2, harness.raw_row("s", 0, 3))
    harness.put_row("s", 0, 5, None)
    store = harness.open()
    for batch in (store.read_spans("s", np.arange(8)).result(), store.read_span_range("s", 0, 8).result()):
        assert (batch.corrupt.tolist(), batch.missing.tolist()) == ([1, 2], [5])
        assert np.array_equal(batch.ids, ids.reshape(8, 4)[[0, 3, 4, 6, 7]])
    lease = store.open("s", "alice", "me").result()
    store.write_spans("s", lease.fence, 0, ids.reshape(8, 4)).result()
    assert np.array_equal(store.read_span_range("s", 0, 8).result().ids, ids.reshape(8, 4))
    store.close()


def test_spans_of_another_tokenizer_are_corrupt(harness):
    """Law: a span is bound to its tokenizer's fingerprint."""
    store = harness.open()
    fill(store, begin(store), some_ids(8))
    fill(store, begin(store, "t", tokenizer="other"), some_ids(8))
    store.close()
    harness.put_row("t", 0, 0, harness.raw_row("s", 0, 0))
    store = harness.open()
    assert store.read_spans("t", np.arange(2)).result().corrupt.tolist() == [0]
    store.close()


def test_delete_leaves_nothing_and_fences_late_writes(harness):
    """Law: delete removes every row of every kind; writes under the old lease are refused, also after a re-creation."""
    store = harness.open()
    record = fill(store, begin(store, implicit=True, prefixes=[("h", 0)]), some_ids(4 * 70 + 2))
    fill(store, record, some_ids(4 * 90), commit=False)
    store.delete("s", "alice").result()
    with pytest.raises(FencedError):
        store.write_spans("s", record.fence, 0, some_ids(4).reshape(1, 4)).result()
    with pytest.raises(FencedError):
        store.commit(record).result()
    with pytest.raises(UnknownSessionError):
        store.read_spans("s", np.arange(2)).result()
    assert store.find_prefix("alice", "base", ["h"]).result() is None
    assert harness.count_everything() == 0
    again = begin(store)
    assert again.fence > record.fence
    with pytest.raises(FencedError):
        store.commit(record).result()
    store.close()


def test_a_fork_shares_rows_and_lives_alone(harness):
    """Law: parent and fork rewind, grow and are deleted without changing each other; the last takes the rows along."""
    store, ids = harness.open(), some_ids(4 * 40 + 2)
    parent = fill(store, begin(store), ids)
    before = harness.count_everything()
    child = make_record("c", tokens=4 * 30 + 1, tail=ids[120:121])
    store.fork("s", "alice", child).result()
    assert harness.count_everything() - before < 8, "a fork copies no rows"
    child = store.open("c", "alice", "me").result().record
    other = np.concatenate([ids[:121], some_ids(60, seed=1)])
    fill(store, child, other)
    store.commit(replace(parent, tokens=4 * 10, tail=())).result()
    third = np.concatenate([ids[:40], some_ids(80, seed=2)])
    fill(store, replace(parent, tokens=40, tail=()), third)
    for name, expected in (("c", other), ("s", third)):
        blocks = len(expected) // 4
        assert np.array_equal(store.read_span_range(name, 0, blocks).result().ids.ravel(), expected[: blocks * 4])
        assert np.array_equal(store.read_spans(name, np.arange(blocks)).result().ids.ravel(), expected[: blocks * 4])
        for level in (1, 2, 3):
            gists = make_gists(expected, 4, level, 0)
            assert np.array_equal(store.read_gist_range(name, level, 0, len(gists)).result().gists, gists)
    store.delete("s", "alice").result()
    assert np.array_equal(store.read_span_range("c", 0, 45).result().ids.ravel(), other[:180])
    store.delete("c", "alice").result()
    assert harness.count_everything() == 0
    store.close()


def test_a_fork_can_not_be_longer_than_its_parent(store):
    """Law: a fork holds committed tokens only."""
    fill(store, begin(store), some_ids(8))
    with pytest.raises(ConfigError, match="at most 8"):
        store.fork("s", "alice", make_record("c", tokens=12)).result()
    with pytest.raises(StoreError, match="fixed"):
        store.fork("s", "alice", make_record("c", tenant="bob")).result()


def test_listing_pages_newest_first_and_survives_deletion(store):
    """Law: pages show each session once, newest first, even if the listed ones are deleted meanwhile."""
    for number in range(7):
        store.create(make_record(f"s{number}", metadata={"n": number}, created=1000.0 + number // 2)).result()
    seen, cursor = [], None
    while True:
        page = store.list("alice", limit=3, after=cursor).result()
        seen.extend(info.session_id for info in page.sessions)
        for info in page.sessions:
            store.delete(info.session_id, "alice").result()
        cursor = page.next
        if cursor is None:
            break
    assert seen == ["s6", "s5", "s4", "s3", "s2", "s1", "s0"]
    for bad in ("x", "1.0", "nope/s"):
        with pytest.raises(ConfigError, match="after"):
            store.list("alice", after=bad).result()
    with pytest.raises(ConfigError, match="limit"):
        store.list("alice", limit=0).result()


def test_listing_by_kind_pages_over_that_kind_alone(store):
    """Law: pages of implicit or explicit sessions are full, hold each once, newest first, and follow a session that
    changes its kind; a cursor of one kind is good when its session is gone."""
    for number in range(60):
        store.create(make_record(f"s{number:02}", implicit=number % 10 != 0, created=1000.0 + number // 4))
    changed = store.open("s07", "alice", "me").result().record
    store.commit(replace(changed, implicit=False)).result()
    store.fork("s00", "alice", make_record("fork", created=990.0, implicit=True)).result()
    expected = {kind: [f"s{n:02}" for n in reversed(range(60)) if (n % 10 == 0 or n == 7) != kind] for kind in (0, 1)}
    expected[1].append("fork")
    for implicit in (True, False):
        seen, cursor = [], None
        while True:
            page = store.list("alice", limit=7, after=cursor, implicit=implicit).result()
            assert all(info.implicit is implicit for info in page.sessions)
            assert len(page.sessions) == 7 or page.next is None
            seen.extend(info.session_id for info in page.sessions)
            store.delete(page.sessions[-1].session_id, "alice").result()
            cursor = page.next
            if cursor is None:
                break
        assert seen == expected[int(implicit)]
    assert store.list("mallory", implicit=True).result().sessions == ()


def test_unused_implicit_sessions_expire(harness):
    """Law: of implicit sessions alone, of all tenants, those whose last commit is long enough ago go with all of their
    rows, the longest unused first, so many at a time; a live lease keeps one, a lapsed or released one does not."""
    store = harness.open()
    for name, tenant in (("old", "alice"), ("mine", "alice"), ("other:tenant", "bob:x")):
        record = begin(store, name, tenant=tenant, implicit=True, prefixes=[("h", 0)])
        record = fill(store, record, some_ids(90))
        if name == "mine":
            mine = record
        else:
            store.release(name, record.fence).result()
    explicit = begin(store, "explicit")
    store.release("explicit", explicit.fence).result()
    assert store.expire(100, implicit=3600).result() == store.expire(100).result() == 0
    with pytest.raises(ConfigError, match="limit"):
        store.expire(0, implicit=0).result()
    assert store.expire(1, implicit=0).result() == 1
    with pytest.raises(UnknownSessionError):
        store.record("old", "alice").result()
    assert store.expire(100, implicit=0).result() == 1, "the leased one stays"
    assert store.list("bob:x").result().sessions == ()
    assert [info.session_id for info in store.list("alice").result().sessions] == ["explicit", "mine"]
    lapse_soon(store, mine)
    wait_until(lambda: store.expire(100, implicit=0).result() == 1)
    with pytest.raises(FencedError):
        store.write_spans("mine", mine.fence, 22, some_ids(4).reshape(1, 4)).result()
    store.delete("explicit", "alice").result()
    store.close()
    assert harness.count_everything() == 0


@pytest.mark.parametrize("implicit", [False, True])
def test_sessions_live_as_long_as_they_say(harness, implicit):
    """Law: a time of its own goes before that of its kind, "kept" before both, each as the last commit said; what
    writes to a session that expired is refused."""
    store, kind = harness.open(), "implicit" if implicit else "explicit"
    lives = {"usual": {}, "short": {"ttl": 0.001}, "long": {"ttl": 3600.0}, "kept": {"keep": True, "ttl": 0.001}}
    records = {}
    for name, life in lives.items():
        opened = begin(store, name, implicit=implicit)
        records[name] = replace(opened, **life)
        store.commit(records[name]).result()
        told = store.record(name, "alice").result()
        assert (told.keep, told.ttl) == (life.get("keep", False), life.get("ttl"))
        store.release(name, opened.fence).result()
    listed = {info.session_id: (info.keep, info.ttl) for info in store.list("alice").result().sessions}
    assert listed["kept"] == (True, 0.001)
    assert listed["usual"] == (False, None)
    wait_until(lambda: store.expire(100, **{kind: 3600}).result() == 1)
    with pytest.raises(FencedError):
        store.commit(records["short"]).result()
    assert store.expire(100, **{kind: 0}).result() == 1, "the usual one"
    fence = store.open("kept", "alice", "me").result().fence
    store.commit(replace(records["kept"], keep=False, fence=fence)).result()
    store.release("kept", fence).result()
    wait_until(lambda: store.expire(100).result() == 1)
    assert [info.session_id for info in store.list("alice").result().sessions] == ["long"]
    with pytest.raises(ConfigError, match="ttl"):
        replace(records["long"], ttl=0.0)
    store.delete("long", "alice").result()
    store.close()
    assert harness.count_everything() == 0


def test_prefixes_find_the_longest_match_of_the_right_tenant_and_model(store):
    """Law: the longest known prefix wins, then the session that stored it last; only implicit sessions of one tenant
    and model take part; a rewind forgets what lies past it."""
    first = fill(store, begin(store, "a", implicit=True), some_ids(40))
    store.commit(replace(first, prefixes=[("p1", 10), ("p2", 30)])).result()
    for name, changes in (("b", {"tenant": "bob"}), ("m", {"model": "other"}), ("e", {"implicit": False})):
        record = fill(store, begin(store, name, **{"implicit": True, **changes}), some_ids(40))
        store.commit(replace(record, prefixes=[("p3", 40)])).result()
    match = store.find_prefix("alice", "base", ["p3", "p2", "p1"]).result()
    assert (match.session_id, match.hash, match.position) == ("a", "p2", 30)
    store.commit(replace(first, tokens=20, prefixes=[("p1", 10)])).result()
    assert store.find_prefix("alice", "base", ["p3", "p2", "p1"]).result().hash == "p1"
    later = fill(store, begin(store, "z", implicit=True), some_ids(40))
    store.commit(replace(later, prefixes=[("p1", 12)])).result()
    assert store.find_prefix("alice", "base", ["p1"]).result().session_id == "z"
    assert store.find_prefix("alice", "base", []).result() is None


def test_calls_of_one_session_keep_their_order_without_waiting(store):
    """Law: a read sees exactly the writes made before it, though nobody waits in between."""
    record, reads = begin(store, gist_dim=0), []
    for block in range(200):
        store.write_spans("s", record.fence, block, np.full((1, 4), block, np.int32))
        reads.append(store.read_spans("s", np.array([block, block + 1])))
        if block % 10 == 9:
            store.commit(replace(record, tokens=4 * (block + 1)))
    for block, read in enumerate(reads):
        assert read.result().blocks.tolist() == [block]
        assert read.result().ids.tolist() == [[block] * 4]
    assert store.record("s", "alice").result().tokens == 800


def test_buffers_may_be_reused_at_once(store):
    """Law: arguments are copied when the call is made."""
    record, buffer, state = begin(store, gist_dim=0), np.zeros((1, 4), np.int32), {"n": 0}
    for block in range(50):
        buffer[:] = state["n"] = block
        store.write_spans("s", record.fence, block, buffer)
        store.commit(replace(record, tokens=4 * (block + 1), state=state))
    buffer[:] = state["n"] = -1
    assert store.record("s", "alice").result().state == {"n": 49}
    assert store.read_span_range("s", 0, 50).result().ids[:, 0].tolist() == list(range(50))


def test_views_are_stored_as_what_they_show(store):
    """Law: arrays that are transposed, cut or stepped are kept as the numbers that they show."""
    record = begin(store, gist_keys=1, key_dim=2)
    ids, numbers = some_ids(64).reshape(8, 8), np.arange(32, dtype=np.float32).reshape(4, 8)
    turned, gists, keys = ids.T[::2, :4], numbers[:, ::4], numbers[:, 1:3].reshape(4, 1, 2)
    store.write_spans("s", record.fence, 0, turned)
    store.write_gists("s", record.fence, 1, 0, gists, keys)
    assert np.array_equal(store.read_span_range("s", 0, 4).result().ids, turned)
    batch = store.read_gist_range("s", 1, 0, 4).result()
    assert np.array_equal(batch.gists, gists)
    assert np.array_equal(batch.keys, keys)


def test_bad_arguments_come_back_on_the_future(store):
    """Law: every error is on the future, names the field, and leaves the session as it was."""
    record = begin(store)
    ids = some_ids(8)
    for future, words in (
        (store.write_spans("s", record.fence, 0, ids), "shape"),
        (store.write_spans("s", record.fence, 0, ids.reshape(4, 2)), "shape"),
        (store.write_spans("s", record.fence, 0, np.full((1, 4), 1 << 40)), "int32"),
        (store.write_spans("s", record.fence, 0, np.ones((1, 4))), "int32"),
        (store.write_gists("s", record.fence, 1, 0, np.full((1, 2), np.nan, np.float32)), "finite"),
        (store.write_gists("s", record.fence, 0, 0, np.ones((1, 2), np.float32)), "level"),
        (store.write_gists("s", record.fence, 16, 0, np.ones((1, 2), np.float32)), "level"),
        (store.read_span_range("s", -1, 2), "range"),
        (store.read_gist_range("s", 0, 0, 2), "level"),
        (store.commit(replace(record, state={"bad": object()})), "state"),
        (store.commit(replace(record, metadata={"bad": float("nan")})), "metadata"),
        (store.commit(replace(record, block_size=8)), "block_size"),
        (store.create(make_record("t", tokens=4)), "empty"),
        (store.create(make_record("s")), "taken"),
    ):
        with pytest.raises((ConfigError, StoreError), match=words):
            future.result()
    for fields in ({"session_id": "a/b"}, {"tenant": ""}, {"tokens": 3}, {"prefixes": [("h", 1)]}, {"gist_dim": -1}):
        with pytest.raises(ConfigError):
            replace(make_record(), **fields)
    assert store.record("s", "alice").result().sequence == 0


def test_a_closed_store_says_so(harness):
    """Law: close applies what is queued; later calls fail with StoreError, and health tells why."""
    store = harness.open()
    assert store.healthy().result().ok
    record = begin(store, gist_dim=0)
    last = store.commit(replace(record, state={"last": True}))
    store.close()
    store.close()
    assert last.result() == 1
    with pytest.raises(StoreError, match="closed"):
        store.record("s", "alice").result()
    with pytest.raises(StoreError, match="closed"):
        store.commit(record).result()
    health = store.healthy().result()
    assert (health.ok, health.detail) == (False, "the store is closed")
