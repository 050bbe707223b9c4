"""Reads all that a store has of a session, and tells what of it is lost or not as it was written."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

from mc_core.errors import StoreError
from mc_core.session.cut_end import CUT_OFF
from mc_core.store import (
    MAX_LIST,
    DamagedRecordError,
    GistBatch,
    SessionRecord,
    SessionStore,
    SpanBatch,
    StoreDownError,
)
from server.transfer.unborn import is_unborn
from server.turns.message_notes import PREFIX

logger = logging.getLogger(__name__)
ROWS = 16_384
"""Rows read at once."""
Kind = Literal["store", "record", "spans", "gists", "prefixes", "notes", "messages", "import"]


class Whole(SessionStore, Protocol):
    """A store that tells of all of its sessions, whosever they are."""

    def everything(self) -> Future[Sequence[tuple[str, str]]]: ...

    def integrity(self) -> Future[Sequence[str]]: ...


@dataclass(frozen=True)
class Finding:
    """What is wrong with one part of a session (or, without one, of the store): ``detail`` is for people.

    first: of spans, the first block that is lost. keys: of notes, those that are corrupt.
    """

    kind: Kind
    detail: str
    tenant: str = ""
    session: str = ""
    first: int = 0
    keys: tuple[str, ...] = ()


def audit_store(store: Whole) -> list[Finding]:
    """What is wrong with the store itself."""
    return [Finding("store", text) for text in store.integrity().result()]


def audit(store: SessionStore, tenant: str, session: str) -> list[Finding]:
    """What is wrong with a session. StoreDownError if the store can't be reached."""
    try:
        record = store.record(session, tenant).result()
    except StoreDownError:
        raise
    except DamagedRecordError as error:
        return [Finding("record", str(error), tenant, session)]
    except Exception as error:
        # Whatever is in the way of reading it: a damaged record has no shape that could be relied on.
        return [Finding("record", f"the record can't be read ({type(error).__name__})", tenant, session)]
    if is_unborn(record):
        return [Finding("import", "an import of it has not ended", tenant, session)]
    found: list[Finding] = []
    if bool(record.gist_keys) != bool(record.key_dim):
        found.append(Finding("record", "the shape of its gists is not as it was written", tenant, session))
    for check in (_spans, _gists, _prefixes, _notes):
        try:
            found += check(store, record)
        except StoreDownError:
            raise
        except Exception as error:
            name = check.__name__.removeprefix("_")
            found.append(Finding("record", f"its {name} can't be read ({type(error).__name__})", tenant, session))
    return found


def _spans(store: SessionStore, record: SessionRecord) -> Iterator[Finding]:
    missing, corrupt, first = 0, 0, record.blocks
    for at in range(0, record.blocks, ROWS):
        batch: SpanBatch = store.read_span_range(record.session_id, at, min(ROWS, record.blocks - at)).result()
        missing, corrupt = missing + len(batch.missing), corrupt + len(batch.corrupt)
        first = min([first, *batch.missing[:1].tolist(), *batch.corrupt[:1].tolist()])
    if missing or corrupt:
        start = first * record.block_size
        detail = f"{missing} of {record.blocks} blocks are missing, {corrupt} corrupt; the first is at token {start}"
        yield Finding("spans", detail, record.tenant, record.session_id, first=first)


def _gists(store: SessionStore, record: SessionRecord) -> Iterator[Finding]:
    """Those that are still to be made are not damaged."""
    level, missing, corrupt = 1, 0, 0
    while rows := record.rows(level):
        for at in range(0, rows, ROWS):
            batch: GistBatch = store.read_gist_range(record.session_id, level, at, min(ROWS, rows - at)).result()
            missing, corrupt = missing + len(batch.missing), corrupt + len(batch.corrupt)
        level += 1
    if corrupt or missing:
        detail = f"{missing} gists are missing, {corrupt} corrupt; they can be made anew"
        yield Finding("gists", detail, record.tenant, record.session_id)


def _prefixes(store: SessionStore, record: SessionRecord) -> Iterator[Finding]:
    """Whether a plain chat finds the session by the beginnings that it holds."""
    if not record.implicit:
        return
    tenant, model = record.tenant, record.model
    hashes = [key for key, _ in record.prefixes]
    lost = sum(store.find_prefix(tenant, model, [key]).result() is None for key in hashes)
    if lost:
        detail = f"{lost} of {len(hashes)} beginnings are not in the index; it can be made anew"
        yield Finding("prefixes", detail, tenant, record.session_id)


def _notes(store: SessionStore, record: SessionRecord) -> Iterator[Finding]:
    after: str | None = None
    corrupt: list[str] = []
    listed: set[int] = set()
    astray = 0
    while True:
        page = store.notes(record.session_id, record.tenant, after=after, limit=MAX_LIST).result()
        corrupt += page.corrupt
        listed |= set(_numbers([*page.corrupt, *(note.key for note in page.notes)]))
        for note in page.notes:
            astray += note.position > record.tokens or (note.indexed and not _found(store, record, note.key))
        after = page.next
        if after is None:
            break
    if corrupt or astray:
        detail = f"{len(corrupt)} notes (messages, responses) are corrupt, {astray} are not where they belong"
        yield Finding("notes", detail, record.tenant, record.session_id, keys=tuple(corrupt))
    if lost := sorted(set(range(max(_listed(record), max(listed, default=-1) + 1))) - listed):
        detail = f"{len(lost)} messages are missing, the first of them number {lost[0]}"
        yield Finding("messages", detail, record.tenant, record.session_id)


def _numbers(keys: Iterable[str]) -> Iterator[int]:
    """Of the messages among notes: they are counted without a gap."""
    for key in keys:
        number = key.removeprefix(PREFIX)
        if number != key and number.isdecimal():
            yield int(number)


def _listed(record: SessionRecord) -> int:
    """How many messages a session knows to have, 0 where it does not know."""
    told = record.state.get("chat", {}).get("told")
    known = told is not None and told["last"]["end"] <= record.tokens and CUT_OFF not in record.state
    return int(told["next"]) if known else 0


def _found(store: SessionStore, record: SessionRecord, key: str) -> bool:
    try:
        found = store.find_note(record.tenant, key).result()
    except StoreDownError:
        raise
    except StoreError:
        return False
    return found is not None and found[0] == record.session_id
