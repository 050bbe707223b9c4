"""Wishes for sessions that another owner holds. One process serves a file, so they live no longer than it does."""

from __future__ import annotations

import threading
import time

from mc_core.store import WISH_SECONDS


class Wishes:
    """Written by the store's writer, read by anybody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, tuple[str, float]] = {}
        self._asked: dict[str, set[str]] = {}

    def wish(self, session_id: str, holder: str, wisher: str) -> None:
        with self._lock:
            self._newest[session_id] = wisher, time.monotonic() + WISH_SECONDS
            self._asked.setdefault(holder, set()).add(session_id)

    def asked(self, holder: str) -> tuple[str, ...]:
        """What the holder is asked for, told once."""
        with self._lock:
            return tuple(self._asked.pop(holder, ()))

    def take(self, session_id: str) -> str | None:
        """Who wished last, if that still counts; then nobody does."""
        with self._lock:
            wisher, until = self._newest.pop(session_id, ("", 0.0))
        return wisher if until > time.monotonic() else None
