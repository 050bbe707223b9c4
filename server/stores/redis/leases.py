"""What a Redis store knows of the leases that it gave out."""

from __future__ import annotations

from dataclasses import dataclass

from mc_core.store import FencedError, SessionInfo


@dataclass
class Lease:
    """``token`` names the lease beside its fence, since a Redis that lost its newest writes may count a fence twice.

    ``sequence``: the newest one acknowledged under the lease, so that such a loss is noticed.
    """

    fence: int
    token: str
    info: SessionInfo
    sequence: int


class Leases:
    """Used by the store's event loop alone.

    A lease that lost a write (Redis stayed away past the deadline, or failed) writes no more: later rows and commits
    might take in what an earlier, failed turn had staged. Its session must be opened again.
    """

    def __init__(self) -> None:
        self._known: dict[str, Lease] = {}
        self._broken: dict[str, int] = {}

    def get(self, session_id: str, fence: int) -> Lease | None:
        lease = self._known.get(session_id)
        return lease if lease is not None and lease.fence == fence else None

    def token(self, session_id: str) -> str:
        """Of the newest lease that this store gave out for the session; empty if it gave none."""
        lease = self._known.get(session_id)
        return lease.token if lease is not None else ""

    def put(self, lease: Lease) -> None:
        self._known[lease.info.session_id] = lease
        if lease.fence > self._broken.get(lease.info.session_id, 0):
            self._broken.pop(lease.info.session_id, None)

    def drop(self, session_id: str, fence: int | None = None) -> None:
        if fence is None or self.get(session_id, fence) is not None:
            self._known.pop(session_id, None)

    def lose(self, session_id: str, fence: int) -> None:
        """A write under this lease failed."""
        self._broken[session_id] = fence
        self.drop(session_id, fence)

    def check(self, session_id: str, fence: int) -> None:
        """Raises FencedError for a lease that lost a write."""
        if self._broken.get(session_id) == fence:
            raise FencedError(f"session {session_id!r}: the store could not take an earlier write; open it again")
