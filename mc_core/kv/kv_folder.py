"""A folder of KV files: one a session, at most so many bytes, and what was used longest ago goes first.

It is a cache: whatever it lacks is computed. It holds what users wrote, in derived form, so only its owner may read it,
and no file's name tells whose it is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.kv.kv_file import ForeignFileError, Head, KVFile, KVFileError, Shape, owner_of, read_kv, write_kv

logger = logging.getLogger(__name__)
KIND, PART = ".safetensors", ".part"
ABANDONED = 3600.0
"""Seconds after which what another process began to write is nobody's any more."""


class KVFolder:
    """Safe from any thread, and for several servers of one machine. Only its maker and ``write`` raise."""

    def __init__(self, folder: Path, limit: int, shape: Shape, most_units: int) -> None:
        """ConfigError if there can be no such folder. limit: bytes of all files."""
        self.folder, self.limit, self.shape, self._most_units = folder, limit, shape, most_units
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"kv_folder: {folder} can't be made: {error}") from error
        for path, stat in self._files(PART):
            if time.time() - stat.st_mtime > ABANDONED:
                path.unlink(missing_ok=True)

    def path(self, tenant: str, session_id: str) -> Path:
        """Where the file of a session is, if there is one."""
        name = hashlib.sha256(f"{len(tenant)} {tenant} {session_id}".encode()).hexdigest()
        return self.folder / (name + KIND)

    def write(self, head: Head, layers: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Put a session's file in the place of its last one; what ``layers`` raises leaves that as it is. OSError."""
        path = self.path(*head.owner)
        part = path.with_suffix(f".{os.getpid()}{PART}")
        try:
            write_kv(part, head, layers)
            self._make_room(part.stat().st_size, path)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def read(self, tenant: str, session_id: str, of: Mapping[str, Any]) -> KVFile | None:
        """A session's file, if there is one of use. One that isn't goes, and the log says why."""
        path = self.path(tenant, session_id)
        try:
            if path.stat().st_size > self.limit:
                raise KVFileError("it is larger than all files may be")
            file = read_kv(path, of, self.shape, self._most_units)
            if file.head.owner != (tenant, session_id):
                raise KVFileError("it is of another session")
            os.utime(path)
        except FileNotFoundError:
            return None
        except ForeignFileError as error:
            logger.info("the KV file of session %s is not used: %s", session_id, error)
            return None
        except (KVFileError, OSError) as error:
            logger.warning("the KV file of session %s is not used, and deleted: %s", session_id, error)
            self.drop(tenant, session_id)
            return None
        return file

    def drop(self, tenant: str, session_id: str) -> None:
        """Delete a session's file, if there is one."""
        try:
            self.path(tenant, session_id).unlink(missing_ok=True)
        except OSError:
            logger.warning("the KV file of session %s could not be deleted", session_id, exc_info=True)

    def owners(self) -> Iterator[tuple[str, str]]:
        """(tenant, id) of the sessions that have a file; what is no such file goes."""
        for path, _ in self._files(KIND):
            try:
                yield owner_of(path)
            except FileNotFoundError:
                continue
            except (KVFileError, OSError) as error:
                logger.warning("%s is no KV file, and deleted: %s", path.name, error)
                path.unlink(missing_ok=True)

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(stat.st_size for _, stat in self._files(KIND))

    def _make_room(self, size: int, replaced: Path) -> None:
        if size > self.limit:
            raise OSError(f"a KV file of {size:,} bytes is larger than all of them may be, {self.limit:,}")
        files = [(path, stat) for path, stat in self._files(KIND) if path != replaced]
        total = size + sum(stat.st_size for _, stat in files)
        for path, stat in sorted(files, key=lambda file: file[1].st_mtime):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size

    def _files(self, kind: str) -> list[tuple[Path, os.stat_result]]:
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(kind) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):  # another server deleted it meanwhile
                        found.append((self.folder / entry.name, entry.stat(follow_symlinks=False)))
        return found
