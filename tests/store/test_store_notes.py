"""What every store promises about notes, one law a test; random histories are compared in test_store_note_oracle.py."""

from dataclasses import replace

import pytest

from mc_core.errors import ConfigError, StoreError
from mc_core.notes import MAX_NOTE, Note
from mc_core.store import FencedError, NoteTakenError, UnknownSessionError
from store_harness import begin, fill, make_record, some_ids


def keys(page):
    return [note.key for note in page.notes]


def cut(record, tokens):
    """The record of a rewind to a whole number of blocks."""
    return replace(record, tokens=tokens, tail=())


def test_notes_are_committed_with_their_record_or_not_at_all(harness):
    """Law: an acknowledged commit's notes survive a restart; those of a refused one were never there."""
    store = harness.open()
    record = begin(store)
    last = Note("b", 0, bytes(range(256)) * 9, indexed=True)
    store.commit(record, [Note("a", 0, b""), last]).result()
    with pytest.raises(StoreError, match="rows of level"):
        store.commit(cut(record, 8), [Note("c", 0, b"no")]).result()
    with pytest.raises(FencedError):
        store.commit(replace(record, fence=record.fence + 1), [Note("c", 0, b"no")]).result()
    store.close()
    store = harness.open()
    assert store.notes("s", "alice").result().notes == (Note("a", 0, b""), last)
    assert store.note("s", "alice", "b").result() == last
    assert store.note("s", "alice", "c").result() is None
    store.close()


def test_notes_that_no_commit_takes_are_named(store):
    """Law: a note past the record, a key twice, one out of bounds is a ConfigError, and nothing is stored."""
    record = begin(store)
    for notes, beyond, words in (
        ([Note("a", 1, b"")], "drop", "past the record's 0"),
        ([Note("a", 0, b"1"), Note("a", 0, b"2")], "drop", "different keys"),
        ([Note("a", 0, b"1")], "keep", "none of its own"),
        ([], "forget", "beyond"),
    ):
        with pytest.raises(ConfigError, match=words):
            store.commit(record, notes, beyond).result()
    for arguments in (
        ("", 0, b""),
        ("a b", 0, b""),
        ("k" * 201, 0, b""),
        ("k", -1, b""),
        ("k", 0, bytes(MAX_NOTE + 1)),
    ):
        with pytest.raises(ConfigError, match="of a note"):
            Note(*arguments)
    assert store.record("s", "alice").result().sequence == 0
    with pytest.raises(ConfigError, match="limit"):
        store.notes("s", "alice", limit=0).result()
    for bad in ("x", "1", "1/", "-1/2", "1/2/3", "9" * 30 + "/1"):
        with pytest.raises(ConfigError, match="after"):
            store.notes("s", "alice", after=bad).result()


def test_a_rewind_drops_the_notes_past_its_end(store):
    """Law: a note at position p stays for as long as the history has p tokens, and not longer."""
    record = fill(store, begin(store), some_ids(40))
    store.commit(record, [Note(f"n{p}", p, b"", indexed=p == 40) for p in (0, 19, 20, 21, 40)]).result()
    store.commit(cut(record, 20)).result()
    assert keys(store.notes("s", "alice").result()) == ["n0", "n19", "n20"]
    assert store.find_note("alice", "n40").result() is None
    store.commit(cut(record, 20), [Note("n40", 3, b"new", indexed=True)]).result()
    assert store.find_note("alice", "n40").result() == ("s", Note("n40", 3, b"new", indexed=True))


def test_what_a_cut_keeps_comes_back_or_goes_with_the_next_commit(harness):
    """Law: notes kept beyond a commit's end are seen by nobody, also after a restart; the next commit restores them as
    they were, or drops them; a fork made meanwhile has none of them."""
    store, ids = harness.open(), some_ids(40)
    record = fill(store, begin(store), ids)
    notes = [Note("a", 4, b"1"), Note("b", 30, b"2"), Note("c", 40, b"3", indexed=True)]
    store.commit(record, notes).result()
    for end in ("restore", "drop"):
        store.commit(cut(record, 20), beyond="keep").result()
        store.close()
        store = harness.open()
        record = store.open("s", "alice", "me").result().record
        assert keys(store.notes("s", "alice").result()) == ["a"]
        assert store.note("s", "alice", "b").result() is None
        assert store.find_note("alice", "c").result() is None
        store.fork("s", "alice", make_record(end, tokens=20)).result()
        assert keys(store.notes(end, "alice").result()) == ["a"]
        record = fill(store, record, ids, commit=False)
        own = Note("b", 40, b"new")
        store.commit(record, [own] if end == "drop" else [], end).result()
        left = store.notes("s", "alice").result().notes
        assert left == (tuple(notes) if end == "restore" else (notes[0], own))
        assert store.find_note("alice", "c").result() == (("s", notes[2]) if end == "restore" else None)
    for name in ("s", "drop", "restore"):
        store.delete(name, "alice").result()
    store.close()
    assert harness.count_everything() == 0


def test_a_note_written_again_replaces_the_one_before(store):
    """Law: the same notes committed twice are there once; another value or place under a key replaces the note, which
    keeps its turn among those of its position."""
    record = fill(store, begin(store), some_ids(8))
    notes = [Note("x", 4, b"1"), Note("y", 4, b"2"), Note("z", 4, b"3", indexed=True)]
    for _ in range(2):
        store.commit(record, notes).result()
        assert store.notes("s", "alice").result().notes == tuple(notes)
    store.commit(record, [Note("y", 8, b"far"), Note("z", 4, b"plain"), Note("x", 4, b"4")]).result()
    assert keys(store.notes("s", "alice").result()) == ["x", "z", "y"]
    assert store.find_note("alice", "z").result() is None
    store.commit(record, [Note("y", 4, b"back")]).result()
    expected = (Note("x", 4, b"4"), Note("y", 4, b"back"), Note("z", 4, b"plain"))
    assert store.notes("s", "alice").result().notes == expected


def test_pages_hold_each_note_once_in_order(store):
    """Law: pages of any size, in either direction, of any prefix, show each note once, by position and then by order of
    writing, though notes of earlier pages are deleted meanwhile."""
    record = fill(store, begin(store), some_ids(40))
    places = [(f"{'ab'[n % 2]}:{n}", n * 7 % 5 * 4) for n in range(30)]
    for key, position in places:
        store.commit(record, [Note(key, position, key.encode())])
    ordered = [key for key, _ in sorted(places, key=lambda place: place[1])]
    for newest in (True, False):
        for prefix in ("", "a:", "b", "nobody"):
            seen, cursor = [], None
            while True:
                page = store.notes("s", "alice", prefix=prefix, after=cursor, limit=7, newest_first=newest).result()
                assert len(page.notes) == 7 or page.next is None
                seen += keys(page)
                if not newest and prefix == "b":
                    for note in page.notes:
                        assert store.delete_note("s", "alice", note.key).result() is True
                        assert store.delete_note("s", "alice", note.key).result() is False
                cursor = page.next
                if cursor is None:
                    break
            assert seen == [key for key in ordered[:: -1 if newest else 1] if key.startswith(prefix)]


def test_a_page_of_large_notes_is_short(store):
    """Law: a page holds no more than its bytes, though at least one note, and tells where the next begins."""
    record = begin(store)
    for number in range(6):
        store.commit(record, [Note(f"n{number}", 0, bytes(MAX_NOTE))])
    first = store.notes("s", "alice").result()
    assert keys(first) == ["n0", "n1", "n2"]
    assert keys(store.notes("s", "alice", after=first.next).result()) == ["n3", "n4", "n5"]


def test_a_fork_has_copies_of_its_own(harness):
    """Law: a fork gets the notes at or below its end that are not indexed, in their order; from then on each session's
    notes are its own."""
    store = harness.open()
    record = fill(store, begin(store), some_ids(40))
    store.commit(
        record, [Note("b", 20, b"2"), Note("a", 4, b"1"), Note("c", 21, b"3"), Note("i", 4, b"", indexed=True)]
    )
    store.commit(record, [Note("d", 20, b"4")]).result()
    store.fork("s", "alice", make_record("c", tokens=20)).result()
    copies = (Note("a", 4, b"1"), Note("b", 20, b"2"), Note("d", 20, b"4"))
    assert store.notes("c", "alice").result().notes == copies
    store.commit(record, [Note("a", 4, b"changed")]).result()
    store.delete_note("s", "alice", "b").result()
    assert store.notes("c", "alice").result().notes == copies
    store.delete("s", "alice").result()
    assert store.notes("c", "alice").result().notes == copies
    assert store.find_note("alice", "i").result() is None
    store.delete("c", "alice").result()
    assert harness.count_everything() == 0
    store.close()


def test_notes_of_tenants_are_apart(store):
    """Law: nobody reads, finds or deletes another tenant's notes, and both may use the same indexed key; within a
    tenant such a key is one session's, and a commit that takes another's stores nothing."""
    for name, tenant in (("s", "alice"), ("t", "bob:x"), ("u", "alice")):
        record = begin(store, name, tenant=tenant)
        if name == "u":
            with pytest.raises(NoteTakenError, match="session 'u' has another session's key"):
                store.commit(record, [Note("first", 0, b""), Note("key", 0, b"", indexed=True)]).result()
            assert store.notes(name, tenant).result().notes == ()
        else:
            store.commit(record, [Note("key", 0, name.encode(), indexed=True)]).result()
    assert store.find_note("alice", "key").result() == ("s", Note("key", 0, b"s", indexed=True))
    assert store.find_note("bob:x", "key").result() == ("t", Note("key", 0, b"t", indexed=True))
    assert store.find_note("mallory", "key").result() is None
    for call in (
        lambda: store.notes("t", "alice"),
        lambda: store.note("t", "alice", "key"),
        lambda: store.delete_note("t", "alice", "key"),
        lambda: store.notes("nobody", "alice"),
    ):
        with pytest.raises(UnknownSessionError):
            call().result()
    assert store.delete_note("s", "alice", "key").result()
    assert store.find_note("alice", "key").result() is None
    store.commit(record, [Note("key", 0, b"mine", indexed=True)]).result()
    assert store.find_note("alice", "key").result()[0] == "u"


def test_a_damaged_note_is_reported(harness):
    """Law: whichever byte of a note flips or is lost, it is told as corrupt, never read, and healed by writing."""
    store = harness.open()
    record = begin(store)
    note = Note("n", 0, b"value", indexed=True)
    store.commit(record, [note, Note("other", 0, b"value")]).result()
    good = harness.raw_note("n")
    flipped = [good[:at] + bytes((good[at] ^ 1 << at % 8,)) + good[at + 1 :] for at in range(len(good))]
    for bad in (*flipped, good[:-1], good[:3], harness.raw_note("other")):
        harness.put_note("n", bad)
        page = store.notes("s", "alice").result()
        assert (keys(page), page.corrupt) == (["other"], ("n",))
        for call in (store.note("s", "alice", "n"), store.find_note("alice", "n")):
            with pytest.raises(StoreError, match="corrupt"):
                call.result()
    store.commit(record, [note]).result()
    assert store.find_note("alice", "n").result() == ("s", note)
    store.close()
