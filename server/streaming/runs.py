"""Turns that go on though nobody listens: what they tell is kept until they end, for whoever comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress

from server.streaming.choice import Choice
from server.streaming.frames import Frame
from server.streaming.response import EventResponse, told
from server.streaming.turn_group import TurnGroup

logger = logging.getLogger(__name__)
Settle = Callable[[Exception], Awaitable[bool]]
"""Told what a turn failed with; whether that is its end, or somebody will begin it anew."""


class Run:
    """One turn, and the frames that it has told so far. ``frames[n]`` is event n."""

    def __init__(self, choice: Choice, settle: Settle) -> None:
        self.choice, self._settle = choice, settle
        self.frames: list[Frame] = []
        self.over = self.cancelled = False
        self._more = asyncio.Event()

    async def go(self) -> None:
        """Until the turn has ended."""
        group = TurnGroup([self.choice.stream])
        try:
            async for frames in told([self.choice], group):
                failure = self.choice.stream.failure()
                if failure is None or await self._settle(failure):
                    self._tell(frames)
        finally:
            group.cancel()
            self.over = True
            self._tell(())

    def cancel(self) -> None:
        """Stop the turn for good."""
        self.cancelled = True
        self.choice.stream.cancel()

    async def ended(self) -> None:
        async for _ in self.follow(len(self.frames)):
            pass

    async def follow(self, first: int, silence: float | None = None) -> AsyncIterator[Sequence[Frame]]:
        """Frames from ``first`` on, as they come; none where ``silence`` seconds passed without any."""
        while True:
            more = self._more
            if frames := self.frames[first:]:
                first += len(frames)
                yield frames
            elif self.over:
                return
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(silence):
                        await more.wait()
                if not more.is_set():
                    yield ()

    def _tell(self, frames: Sequence[Frame]) -> None:
        self.frames.extend(frames)
        self._more.set()
        self._more = asyncio.Event()


class Runs:
    """The turns under way that may be asked for by name, each tenant's own."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, tenant: str, name: str, run: Run) -> None:
        self._runs[tenant, name] = run
        task = asyncio.create_task(self._go((tenant, name), run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def get(self, tenant: str, name: str) -> Run | None:
        return self._runs.get((tenant, name))

    async def join(self) -> None:
        """Until all have ended."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _go(self, key: tuple[str, str], run: Run) -> None:
        try:
            await run.go()
        except Exception:
            logger.exception("a turn in the background broke off")
        finally:
            del self._runs[key]


class FramesResponse(EventResponse):
    """Streams frames that come from somewhere else; that goes on when the client leaves."""

    def __init__(self, frames: AsyncIterator[Sequence[Frame]], silence: bytes) -> None:
        super().__init__()
        self._frames, self._silence = frames, silence

    async def events(self) -> AsyncIterator[bytes]:
        yield self._silence
        async for frames in self._frames:
            yield b"".join(frame.encode() for frame in frames) if frames else self._silence
