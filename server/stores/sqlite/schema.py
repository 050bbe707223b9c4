"""The file of the SQLite store: lock, schema, version, connections."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import IO

from mc_core.errors import StoreError
from server.stores.sqlite.rows import lineage_sum

APPLICATION_ID = 0x4D435458  # "MCTX"
SCHEMA_VERSION = 6

NOTES = """
CREATE TABLE notes (
    serial INTEGER PRIMARY KEY AUTOINCREMENT, session INTEGER NOT NULL, tenant TEXT NOT NULL, key TEXT NOT NULL,
    position INTEGER NOT NULL, indexed INTEGER NOT NULL, hidden INTEGER NOT NULL, value BLOB NOT NULL);
CREATE UNIQUE INDEX notes_own ON notes (session, key);
CREATE INDEX notes_order ON notes (session, hidden, position, serial, key);
CREATE UNIQUE INDEX notes_find ON notes (tenant, key) WHERE indexed;
"""
LIFETIMES = """
CREATE INDEX sessions_oldest_explicit ON sessions (updated) WHERE NOT implicit;
CREATE INDEX sessions_own_ttl ON sessions (updated + ttl) WHERE ttl IS NOT NULL;
"""

# One table holds the rows of all sessions and levels. The key packs (storage, level, index), so that a range of rows is
# a range of the primary key and a row costs no second index.
SCHEMA = f"""{NOTES}
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY, session_id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, model TEXT NOT NULL,
    tokenizer TEXT NOT NULL, block_size INTEGER NOT NULL, gist_dim INTEGER NOT NULL, gist_dtype TEXT NOT NULL,
    gist_keys INTEGER NOT NULL, key_dim INTEGER NOT NULL, tokens INTEGER NOT NULL, metadata TEXT NOT NULL,
    implicit INTEGER NOT NULL, sequence INTEGER NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
    fence INTEGER NOT NULL, owner TEXT NOT NULL, lease_until REAL NOT NULL,
    staged TEXT, keep INTEGER NOT NULL DEFAULT 0, ttl REAL, gist_blocks INTEGER);
CREATE INDEX sessions_newest ON sessions (tenant, created, session_id);
CREATE INDEX sessions_newest_of_kind ON sessions (tenant, implicit, created, session_id);
CREATE INDEX sessions_oldest_implicit ON sessions (updated) WHERE implicit;
CREATE TABLE states (session INTEGER PRIMARY KEY, tail BLOB NOT NULL, state TEXT NOT NULL);
CREATE TABLE prefixes (
    serial INTEGER PRIMARY KEY AUTOINCREMENT, session INTEGER NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL,
    hash TEXT NOT NULL, position INTEGER NOT NULL, implicit INTEGER NOT NULL);
CREATE UNIQUE INDEX prefixes_own ON prefixes (session, hash, position);
CREATE INDEX prefixes_find ON prefixes (tenant, model, hash) WHERE implicit;
CREATE TABLE lineage (
    session INTEGER NOT NULL, ordinal INTEGER NOT NULL, spans INTEGER NOT NULL, end_block INTEGER,
    gists INTEGER NOT NULL DEFAULT 0, sum INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (session, ordinal)) WITHOUT ROWID;
CREATE INDEX lineage_spans ON lineage (spans);
CREATE INDEX lineage_gists ON lineage (gists);
CREATE TABLE rows (key INTEGER PRIMARY KEY, data BLOB NOT NULL);
INSERT INTO meta VALUES ('fence', 0), ('storage', 0), ('probe', 0);
{LIFETIMES}"""

# What brings a file of each version to the next: in version 1 gists always lay in the storage of their spans, and
# listings were never of one kind alone; in version 2 there were no notes; in version 3 a lineage had no checksums; in
# version 4 all sessions of a kind lived as long; in version 5 a reshaped session had no gists before its next commit.
UPGRADES = {
    1: """
CREATE INDEX sessions_newest_of_kind ON sessions (tenant, implicit, created, session_id);
CREATE INDEX sessions_oldest_implicit ON sessions (updated) WHERE implicit;
ALTER TABLE sessions ADD COLUMN reshaped INTEGER NOT NULL DEFAULT 0;
ALTER TABLE lineage RENAME COLUMN storage TO spans;
ALTER TABLE lineage ADD COLUMN gists INTEGER NOT NULL DEFAULT 0;
UPDATE lineage SET gists = spans;
DROP INDEX lineage_storage;
CREATE INDEX lineage_spans ON lineage (spans);
CREATE INDEX lineage_gists ON lineage (gists);
""",
    2: NOTES,
    3: """
ALTER TABLE lineage ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE lineage SET sum = lineage_sum(session, ordinal, spans, end_block, gists);
""",
    4: f"""
ALTER TABLE sessions ADD COLUMN keep INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN ttl REAL;
{LIFETIMES}""",
    5: """
ALTER TABLE sessions ADD COLUMN gist_blocks INTEGER;
UPDATE sessions SET gist_blocks = 0 WHERE reshaped;
ALTER TABLE sessions DROP COLUMN reshaped;
""",
}


def private(path: str, flags: int) -> int:
    """Opens a file that, if it is new, its owner alone reads: histories are private."""
    return os.open(path, flags, 0o600)


class FileLock:
    """An exclusive lock on the store file, held by a lock file beside it; the kernel drops it when the process dies.

    It knows which of the files were not there before, so that one that was opened in vain leaves none.
    """

    def __init__(self, path: Path) -> None:
        self._made: list[tuple[Path, tuple[int, int]]] = []
        new_folder = not path.parent.exists()
        path.parent.mkdir(exist_ok=True)
        if new_folder:
            self._made.append((path.parent, _identity(path.parent)))
        lock = Path(f"{path}.lock")
        while True:
            new_lock = not lock.exists()
            self._file: IO[bytes] = open(lock, "ab", opener=private)  # noqa: SIM115 - held for the store's life
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._file.close()
                raise StoreError(f"{path} is in use by another server; one file serves one server at a time") from error
            # Who held it may have removed the file since it was opened here: nobody else would find this lock.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(lock), os.fstat(self._file.fileno())):
                    break
            self._file.close()
        if new_lock:
            self._made.append((lock, _identity(lock)))

    def make(self, path: Path) -> None:
        """Make the store file, empty, if there is none; SQLite gives its log and its index the same mode."""
        if path.exists():
            return
        linked = path.is_symlink()
        os.close(private(str(path), os.O_WRONLY | os.O_CREAT | (0 if linked else os.O_EXCL)))
        if not linked:
            self._made.append((path, _identity(path)))

    def release(self) -> None:
        """Gives the lock back; the lock file stays."""
        self._file.close()

    def undo(self) -> None:
        """Removes what was not there before, if it was not replaced since, and gives the lock back."""
        for path, identity in reversed(self._made):
            with suppress(OSError):
                if _identity(path) == identity:
                    path.rmdir() if path.is_dir() else path.unlink()
        self._file.close()


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit mode (transactions are explicit) that may change threads."""
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=10.0, cached_statements=256
    )
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -16384")
    return connection


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Creates or upgrades the schema, refuses a file that is not ours or newer, and ends all leases.

    The file lock says that no other server is alive, so every lease and staged row on record is a dead server's.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and application != APPLICATION_ID:
        raise StoreError(f"{path} is a database, but no MegaContext store")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} has store schema {version}; this server knows up to {SCHEMA_VERSION}: upgrade the server"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    connection.execute("PRAGMA secure_delete = FAST")
    connection.execute("PRAGMA synchronous = FULL")
    connection.create_function("lineage_sum", 5, lineage_sum, deterministic=True)
    if not tables or version < SCHEMA_VERSION:
        setup = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
        changes = "".join(UPGRADES[old] for old in range(version, SCHEMA_VERSION)) if tables else SCHEMA
        connection.executescript(f"BEGIN IMMEDIATE; {changes} {setup} COMMIT;")
    connection.execute("UPDATE sessions SET owner = '', lease_until = 0, staged = NULL")


def open_file(path: Path, connections: int) -> tuple[FileLock, list[sqlite3.Connection]]:
    """Locks, checks and opens the file; its folder is made, but none above it, which would hide a mistyped path.

    Raises StoreError, and leaves nothing open then, and no file that was not there.
    """
    opened: list[sqlite3.Connection] = []
    lock: FileLock | None = None
    try:
        lock = FileLock(path)
        lock.make(path)
        opened.append(connect(path))
        prepare(opened[0], path)
        opened.extend(connect(path) for _ in range(connections - 1))
    except (sqlite3.Error, OSError, StoreError) as error:
        for connection in opened:
            connection.close()
        if lock:
            lock.undo()
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"can't open the store file {path}: {error}") from error
    return lock, opened


class FileIdentity:
    """Notices that the file was removed or replaced: SQLite would go on writing into a file that nobody can open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = _identity(path)

    def check(self) -> None:
        """Raises StoreError if the path no longer names the file that was opened."""
        try:
            same = _identity(self._path) == self._identity
        except OSError as error:
            raise StoreError(f"the store file {self._path} is gone: {error.strerror}") from error
        if not same:
            raise StoreError(f"the store file {self._path} was replaced by another file")


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
