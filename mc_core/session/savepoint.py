"""What a turn may change besides adding to the history's end, and the way back if it fails."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mc_core.context.protection import Protection
from mc_core.store import SessionRecord

if TYPE_CHECKING:
    from mc_core.session.session import Session


@dataclass(frozen=True)
class Savepoint:
    """A session as its turn found it.

    position: where the turn has cut the committed history. ids [committed - position]: what it has cut off there.
    cut: the session right behind the cut, which the store must take before it takes other tokens in the place of those
    it has; None if nothing was cut, or the store has it already.
    """

    position: int
    ids: NDArray[np.int32]
    cut: SessionRecord | None
    staged: dict[int, int]
    stored_blocks: int
    prefixes: list[tuple[str, int]]
    chat: dict[str, Any]
    protection: Protection

    @classmethod
    def begin(cls, session: Session, cut: int | None) -> None:
        """Cut the committed history of a session at ``cut``, if at all; the ids behind it must be in memory.

        Message boundaries behind the cut move to it: the turn is about to write their messages again.
        """
        position = session.committed_tokens if cut is None else cut
        before = cls(
            position,
            session.tree.ids(position, session.committed_tokens),
            None,
            dict(session.staged),
            session.stored_blocks,
            session.prefixes,
            session.chat,
            session.wc.protection,
        )
        if len(before.ids):
            session.rewind(position)
            session.prefixes = [(digest, min(at, position)) for digest, at in before.prefixes]
            session.stored_blocks = min(session.stored_blocks, session.tree.num_blocks)
            before = replace(before, cut=session.record())
        session.savepoint = before

    def stored(self) -> Savepoint:
        """The same once the store has the cut: from now on a failed turn leaves the session there."""
        assert self.cut is not None
        nothing = np.empty(0, np.int32)
        return replace(self, ids=nothing, cut=None, prefixes=list(self.cut.prefixes))

    def restore(self, session: Session) -> None:
        """Take the session back, with what was cut off; needs nothing of the store."""
        session.rewind(self.position)
        session.wc.protection = self.protection
        if len(self.ids):
            session.append(self.ids)
            session.staged, session.stored_blocks = dict(self.staged), self.stored_blocks
        session.prefixes, session.chat = self.prefixes, self.chat
