"""One turn, from prompt to acknowledged reply, as one function that reads from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc_core.engine import jobs
from mc_core.engine.core import EngineCore
from mc_core.engine.refocus import refocus, visible_tokens
from mc_core.engine.reply import Reply
from mc_core.engine.requests import ContextReport, Failed, Finished, Turn, Usage
from mc_core.engine.work import AcquireKV, Decode, Job, Pause, Sample, Work
from mc_core.errors import ConfigError
from mc_core.kv.session_kv import SessionKV


def run_turn(core: EngineCore, turn: Turn) -> tuple[Job, Callable[[], bool]]:
    """The job of a turn, and whether it is past the point where it can be cancelled.

    Whatever happens, the sink gets Finished or Failed, once, as its last event; after Failed the session is back
    at its last acknowledged token.
    """
    run = _TurnRun(core, turn)
    return run.job(), lambda: run.committing


class _TurnRun:
    def __init__(self, core: EngineCore, turn: Turn) -> None:
        self.core, self.turn, self.session = core, turn, turn.session
        self.committing = False
        self.submitted = time.monotonic()
        self.context = ContextReport(source=turn.source)

    def job(self) -> Job:
        try:
            finished = yield from self._run()
        except Exception as error:
            self.committing = False
            jobs.drop_uncommitted(self.session)
            self.turn.sink(Failed(error))
        else:
            self.turn.sink(finished)

    def _run(self) -> Generator[Work, Any, Finished]:
        core, turn, session, context = self.core, self.turn, self.session, self.context
        if not len(turn.prompt_ids):
            raise ConfigError("the prompt must hold at least 1 token")
        if session.kv is None and session.tokens and turn.source == "warm":
            context.source = "woken"
        kv: SessionKV = yield AcquireKV()
        started = time.monotonic()
        context.queue_seconds = started - self.submitted
        core.observer.queued(turn.request_id, context.queue_seconds)

        yield from jobs.begin(core, session, turn)
        history = session.tokens
        for part in _slices(turn.prompt_ids, core.config.ingest_tokens):
            session.append(part)
            yield Pause(len(part))
        hidden = yield from refocus(core, session, turn.prompt_ids, context, turn.request_id, "turn")
        assert hidden is not None
        context.prefill_seconds = time.monotonic() - started

        reply = Reply(core.bundle.tokenizer, turn.sampling, turn.sink)
        state = core.sampler.state(turn.sampling)
        sampled = yield Sample(hidden, state)
        unread: list[int] = []  # in the slab, but not yet in the tree
        refocused_at = session.tokens
        while not reply.take(sampled):
            index = session.tokens + len(unread)
            next_boundary = index + session.block_size - refocused_at
            if index % session.block_size == 0 and next_boundary > session.focus_config.refocus_interval:
                session.append(np.array(unread, np.int32))
                unread, refocused_at = [], index
                question = np.concatenate([turn.prompt_ids[-session.block_size * 8 :], reply.ids()])
                yield from refocus(core, session, question, context, turn.request_id, "interval")
            unread.append(sampled.id)
            sampled = yield Decode(kv, unread[-1], index, state)

        session.append(np.array(unread, np.int32))
        start = history + len(turn.prompt_ids)
        kept = reply.kept_ids()
        if reply.hit_stop_string:
            session.rewind(start)
        session.append(kept[session.tokens - start :])
        session.append(turn.suffix_ids)
        visible_tokens(core, session, context)
        if turn.commit_state is not None:
            turn.commit_state(reply.text)
        session.counters.turns += 1
        self.committing = True
        yield from jobs.commit(core, session)
        usage = Usage(len(turn.prompt_ids), reply.count, history)
        return Finished(reply.reason, usage, context)


def _slices(ids: NDArray[np.int32], size: int) -> Iterator[NDArray[np.int32]]:
    for at in range(0, len(ids), size):
        yield ids[at : at + size]
