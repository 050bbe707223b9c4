"""The engine: one thread owns the device and runs every job, a little of each in every step.

A step is: answer what was waited for, one batched decode for all running turns, prefill and repair in chunks under
a token budget, a slice of each ingest. The event loop of a server never touches the device.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mc_core.context.protection import Range
from mc_core.context.sources import UNTITLED, About
from mc_core.engine import jobs
from mc_core.engine.core import EngineCore
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.kv_sharing import seat
from mc_core.engine.requests import Event, Failed, Finished, Turn
from mc_core.engine.turn import run_turn
from mc_core.engine.vectors_job import Pace, make_vectors
from mc_core.engine.work import AcquireKV, Decode, Forward, Job, Pause, Sample, Wait, Work
from mc_core.errors import CancelledTurnError, QueueFullError
from mc_core.kv.session_kv import SessionKV
from mc_core.notes import Note
from mc_core.session.session import Session

logger = logging.getLogger(__name__)
T = TypeVar("T")
Batched = TypeVar("Batched", Decode, Sample)


SAVE_SOON, SAVE_LATE = 2.0, 60.0
"""Seconds after a turn's end at which its slab is written to a file: soon where another session may take it any moment.
Else only a crash would make it of use, and who writes the next message within the minute would have it written each
time, tens of megabytes."""
SAVE_AT_STOP = 5.0
"""Seconds after the last turn for which a server that stops still writes slabs: it has leases to give back."""


class Unsaved(NamedTuple):
    """A slab to be written, unless it is of another version by then; ended: its last turn, monotonic seconds."""

    ended: float
    kv: SessionKV
    version: int


@dataclass(eq=False)
class Task:
    """A job and what it waits for."""

    job: Job
    session: Session | None = None
    request: Work | None = None
    cancelled: bool = False
    is_turn: bool = False
    counted: bool = False
    shielded: Callable[[], bool] = field(default=lambda: False)


class TurnHandle:
    """Cancels a turn; safe from any thread, and as often as one likes."""

    def __init__(self, engine: Engine, task: Task) -> None:
        self._engine, self._task = engine, task

    def cancel(self) -> None:
        """Stop the turn within one step; its sink then gets Failed(CancelledTurnError) unless it was over."""
        self._task.cancelled = True
        self._engine.wake()


def queue_full(config: EngineConfig) -> QueueFullError:
    """What one turn too many is told."""
    return QueueFullError(
        f"the queue is full: {config.max_sessions} turns may run (max_sessions) and {config.max_queue} wait (max_queue)"
    )


@dataclass(frozen=True)
class EngineStats:
    """A snapshot of the engine's gauges."""

    running: int
    waiting: int
    free_slabs: int
    slabs: int
    tasks: int
    slab_bytes: int
    kv_recent_bytes: int


class Engine:
    """Runs turns, ingests and edits of sessions. Public methods may be called from any thread."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.draining = False
        self._inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._tasks: list[Task] = []
        self._idle: OrderedDict[SessionKV, Session] = OrderedDict()
        self._waiting_for_slab: deque[Task] = deque()
        self._unsaved: deque[Unsaved] = deque()
        self._save_until = math.inf
        self._vectors_pace = Pace(lambda: self._turns > 0)
        self._forward_turn = 0
        self._lock = threading.Lock()
        self._turns = 0
        self._cancelling = False
        self._stopping = False
        self._over = False
        self._thread = threading.Thread(target=self._run, name="megacontext-engine", daemon=True)

    @property
    def config(self) -> EngineConfig:
        return self.core.config

    # -- any thread ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def drain(self, seconds: float) -> None:
        """Refuse new turns, let running ones end within ``seconds``, cancel the rest. Blocks until then."""
        self.draining = True
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._turns:
            time.sleep(0.02)
        self._save_until = time.monotonic() + SAVE_AT_STOP
        self._cancelling = True
        self.wake()

    def stop(self) -> None:
        """Cancel what runs, finish what must be stored, end the thread."""
        self.draining = self._cancelling = self._stopping = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()
        if self.core.keeper is not None:
            self.core.keeper.close()

    @property
    def alive(self) -> bool:
        """Whether the engine thread runs."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Make the engine look around."""
        self._inbox.put(None)

    def submit(self, turn: Turn) -> TurnHandle:
        """Queue a turn. QueueFullError when ``max_sessions + max_queue`` turns are under way."""
        limit = self.config.max_sessions + self.config.max_queue

        def sink(event: Event) -> None:
            if isinstance(event, Finished | Failed):
                self._count_out(task)  # who hears of the end may come with the next turn before this thread does
            turn.sink(event)

        job, shielded = run_turn(self.core, replace(turn, sink=sink), self._one_draws)
        task = Task(job, turn.session, is_turn=True, counted=True, shielded=shielded)
        with self._lock:
            if self.draining:
                raise QueueFullError("the engine is draining and takes no new turns")
            if self._turns >= limit:
                raise queue_full(self.config)
            self._turns += 1
            self._inbox.put(task)
        return TurnHandle(self, task)

    def ingest(self, session: Session, ids: np.ndarray, about: About = UNTITLED) -> Future[int]:
        """Append ``ids``, a text or a part of one, to a session's history and stage them to the store -> tokens of it.

        Resolves when the store has them; they count only after ``commit``. No base model runs.
        """
        return self._submit_job(jobs.ingest(self.core, session, ids, about), session)

    def append(
        self,
        session: Session,
        ids: np.ndarray,
        cut: int | None = None,
        pins: Sequence[Range] = (),
        then: Callable[[], None] = lambda: None,
    ) -> Future[int]:
        """What a turn does beside its reply: cut the history, pin ``pins``, append ``ids``, do ``then``, and commit, as
        one -> tokens of history. No base model runs."""
        return self._submit_job(jobs.append(self.core, session, ids, cut, pins, then), session)

    def commit(self, session: Session, notes: Sequence[Note] = ()) -> Future[None]:
        """Acknowledge all of the session's history, and notes with it -> None once it is stored."""
        return self._submit_job(jobs.commit(self.core, session, notes), session)

    def rollback(self, session: Session) -> Future[None]:
        """Drop what was not committed; see ``Session.rollback``."""
        return self.call(lambda: jobs.rollback(self.core, session))

    def rewind(self, session: Session, position: int, then: Callable[[], None] = lambda: None) -> Future[int]:
        """Cut the history at ``position`` tokens, do ``then``, and commit -> tokens of history."""
        return self._submit_job(jobs.rewind(self.core, session, position, then), session)

    def make_vectors(self, session: Session) -> Future[None]:
        """Make the vectors that a session lacks, beside what else it does -> None once it is whole, or leaves memory,
        or the engine is to stop. StoreDownError or FencedError if its lease is over."""

        def goes_on() -> bool:
            return not (session.released or self.draining or self._stopping)

        return self._submit_job(make_vectors(self.core, session, goes_on, self._vectors_pace), None)

    def read(self, session: Session, start: int, end: int) -> Future[NDArray[np.int32]]:
        """The ids [start, end) of a session's history."""
        return self._submit_job(jobs.read(self.core, session, start, end), session)

    def peek(self, session: Session, start: int, end: int) -> Future[NDArray[np.int32]]:
        """The same for one who does not hold the session."""
        return self._submit_job(jobs.peek(self.core, session, start, end), None)

    def pin(self, session: Session, pin: Sequence[Range], unpin: Sequence[Range]) -> Future[None]:
        """Let go of ``unpin``, then keep ``pin`` in full view, and commit; see ``chosen_after``."""
        return self._submit_job(jobs.pin(self.core, session, pin, unpin), session)

    def release(self, session: Session, *, keep: bool = True) -> Future[None]:
        """Give a session's slab back, before it leaves memory. keep: what it holds goes to a file first, if there is a
        folder for that."""
        return self._submit_job(self._leave(session, keep), None)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function on the engine thread between two steps, where sessions stand still."""

        def job() -> Generator[Work, Any, T]:
            return function()
            yield Pause(0)

        return self._submit_job(job(), None)

    def stats(self) -> EngineStats:
        """Cheap and approximate from other threads."""
        waiting = len(self._waiting_for_slab)
        return EngineStats(
            running=max(0, self._turns - waiting),
            waiting=waiting,
            free_slabs=self.core.runner.pool.free_rows + len(self._idle),
            slabs=self.config.max_sessions,
            tasks=len(self._tasks),
            slab_bytes=self.core.runner.pool.bytes(),
            kv_recent_bytes=0 if self.core.runner.recent is None else self.core.runner.recent.bytes,
        )

    def _submit_job(self, job: Generator[Work, Any, T], session: Session | None) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # from here on the engine alone says how it ends

        def run() -> Job:
            try:
                result = yield from job if session is None else jobs.undone_by_error(self.core, session, job)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._over:
                future.set_exception(CancelledTurnError("the engine has stopped"))
            else:
                self._inbox.put(Task(run(), session))
        return future

    # -- engine thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._ends():
                try:
                    self._take_inbox()
                    self._step()
                except Exception as error:
                    logger.exception("a step of the engine failed, and with it all that did not wait for the store")
                    self._fail_all([task for task in self._tasks if not isinstance(task.request, Wait)], error)

    def _ends(self) -> bool:
        """Whether the thread is to end; nothing is taken in after that."""
        with self._lock:
            self._over = self._stopping and not self._tasks and self._inbox.empty()
        return self._over

    def _step(self) -> None:
        self._cancel()
        self._answer_waits()
        self._hand_out_slabs()
        read = self._decode()
        self._answer_pauses()  # the host plans and reads texts while a GPU decodes; it waits for that to draw
        self._draw(*read)
        self._forward()
        self._save_idle()

    def _take_inbox(self) -> None:
        """Start new tasks; sleep while every task waits for something outside."""
        timeout = self._patience()
        while True:
            try:
                task = self._inbox.get(timeout=timeout) if timeout else self._inbox.get_nowait()
            except queue.Empty:
                return
            timeout = 0.0
            if task is not None:
                self._tasks.append(task)
                self._resume(task, None)

    def _patience(self) -> float:
        """Seconds until the engine must look again by itself, 0 when there is work."""
        if self._stopping or any(
            (t.cancelled or self._cancelling) and not t.shielded() for t in self._tasks if t.is_turn
        ):
            return 0.0
        now, patience = time.monotonic(), 1.0
        for task in self._tasks:
            match task.request:
                case Wait(future, deadline):
                    if future.done():
                        return 0.0
                    if deadline is not None:
                        patience = min(patience, max(0.0, deadline - now))
                case AcquireKV():
                    if self.core.runner.pool.free_rows or self._idle:
                        return 0.0
                case _:
                    return 0.0
        return patience

    def _resume(self, task: Task, answer: Any) -> None:
        self._advance(task, lambda: task.job.send(answer))

    def _fail(self, task: Task, error: Exception) -> None:
        self._advance(task, lambda: task.job.throw(error))

    def _fail_all(self, tasks: Iterable[Task], error: Exception) -> None:
        for task in tasks:
            self._fail(task, error)

    def _resume_all(self, answers: Iterable[tuple[Task, Any]]) -> None:
        for task, answer in answers:
            self._resume(task, answer)

    def _advance(self, task: Task, go: Callable[[], Work]) -> None:
        try:
            task.request = go()
        except StopIteration:
            self._end(task)
        except Exception:
            logger.exception("a job of the engine failed without handling its error")
            self._end(task)
        else:
            if isinstance(task.request, Wait):
                task.request.future.add_done_callback(lambda _: self.wake())
            elif isinstance(task.request, AcquireKV):
                self._claim(task)

    def _claim(self, task: Task) -> None:
        """A session that still has its slab goes on with it; others queue."""
        session = task.session
        if session is not None and session.kv is not None:
            self._idle.pop(session.kv, None)
            self._resume(task, session.kv)
        else:
            self._waiting_for_slab.append(task)

    def _end(self, task: Task) -> None:
        self._tasks.remove(task)
        if task in self._waiting_for_slab:
            self._waiting_for_slab.remove(task)
        if task.is_turn:
            self._count_out(task)
            session = task.session
            if session is not None and session.kv is not None:
                # Idle, but warm: the slab stays until another session needs it.
                self._idle[session.kv] = session
                if self.core.keeper is not None:
                    self._unsaved.append(Unsaved(time.monotonic(), session.kv, session.kv.version))

    def _count_out(self, task: Task) -> None:
        with self._lock:
            self._turns -= task.counted
            task.counted = False

    def _leave(self, session: Session, keep: bool) -> Generator[Work, Any, None]:
        if session.kv is not None:
            self._idle.pop(session.kv, None)
        keeper = self.core.keeper if keep and time.monotonic() < self._save_until else None
        saving = None if keeper is None else keeper.save(session)
        if saving is not None:
            yield Wait(saving)
        self._release(session)

    def _save_idle(self) -> None:
        """Have the slab written that was left alone for longest, if for long enough."""
        keeper, now = self.core.keeper, time.monotonic()
        wait = SAVE_LATE if self.core.runner.pool.free_rows else SAVE_SOON
        while keeper is not None and self._unsaved and not keeper.busy:
            ended, kv, version = self._unsaved[0]
            still = kv in self._idle and kv.version == version
            if still and now < ended + wait:
                return
            self._unsaved.popleft()
            if still:
                keeper.save(self._idle[kv])

    def _release(self, session: Session) -> None:
        if session.kv is not None:
            self._idle.pop(session.kv, None)
        session.drop_kv()
        session.released = True

    def _cancel(self) -> None:
        for task in [t for t in self._tasks if t.is_turn and (t.cancelled or self._cancelling)]:
            if not task.shielded():
                self._fail(task, CancelledTurnError("the turn was cancelled"))

    def _answer_waits(self) -> None:
        now = time.monotonic()
        for task in list(self._tasks):
            if isinstance(task.request, Wait):
                done = task.request.future.done()
                if done or (task.request.deadline is not None and now >= task.request.deadline):
                    self._resume(task, done)

    def _hand_out_slabs(self) -> None:
        pool = self.core.runner.pool
        while self._waiting_for_slab and (pool.free_rows or self._idle):
            task = self._waiting_for_slab.popleft()
            assert task.session is not None
            seat(self.core, task.session, None if pool.free_rows else self._idle.pop(self._idlest()))
            self._resume(task, task.session.kv)

    def _idlest(self) -> SessionKV:
        """The slab that was used longest ago, among those that a file has if there are any."""
        keeper = self.core.keeper
        saved = (kv for kv in self._idle if keeper is not None and keeper.is_saved(kv))
        return next(saved, next(iter(self._idle)))

    def _decode(self) -> tuple[int, float]:
        """One batched decode for all running turns -> how many they were, seconds."""
        started = time.monotonic()
        read = self._answers(Decode, self.core.runner.decode)
        self._resume_all(read)
        return len(read), time.monotonic() - started

    def _one_draws(self) -> bool:
        """Whether one turn draws tokens, and no other."""
        return sum(isinstance(task.request, Decode | Sample) for task in self._tasks) == 1

    def _draw(self, decoded: int, seconds: float) -> None:
        """One batched draw for them and for finished prefills."""
        started = time.monotonic()
        drawn = self._answers(Sample, self.core.runner.draw)
        if not drawn:
            return
        try:
            self.core.observer.decoded(decoded, seconds + time.monotonic() - started)
        except Exception as error:
            self._fail_all([task for task, _ in drawn], error)
        else:
            self._resume_all(drawn)

    def _answers(
        self, kind: type[Batched], compute: Callable[[list[Batched]], Iterable[Any]]
    ) -> list[tuple[Task, Any]]:
        """What is computed for all tasks that ask for it. If that fails, each is tried alone, and fails alone."""
        asking = [(task, task.request) for task in self._tasks if isinstance(task.request, kind)]
        if len(asking) > 1 and not self.config.deterministic:
            try:
                answers = compute([request for _, request in asking])
                return list(zip((task for task, _ in asking), answers, strict=True))
            except Exception:
                logger.warning("a batch of %d failed; each is tried alone", len(asking), exc_info=True)
        answered = []
        for task, request in asking:
            try:
                (answer,) = compute([request])
            except Exception as error:
                self._fail(task, error)
            else:
                answered.append((task, answer))
        return answered

    def _forward(self) -> None:
        """Prefill and repair, in turn, until the step's token budget is spent."""
        budget = self.config.prefill_tokens
        while budget > 0:
            ready = [(t, t.request) for t in self._tasks if isinstance(t.request, Forward)]
            if not ready:
                return
            self._forward_turn += 1
            task, request = ready[self._forward_turn % len(ready)]
            budget -= len(request.chunk.ranks)
            try:
                hidden = self.core.runner.prefill(request)
            except Exception as error:
                self._fail(task, error)
            else:
                self._resume(task, hidden)

    def _answer_pauses(self) -> None:
        budget = self.config.ingest_tokens
        for task in list(self._tasks):
            if isinstance(task.request, Pause) and (budget > 0 or not task.request.tokens):
                budget -= task.request.tokens
                self._resume(task, None)
