"""Room on the disk that is kept free for what needs little: leases and deletions go on when the disk is full."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from server.stores.sqlite.schema import private

SIZE = 4 << 20
"""A thousand pages: pages that a deletion frees need not be written themselves."""


class Reserve:
    """A file of nothing beside the store's while that is open, given up for as long as the disk is full."""

    def __init__(self, path: Path) -> None:
        self._path = Path(f"{path}.reserve")
        self.kept = self.keep()

    def keep(self) -> bool:
        """Take the room, if it is there."""
        self.kept = False
        try:
            with open(self._path, "wb", opener=private) as file:
                os.posix_fallocate(file.fileno(), 0, SIZE)
        except OSError:
            self.give()
        else:
            self.kept = True
        return self.kept

    def give(self) -> None:
        """Give it to those that run now."""
        self.kept = False
        with suppress(OSError):
            self._path.unlink()
