"""What the store suite needs of an implementation, and small helpers. A new store adds its harness to HARNESSES."""

import json
import secrets
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from mc_core.store import MAX_LEVEL, SessionRecord, SessionStore
from server.stores import open_store


class SqliteHarness:
    """A SQLite store in a folder of its own, and a way at its raw rows while it is closed."""

    name = "sqlite"

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / "sessions.sqlite"
        self.url = f"sqlite:///{self.path}"

    def open(self, lease_seconds: float = 30.0) -> SessionStore:
        return open_store(self.url, lease_seconds=lease_seconds)

    def cleanup(self) -> None:
        self._folder.cleanup()

    def raw_row(self, session_id: str, level: int, index: int) -> bytes:
        """The stored bytes of a row of a session that was never forked or rewound."""
        return self._execute("SELECT data FROM rows WHERE key = ?", self._key(session_id, level, index))[0][0]

    def put_row(self, session_id: str, level: int, index: int, data: bytes | None) -> None:
        """Replaces the bytes of a row behind the store's back; None removes it."""
        key = self._key(session_id, level, index)
        if data is None:
            self._execute("DELETE FROM rows WHERE key = ?", key)
        else:
            self._execute("UPDATE rows SET data = ? WHERE key = ?", data, key)

    def count_everything(self) -> int:
        """Rows of every kind that belong to any session."""
        tables = ("sessions", "states", "prefixes", "lineage", "rows", "notes")
        return sum(self._execute(f"SELECT count(*) FROM {table}")[0][0] for table in tables)

    def raw_note(self, key: str) -> bytes:
        """The stored bytes of the only note under this key."""
        return self._execute("SELECT value FROM notes WHERE key = ?", key)[0][0]

    def put_note(self, key: str, data: bytes) -> None:
        """Replaces the bytes of a note behind the store's back."""
        self._execute("UPDATE notes SET value = ? WHERE key = ?", data, key)

    def _key(self, session_id: str, level: int, index: int) -> int:
        query = "SELECT l.spans FROM lineage l JOIN sessions s ON s.id = l.session WHERE s.session_id = ?"
        storage = self._execute(query, session_id)[0][0]
        return (storage << 36) | (level << 32) | index

    def _execute(self, statement: str, *values: object) -> list[tuple]:
        connection = sqlite3.connect(self.path)
        with connection:
            rows = connection.execute(statement, values).fetchall()
        connection.close()
        return rows


class RedisHarness:
    """A namespace of its own in a Redis that all tests share, and a way at its raw rows."""

    name = "redis"

    def __init__(self) -> None:
        # Here, since a child process that only wants the helpers below need not load all of this.
        from redis_server import shared_redis

        self.server = shared_redis()
        self.namespace = f"test-{secrets.token_hex(6)}:"
        self.url = f"{self.server.url}?namespace={self.namespace}"

    def open(self, lease_seconds: float = 30.0) -> SessionStore:
        return open_store(self.url, lease_seconds=lease_seconds)

    def cleanup(self) -> None:
        with self.server.client() as client:
            for key in self.all_keys():
                client.delete(key)

    def all_keys(self) -> list[str]:
        """All keys of the namespace."""
        with self.server.client() as client:
            return sorted(key.decode() for key in client.scan_iter(f"{self.namespace}*"))

    def raw_row(self, session_id: str, level: int, index: int) -> bytes:
        """The stored bytes of a row of a session that was never forked or rewound."""
        key, start, width = self._place(session_id, level, index)
        with self.server.client() as client:
            return client.getrange(key, start, start + width - 1)

    def put_row(self, session_id: str, level: int, index: int, data: bytes | None) -> None:
        """Replaces the bytes of a row behind the store's back, with zeros for what ``data`` lacks; None removes it."""
        key, start, width = self._place(session_id, level, index)
        with self.server.client() as client:
            client.setrange(key, start, (data or b"").ljust(width, b"\0"))

    def count_everything(self) -> int:
        """Rows of every kind that belong to any session; a page that belongs to none counts as well."""
        total, widths = 0, {}
        with self.server.client() as client:
            for key in self.all_keys():
                kind = key.removeprefix(self.namespace).partition(":")[2].partition(":")[0]
                if kind == "session":
                    lineage, sizes = client.hmget(key, "lineage", "widths")
                    for spans, _, *gists in json.loads(lineage):
                        widths[spans, 0], widths[(*gists, spans)[0], 1] = json.loads(sizes), json.loads(sizes)
                    total += 1
                elif kind == "notes":
                    total += client.hlen(key) // 2
                elif kind == "indexed":
                    total += client.hlen(key)
                elif kind in ("sessions", "prefix", "order", "") and client.type(key) == b"zset":
                    total += client.zcard(key)
                elif kind == "storage":
                    users = [field.partition(b":") for field in client.hkeys(key)]
                    total += len({name for use, _, name in users if use in (b"user", b"spans", b"gists")}) or 1
            for key in self.all_keys():
                parts = key.removeprefix(self.namespace).split(":")
                if parts[1:2] == ["rows"]:
                    storage, level = int(parts[2]), int(parts[3])
                    data = client.get(key)
                    sizes = widths.get((storage, min(level, 1)))
                    width = sizes[level] if sizes else len(data)
                    rows = (data[at : at + width] for at in range(0, len(data), width))
                    total += sum(row.strip(b"\0") != b"" for row in rows)
            return total + client.hlen(f"{self.namespace}owners")

    def raw_note(self, key: str) -> bytes:
        """The stored bytes of the only note under this key."""
        with self.server.client() as client:
            return client.hget(self._notes_key(key), f"v{key}")

    def put_note(self, key: str, data: bytes) -> None:
        """Replaces the bytes of a note behind the store's back."""
        with self.server.client() as client:
            client.hset(self._notes_key(key), f"v{key}", data)

    def _notes_key(self, key: str) -> str:
        with self.server.client() as client:
            return next(name for name in self.all_keys() if ":notes:" in name and client.hexists(name, f"v{key}"))

    def _place(self, session_id: str, level: int, index: int) -> tuple[str, int, int]:
        with self.server.client() as client:
            tenant = client.hget(f"{self.namespace}owners", session_id).decode()
            lineage, widths = client.hmget(f"{self.namespace}{tenant}:session:{session_id}", "lineage", "widths")
        storage, width = json.loads(lineage)[0][0], json.loads(widths)[level]
        return f"{self.namespace}{tenant}:rows:{storage}:{level}:{index // 1024}", index % 1024 * width, width


HARNESSES = {harness.name: harness for harness in (SqliteHarness, RedisHarness)}


def make_record(session_id: str = "s", **fields: object) -> SessionRecord:
    """A record with small blocks and gists, so that a few tokens have several levels."""
    defaults = {"tenant": "alice", "model": "base", "tokenizer": "abc", "block_size": 4, "gist_dim": 2}
    return SessionRecord(session_id=session_id, **{**defaults, "gist_dtype": "float32", **fields})


def make_gists(ids: np.ndarray, block_size: int, level: int, first: int, dim: int = 2) -> np.ndarray:
    """Gists [n, dim] of the complete nodes first.. of ``level``: exact in float32, and different for different ids."""
    span = block_size**level
    if len(ids) < (first + 1) * span:
        return np.zeros((0, dim), np.float32)
    nodes = ids[first * span : len(ids) // span * span].reshape(-1, span).astype(np.int64)
    weighted = nodes * (1 + np.arange(span) % 97)
    columns = [nodes.sum(1), *(weighted.sum(1) % (1 << 20 - spare) for spare in range(dim - 1))]
    return np.stack(columns[:dim], 1).astype(np.float32)


def fill(store: SessionStore, record: SessionRecord, ids: np.ndarray, commit: bool = True) -> SessionRecord:
    """Writes rows for all of ``ids`` (a longer history than the record's) and commits."""
    size = record.block_size
    new = ids[record.blocks * size : len(ids) // size * size].reshape(-1, size)
    store.write_spans(record.session_id, record.fence, record.blocks, new)
    for level in range(1, MAX_LEVEL + 1):
        gists = make_gists(ids, size, level, record.rows(level))
        if len(gists):
            store.write_gists(record.session_id, record.fence, level, record.rows(level), gists)
    record = replace(record, tokens=len(ids), tail=ids[len(ids) // size * size :])
    if commit:
        store.commit(record).result()
    return record


def fill_gists(store: SessionStore, record: SessionRecord, ids: np.ndarray) -> None:
    """Stages gists for all of ``ids``, from the first on."""
    for level in range(1, MAX_LEVEL + 1):
        gists = make_gists(ids, record.block_size, level, 0, record.gist_dim)
        if len(gists):
            store.write_gists(record.session_id, record.fence, level, 0, gists)


def begin(store: SessionStore, session_id: str = "s", owner: str = "me", **fields: object) -> SessionRecord:
    """Creates a session and opens it."""
    record = make_record(session_id, **fields)
    store.create(record).result()
    return store.open(session_id, record.tenant, owner).result().record


def lapse_soon(store: SessionStore, record: SessionRecord) -> None:
    """Renews the lease for a moment only."""
    store.lease_seconds = 0.1
    assert store.renew({record.session_id: record.fence}).result() == ()


def some_ids(count: int, seed: int = 0) -> np.ndarray:
    """Seeded token ids."""
    return np.random.default_rng(seed).integers(0, 50_000, count, dtype=np.int32)
