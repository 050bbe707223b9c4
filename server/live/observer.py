"""The engine's observer: what it did goes to telemetry, what it looks like now to those who follow."""

from __future__ import annotations

from collections.abc import Callable

from mc_core.engine.observer import Moment, RefocusTrace
from mc_core.engine.requests import Warmth
from mc_core.session.look import Look
from server.live.followers import Followers
from server.telemetry.telemetry import Telemetry


class Observed:
    """Of one server."""

    def __init__(self, telemetry: Telemetry, followers: Followers) -> None:
        self.telemetry, self.followers = telemetry, followers

    def refocused(self, trace: RefocusTrace) -> None:
        self.telemetry.refocused(trace)

    def decoded(self, batch: int, seconds: float) -> None:
        self.telemetry.decoded(batch, seconds)

    def queued(self, request_id: str, seconds: float) -> None:
        self.telemetry.queued(request_id, seconds)

    def woke(self, source: Warmth, kv_loaded: int) -> None:
        self.telemetry.woke(source, kv_loaded)

    def moved(self, session_id: str, moment: Moment, look: Callable[[], Look]) -> None:
        self.followers.moved(session_id, moment, look)
