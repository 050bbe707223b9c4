"""What a session store keeps, and the contract every store fulfils (embedded SQLite, Redis).

A session's history is rows in a log by level: level 0 holds spans (blocks of K token ids), level l >= 1 the gists of
the LOD l nodes. Writers *stage* rows and then *commit* a record, and notes with it; only a resolved commit acknowledges
a turn.
No store library is imported here: the implementations live in ``server/stores``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mc_core.errors import ConfigError, MegaContextError, StoreError
from mc_core.notes import Beyond
from mc_core.notes import Note as Note
from mc_core.notes import NotePage as NotePage

Ids = NDArray[np.int32]
Indices = NDArray[np.int64]
Floats = NDArray[np.float16] | NDArray[np.float32]
GistType = Literal["float16", "float32"]

MAX_LEVEL = 15
MAX_LIST = 1000
WISH_SECONDS = 2.0
"""How long a wish for a session that another owner holds is one."""
PASS_SECONDS = 1.0
"""How long a session that was released stays reserved for who wished for it."""
_SESSION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class UnknownSessionError(MegaContextError, LookupError):
    """No such session for this tenant; another tenant's session reads exactly the same."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} does not exist")


class FencedError(StoreError):
    """The caller's lease is over: another owner opened the session, or it was deleted. Nothing was changed."""


class TurnsLostError(FencedError):
    """The store has fewer commits of a session than it acknowledged: it fell back to a copy that had not got them."""


class LeaseHeldError(StoreError):
    """Another owner holds the lease; ``retry_after`` seconds until it lapses unless that owner renews it."""

    def __init__(self, session_id: str, retry_after: float) -> None:
        super().__init__(f"session {session_id!r} is open at another server; its lease lapses in {retry_after:.1f} s")
        self.retry_after = retry_after


class DamagedRecordError(StoreError):
    """The store has the session, but its record is not as it was written."""


class SessionMismatchError(StoreError):
    """A stored session is sound and of no use here: its tokenizer or block size is another than the server's."""


class NoteTakenError(StoreError):
    """An indexed note of a commit has the key of another session's note. Nothing was changed."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"an indexed note of session {session_id!r} has another session's key")


class StoreDownError(StoreError):
    """The store can't be reached, or is too far behind to take more; try again after ``retry_after`` seconds.

    A write that failed so may or may not have been made, so its lease must not write on: open the session again.
    """

    def __init__(self, message: str, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreFullError(StoreDownError):
    """The store has no room for what it was to keep, which it has not got now. What it has can be read and deleted."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SessionInfo:
    """The small part of a session record, as listings show it.

    ``tokenizer`` is the tokenizer's fingerprint, ``gist_dim`` the width d of a gist (0: no gists are stored),
    ``gist_keys`` x ``key_dim`` the lens keys stored beside each LOD1 gist (level 1 only): the shape of the rows, which
    ``reshape`` alone changes. The tenant, the model, the tokenizer and the block size K are fixed at creation.
    ``tokens``, ``metadata``, ``implicit``, ``keep`` and ``ttl`` follow each commit; ``sequence`` (it counts commits and
    reshapes), ``created`` and ``updated`` (seconds since the epoch) are the store's own. A session that nothing was
    committed to for ``ttl`` seconds (None: as ``expire`` says of its kind) may be deleted, unless ``keep`` says no.
    ``gist_blocks``: how many blocks, from the first on, have gists, with all nodes that they complete; None: all. The
    store counts them itself: fewer after a ``reshape``, or where a ``commit`` said that they need not be there.
    """

    session_id: str
    tenant: str
    model: str
    tokenizer: str
    block_size: int = 32
    gist_dim: int = 0
    gist_dtype: GistType = "float16"
    gist_keys: int = 0
    key_dim: int = 0
    tokens: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    implicit: bool = False
    keep: bool = False
    ttl: float | None = None
    gist_blocks: int | None = None
    sequence: int = 0
    created: float = 0.0
    updated: float = 0.0

    def __post_init__(self) -> None:
        if not _SESSION_ID.fullmatch(self.session_id):
            raise ConfigError(f"session_id must match {_SESSION_ID.pattern}, got {self.session_id[:140]!r}")
        if not self.tenant:
            raise ConfigError("tenant must not be empty")
        if not 2 <= self.block_size <= 1024:
            raise ConfigError(f"block_size must lie in [2, 1024], got {self.block_size}")
        if self.gist_dtype not in ("float16", "float32"):
            raise ConfigError(f"gist_dtype must be float16 or float32, got {self.gist_dtype!r}")
        for name in ("gist_dim", "gist_keys", "key_dim", "tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.ttl is not None and not 0 < self.ttl < math.inf:
            raise ConfigError(f"ttl must be a positive number of seconds, got {self.ttl}")
        if self.gist_blocks is not None and self.gist_blocks < 0:
            raise ConfigError(f"gist_blocks must be at least 0, got {self.gist_blocks}")

    @property
    def blocks(self) -> int:
        """Complete blocks of K tokens, hence spans and LOD1 nodes."""
        return self.tokens // self.block_size

    def rows(self, level: int) -> int:
        """Rows that the committed length has at ``level``: spans at 0, complete nodes above, as far as there are
        gists."""
        known = self.gist_blocks if level else None
        return rows_at(level, self.blocks if known is None else min(known, self.blocks), self.block_size)


@dataclass(frozen=True, eq=False, kw_only=True)
class SessionRecord(SessionInfo):
    """Everything a session is, apart from its rows; what ``commit`` replaces as one.

    ``tail``: int32 [tokens % K], the ids of the open block. ``state``: JSON-able (layout, residency, counters, RNG).
    ``prefixes``: (hash, position) for each message boundary, position in tokens; the complete list each time.
    ``fence``: the token of the lease under which the record is committed.
    """

    tail: Ids = field(default_factory=lambda: np.zeros(0, np.int32))
    state: Mapping[str, Any] = field(default_factory=dict)
    prefixes: Sequence[tuple[str, int]] = ()
    fence: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        tail = np.array(self.tail, dtype=np.int32)
        tail.flags.writeable = False
        object.__setattr__(self, "tail", tail)
        object.__setattr__(self, "prefixes", tuple((str(key), int(position)) for key, position in self.prefixes))
        if tail.shape != (self.tokens % self.block_size,):
            raise ConfigError(
                f"tail must hold tokens % block_size = {self.tokens % self.block_size} ids, got shape {tail.shape}"
            )
        for key, position in self.prefixes:
            if not 0 <= position <= self.tokens:
                raise ConfigError(f"prefixes: position {position} of {key[:40]!r} lies outside [0, {self.tokens}]")


@dataclass(frozen=True)
class StoredSession:
    """A session opened for writing: its committed record, and the fence of the new lease (also in the record)."""

    record: SessionRecord
    fence: int


@dataclass(frozen=True, eq=False)
class SpanBatch:
    """Spans as read: ``blocks`` int64 [n] ascending with ``ids`` int32 [n, K]; the rest is reported, never invented."""

    blocks: Indices
    ids: Ids
    missing: Indices
    corrupt: Indices


@dataclass(frozen=True, eq=False)
class GistBatch:
    """Gists as read: ``indices`` int64 [n] ascending, ``gists`` [n, d], ``keys`` [n, keys, dim] (level 1) or None."""

    indices: Indices
    gists: Floats
    keys: Floats | None
    missing: Indices
    corrupt: Indices


@dataclass(frozen=True)
class SessionPage:
    """One page of a listing; ``next`` is the cursor to pass as ``after``, None on the last page."""

    sessions: tuple[SessionInfo, ...]
    next: str | None


@dataclass(frozen=True)
class PrefixMatch:
    """The session that stored message-prefix ``hash`` last, and the token position where that prefix ends."""

    session_id: str
    hash: str
    position: int


@dataclass(frozen=True)
class StoreHealth:
    """Whether the store accepted a durable write just now, the reason if not, and the bytes that wait to be written.

    ``degraded``: not ok, but sessions in memory may go on, since there is room for what they write.
    """

    ok: bool
    detail: str
    pending_bytes: int
    degraded: bool = False


def rows_at(level: int, blocks: int, block_size: int) -> int:
    """Rows at ``level`` that ``blocks`` complete blocks have: K**(level-1) blocks make one LOD ``level`` node."""
    return int(blocks) if level == 0 else int(blocks) // int(block_size) ** (level - 1)


def complete_blocks(counts: Sequence[int], blocks: int, block_size: int) -> int | None:
    """Blocks, from the first on, whose nodes all have gists, of ``blocks`` blocks; None: all. counts: gists of each
    level from 1 up, with one level more than has any."""
    sizes = (int(block_size) ** level for level in range(len(counts)))
    there = min((count + 1) * size - 1 for count, size in zip(counts, sizes, strict=True))
    return there if there < blocks else None


def encode_cursor(created: float, session_id: str) -> str:
    """The list cursor that stands right after this session; it stays good when that one is deleted."""
    return f"{created!r}/{session_id}"


def decode_cursor(cursor: str) -> tuple[float, str]:
    """(created, session_id) of a cursor. Raises ConfigError when it is none."""
    created, slash, session_id = cursor.partition("/")
    try:
        return float(created), session_id if slash else _bad_cursor(cursor)
    except ValueError:
        return float(0), _bad_cursor(cursor)


def _bad_cursor(cursor: str) -> str:
    raise ConfigError(f"after must be a cursor from an earlier page, got {cursor[:140]!r}")


@runtime_checkable
class SessionStore(Protocol):
    """Durable sessions, safe to use from any thread.

    Every future's error is a MegaContextError: StoreError if the store failed or refused, ConfigError if the
    argument is bad.

    Order: calls for one session are applied in the order in which they were made; a read sees the writes before it
    and none after it. Futures can't be cancelled; done-callbacks run on the store's threads and must be short.

    Visibility: rows below the committed length are immutable. Writing one again with the same content is a no-op (a
    retry is safe; a lost or corrupt row is healed), with other content it is a StoreError: commit the rewind first.
    Rows at or past the committed length are *staged*: readable under the lease that wrote them, replaceable, and gone
    after a restart or the next ``open``, unless a commit took them in. Rows of a level are written without gaps.
    Gists that a ``reshape`` dropped are made good block by block: those of a committed block count as committed, for
    good and without a commit, once they and all nodes that it completes are written (``gist_blocks``).

    Leases: ``open`` gives the caller a fence greater than every fence before it. Writes carry the fence and renew the
    lease; an outdated fence is refused with FencedError. A lease lapses ``lease_seconds`` after its last renewal. Fence
    and write are one step in the store: who was away while another owner opened the session changes nothing any more.
    """

    lease_seconds: float

    def create(self, record: SessionRecord) -> Future[SessionRecord]:
        """Stores a new, empty session (``tokens`` 0), stamped; StoreError if the id is taken. Takes no lease."""
        ...

    def open(self, session_id: str, tenant: str, owner: str, wish: bool = False) -> Future[StoredSession]:
        """Takes the lease and drops staged rows. The same ``owner`` may always reopen; another one gets LeaseHeldError
        until the lease lapses or is released. UnknownSessionError as for every look-up by tenant, DamagedRecordError
        as for every reading of a record.

        ``wish``: where another one holds the lease, it is asked for it (``asked``), and who wished last in the last
        ``WISH_SECONDS`` is the only one who may open the session for ``PASS_SECONDS`` once the holder releases it.
        """
        ...

    def asked(self, owner: str) -> Future[tuple[str, ...]]:
        """The sessions that others wished for since the last call, of those whose lease ``owner`` holds. Cheap, to be
        asked ten times a second; a wish whose answer is lost comes again, since who wishes tries again."""
        ...

    def renew(self, leases: Mapping[str, int], owner: str | None = None) -> Future[tuple[str, ...]]:
        """Extends the leases {session_id: fence}; returns the ids whose lease is lost (fenced or deleted). ``owner``:
        whose they are from now on."""
        ...

    def announce(self, owner: str, life: str, first: bool) -> Future[bool]:
        """Says for ``lease_seconds`` that this ``life`` (from start to end) of the server that is called ``owner`` goes
        on; ``first``: that it begins -> False if another life of that name began since, so that two servers have it."""
        ...

    def release(self, session_id: str, fence: int) -> Future[None]:
        """Gives the lease back, so that any owner may open at once. An outdated fence is no error here."""
        ...

    def write_spans(self, session_id: str, fence: int, first_block: int, ids: Ids) -> Future[None]:
        """Stages spans ``ids`` [n, K] of blocks first_block, first_block + 1, ..."""
        ...

    def write_gists(
        self, session_id: str, fence: int, level: int, first_index: int, gists: Floats, keys: Floats | None = None
    ) -> Future[None]:
        """Stages the gists [n, d] of nodes (level, first_index + i), kept in the record's ``gist_dtype``; at level 1
        with lens keys [n, gist_keys, key_dim] when the record has them."""
        ...

    def commit(self, record: SessionRecord, notes: Sequence[Note] = (), beyond: Beyond = "drop") -> Future[int]:
        """Replaces the record as one, durably, under ``record.fence``; returns the new sequence.

        Every row that ``record.tokens`` implies must have been written (StoreError names the first gap), so a turn
        whose write failed is never acknowledged. Rows past ``record.tokens`` are dropped: a smaller one is a rewind.
        Where ``record.gist_blocks`` is a number, no more gists than those of so many blocks must have been.

        ``notes`` are stored with it, all or none; one under a key that the session has replaces that note, and takes
        its place in the order of writing. None may lie past ``record.tokens`` (ConfigError), where notes of before are
        dropped too, or what else ``beyond`` says; ``keep`` takes no notes. StoreError if an ``indexed`` key is another
        session's of the tenant.
        """
        ...

    def note(self, session_id: str, tenant: str, key: str) -> Future[Note | None]:
        """The session's note under this key. StoreError if it is corrupt, here as in ``find_note``."""
        ...

    def notes(
        self,
        session_id: str,
        tenant: str,
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> Future[NotePage]:
        """Notes whose keys begin with ``prefix``, by (position, order of writing); ``limit`` 1..1000, and beyond the
        first no more than ``PAGE_BYTES``. ``after``: the page before's ``next``, good though that note is gone."""
        ...

    def find_note(self, tenant: str, key: str) -> Future[tuple[str, Note] | None]:
        """The tenant's ``indexed`` note under this key, and its session."""
        ...

    def delete_note(self, session_id: str, tenant: str, key: str) -> Future[bool]:
        """Deletes a note, durably, without a lease -> whether there was one."""
        ...

    def reshape(
        self, session_id: str, fence: int, *, gist_dim: int, gist_dtype: GistType, gist_keys: int, key_dim: int
    ) -> Future[None]:
        """Drops every gist row (levels 1 and above) of this session, committed or staged, and sets what such rows look
        like from now on; durably, at once. Spans stay, staged ones too; forks that share rows keep theirs, as they are.

        From then on no gist counts as written, whatever the committed length: ``gist_blocks`` is 0, and ``write_gists``
        begins at index 0. Gists that are not there yet read as missing, also after a restart. A fork made in between
        shares those of ``gist_blocks`` blocks, and makes the others itself.
        """
        ...

    def read_spans(self, session_id: str, blocks: Indices) -> Future[SpanBatch]:
        """The spans of any blocks, in one round trip; duplicates are merged."""
        ...

    def read_span_range(self, session_id: str, first: int, count: int) -> Future[SpanBatch]:
        """The spans [first, first + count) in bulk."""
        ...

    def read_gist_range(self, session_id: str, level: int, first: int, count: int) -> Future[GistBatch]:
        """The gists of nodes (level, first .. first + count - 1) in bulk."""
        ...

    def record(self, session_id: str, tenant: str) -> Future[SessionRecord]:
        """The committed record, without a lease (its ``fence`` is 0)."""
        ...

    def list(
        self, tenant: str, limit: int = 20, after: str | None = None, implicit: bool | None = None
    ) -> Future[SessionPage]:
        """The tenant's sessions, newest created first; ``limit`` 1..1000; ``after`` = the page before's ``next``.

        implicit: only those that are, or are not; None: all. The cost is the page's, whatever was left out.
        """
        ...

    def foreign(self, tokenizer: str, limit: int) -> Future[int]:
        """How many sessions of all tenants are of another tokenizer than this fingerprint, of ``limit`` of them; those
        without a shape of gists, which nobody may use yet, do not count."""
        ...

    def expire(self, limit: int, *, implicit: float | None = None, explicit: float | None = None) -> Future[int]:
        """Deletes sessions of any tenant whose last commit is at least as long ago, by the store's clock, as their own
        ``ttl`` says, or, without one, as is said here for sessions of their kind (None: never) -> how many there were.

        ``limit`` (1..1000) at most, of each kind the longest unused first. Those that are to be kept, and those with a
        live lease, stay."""
        ...

    def fork(self, session_id: str, tenant: str, record: SessionRecord) -> Future[SessionRecord]:
        """Stores ``record`` as a new session whose first ``record.tokens`` tokens (at most the committed length) are
        those of ``session_id``. Rows are shared, never copied; each session rewinds, grows and is deleted alone.
        Notes up to its length are copied, but for those that are ``indexed``. The new session may be used once the
        future has resolved."""
        ...

    def delete(self, session_id: str, tenant: str) -> Future[None]:
        """Deletes the session, its notes and every row that no fork shares, durably. Late writes get FencedError."""
        ...

    def find_prefix(self, tenant: str, model: str, hashes: Sequence[str]) -> Future[PrefixMatch | None]:
        """The first of ``hashes`` (longest prefix first) that an *implicit* session of this tenant and model has; if
        several have it, the session that stored it last."""
        ...

    def healthy(self) -> Future[StoreHealth]:
        """Tries a durable write. The future never fails: a broken or closed store answers ``ok=False`` and why."""
        ...

    def overloaded(self) -> str | None:
        """Why new work should be turned away, or None; cheap, for every request."""
        ...

    def close(self) -> None:
        """Applies what is queued, then closes; blocks. Later calls fail with StoreError. Not from a done-callback."""
        ...
