"""How the engine tells a server what it did, without knowing any telemetry library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class RefocusTrace:
    """One refocus as measured: the report of the focus, what the store and the KV repair did, seconds by part."""

    session_id: str
    request_id: str
    reason: str
    step: int
    report: dict[str, Any]
    spans_hit: int = 0
    spans_missed: int = 0
    spans_fetched: int = 0
    spans_evicted: int = 0
    kv_reused: int = 0
    kv_recomputed: int = 0
    started: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)


class Observer(Protocol):
    """Called on the engine thread; must not block. Nothing passed here holds text or token ids."""

    def refocused(self, trace: RefocusTrace) -> None:
        """A refocus was committed and its keys and values were repaired."""
        ...

    def decoded(self, batch: int, seconds: float) -> None:
        """One batched decode step of ``batch`` sessions took ``seconds``."""
        ...

    def queued(self, seconds: float) -> None:
        """A turn waited this long for a slab."""
        ...


class SilentObserver:
    """Ignores everything."""

    def refocused(self, trace: RefocusTrace) -> None:
        pass

    def decoded(self, batch: int, seconds: float) -> None:
        pass

    def queued(self, seconds: float) -> None:
        pass
