"""What this server knows of sessions that left its memory: a store that fell back to a copy has less of them."""

from __future__ import annotations

from collections import OrderedDict

from mc_core.session.session import Session
from mc_core.store import SessionRecord, TurnsLostError

REMEMBERED = 16_384
"""Sessions that left memory last, of which it is known how far the store had them."""


class Departed:
    """The last acknowledged sequence of each, and when it was created: one that was deleted and is made anew under its
    name, by an import, is another session."""

    def __init__(self) -> None:
        self._sequences: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def add(self, session: Session) -> None:
        self._sequences[session.id] = session.created, session.sequence
        while len(self._sequences) > REMEMBERED:
            self._sequences.popitem(last=False)

    def forget(self, session_id: str) -> None:
        """Whoever has to know has been told what was lost."""
        self._sequences.pop(session_id, None)

    def check(self, record: SessionRecord) -> None:
        """TurnsLostError, once, if the store has less of a session than it had when it left this server's memory."""
        created, known = self._sequences.pop(record.session_id, (0.0, 0))
        if created == record.created and record.sequence < known:
            raise TurnsLostError(
                f"the store lost acknowledged commits of session {record.session_id!r}: it has {record.sequence} of"
                f" {known}"
            )
