"""megacontext fsck finds what was changed behind a store's back, and mends what the rest allows."""

from __future__ import annotations

import json
import random
import sqlite3
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
                found += [(key, name) for name in client.hkeys(key) if name not in (*own, b"staged", b"reshaped")]
    return found


def flip(harness: Any, place: tuple[Any, ...], rng: random.Random) -> None:
    """Change one bit of a field."""

    def changed(data: bytes) -> bytes:
        at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]

    if isinstance(harness, SqliteHarness):
        table, column, row = place
        key = ROW_KEY.get(table, "rowid")
        connection = sqlite3.connect(harness.path)
        connection.text_factory = bytes
        (value,) = connection.execute(f"SELECT {column} FROM {table} WHERE {key} = ?", (row,)).fetchone()
        kind = {int: "INTEGER", bytes: "BLOB"}[type(value)]
        new = value ^ 1 << rng.randrange(16) if isinstance(value, int) else changed(value)
        text = column not in ("data", "value", "tail") and isinstance(value, bytes)
        with connection:
            cast = f"CAST(? AS {'TEXT' if text else kind})"
            connection.execute(f"UPDATE {table} SET {column} = {cast} WHERE {key} = ?", (new, row))
        connection.close()
        return
    key, name = place
    with harness.server.client() as client:
        if name is None:
            client.set(key, changed(client.get(key)))
        else:
            client.hset(key, name, changed(client.hget(key, name)))


def seen(harness: Any) -> dict[tuple[Any, ...], Any]:
    """All that can be read of the sessions, by what it is; what is told to be lost or damaged is not there."""
    store, found = harness.open(), dict[tuple[Any, ...], Any]()

    def read(future: Any) -> Any:
        try:
            return future.result()
        except MegaContextError:
            return None

    for name in ("s", "f", "t"):
        record = read(store.record(name, "alice"))
        if record is not None:
            kept = record.tenant, record.model, record.tokenizer, record.tokens, record.implicit, record.prefixes
            found[name, "record"] = *kept, record.tail.tolist(), record.state, record.metadata
        if (spans := read(store.read_span_range(name, 0, 41))) is not None:
            rows = zip(spans.blocks.tolist(), spans.ids.tolist(), strict=True)
            found |= {(name, "span", at): ids for at, ids in rows}
        for level in (1, 2, 3):
            if (gists := read(store.read_gist_range(name, level, 0, 41))) is not None:
                rows = zip(gists.indices.tolist(), gists.gists.tolist(), strict=True)
                found |= {(name, level, at): gist for at, gist in rows}
        if (page := read(store.notes(name, "alice"))) is not None:
            found |= {(name, "note", note.key): note for note in page.notes}
        if note := read(store.find_note("alice", f"key-{name}")):
            found[name, "indexed"] = note
    store.close()
    return found


@pytest.mark.parametrize("flips", [40, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_flip_is_found(prepared: Any, flips: int) -> None:
    """Law: one bit changed in what a store keeps of a session's record, rows, beginnings or notes is a finding, and
    what is read then is what was written, or told to be damaged."""
    rng = random.Random(0)
    fields = list(dict.fromkeys(prepared.places))
    rng.shuffle(fields)
    places = [*fields, *rng.choices(prepared.places, k=flips)][:flips]
    unseen, wrong = [], []
    for place in places:
        prepared.restore()
        flip(prepared.harness, place, rng)
        for what, value in seen(prepared.harness).items():
            if prepared.seen.get(what) != value:
                wrong.append((place, what))
        if fsck(prepared.harness)[0] == 0:
            unseen.append(place)
    assert (unseen, wrong) == ([], [])


class Prepared:
    """A store that a test may damage, since the next one gets it as it was."""

    def __init__(self, harness: Any) -> None:
        self.harness = harness
        prepare(harness)
        prepare(harness, "t")
        prepare_fork(harness)
        assert fsck(harness) == (0, {"sessions": 3, "findings": [], "left": 0})
        self.seen = seen(harness)
        self.places = fields(harness)
        self.kept: dict[str, bytes] = {}
        if isinstance(harness, RedisHarness):
            with harness.server.client() as client:
                self.kept = {key: client.dump(key) for key in harness.all_keys()}
        else:
            connection = sqlite3.connect(harness.path)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
            self.kept = {"": Path(harness.path).read_bytes()}

    def restore(self) -> None:
        if isinstance(self.harness, SqliteHarness):
            for suffix in ("-wal", "-shm"):
                Path(f"{self.harness.path}{suffix}").unlink(missing_ok=True)
            Path(self.harness.path).write_bytes(self.kept[""])
            return
        with self.harness.server.client() as client:
            for key in self.harness.all_keys():
                client.delete(key)
            for key, data in self.kept.items():
                client.restore(key, 0, data)


@pytest.fixture(scope="module", params=[SqliteHarness, RedisHarness], ids=["sqlite", "redis"])
def prepared(request: pytest.FixtureRequest) -> Any:
    harness = request.param()
    yield Prepared(harness)
    harness.cleanup()


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


def test_a_store_in_use_is_left_alone() -> None:
    """Law: a SQLite file that a server has open is not touched: status 2."""
    harness = SqliteHarness()
    prepare(harness)
    store = harness.open()
    assert fsck(harness)[0] == 2
    store.close()
    harness.cleanup()
