"""What reading a long text leaves behind: memory that the process has freed, but the C library has not given back."""

from __future__ import annotations

import asyncio
import ctypes

LONG = 100_000
"""Tokens from which on it is worth some milliseconds: a million left 100 MB behind on glibc."""


async def give_back(tokens: int) -> None:
    """After ``tokens`` were taken in: return freed memory to the system, where the C library can (glibc)."""
    if tokens >= LONG:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            await asyncio.to_thread(trim, 0)
