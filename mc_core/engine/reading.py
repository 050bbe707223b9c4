"""Reading a turn: its prompt, then one token after the other, with the refocus that falls due in between.

The engine generates with it, and the research facade feeds it by itself: what a turn's question is, and when the focus
may change, is said here alone.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mc_core.context.message_index import asking
from mc_core.engine.core import EngineCore
from mc_core.engine.refocus_job import refocus
from mc_core.engine.requests import ContextReport
from mc_core.engine.work import Decode, Pause, Work
from mc_core.errors import ConfigError
from mc_core.focus.question import TurnQuestion
from mc_core.session.session import Session

WHOLE_SHARE = 0.5
"""Of the budget: a turn's last message, and the reply to it, stand raw as a whole while they take no more."""

NO_IDS = np.empty(0, np.int32)


class Reader:
    """Reads one turn into a session that has its slab. What the turn asks is told by ``TurnQuestion``.

    ``context`` is told of each refocus.
    """

    def __init__(self, core: EngineCore, session: Session, context: ContextReport, request_id: str = "") -> None:
        self.core, self.session, self.context, self._request_id = core, session, context, request_id
        self._question: TurnQuestion | None = None
        self._ahead: list[int] = []  # in the slab, but not yet in the history
        self._refocused_at = 0

    def begin(
        self, prompt_ids: NDArray[np.int32], held_ids: NDArray[np.int32] = NO_IDS
    ) -> Generator[Work, Tensor | None, Tensor]:
        """Read a prompt [T], T >= 1 -> hidden state [d] of its last token.

        held_ids: the end of the history that belongs to the turn's question.
        """
        if not len(prompt_ids):
            raise ConfigError("the prompt must hold at least 1 token")
        bundle, whole = self.core.bundle, int(WHOLE_SHARE * self.session.wc.budget)
        step = self.core.config.ingest_tokens
        asked, at = np.concatenate([held_ids, prompt_ids]), self.session.tokens - len(held_ids)
        says = None if bundle.frames is None else asking(bundle.frames, asked)
        self._question = TurnQuestion.begin(at, asked, bundle.tokenizer, bundle.words, whole, says)
        for at in range(0, len(prompt_ids), step):
            part = prompt_ids[at : at + step]
            self.session.append(part)
            yield Pause(len(part))
        hidden = yield from self._refocus("turn")
        assert hidden is not None
        return hidden

    def read(self, token: int) -> Generator[Work, Tensor | None, Tensor]:
        """Read one more token -> its hidden state [d].

        Before it begins a block that would end more than ``refocus_interval`` tokens after the last refocus, there is
        another: the reserve of the budget holds no more.
        """
        assert self._question is not None
        self._question.read(token)
        session = self.session
        index = session.tokens + len(self._ahead)
        block_end = index + session.block_size
        if index % session.block_size == 0 and block_end - self._refocused_at > session.focus_config.refocus_interval:
            self.flush(make_room=True)
            yield from self._refocus("interval")
        assert session.kv is not None
        hidden = yield Decode(session.kv, token, index)
        self._ahead.append(token)
        assert hidden is not None
        return hidden

    def flush(self, *, make_room: bool) -> None:
        """Bring what was read into the history. make_room: what stood raw may have to go, so the slab needs repair."""
        self.session.append(np.array(self._ahead, np.int32), make_room=make_room)
        self._ahead.clear()

    def _refocus(self, reason: Literal["turn", "interval"]) -> Generator[Work, Tensor | None, Tensor | None]:
        assert self._question is not None
        self._refocused_at = self.session.tokens
        question = self._question.now()
        return (yield from refocus(self.core, self.session, question, self.context, self._request_id, reason))
