"""What only the SQLite store promises: its file, its lock, its disk."""

import fcntl
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mc_core.errors import ConfigError, StoreError
from mc_core.notes import Note
from mc_core.store import StoreFullError
from server.stores import discard, open_store
from server.stores.sqlite import SqliteStore
from store_harness import SqliteHarness, begin, fill, make_record, some_ids


@pytest.fixture
def place():
    harness = SqliteHarness()
    yield harness
    harness.cleanup()


def test_one_file_serves_one_process(place):
    """Law: a second store on the file is refused, in this process and in another; after close it may open."""
    store = place.open()
    with pytest.raises(StoreError, match="in use"):
        place.open()
    code = "import sys; from server.stores import open_store; open_store(sys.argv[1])"
    child = subprocess.run([sys.executable, "-c", code, place.url], capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert "in use" in child.stderr
    store.close()
    place.open().close()


def test_foreign_and_newer_files_are_refused_and_left_alone(place):
    """Law: a newer schema, another program's database and a file that is no database each get a clear StoreError, and
    nothing is left beside them that was not there."""
    place.open().close()
    place._execute("PRAGMA user_version = 7")
    with pytest.raises(StoreError, match="schema 7"):
        place.open()
    for name, content in (("text", b"hello " * 1000), ("no/folder/file", None)):
        path = place.path.parent / name
        if content:
            path.write_bytes(content)
        there = files_in(place.path.parent)
        with pytest.raises(StoreError, match=r"can't open"):
            SqliteStore(path)
        assert files_in(place.path.parent) == there
    other = place.path.with_name("other.db")
    sqlite3.connect(other).execute("CREATE TABLE notes (x)").connection.close()
    there = files_in(place.path.parent)
    with pytest.raises(StoreError, match="no MegaContext store"):
        SqliteStore(other)
    assert files_in(place.path.parent) == there


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_discarded_store_takes_back_what_opening_it_made(place):
    """Law: files and a folder that opening a store made go with it if it is discarded; what was there before, or was
    put in their place since, stays."""
    folder = place.path.parent
    new = folder / "data" / "new.sqlite"
    discard(open_store(str(new)))
    assert list(folder.iterdir()) == []
    place.open().close()
    there = {path.name for path in folder.iterdir()}
    discard(place.open())
    assert {path.name for path in folder.iterdir()} == there
    store = open_store(str(new))
    restored = new.with_name("restored")
    restored.write_bytes(b"histories")
    restored.replace(new)
    discard(store)
    assert new.read_bytes() == b"histories"


def test_new_files_are_their_owners_alone(place):
    """Law: histories are private: what a store makes is 0600, through a link too; what was there keeps its mode."""

    def modes():
        return {one.name: one.stat().st_mode & 0o777 for one in place.path.parent.iterdir() if not one.is_symlink()}

    for name in ("real", place.path.name):
        if name == "real":
            place.path.symlink_to("real")
        store = place.open()
        begin(store)
        kinds = [f"{name}{suffix}" for suffix in ("", "-wal", "-shm")] + [
            f"{place.path.name}.lock",
            f"{place.path.name}.reserve",
        ]
        assert modes() == dict.fromkeys(kinds, 0o600)
        store.close()
        for one in place.path.parent.iterdir():
            one.unlink()
    place.open().close()
    place.path.chmod(0o640)
    Path(f"{place.path}.lock").chmod(0o644)
    store = place.open()
    begin(store)
    name = place.path.name
    kept = {name: 0o640, f"{name}-wal": 0o640, f"{name}-shm": 0o640, f"{name}.lock": 0o644, f"{name}.reserve": 0o600}
    assert modes() == kept
    store.close()


def test_a_lock_on_a_file_that_is_gone_is_none(place, monkeypatch):
    """Law: who takes a lock file that its holder removes just then takes the next one, so that there is one holder."""
    real = fcntl.flock

    def removed_first(file, how):
        monkeypatch.setattr(fcntl, "flock", real)
        os.unlink(f"{place.path}.lock")
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    store = place.open()
    with pytest.raises(StoreError, match="in use"):
        place.open()
    store.close()


BEFORE_LIFETIMES = (
    "ALTER TABLE sessions ADD COLUMN reshaped INTEGER NOT NULL DEFAULT 0",
    "UPDATE sessions SET reshaped = gist_blocks IS NOT NULL",
    "ALTER TABLE sessions DROP COLUMN gist_blocks",
    *(f"DROP INDEX {name}" for name in ("sessions_oldest_explicit", "sessions_own_ttl")),
    *(f"ALTER TABLE sessions DROP COLUMN {name}" for name in ("ttl", "keep")),
)


def test_a_file_of_version_1_is_upgraded_with_all_that_it_holds(place):
    """Law: a file from before reshapes opens with its sessions, forks and rows, and can be reshaped."""
    store, ids = place.open(), some_ids(4 * 40)
    fill(store, begin(store), ids)
    store.fork("s", "alice", make_record("c", tokens=80)).result()
    store.close()
    for statement in (
        *(f"DROP INDEX {name}" for name in ("lineage_gists", "sessions_newest_of_kind", "sessions_oldest_implicit")),
        "DROP INDEX lineage_spans",
        "ALTER TABLE lineage DROP COLUMN sum",
        "ALTER TABLE lineage DROP COLUMN gists",
        "ALTER TABLE lineage RENAME COLUMN spans TO storage",
        "CREATE INDEX lineage_storage ON lineage (storage)",
        *BEFORE_LIFETIMES,
        "ALTER TABLE sessions DROP COLUMN reshaped",
        "DROP TABLE notes",
        "PRAGMA user_version = 1",
    ):
        place._execute(statement)
    store = place.open()
    record = store.open("s", "alice", "me").result().record
    store.reshape("s", record.fence, gist_dim=0, gist_dtype="float32", gist_keys=0, key_dim=0).result()
    assert np.array_equal(store.read_span_range("s", 0, 40).result().ids.ravel(), ids)
    assert len(store.read_gist_range("c", 1, 0, 20).result().gists) == 20
    for name in ("s", "c"):
        store.delete(name, "alice").result()
    store.close()
    assert place.count_everything() == 0
    assert place._execute("PRAGMA user_version")[0][0] == 6


def test_a_file_of_version_2_gets_notes(place):
    """Law: a file from before notes opens with what it holds, looks like a new one, and takes notes from then on."""
    store, ids = place.open(), some_ids(40)
    schema = place._execute("SELECT name, sql FROM sqlite_master ORDER BY name")
    fill(store, begin(store), ids)
    store.close()
    statements = "DROP TABLE notes", "ALTER TABLE lineage DROP COLUMN sum", "PRAGMA user_version = 2"
    for statement in (*BEFORE_LIFETIMES, *statements):
        place._execute(statement)
    store = place.open()
    assert place._execute("SELECT name, sql FROM sqlite_master ORDER BY name") == schema
    assert store.notes("s", "alice").result().notes == ()
    record = store.open("s", "alice", "me").result().record
    assert np.array_equal(store.read_span_range("s", 0, 10).result().ids.ravel(), ids)
    note = Note("n", 40, b"value", indexed=True)
    store.commit(record, [note]).result()
    assert store.find_note("alice", "n").result() == ("s", note)
    store.close()


def test_a_full_disk_fails_the_turn_and_heals(place):
    """Law: when the disk takes no more, commits fail with StoreError and health says so; later all is as before."""
    store = place.open()
    record = fill(store, begin(store), some_ids(40))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = max(path.stat().st_size for path in place.path.parent.glob("*.sqlite*") if path.suffix != ".reserve") + 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        big = np.concatenate([some_ids(40), some_ids(4 * 40_000)])
        with pytest.raises(StoreError):
            fill(store, record, big)
        with pytest.raises(StoreError):
            store.commit(replace(record, state={"pad": "x" * 1_000_000})).result()
        assert not store.healthy().result().ok
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.healthy().result().ok
    assert store.record("s", "alice").result().tokens == 40
    fill(store, record, big)
    assert np.array_equal(store.read_span_range("s", 0, 40_010).result().ids.ravel(), big)
    store.close()


def test_a_removed_file_is_noticed(place):
    """Law: nothing is acknowledged into a file that nobody can open again."""
    store = place.open()
    record = begin(store)
    place.path.rename(place.path.with_name("moved"))
    with pytest.raises(StoreError, match="gone"):
        store.commit(record).result()
    assert "gone" in store.healthy().result().detail
    store.close()


def test_a_refused_call_does_not_harm_its_batch(place):
    """Law: many sessions share a transaction; one that is fenced fails alone, all others are durable."""
    store = place.open()
    records = [begin(store, f"s{number}", gist_dim=0) for number in range(60)]
    futures = []
    for number, record in enumerate(records):
        fence = record.fence + (1000 if number % 3 == 0 else 0)
        store.write_spans(record.session_id, fence, 0, np.full((1, 4), number, np.int32))
        futures.append(store.commit(replace(record, tokens=4, fence=fence)))
    failed = [number for number, future in enumerate(futures) if future.exception()]
    assert failed == list(range(0, 60, 3))
    store.close()
    store = place.open()
    tokens = [store.record(record.session_id, "alice").result().tokens for record in records]
    assert tokens == [0 if number % 3 == 0 else 4 for number in range(60)]
    store.close()


def test_many_threads_at_once(place):
    """Law: the store is safe from any thread; each session sees its own order."""
    store, errors = place.open(), []

    def work(name):
        try:
            record = begin(store, name, gist_dim=0)
            for block in range(40):
                store.write_spans(name, record.fence, block, np.full((1, 4), block, np.int32))
                read = store.read_span_range(name, 0, block + 1)
                commit = store.commit(replace(record, tokens=4 * (block + 1)))
                assert read.result().ids[:, 0].tolist() == list(range(block + 1))
                assert commit.result() == block + 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    store.close()


def test_writes_that_wait_are_bounded(place):
    """Law: beyond max_pending a write fails at once, and so does the commit that needs it."""
    store = SqliteStore(place.path, max_pending=20_000)
    record = begin(store, gist_dim=0)
    hold = sqlite3.connect(place.path)
    hold.execute("BEGIN IMMEDIATE")  # the writer thread waits for this lock
    writes = [store.write_spans("s", record.fence, 100 * i, some_ids(400).reshape(100, 4)) for i in range(40)]
    refused = [write for write in writes if write.done() and "behind" in str(write.exception())]
    commit = store.commit(replace(record, tokens=16_000))
    hold.close()
    assert refused
    with pytest.raises(StoreError, match="level 0"):
        commit.result()
    assert store.healthy().result().pending_bytes == 0
    store.close()


def test_urls(place, tmp_path, monkeypatch):
    """Law: sqlite:/// takes relative and absolute files, a bare path works, any other scheme is named in the error; a
    folder is told as one, with what to give."""
    monkeypatch.chdir(tmp_path)
    open_store("sqlite:///here.sqlite").close()
    open_store("there.sqlite").close()
    open_store(f"sqlite:///{tmp_path}/abs.sqlite").close()
    assert {path.name for path in tmp_path.glob("*.sqlite")} == {"here.sqlite", "there.sqlite", "abs.sqlite"}
    with pytest.raises(ConfigError, match="mongodb"):
        open_store("mongodb://host")
    for folder in (str(tmp_path), f"sqlite:///{tmp_path}", "sqlite:///"):
        with pytest.raises(ConfigError, match=r"is a folder; give a file in it, such as .*megacontext\.sqlite"):
            open_store(folder)
    assert make_record().blocks == 0


def test_the_folder_of_a_new_file_is_made(tmp_path):
    """Law: the default path works in a fresh checkout; a path whose parents are missing too is refused."""
    open_store(f"sqlite:///{tmp_path}/data/sessions.sqlite").close()
    assert (tmp_path / "data" / "sessions.sqlite").exists()
    with pytest.raises(StoreError, match="can't open the store file"):
        open_store(f"sqlite:///{tmp_path}/no/such/sessions.sqlite")


def test_what_is_kept_for_a_full_disk_is_given_up_and_taken_back(place):
    """Law: while the disk is full leases and deletions run and nothing else does; room is taken back first, so that the
    next full disk finds it."""
    store = place.open()
    record, reserve = fill(store, begin(store), some_ids(40)), store._writer._reserve
    keep = reserve.keep
    reserve.give()
    reserve.keep = lambda: False  # as on a disk that is full
    with pytest.raises(StoreFullError, match="full"):
        store.commit(record).result()
    assert (store.healthy().result().ok, store.renew({"s": record.fence}).result()) == (False, ())
    again = store.open("s", "alice", "me").result().record
    assert np.array_equal(store.read_span_range("s", 0, 10).result().ids.ravel(), some_ids(40))
    with pytest.raises(StoreFullError):
        store.write_spans("s", again.fence, 10, some_ids(4).reshape(1, 4)).result()
    reserve.keep = keep
    assert store.healthy().result().ok
    assert reserve.kept
    assert store.commit(again).result() == 2
    reserve.give()
    reserve.keep = lambda: False
    store.delete("s", "alice").result()
    reserve.keep = keep
    store.close()
    assert place.count_everything() == 0


def test_a_read_that_failed_keeps_no_snapshot(place):
    """Law: after a read that broke off at a damaged text, all later ones see what was written since, whoever keeps its
    error."""
    store = SqliteStore(place.path, readers=1)
    record = begin(store, gist_dim=0)
    store.commit(record, [Note(key, 0, b"x") for key in ("a", "b", "c")]).result()
    place._execute("UPDATE notes SET key = CAST(x'ff' AS TEXT) WHERE key = 'b'")
    failed = store.notes("s", "alice").exception()
    assert isinstance(failed, StoreError)
    assert store.commit(replace(record, state={"n": 1})).result() == 2
    assert store.record("s", "alice").result().state == {"n": 1}
    assert failed.__traceback__ is not None or failed.__cause__ is not None
    store.close()
