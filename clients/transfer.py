"""Exports of sessions as files."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

LONGEST_END = 1024
"""Bytes of the last line of an export at most."""


class BrokenExportError(ValueError):
    """A file is no whole export."""


def save(pieces: Iterable[bytes], target: Path) -> None:
    """Write an export to a file, which appears once it is whole. BrokenExportError if its SHA-256 is another."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(pieces, file)
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def write(pieces: Iterable[bytes], file: IO[bytes]) -> None:
    """Write an export to a stream as it comes. BrokenExportError, at its end, if its SHA-256 is another."""
    check(_through(pieces, file))
    file.flush()


def check(pieces: Iterable[bytes]) -> None:
    """BrokenExportError unless the last line has the SHA-256 of all before it."""
    digest, held = hashlib.sha256(), b""
    for piece in pieces:
        held += piece
        # Of what is held, the last line is one that may be the end.
        cut = held.rfind(b"\n", 0, max(0, len(held) - 1)) + 1
        digest.update(held[:cut])
        held = held[cut:]
    try:
        told = json.loads(held) if len(held) <= LONGEST_END else {}
        whole = told.get("type") == "end" and told.get("sha256") == digest.hexdigest()
    except (ValueError, AttributeError):
        whole = False
    if not whole:
        raise BrokenExportError("the export broke off, or is damaged: its checksum is missing or another")


def _through(pieces: Iterable[bytes], file: IO[bytes]) -> Iterable[bytes]:
    for piece in pieces:
        file.write(piece)
        yield piece
