"""Keeps the process as small as what it holds: freed memory goes back to the system, where glibc can do that."""

from __future__ import annotations

import asyncio
import ctypes
import os

LONG = 100_000
"""Tokens from which on it is worth some milliseconds: a million left 100 MB behind on glibc."""
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


async def give_back(tokens: int) -> None:
    """After ``tokens`` were taken in: return freed memory to the system."""
    if tokens >= LONG:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            await asyncio.to_thread(trim, 0)
