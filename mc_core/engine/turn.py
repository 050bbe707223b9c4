"""One turn, from prompt to acknowledged reply, as one function that reads from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

from mc_core.engine import jobs
from mc_core.engine.core import EngineCore
from mc_core.engine.provenance import provenance
from mc_core.engine.reading import Reader
from mc_core.engine.refocus_job import visible_tokens
from mc_core.engine.reply import Reply
from mc_core.engine.requests import ContextReport, Failed, Finished, Turn, Usage
from mc_core.engine.work import AcquireKV, Job, Sample, Wait, Work
from mc_core.errors import CancelledTurnError


def run_turn(core: EngineCore, turn: Turn, alone: Callable[[], bool]) -> tuple[Job, Callable[[], bool]]:
    """The job of a turn, and whether it can't be cancelled now: it is being stored, say. alone: whether no other turn
    draws tokens.

    Whatever happens, the sink gets Finished or Failed, once, as its last event; after Failed the session is back
    at its last acknowledged token.
    """
    run = _TurnRun(core, turn, alone)
    return run.job(), lambda: run.shielded


class _TurnRun:
    def __init__(self, core: EngineCore, turn: Turn, alone: Callable[[], bool]) -> None:
        self.core, self.turn, self.session, self.alone = core, turn, turn.session, alone
        self.committing = self.has_slab = False
        self.submitted = time.monotonic()
        self.context = ContextReport(source=turn.source)

    @property
    def shielded(self) -> bool:
        """While another thread writes into the slab nobody else may have it."""
        return self.committing or (self.session.kv is not None and self.session.kv.filling)

    def job(self) -> Job:
        try:
            finished = yield from self._run()
        except Exception as error:
            self.committing = False
            try:
                # A cancel comes between two steps; an error may have left the slab half written.
                if self.has_slab and not isinstance(error, CancelledTurnError):
                    self.session.drop_kv()
                elif self.session.kv is not None:
                    self.session.kv.measured()
            finally:
                self.session.rollback()
                self.turn.sink(Failed(error))
                self.core.moved(self.session, "rollback")
        else:
            self.turn.sink(finished)

    def _fill(self) -> Generator[Work, Any, None]:
        """Put into a new slab what the session's last one held, if that was kept."""
        loading = None if self.core.keeper is None else self.core.keeper.load(self.session)
        if loading is not None:
            yield Wait(loading)
            assert self.session.kv is not None
            self.context.kv_loaded = len(self.session.kv)

    def _run(self) -> Generator[Work, Any, Finished]:
        core, turn, session, context = self.core, self.turn, self.session, self.context
        if session.kv is None and session.tokens and turn.source == "warm":
            context.source = "woken"
        yield AcquireKV()
        self.has_slab = True
        started = time.monotonic()
        yield from self._fill()
        context.queue_seconds = started - self.submitted
        core.observer.queued(turn.request_id, context.queue_seconds)
        if context.source != "warm":
            core.observer.woke(context.source, context.kv_loaded)

        yield from jobs.begin(core, session, turn)
        history = session.tokens
        # What is measured is read token by token.
        reader = Reader(core, session, context, turn.request_id, 0 if turn.sources else core.guesses, self.alone)
        assert session.kv is not None
        if turn.sources:
            session.kv.measure()
        hidden = yield from reader.begin(turn.prompt_ids, turn.held_ids)
        context.prefill_seconds = time.monotonic() - started
        tail = session.wc.tail_start

        reply = Reply(core.bundle.tokenizer, turn.sampling, turn.sink, turn.constraint, turn.spoken_ids)
        state = core.runner.sampling(turn.sampling, turn.constraint)
        while not reply.take(sampled := (yield Sample(hidden, state, reader.logits))):
            hidden = yield from reader.read(sampled.id)

        if (ledger := session.kv.measured()) is not None:
            context.provenance = provenance(ledger, session, core.bundle.tokenizer, history, tail)
        reader.flush(make_room=True)
        start = history + len(turn.prompt_ids)
        kept = reply.kept_ids()
        if reply.hit_stop_string:
            session.rewind(start)
        session.append(kept[session.tokens - start :])
        session.append(turn.suffix_ids)
        visible_tokens(core, session, context)
        context.guessed, context.guessed_right = reader.guessed
        context.sequence = jobs.sequence_to_come(session)
        usage = Usage(len(turn.prompt_ids), reply.count, history)
        finished = Finished(reply.reason, usage, context, reply.stop_string)
        if turn.commit_state is not None:
            turn.commit_state(reply.text, finished)
        session.counters.turns += 1
        self.committing = True
        yield from jobs.commit(core, session)
        return finished
