"""Work that others may stop, each with the error that its caller is told."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupt:
    """Stops one piece of work; the first reason counts."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._reason: Exception | None = None

    def stop(self, reason: Exception) -> None:
        """Cancel the work, which cleans up; whoever waits for it gets ``reason``."""
        if self._reason is None:
            self._reason = reason
            if self._task is not None:
                self._task.cancel()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work in a task of its own. Raises what it was stopped with."""
        self._task = asyncio.create_task(work)
        if self._reason is not None:
            self._task.cancel()
        try:
            return await self._task
        except asyncio.CancelledError:
            if self._reason is not None:
                raise self._reason from None
            raise
