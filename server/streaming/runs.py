"""Turns in the background that are known by name, and what is done about those that fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from server.streaming.choice import Tell
from server.streaming.turn_stream import TurnStream

logger = logging.getLogger(__name__)
Settle = Callable[[Exception], Awaitable[bool]]
"""Told what a turn failed with; whether that is its end, or somebody will begin it anew."""


class Run:
    """One turn. tell: how it is told, from its beginning."""

    def __init__(self, stream: TurnStream, tell: Tell, settle: Settle) -> None:
        self.stream, self.tell, self._settle = stream, tell, settle
        self.cancelled, self._ends = False, True
        self._over = asyncio.Event()

    async def go(self) -> None:
        """Until the turn has ended, and its failure is settled."""
        try:
            await self.stream.over()
            if (failure := self.stream.failure()) is not None:
                self._ends = False
                self._ends = await self._settle(failure)
        finally:
            self._over.set()

    def cancel(self) -> None:
        """Stop the turn for good."""
        self.cancelled = True
        self.stream.cancel()

    async def ended(self) -> bool:
        """Until all is done; whether the turn has ended, and will not be begun anew."""
        await self._over.wait()
        return self._ends


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
