"""A place in memory for a session, and what those get who hold it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mc_core.engine.requests import Warmth
from mc_core.session.session import Session
from server.transfer.importing import Importer


@dataclass
class Slot:
    """A place for one session. ``users`` counts who holds or waits for the lock, so that nobody unloads it then.

    interrupt: stops whoever holds the lock, who is told why. progress: tells how far an ingest is that holds it.
    deleting: nobody gets the session any more. promised: it goes to another server when those before it are done.
    used: when somebody last let go of it, or looked at its session (``time.monotonic``).
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    session: Session | None = None
    users: int = 0
    interrupt: Callable[[Exception], None] | None = None
    progress: Callable[[], dict[str, Any]] | None = None
    deleting: bool = False
    promised: bool = False
    used: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Lease:
    """A session, held by one request."""

    session: Session
    source: Warmth
    slot: Slot

    def on_stop(self, stop: Callable[[Exception], None]) -> None:
        """What to call, with the reason, when others want the holder to let go: the session is deleted, say."""
        self.slot.interrupt = stop

    def shows(self, progress: Callable[[], dict[str, Any]]) -> None:
        """What tells others how far the holder is, until it lets go."""
        self.slot.progress = progress


@dataclass(frozen=True)
class Importing:
    """A place for a session that is made of an export."""

    importer: Importer
    slot: Slot

    def done(self, session: Session) -> None:
        """It is there for all from now on."""
        self.slot.session = session
