"""Keeps the process as small as what it holds: freed memory goes back to the system, where glibc can do that."""

from __future__ import annotations

import asyncio
import ctypes
import os

MANY = 100_000
"""Tokens: a million that were read at once left 100 MB behind."""
OWN_PAGES = 1 << 20
"""Bytes from which on an allocation has pages of its own, which go back when it is freed."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""


def settle_allocator() -> None:
    """Fix where large allocations live; call it before any is made.

    By itself glibc raises that limit to 32 MB as soon as such a block is freed. Slabs and pools of gists of sessions
    that come and go then lie between small blocks and leave holes: 100 sessions of 10,000 tokens, each deleted before
    the next, left 450 MB behind. Tokens a second stay the same. ``MALLOC_MMAP_THRESHOLD_`` of the environment counts
    instead, if it is set.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(M_MMAP_THRESHOLD, OWN_PAGES)
        mallopt(M_TRIM_THRESHOLD, OWN_PAGES)


class Leftovers:
    """Counts what passes through memory, and returns what it leaves behind now and then: that takes milliseconds."""

    def __init__(self) -> None:
        self._tokens = 0

    async def passed(self, tokens: int) -> None:
        """``tokens`` were taken in, or a history of so many has left memory."""
        self._tokens += tokens
        if self._tokens >= MANY:
            self._tokens = 0
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                await asyncio.to_thread(trim, 0)
