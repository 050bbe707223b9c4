"""What is kept of a session as files while it is under way, whose names say how far it is.

The store alone can't tell a session that the migration removed from one that its owner deleted. So a step that leaves
it without a session that can be deleted is told by a file's name, and each name is given while nobody sees one there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote

OLD = ".old.jsonl"
NEW, MOVING, PUT = ".new.jsonl", ".moving.jsonl", ".put.jsonl"
"""The new session: written, while the store has the old one; to be put into the store, which has none that anybody
sees; about to be seen there, or seen: if it is gone from there, its owner deleted it."""

PART = ".part"
SUFFIXES = (PART, OLD, NEW, MOVING, PUT)
"""In the order in which they go: a session that was begun is known by its files until it is done."""


class UnderWay:
    """The files of one session."""

    def __init__(self, folder: Path, tenant: str, session: str) -> None:
        self._stem = folder / f"{quote(tenant, '')}+{quote(session, '')}"
        self.old = self._at(OLD)

    @staticmethod
    def all(folder: Path) -> Iterator[tuple[str, str]]:
        """(tenant, id) of those that are in the folder."""
        names = {path.name.removesuffix(suffix) for suffix in SUFFIXES for path in folder.glob(f"*{suffix}")}
        for name in sorted(names):
            tenant, _, session = name.partition("+")
            yield unquote(tenant), unquote(session)

    @property
    def stage(self) -> str | None:
        """NEW, MOVING or PUT; None if no new session is whole."""
        return next((stage for stage in (NEW, MOVING, PUT) if self._at(stage).exists()), None)

    @property
    def new(self) -> Path:
        return self._at(self.stage or NEW)

    def save(self, source: IO[bytes], target: Path) -> None:
        """Whole or not at all, and so that it outlives a crash."""
        part = self._at(PART)
        with part.open("wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
        self._sync()

    def mark(self, stage: str) -> None:
        self.new.replace(self._at(stage))
        self._sync()

    @contextmanager
    def birth(self) -> Iterator[None]:
        """Within, the new session becomes one that is seen; if that fails, it is none, and may be removed."""
        self.mark(PUT)
        try:
            yield
        except BaseException:
            self.mark(MOVING)
            raise

    def drop(self) -> None:
        for suffix in SUFFIXES:
            self._at(suffix).unlink(missing_ok=True)

    def _at(self, suffix: str) -> Path:
        return self._stem.with_name(self._stem.name + suffix)

    def _sync(self) -> None:
        folder = os.open(self._stem.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
