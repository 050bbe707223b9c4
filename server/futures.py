"""Waiting for work that another thread does to a session."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def settled(future: Future[T]) -> T:
    """The result of ``future``. A cancelled caller still waits until the work is over, and only then is cancelled.

    So nobody lets go of a session while the engine is busy with it.
    """
    work = asyncio.ensure_future(asyncio.wrap_future(future))
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not work.cancelled():
            work.exception()
        raise cancelled
    return work.result()
