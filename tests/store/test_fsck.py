"""megacontext fsck finds what was changed behind a store's back, and mends what the rest allows."""

from __future__ import annotations

import json
import random
import sqlite3
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mc_core.context.working_context import WorkingContext
from mc_core.errors import MegaContextError
from mc_core.notes import Note
from server.cli import app
from server.fsck.audit import Finding, audit, audit_store
from store_harness import RedisHarness, SqliteHarness, begin, fill, make_record, some_ids

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
IDS = some_ids(4 * 40 + 3)
ROW_KEY = {"lineage": "session * 1000 + ordinal"}
"""What names a row of a table that has no rowid."""


def fsck(harness: Any, *options: str) -> tuple[int, dict[str, Any]]:
    result = RUNNER.invoke(app, ["fsck", harness.url, "--json", *options])
    return result.exit_code, json.loads(result.stdout) if result.exit_code < 2 else {}


def prepare(harness: Any, name: str = "s") -> None:
    """A session of a history, gists, a state, metadata, beginnings and notes, one of them indexed."""
    store = harness.open()
    record = fill(store, begin(store, name, implicit=True), IDS, commit=False)
    wc = WorkingContext(4, 64, 8)
    wc.extend(len(IDS))
    state = {"context": wc.snapshot(), "allocator": {"kind": "greedy", "plans": 3}, "gists": "g", "sources": []}
    state["chat"] = {"told": {"next": 2, "last": {"end": 160}}}
    record = replace(record, metadata={"of": "größe"}, prefixes=[("h1", 8), ("h2", 160)], state=state)
    record = replace(record, keep=True, ttl=5.0)
    notes = [Note("msg:0", 8, b"hello"), Note("msg:1", 160, b"there"), Note(f"key-{name}", 0, b"kept", indexed=True)]
    store.commit(record, notes).result()
    store.release(name, record.fence).result()
    store.close()


def prepare_fork(harness: Any) -> None:
    """A session that shares the beginning of ``s`` and went on another way."""
    store = harness.open()
    store.fork("s", "alice", make_record("f", tokens=80)).result()
    record = store.open("f", "alice", "me").result().record
    record = fill(store, record, np.concatenate([IDS[:80], some_ids(70, 1)]))
    store.release("f", record.fence).result()
    store.close()


def fields(harness: Any) -> list[tuple[Any, ...]]:
    """Where bytes of the session lie: places that ``flip`` knows."""
    if isinstance(harness, SqliteHarness):
        connection = sqlite3.connect(harness.path)
        found = []
        for table, columns in {
            "rows": ["data"],
            "notes": ["value", "key", "position"],
            "states": ["tail", "state"],
            "sessions": ["tokens", "metadata", "model", "tokenizer", "session_id", "tenant"],
            "prefixes": ["hash", "position"],
            "lineage": ["spans", "end_block", "gists"],
        }.items():
            key = ROW_KEY.get(table, "rowid")
            for column in columns:
                query = f"SELECT {key} FROM {table} WHERE {column} IS NOT NULL ORDER BY 1"
                found += [(table, column, row) for (row,) in connection.execute(query)]
        connection.close()
        return found
    kinds = ("rows", "session", "notes")
    found = []
    with harness.server.client() as client:
        for key in harness.all_keys():
            if ([*key.removeprefix(harness.namespace).split(":"), ""])[1] not in kinds:
                continue
            if client.type(key) == b"string":
                found += [(key, None)] * 20
            else:
                own = (b"sequence", b"created", b"updated", b"until", b"fence", b"lease", b"owner", b"op", b"result")
                found += [
                    (key, name)
                    for name, value in client.hgetall(key).items()
                    if value and name not in (*own, b"staged", b"gist_blocks")
                ]
    return found


class Prepared:
    """A store in use whose bytes a test may change and put back."""

    def __init__(self, harness: Any) -> None:
        self.harness = harness
        prepare(harness)
        prepare(harness, "t")
        prepare_fork(harness)
        assert fsck(harness) == (0, {"sessions": 3, "findings": [], "left": 0})
        self.places = fields(harness)
        self.store = harness.open()
        self.known = self.store.everything().result()
        self.sqlite = (
            sqlite3.connect(harness.path, isolation_level=None) if isinstance(harness, SqliteHarness) else None
        )
        if self.sqlite is not None:
            self.sqlite.text_factory = bytes
            self.sqlite.execute("PRAGMA synchronous = OFF")
        else:
            self.redis = harness.server.client()

    def get(self, place: tuple[Any, ...]) -> Any:
        if self.sqlite is not None:
            table, column, row = place
            query = f"SELECT {column} FROM {table} WHERE {ROW_KEY.get(table, 'rowid')} = ?"
            return self.sqlite.execute(query, (row,)).fetchone()[0]
        key, name = place
        return self.redis.get(key) if name is None else self.redis.hget(key, name)

    def put(self, place: tuple[Any, ...], value: Any) -> None:
        if self.sqlite is not None:
            table, column, row = place
            text = column not in ("data", "value", "tail") and isinstance(value, bytes)
            cast = f"CAST(? AS {'TEXT' if text else 'INTEGER' if isinstance(value, int) else 'BLOB'})"
            query = f"UPDATE {table} SET {column} = {cast} WHERE {ROW_KEY.get(table, 'rowid')} = ?"
            self.sqlite.execute(query, (value, row))
        elif place[1] is None:
            self.redis.set(place[0], value)
        else:
            self.redis.hset(place[0], place[1], value)

    def findings(self) -> list[Finding]:
        sessions = [finding for tenant, name in self.known for finding in audit(self.store, tenant, name)]
        return [*audit_store(self.store), *sessions]

    def seen(self) -> dict[tuple[Any, ...], Any]:
        """All that can be read of the sessions, by what it is; what is told to be lost or damaged is not there."""
        store, asked, found = self.store, dict[tuple[str, Any], Future[Any]](), dict[tuple[Any, ...], Any]()
        for name in ("s", "f", "t"):
            asked[name, "record"] = store.record(name, "alice")
            asked[name, "spans"] = store.read_span_range(name, 0, 41)
            asked |= {(name, level): store.read_gist_range(name, level, 0, 41) for level in (1, 2, 3)}
            asked[name, "notes"] = store.notes(name, "alice")
            asked[name, "indexed"] = store.find_note("alice", f"key-{name}")
        for (name, what), future in asked.items():
            if isinstance(future.exception(), MegaContextError):
                continue
            told = future.result()
            match what:
                case "record":
                    kept = told.tenant, told.model, told.tokenizer, told.tokens, told.implicit, told.prefixes
                    found[name, what] = *kept, told.tail.tolist(), told.state, told.metadata
                case "spans":
                    rows = zip(told.blocks.tolist(), told.ids.tolist(), strict=True)
                    found |= {(name, what, at): ids for at, ids in rows}
                case "notes":
                    found |= {(name, what, note.key): note for note in told.notes}
                case "indexed" if told is not None:
                    found[name, what] = told[1]  # of a session that is there, or not
                case int():
                    rows = zip(told.indices.tolist(), told.gists.tolist(), strict=True)
                    found |= {(name, what, at): gist for at, gist in rows}
        return found

    def close(self) -> None:
        self.store.close()
        (self.redis if self.sqlite is None else self.sqlite).close()
        self.harness.cleanup()


@pytest.fixture(scope="module", params=[SqliteHarness, RedisHarness], ids=["sqlite", "redis"])
def prepared(request: pytest.FixtureRequest) -> Any:
    made = Prepared(request.param())
    yield made
    made.close()


def flipped(value: Any, rng: random.Random) -> Any:
    """The value with one bit changed."""
    if isinstance(value, int):
        return value ^ 1 << rng.randrange(16)
    at, bit = rng.randrange(len(value)), 1 << rng.randrange(8)
    return value[:at] + bytes([value[at] ^ bit]) + value[at + 1 :]


@pytest.mark.parametrize("flips", [60, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_flip_is_found(prepared: Any, flips: int) -> None:
    """Law: one bit changed in what a store keeps of a session's record, of where its rows lie, of rows, beginnings or
    notes is a finding, and what is read then is what was written, or told to be damaged."""
    rng, whole = random.Random(0), prepared.seen()
    fields = list(dict.fromkeys(prepared.places))
    rng.shuffle(fields)
    unseen, wrong = [], []
    for place in [*fields, *rng.choices(prepared.places, k=flips)][:flips]:
        value = prepared.get(place)
        try:
            prepared.put(place, flipped(value, rng))
        except sqlite3.IntegrityError:
            continue  # another note has that key: no file holds two
        wrong += [(place, what) for what, found in prepared.seen().items() if whole.get(what) != found]
        if not prepared.findings():
            unseen.append(place)
        prepared.put(place, value)
    assert (unseen, wrong) == ([], [])
    assert prepared.findings() == []


def test_a_page_of_the_file_that_is_torn_is_found(tmp_path: Path) -> None:
    """Law: SQLite's own structure is checked too: a page of zeros in the middle of the file is no sound store."""
    harness = SqliteHarness()
    prepare(harness)
    connection = sqlite3.connect(harness.path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = Path(harness.path).read_bytes()
    found = []
    for page in range(1, len(data) // 4096):
        torn = data[: page * 4096] + bytes(4096) + data[(page + 1) * 4096 :]
        Path(harness.path).write_bytes(torn)
        found.append(fsck(harness)[0])
    harness.cleanup()
    assert 0 not in found


def test_gists_that_are_damaged_are_made_anew(harness: Any) -> None:
    """Law: --repair drops gists of which some are lost, tokens stay, and a store that was mended is sound."""
    prepare(harness)
    harness.put_row("s", 1, 3, None)
    code, report = fsck(harness)
    assert (code, [one["kind"] for one in report["findings"]]) == (1, ["gists"])
    code, report = fsck(harness, "--repair")
    assert (code, report["left"]) == (0, 0)
    assert fsck(harness) == (0, {"sessions": 1, "findings": [], "left": 0})
    store = harness.open()
    assert np.array_equal(store.read_span_range("s", 0, 40).result().ids.ravel(), IDS[:160])
    store.close()


def test_a_history_is_cut_when_that_is_asked_for(harness: Any) -> None:
    """Law: lost tokens are never made up; with --cut what stands before them goes on, messages and beginnings too."""
    prepare(harness)
    harness.put_row("s", 0, 20, bytes(7))
    harness.put_note("msg:0", b"other")
    assert fsck(harness, "--repair")[0] == 1
    assert fsck(harness, "--repair", "--cut")[0] == 1
    assert fsck(harness, "--repair", "--drop-notes")[0] == 0
    assert fsck(harness) == (0, {"sessions": 1, "findings": [], "left": 0})
    store = harness.open()
    record = store.record("s", "alice").result()
    assert (record.tokens, record.prefixes) == (80, (("h1", 8),))
    assert WorkingContext.restore(record.state["context"]).num_tokens == 80
    assert [note.key for note in store.notes("s", "alice").result().notes] == ["key-s"]
    store.close()


@pytest.mark.parametrize("lost", ["msg:0", "msg:1"])
def test_a_message_that_is_missing_is_found(harness: Any, lost: str) -> None:
    """Law: messages are counted, so one that is gone altogether is a finding, be it the last one."""
    prepare(harness)
    store = harness.open()
    store.delete_note("s", "alice", lost).result()
    store.close()
    code, report = fsck(harness, "--repair", "--drop-notes")
    assert (code, [one["kind"] for one in report["findings"]]) == (1, ["messages"])
    assert f"number {lost[-1]}" in report["findings"][0]["detail"]


def test_one_session_alone_is_checked(harness: Any) -> None:
    """Law: --session looks at that one only; one that is not there, or no store, is status 2, and none is made."""
    prepare(harness)
    prepare(harness, "t")
    harness.put_row("s", 0, 2, None)
    assert fsck(harness, "--session", "t")[0] == 0
    assert fsck(harness, "--session", "s")[0] == 1
    assert fsck(harness, "--session", "u")[0] == 2
    nowhere = RUNNER.invoke(app, ["fsck", "/tmp/there/is/none.sqlite"])
    assert nowhere.exit_code == 2
    assert "there is no store" in nowhere.output


def test_a_damaged_session_takes_no_other_one_out_of_lists(harness: Any) -> None:
    """Law: a list shows all sessions but one whose row can't be read, page by page."""
    for name in ("s", "t", "u"):
        prepare(harness, name)
    if isinstance(harness, SqliteHarness):
        harness._execute("UPDATE sessions SET metadata = '{' WHERE session_id = 't'")
    else:
        with harness.server.client() as client:
            client.hset(f"{harness.namespace}alice:session:t", "metadata", "{")
    store = harness.open()
    seen, after = [], None
    while True:
        page = store.list("alice", 1, after).result()
        seen += [info.session_id for info in page.sessions]
        after = page.next
        if after is None:
            break
    assert seen == ["u", "s"]
    assert store.record("t", "alice").exception() is not None
    store.close()


def test_a_store_in_use_is_left_alone() -> None:
    """Law: a SQLite file that a server has open is not touched: status 2."""
    harness = SqliteHarness()
    prepare(harness)
    store = harness.open()
    assert fsck(harness)[0] == 2
    store.close()
    harness.cleanup()
