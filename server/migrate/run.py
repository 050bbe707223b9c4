"""Migrates the sessions of a store that no server uses, one after the other.

The old session is kept until the new one is whole, as a file. Whatever is interrupted is taken up again by a second run
with the same folder: until its file is gone, a session is not done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote

from mc_core.errors import MegaContextError, StoreError
from mc_core.session.factory import SessionFactory
from mc_core.store import SessionRecord, SessionStore, UnknownSessionError
from server.errors import ApiError
from server.migrate.migrating import Target, migrated
from server.migrate.translate import Language
from server.transfer.checked import Checked, check
from server.transfer.importing import Importer
from server.transfer.snapshot import take
from server.transfer.unborn import is_unborn

OWNER = "megacontext sessions migrate"
OLD, NEW = ".old.jsonl", ".new.jsonl"


@dataclass(frozen=True)
class Done:
    """What became of a session: its length before and after, or why it is as it was."""

    session: str
    before: int
    after: int = 0
    failed: str | None = None


class Migration:
    """From one model to another, in one store."""

    def __init__(self, store: SessionStore, old: Language, new: Target, factory: SessionFactory, folder: Path) -> None:
        """folder: where sessions are kept as files while they are under way."""
        self._store, self._old, self._new, self._folder = store, old, new, folder
        self._importer = Importer(store, factory, new.model, OWNER)
        self._vocabulary = factory.bundle.decoder.config.vocab_size

    def left(self) -> Iterator[tuple[str, str]]:
        """(tenant, id) of sessions that an interrupted run left as files."""
        for path in sorted(self._folder.glob(f"*{NEW}")):
            tenant, _, session = path.name.removesuffix(NEW).partition("+")
            yield unquote(tenant), unquote(session)

    def is_old(self, tenant: str, session: str) -> bool:
        """Whether a session is one of the old model's. StoreError if its record is damaged."""
        record = self._record(tenant, session)
        return record is not None and record.tokenizer == self._old.tokenizer.fingerprint

    def migrate(self, tenant: str, session: str) -> Done:
        """Put the session in the tokens of the new model in its place, under its id, or take up where that ended."""
        old, new = (self._folder / f"{quote(tenant, '')}+{quote(session, '')}{suffix}" for suffix in (OLD, NEW))
        before = 0
        try:
            record = self._record(tenant, session)
            if record is not None and record.tokenizer == self._old.tokenizer.fingerprint:
                before = record.tokens
                self._write(record, old, new)
                self._remove(record)
            with new.open("rb") as file:
                checked = check(file, self._vocabulary)
                self._put(checked, tenant, session)
        except (MegaContextError, ApiError, OSError) as error:
            return Done(session, before, failed=str(error))
        old.unlink(missing_ok=True)
        new.unlink()
        return Done(session, before, checked.head.tokens)

    def _record(self, tenant: str, session: str) -> SessionRecord | None:
        """None of one that is not there, or not whole."""
        try:
            record = self._store.record(session, tenant).result()
        except UnknownSessionError:
            return None
        return None if is_unborn(record) else record

    def _write(self, record: SessionRecord, old: Path, new: Path) -> None:
        """Both as files that outlive a crash; checked, and accepted by the new model."""
        with take(self._store, record) as taken:
            _save(taken, old)
        with old.open("rb") as file:
            checked = check(file, self._old.tokenizer.vocab_size)
            with migrated(checked, self._old, self._new) as written:
                self._importer.check_fits(check(written, self._vocabulary))
                written.seek(0)
                _save(written, new)

    def _remove(self, record: SessionRecord) -> None:
        """LeaseHeldError while a server has it."""
        opened = self._store.open(record.session_id, record.tenant, OWNER).result()
        if opened.record.sequence != record.sequence:
            self._store.release(record.session_id, opened.fence).result()
            raise StoreError("a server changed it meanwhile")
        self._store.delete(record.session_id, record.tenant).result()

    def _put(self, checked: Checked, tenant: str, session: str) -> None:
        if self._record(tenant, session) is None:
            self._importer.make(checked, session, tenant)
        opened = self._store.open(session, tenant, OWNER).result()
        for notes, _ in self._importer.indexed(checked, tenant):
            self._store.commit(opened.record, notes).result()
        self._store.release(session, opened.fence).result()


def _save(source: IO[bytes], target: Path) -> None:
    """Whole or not at all."""
    part = target.with_suffix(".part")
    with part.open("wb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
