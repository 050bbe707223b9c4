"""Migrates the sessions of a store that no server uses, one after the other.

The old session is kept until the new one is whole, as a file. Whatever is interrupted is taken up again by a second run
with the same folder: until its file is gone, a session is not done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mc_core.errors import MegaContextError, StoreError
from mc_core.session.cut_end import CUT_OFF
from mc_core.session.factory import SessionFactory
from mc_core.store import SessionRecord, SessionStore, UnknownSessionError
from server.errors import ApiError
from server.migrate.migrating import Target, migrated
from server.migrate.translate import Language
from server.migrate.under_way import MOVING, UnderWay
from server.transfer.checked import Checked, check
from server.transfer.importing import Importer
from server.transfer.snapshot import Moved, take
from server.transfer.unborn import is_unborn

OWNER = "megacontext sessions migrate"


@dataclass(frozen=True)
class Done:
    """What became of a session: its length before and after, or why it is as it was. deleted: by its owner, after an
    earlier run was interrupted."""

    session: str
    before: int
    after: int = 0
    failed: str | None = None
    deleted: bool = False


class Migration:
    """From one model to another, in one store."""

    def __init__(self, store: SessionStore, old: Language, new: Target, factory: SessionFactory, folder: Path) -> None:
        """folder: where sessions of this store alone are kept as files while they are under way."""
        self._store, self._old, self._new, self._folder = store, old, new, folder
        self._importer = Importer(store, factory, new.model, OWNER, lasting=True)
        self._vocabulary = factory.bundle.decoder.config.vocab_size

    def left(self) -> Iterator[tuple[str, str]]:
        """(tenant, id) of sessions that an interrupted run left as files."""
        return UnderWay.all(self._folder)

    def is_old(self, tenant: str, session: str) -> bool:
        """Whether a session is one of the old model's. StoreError if its record is damaged."""
        record = self._record(tenant, session)
        return record is not None and not is_unborn(record) and record.tokenizer == self._old.tokenizer.fingerprint

    def migrate(self, tenant: str, session: str) -> Done:
        """Put the session in the tokens of the new model in its place, under its id, or take up where that ended."""
        files, before = UnderWay(self._folder, tenant, session), 0
        try:
            if self.is_old(tenant, session):
                record = self._store.record(session, tenant).result()
                before = record.tokens
                self._write(record, files)
                self._hide(record)
                files.mark(MOVING)
            there = self._record(tenant, session)
            if files.stage is None or (there is None and files.stage != MOVING):
                files.drop()
                return Done(session, before, deleted=True)
            with files.new.open("rb") as file:
                checked = check(file).within(self._vocabulary)
                self._put(checked, there, tenant, session, files)
        except (MegaContextError, ApiError, OSError) as error:
            return Done(session, before, failed=str(error))
        files.drop()
        return Done(session, before, checked.head.tokens)

    def _record(self, tenant: str, session: str) -> SessionRecord | None:
        try:
            return self._store.record(session, tenant).result()
        except UnknownSessionError:
            return None

    def _write(self, record: SessionRecord, files: UnderWay) -> None:
        """Both as files; checked, and accepted by the new model."""
        files.drop()
        with self._taken(record) as taken:
            files.save(taken, files.old)
        with files.old.open("rb") as file:
            checked = check(file).within(self._old.tokenizer.vocab_size)
            with migrated(checked, self._old, self._new) as written:
                self._importer.check_fits(check(written))
                written.seek(0)
                files.save(written, files.new)

    def _taken(self, record: SessionRecord) -> IO[bytes]:
        if CUT_OFF in record.state:
            raise StoreError(
                "a crash cut off a turn that was writing the end of its history anew: read its messages once with a"
                f" server of the old model, {record.model!r}, which puts that end back, and migrate it then"
            )
        try:
            return take(self._store, record)
        except Moved as error:
            raise StoreError("a server changed it meanwhile") from error

    def _hide(self, record: SessionRecord) -> None:
        """From now on it is one that nobody sees, or deletes. LeaseHeldError while a server has it."""
        opened = self._store.open(record.session_id, record.tenant, OWNER).result()
        if opened.record.sequence != record.sequence:
            self._store.release(record.session_id, opened.fence).result()
            raise StoreError("a server changed it meanwhile")
        shape = {"gist_dim": 0, "gist_keys": 0, "key_dim": 0}
        self._store.reshape(record.session_id, opened.fence, gist_dtype=record.gist_dtype, **shape).result()

    def _put(self, checked: Checked, there: SessionRecord | None, tenant: str, session: str, files: UnderWay) -> None:
        """there: what the store has by the id."""
        if there is None or is_unborn(there) or self._importer.is_hidden(there, checked):
            files.mark(MOVING)
            if there is not None:
                self._store.open(session, tenant, OWNER).result()
                self._store.delete(session, tenant).result()
            self._importer.make(checked, session, tenant, files.birth())
        opened = self._store.open(session, tenant, OWNER).result()
        for notes, _ in self._importer.indexed(checked, tenant):
            self._store.commit(opened.record, notes).result()
        self._store.release(session, opened.fence).result()
