"""How the engine tells a server what it did, without knowing any telemetry library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from mc_core.engine.requests import Warmth
    from mc_core.session.look import Look

Moment = Literal["turn", "interval", "commit", "ingest", "rollback"]
"""When a working context has changed: at a turn's first refocus, at a later one, as the store acknowledged what was
done, with a part of an ingest, as something that failed was taken back."""


class Part(NamedTuple):
    """When a part of a refocus began, in seconds since the refocus began, and how many seconds it took."""

    start: float
    seconds: float


@dataclass
class RefocusTrace:
    """One refocus as measured: the report of the focus, what the store and the KV repair did, and when.

    gist_calls: GistNet calls since the refocus before it. started: seconds since the epoch. hops: how often what was
    found was followed further. parts: "plan" (which holds "lens" and "allocate"), "restore", "follow" (all hops of a
    turn), "kv_repair", "evict".
    """

    session_id: str
    request_id: str
    reason: str
    step: int
    report: dict[str, Any]
    hops: int = 0
    spans_hit: int = 0
    spans_missed: int = 0
    spans_fetched: int = 0
    spans_evicted: int = 0
    kv_reused: int = 0
    kv_recomputed: int = 0
    kv_sought: int = 0
    kv_restored: int = 0
    kv_shared: int = 0
    gist_calls: int = 0
    started: float = 0.0
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """From the refocus's start to the end of its last part."""
        return max((part.start + part.seconds for part in self.parts.values()), default=0.0)


class Observer(Protocol):
    """Called on the engine thread; must not block. Nothing passed here holds text or token ids."""

    def refocused(self, trace: RefocusTrace) -> None:
        """A refocus was committed and its keys and values were repaired."""
        ...

    def decoded(self, batch: int, seconds: float) -> None:
        """One batched decode step of ``batch`` sessions took ``seconds``."""
        ...

    def queued(self, request_id: str, seconds: float) -> None:
        """A turn has just got its slab, after waiting this long."""
        ...

    def woke(self, source: Warmth, kv_loaded: int) -> None:
        """A turn has a history and got an empty slab, of which a file filled ``kv_loaded`` units."""
        ...

    def moved(self, session_id: str, moment: Moment, look: Callable[[], Look]) -> None:
        """A working context may be another one. ``look`` takes it as it stands, and may be called until this
        returns."""
        ...


class SilentObserver:
    """Ignores everything."""

    def refocused(self, trace: RefocusTrace) -> None:
        pass

    def decoded(self, batch: int, seconds: float) -> None:
        pass

    def queued(self, request_id: str, seconds: float) -> None:
        pass

    def woke(self, source: Warmth, kv_loaded: int) -> None:
        pass

    def moved(self, session_id: str, moment: Moment, look: Callable[[], Look]) -> None:
        pass
