"""What this server knows of sessions that left its memory: a store that fell back to a copy has less of them."""

from __future__ import annotations

from collections import OrderedDict

from mc_core.session.session import Session
from mc_core.store import TurnsLostError

REMEMBERED = 16_384
"""Sessions that left memory last, of which it is known how far the store had them."""


class Departed:
    """The last acknowledged sequence of each."""

    def __init__(self) -> None:
        self._sequences: OrderedDict[str, int] = OrderedDict()

    def add(self, session: Session) -> None:
        self._sequences[session.id] = session.sequence
        while len(self._sequences) > REMEMBERED:
            self._sequences.popitem(last=False)

    def forget(self, session_id: str) -> None:
        """Whoever has to know has been told what was lost."""
        self._sequences.pop(session_id, None)

    def check(self, session_id: str, sequence: int) -> None:
        """TurnsLostError, once, if the store has less of a session than it had when it left this server's memory."""
        known = self._sequences.pop(session_id, 0)
        if sequence < known:
            raise TurnsLostError(
                f"the store lost acknowledged commits of session {session_id!r}: it has {sequence} of {known}"
            )
