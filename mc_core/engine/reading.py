"""Reading a turn: its prompt, then one token after the other, with the refocus that falls due in between.

The engine generates with it, and the research facade feeds it by itself: what a turn's question is, and when the focus
may change, is said here alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mc_core.context.message_index import asking
from mc_core.engine.core import EngineCore
from mc_core.engine.prompt_lookup import PromptLookup
from mc_core.engine.refocus_job import refocus, visible_ids
from mc_core.engine.requests import ContextReport
from mc_core.engine.work import Decode, Pause, Work
from mc_core.errors import ConfigError
from mc_core.focus.question import TurnQuestion
from mc_core.session.session import Session

WHOLE_SHARE = 0.5
"""Of the budget: a turn's last message, and the reply to it, stand raw as a whole while they take no more."""

Read = tuple[Tensor, Tensor | None]
"""Of one token: its hidden state [d], and its logits [vocab] where they are known."""
NO_IDS = np.empty(0, np.int32)


class Reader:
    """Reads one turn into a session that has its slab. What the turn asks is told by ``TurnQuestion``.

    ``context`` is told of each refocus. guesses: tokens that are guessed and read ahead at most, where this reply is
    ``alone`` in being drawn.
    """

    def __init__(
        self,
        core: EngineCore,
        session: Session,
        context: ContextReport,
        request_id: str = "",
        guesses: int = 0,
        alone: Callable[[], bool] = lambda: False,
    ) -> None:
        self._alone = alone
        self.core, self.session, self.context, self._request_id = core, session, context, request_id
        self._question: TurnQuestion | None = None
        self._unwritten: list[int] = []  # in the slab, but not yet in the history
        self._refocused_at = 0
        self._lookup = PromptLookup(guesses) if guesses else None
        self.logits: Tensor | None = None
        """Of the token that was read last [vocab], where they are known: those of a guess are computed at once."""

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
        index = self.session.tokens + len(self._unwritten)
        known: Read | None = None if self._lookup is None else self._lookup.take(token)
        if known is None:
            self._drop_guess()
            if self._is_due(index):
                self.flush(make_room=True)
                yield from self._refocus("interval")
            known = yield from self._decode(token, index)
        self._unwritten.append(token)
        hidden, self.logits = known
        return hidden

    def flush(self, *, make_room: bool) -> None:
        """Bring what was read into the history. make_room: what stood raw may have to go, so the slab needs repair."""
        self._drop_guess()
        self.session.append(np.array(self._unwritten, np.int32), make_room=make_room)
        self._unwritten.clear()

    @property
    def guessed(self) -> tuple[int, int]:
        """Tokens that were read ahead, and those of them that came."""
        return (0, 0) if self._lookup is None else (self._lookup.guessed, self._lookup.right)

    def _decode(self, token: int, index: int) -> Generator[Work, Tensor | None, Read]:
        kv, lookup, guessed = self.session.kv, self._lookup, list[int]()
        assert kv is not None
        if lookup is not None:
            lookup.add(token)
            if self._alone():
                guessed = lookup.guess(min(kv.room - 1, self._next_due(index) - index - 1))
        hidden = yield Decode(kv, (token, *guessed), index)
        assert hidden is not None
        if lookup is None or not guessed:
            return hidden[0], None
        logits = self.core.runner.logits(hidden)
        lookup.put(guessed, hidden[1:], logits[1:])
        return hidden[0], logits[0]

    def _is_due(self, index: int) -> bool:
        """Whether there is a refocus before the token at ``index`` is read."""
        return index == self._next_due(index - 1)

    def _next_due(self, index: int) -> int:
        """The first token behind the one at ``index`` before which there is a refocus."""
        size, interval = self.session.block_size, self.session.focus_config.refocus_interval
        return max(index // size + 1, (self._refocused_at + interval) // size) * size

    def _drop_guess(self) -> None:
        """What was read ahead is not what came."""
        if self._lookup is not None and self._lookup.drop():
            assert self.session.kv is not None
            self.session.kv.rewind(self.session.tokens + len(self._unwritten))

    def _refocus(self, reason: Literal["turn", "interval"]) -> Generator[Work, Tensor | None, Tensor | None]:
        assert self._question is not None
        self._refocused_at = self.session.tokens
        question = self._question.now()
        hidden = yield from refocus(self.core, self.session, question, self.context, self._request_id, reason)
        if self._lookup is not None:
            self._lookup.see(visible_ids(self.session))
        return hidden
