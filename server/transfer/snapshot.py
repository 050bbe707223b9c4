"""A session written as an export, as it stood at one commit, while its turns go on."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from mc_core.errors import StoreError
from mc_core.session.cut_end import CUT_OFF
from mc_core.store import MAX_LIST, SessionRecord, SessionStore
from server.errors import ApiError
from server.transfer.form import IN_MEMORY, LINE_TOKENS, end_line, head_line, ids_line, note_line, state_line
from server.version import version

ROWS = 16_384
"""Spans read at once."""


class Moved(Exception):
    """Something was committed while the session was read, or a turn is about to write the end of its history anew."""


def take(store: SessionStore, record: SessionRecord, note_page: int = MAX_LIST) -> IO[bytes]:
    """The export of a committed record, complete, to be read from its beginning; the caller closes it.

    Blocks on the store. Moved if the session did not hold still meanwhile; ApiError if spans or notes of it are lost.
    """
    if CUT_OFF in record.state:
        raise Moved
    file: Any = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - the caller's
    try:
        _write(file, store, record, note_page)
        if store.record(record.session_id, record.tenant).result().sequence != record.sequence:
            raise Moved
    except BaseException as error:
        file.close()
        if type(error) in (StoreError, ApiError) and _moved(store, record):
            raise Moved from error
        raise
    file.seek(0)
    snapshot: IO[bytes] = file
    return snapshot


def _moved(store: SessionStore, record: SessionRecord) -> bool:
    return store.record(record.session_id, record.tenant).result().sequence != record.sequence


def _write(file: IO[bytes], store: SessionStore, record: SessionRecord, note_page: int) -> None:
    digest, notes = hashlib.sha256(), 0
    for line in (head_line(record, version(), time.time()), state_line(record), *_ids(store, record)):
        digest.update(line)
        file.write(line)
    for line in _notes(store, record, note_page):
        digest.update(line)
        file.write(line)
        notes += 1
    file.write(end_line(record.tokens, notes, digest.hexdigest()))


def _ids(store: SessionStore, record: SessionRecord) -> Iterator[bytes]:
    size = record.block_size
    blocks = max(1, LINE_TOKENS // size)
    for at in range(0, record.blocks, ROWS):
        batch = store.read_span_range(record.session_id, at, min(ROWS, record.blocks - at)).result()
        if len(batch.missing) or len(batch.corrupt):
            raise damaged(f"{len(batch.missing) + len(batch.corrupt)} blocks of its history are lost")
        for first in range(0, len(batch.ids), blocks):
            part = np.ascontiguousarray(batch.ids[first : first + blocks].reshape(-1))
            yield ids_line((at + first) * size, part)
    if len(record.tail):
        yield ids_line(record.blocks * size, np.ascontiguousarray(record.tail))


def _notes(store: SessionStore, record: SessionRecord, limit: int) -> Iterator[bytes]:
    after: str | None = None
    while True:
        page = store.notes(record.session_id, record.tenant, after=after, limit=limit).result()
        if page.corrupt:
            raise damaged(f"{len(page.corrupt)} of its notes can't be read")
        yield from map(note_line, page.notes)
        after = page.next
        if after is None:
            return


def damaged(what: str) -> ApiError:
    message = f"the session can't be exported whole: {what}; megacontext fsck tells more"
    return ApiError(500, message, "server_error", "session_damaged")
