"""Notes: small documents that a session keeps beside its history, each at a place of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mc_core.errors import ConfigError

MAX_NOTE = 4 << 20
"""Bytes of a note's value at most."""
PAGE_BYTES = 16 << 20
"""Bytes of values in a page of notes at most, if it holds more than one."""
_KEY = re.compile(r"[!-~]{1,200}")

Beyond = Literal["drop", "keep", "restore"]
"""What a commit does with notes past its record's end: ``drop`` them; ``keep`` them, unseen by all, until the next
commit; ``restore`` those that were kept, as far as the record reaches now. Without ``keep`` or ``restore`` a commit
drops what was kept, too."""


@dataclass(frozen=True)
class Note:
    """A value under a key, unique in its session. It belongs to the history [0, position): a rewind to before that
    drops it. ``indexed``: the key is unique in the whole tenant, by which it is found without its session."""

    key: str
    position: int
    value: bytes
    indexed: bool = False

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ConfigError(f"key of a note must match {_KEY.pattern}, got {self.key[:210]!r}")
        if self.position < 0:
            raise ConfigError(f"position of a note must be at least 0, got {self.position}")
        if len(self.value) > MAX_NOTE:
            raise ConfigError(f"value of a note can be at most {MAX_NOTE} bytes, got {len(self.value)}")


@dataclass(frozen=True)
class NotePage:
    """One page of a session's notes; ``next`` is the cursor to pass as ``after``, None on the last page.

    ``corrupt``: keys of notes of this page that are there, but not as they were written.
    """

    notes: tuple[Note, ...]
    next: str | None
    corrupt: tuple[str, ...] = ()
