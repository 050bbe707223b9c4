"""A checked export made a session of a store: seen by nobody before it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from mc_core.errors import MegaContextError, StoreError
from mc_core.notes import PAGE_BYTES, Note
from mc_core.session.cut_end import CUT_OFF
from mc_core.session.factory import SessionFactory
from mc_core.session.session import Session
from mc_core.store import SessionRecord, SessionStore, StoreDownError, StoredSession, UnknownSessionError
from server.errors import ApiError, bad_request
from server.transfer.checked import Checked, damaged
from server.transfer.unborn import is_unborn

WRITTEN = 4096
"""Spans in one write."""
LEFTOVER_TTL = 3600.0
"""Seconds after which what an import left that died is deleted."""
NOTES_AT_ONCE = 256
"""Notes in one commit, which all have at most the bytes of one page."""


class Importer:
    """Puts exports into one store, for sessions of one bundle. Its calls block on the store."""

    def __init__(
        self, store: SessionStore, factory: SessionFactory, model: str, owner: str, lasting: bool = False
    ) -> None:
        """lasting: what is left of one that died halfway is kept, for whoever ends it."""
        self.store, self.factory, self.model, self.owner = store, factory, model, owner
        self._lasting = lasting

    def check_fits(self, checked: Checked) -> None:
        """ApiError 400 if this server has another tokenizer, a smaller vocabulary, or other blocks."""
        own, head = self.factory.bundle.tokenizer.fingerprint, checked.head
        if head.tokenizer != own:
            raise bad_request(
                f"the export is of the tokenizer {head.tokenizer[:80]} (model {head.model[:80]!r}), and this server"
                f" has {own} (model {self.model!r}): its token ids mean other words here",
                "body",
                "import_mismatch",
            )
        checked.within(self.factory.bundle.decoder.config.vocab_size)
        if head.block_size != self.factory.focus.block_size:
            raise bad_request(
                f"the export is in blocks of {head.block_size} tokens, and this server keeps histories in blocks of"
                f" {self.factory.focus.block_size}",
                "body",
                "import_mismatch",
            )

    def make(
        self,
        checked: Checked,
        session_id: str,
        tenant: str,
        birth: AbstractContextManager[None] = nullcontext(),  # noqa: B008 - it has no state
    ) -> Session:
        """The session, stored and in memory, under a lease of the owner; without its indexed notes.

        birth: within it the session becomes one that is seen.
        ApiError 409 if the id is taken. Whatever fails leaves nothing.
        """
        record = self._record(checked, session_id, tenant)
        self._clear(session_id, tenant)
        # Without gists it is unborn: no list and no look-up finds it.
        hidden = replace(self._hidden(record), tokens=0, tail=record.tail[:0], metadata={}, state={})
        try:
            stored = self.store.create(hidden).result()
        except StoreDownError:
            raise
        except StoreError as error:
            raise _taken(session_id) from error
        try:
            fence = self.store.open(session_id, tenant, self.owner).result().fence
            record = replace(record, fence=fence, created=stored.created, updated=stored.updated)
            self._write(checked, record)
            with birth:
                return self._born(checked, record)
        except BaseException:
            self.store.delete(session_id, tenant).result()
            raise

    def indexed(self, checked: Checked, tenant: str) -> Iterator[tuple[list[Note], int]]:
        """Notes that are found in the whole tenant, for commits, and how many of each part are left out since another
        session has their keys."""
        for notes in _in_batches(line.note() for line in checked.notes() if line.indexed):
            free = [note for note in notes if self.store.find_note(tenant, note.key).result() is None]
            yield free, len(notes) - len(free)

    def is_hidden(self, record: SessionRecord, checked: Checked) -> bool:
        """Whether a stored record is what an import of this export left that died halfway, and nobody used since."""
        told = record.implicit, record.keep, record.ttl, tuple(record.prefixes), record.tokens
        return told == (True, self._lasting, LEFTOVER_TTL, (), checked.head.tokens)

    def _hidden(self, record: SessionRecord) -> SessionRecord:
        """What is stored while it is not whole: no chat finds it, and it goes by itself if nobody ends what was begun,
        unless it is to last."""
        return replace(record, prefixes=(), implicit=True, keep=self._lasting, ttl=LEFTOVER_TTL)

    def _record(self, checked: Checked, session_id: str, tenant: str) -> SessionRecord:
        head, state = checked.head, {**checked.state.state}
        state.pop(CUT_OFF, None)
        try:
            return SessionRecord(
                session_id=session_id,
                tenant=tenant,
                model=self.model,
                tokenizer=head.tokenizer,
                block_size=head.block_size,
                tokens=head.tokens,
                tail=_tail(checked),
                metadata=head.metadata,
                implicit=head.implicit,
                keep=head.keep,
                ttl=head.ttl,
                state=state,
                prefixes=[(str(key), int(position)) for key, position in checked.state.prefixes],
            )
        except (MegaContextError, TypeError, ValueError, OverflowError) as error:
            raise damaged(str(error)) from error

    def _clear(self, session_id: str, tenant: str) -> None:
        """What an import left that died halfway goes; ApiError 409 if the id is a session's."""
        try:
            there = self.store.record(session_id, tenant).result()
        except UnknownSessionError:
            return
        if not is_unborn(there):
            raise _taken(session_id)
        self.store.open(session_id, tenant, self.owner).result()  # refused while another server imports it
        self.store.delete(session_id, tenant).result()

    def _write(self, checked: Checked, record: SessionRecord) -> None:
        """Spans and all but the indexed notes, stored under a session that nobody sees."""
        first = 0
        for blocks in _blocks(checked, record.block_size):
            self.store.write_spans(record.session_id, record.fence, first, blocks).result()
            first += len(blocks)
        hidden = self._hidden(record)
        self.store.commit(hidden).result()
        for notes in _in_batches(line.note() for line in checked.notes() if not line.indexed):
            self.store.commit(hidden, notes).result()

    def _born(self, checked: Checked, record: SessionRecord) -> Session:
        """As a stored session whose gists are of other networks: all are made of its ids, and stored."""
        try:
            session = self.factory.load(StoredSession(record, record.fence), self.store)
        except StoreError:
            raise
        except Exception as error:
            raise damaged("its state is none that this server reads") from error
        if session.wc.num_tokens != record.tokens:
            raise damaged("its working context is of another history")
        return session


def _taken(session_id: str) -> ApiError:
    return ApiError(409, f"the session {session_id!r} exists already", code="session_exists", param="keep_id")


def _tail(checked: Checked) -> Any:
    """Ids of the open block."""
    size = checked.head.block_size
    kept = np.empty(0, np.int32)
    for line in checked.ids():
        kept = np.concatenate([kept, np.array(line.ids, np.int32)])[-size:]
    inside = checked.head.tokens % size
    return kept[len(kept) - inside :]


def _blocks(checked: Checked, size: int) -> Iterator[Any]:
    """Complete blocks [n, K], in order."""
    rest = np.empty(0, np.int32)
    for line in checked.ids():
        rest = np.concatenate([rest, np.array(line.ids, np.int32)])
        whole = len(rest) // size * size
        for at in range(0, whole, WRITTEN * size):
            yield rest[at : min(whole, at + WRITTEN * size)].reshape(-1, size)
        rest = rest[whole:]


def _in_batches(notes: Iterator[Note]) -> Iterator[list[Note]]:
    batch: list[Note] = []
    held = 0
    for note in notes:
        if batch and (len(batch) == NOTES_AT_ONCE or held + len(note.value) > PAGE_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(note)
        held += len(note.value)
    if batch:
        yield batch
