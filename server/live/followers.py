"""All who follow sessions of one server. The engine tells them; while nobody follows, that is one look into a dict."""

from __future__ import annotations

from collections.abc import Callable

from mc_core.engine.observer import Moment
from mc_core.session.look import Look
from server.live.follower import Follower, Seen


class Followers:
    """Followers by session. They come and go on the event loop; the engine thread reads."""

    def __init__(self) -> None:
        self._by_session: dict[str, tuple[Follower, ...]] = {}  # each change makes another tuple

    def __len__(self) -> int:
        return sum(map(len, self._by_session.values()))

    def any_of(self, session_id: str) -> bool:
        """Whether somebody follows it."""
        return session_id in self._by_session

    def add(self, session_id: str) -> Follower:
        """Who is told from now on, until ``remove``."""
        follower = Follower()
        self._by_session[session_id] = (*self._by_session.get(session_id, ()), follower)
        return follower

    def remove(self, session_id: str, follower: Follower) -> None:
        left = tuple(one for one in self._by_session.get(session_id, ()) if one is not follower)
        if left:
            self._by_session[session_id] = left
        else:
            self._by_session.pop(session_id, None)

    def moved(self, session_id: str, moment: Moment, look: Callable[[], Look]) -> None:
        """See ``Observer``. Called on the engine thread."""
        followers = self._by_session.get(session_id)
        if followers:
            seen = Seen(look(), moment)
            for follower in followers:
                follower.put(seen)

    def gone(self, session_id: str) -> None:
        """A session was deleted."""
        for follower in self._by_session.get(session_id, ()):
            follower.end("deleted")

    def close(self) -> None:
        """The server is about to end, and waits for nobody who only looks on."""
        for followers in self._by_session.values():
            for follower in followers:
                follower.end("draining")
