"""One who follows a session: what was seen last waits for it, and nothing else."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from mc_core.engine.observer import Moment
from mc_core.session.look import Look

End = Literal["deleted", "draining"]
"""Why there is nothing more to follow."""


@dataclass(frozen=True)
class Seen:
    """A look, and when it was taken (monotonic seconds): at some moment of the engine's, or on request."""

    look: Look
    moment: Moment | Literal["now"]
    at: float = field(default_factory=time.monotonic)


class Follower:
    """However slow it reads, it gets the newest; a look that comes in between takes the place of the one before."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._newest: Seen | None = None
        self._end: End | None = None
        self._waking = False

    def put(self, seen: Seen) -> None:
        """Called on any thread."""
        self._newest = seen
        self._wake()

    def end(self, why: End) -> None:
        """Nothing comes any more; what was seen before is still told."""
        self._end = why
        self._wake()

    def _wake(self) -> None:
        # One call of the loop is under way at most, however often this is called.
        if not self._waking:
            self._waking = True
            with suppress(RuntimeError):  # the loop has ended, and with it whoever read
                self._loop.call_soon_threadsafe(self._woken.set)

    async def next(self, seconds: float) -> Seen | End | None:
        """What was seen since the last time, why it ends, or None if nothing came in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._newest is None and self._end is None:
                    await self._woken.wait()
                    self._woken.clear()
                    self._waking = False
        seen, self._newest = self._newest, None
        return seen or self._end
