"""A folder of KV files: one a session, at most so many bytes, and what was used longest ago goes first.

It is a cache: whatever it lacks is computed. It holds what users wrote, in derived form, so only its owner may read it,
and no file's name tells whose it is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
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
NAME = re.compile(rf"[0-9a-f]{{64}}(\.[0-9a-f]+{re.escape(PART)}|{re.escape(KIND)})")
"""What this writes. Whatever else is in the folder is somebody else's, a model's weights for one, and stays."""
SEED_FILE, SEED_BYTES = "seed", 32
ABANDONED = 3600.0
"""Seconds after which what another process began to write is nobody's any more."""


class KVFolder:
    """Safe from any thread, and for several servers of one machine. Only its maker and ``write`` raise."""

    def __init__(self, folder: Path, limit: int, shape: Shape, most_units: int) -> None:
        """ConfigError if there can be no such folder. limit: bytes of all files."""
        self.folder, self.limit, self.shape, self._most_units = folder, limit, shape, most_units
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.listdir(folder)
        except OSError as error:
            raise ConfigError(f"kv_folder: {folder} can't be made or read: {error}") from error
        self.seed = _kept_seed(folder)
        """Secret bytes that stay the same as long as the folder is there."""

    def path(self, tenant: str, session_id: str) -> Path:
        """Where the file of a session is, if there is one."""
        name = hashlib.sha256(f"{len(tenant)} {tenant} {session_id}".encode()).hexdigest()
        return self.folder / (name + KIND)

    def has(self, tenant: str, session_id: str) -> bool:
        """Whether a session has a file."""
        return os.path.isfile(self.path(tenant, session_id))  # false too where nobody may look

    def write(self, head: Head, layers: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Put a session's file in the place of its last one; what ``layers`` raises leaves that as it is. OSError."""
        path = self.path(*head.owner)
        self.folder.mkdir(mode=0o700, exist_ok=True)  # who wants room may have deleted it
        part = path.with_suffix(f".{secrets.token_hex(4)}{PART}")
        try:
            # Before too: a disk that is full takes no byte of it.
            self._make_room(path, head.columns.shape[1] * self.shape.unit_bytes)
            write_kv(part, head, layers)
            size = part.stat().st_size
            self._make_room(path, size, there=size)
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
        _delete(self.path(tenant, session_id))

    def owners(self) -> Iterator[tuple[str, str]]:
        """(tenant, id) of the sessions that have a file; what is damaged goes, and what nobody ended to write."""
        try:
            files, parts = self._files(KIND), self._files(PART)
        except OSError as error:
            logger.warning("KV files can't be looked through: %s", error)
            return
        for path, stat in parts:
            if time.time() - stat.st_mtime > ABANDONED:
                _delete(path)
        for path, _ in files:
            try:
                yield owner_of(path)
            except FileNotFoundError:
                continue
            except (KVFileError, OSError) as error:
                logger.warning("%s is no KV file, and deleted: %s", path.name, error)
                _delete(path)

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(stat.st_size for _, stat in self._files(KIND))

    def _make_room(self, path: Path, size: int, there: int = 0) -> None:
        """For a file of ``size`` bytes, of which ``there`` are on the disk, in the place of ``path``. OSError if it
        can't have it."""
        if size > self.limit:
            raise OSError(f"a KV file of {size:,} bytes is larger than all of them may be, {self.limit:,}")
        files = [(other, stat) for other, stat in self._files(KIND) if other != path]
        others = sum(stat.st_size for _, stat in files)
        # Of a disk that fills up they leave more and more: the store beside them needs it.
        limit = min(self.limit, (others + there + shutil.disk_usage(self.folder).free) // 2)
        for other, stat in sorted(files, key=lambda file: file[1].st_mtime):
            if others + size <= limit:
                return
            other.unlink(missing_ok=True)
            others -= stat.st_size
        if size > limit:
            raise OSError(f"the disk has no room for a KV file of {size:,} bytes")

    def _files(self, kind: str) -> list[tuple[Path, os.stat_result]]:
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(kind) and NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):  # another server deleted it meanwhile
                        found.append((self.folder / entry.name, entry.stat(follow_symlinks=False)))
        return found


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the KV file %s could not be deleted: %s", path.name, error)


def _kept_seed(folder: Path) -> bytes:
    """The folder's, made if there is none."""
    path, seed = folder / SEED_FILE, secrets.token_bytes(SEED_BYTES)
    part = folder / f"{SEED_FILE}.{secrets.token_hex(4)}{PART}"
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(seed)
        with suppress(FileExistsError):
            os.link(part, path)  # of several servers that begin at once one is first
        kept = path.read_bytes()
        return kept if len(kept) == SEED_BYTES else seed
    except OSError as error:
        logger.warning("%s can't be kept, so that no KV file is of use after a restart: %s", path, error)
        return seed
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
