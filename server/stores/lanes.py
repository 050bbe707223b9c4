"""Keeps the operations of each session in order while those of different sessions overlap."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from mc_core.errors import MegaContextError, StoreError
from mc_core.store import StoreDownError


@dataclass(eq=False)
class Operation:
    """One queued call. ``lane``: its session id, or None if it is ordered against nothing. ``size``: bytes it holds.
    ``frees``: it needs no room to speak of, so a full store is to run it. ``deadline``: until when it may wait where
    the store is away (monotonic seconds)."""

    run: Callable[[Any], Any]
    lane: str | None
    writes: bool = False
    durable: bool = False
    size: int = 0
    frees: bool = False
    deadline: float = math.inf
    future: Future[Any] = field(default_factory=Future)


def settle(operation: Operation, result: object, error: Exception | None) -> None:
    """Resolves the operation's future; an error that is none of the library's own becomes a StoreError."""
    if error is None:
        operation.future.set_result(result)
    elif isinstance(error, MegaContextError):
        operation.future.set_exception(error)
    else:
        wrapped = StoreError(f"the store failed: {type(error).__name__}: {error}")
        wrapped.__cause__ = error
        operation.future.set_exception(wrapped)


class _Lane:
    """First in, first out; neighbours of one kind (reads, or writes) run together, the two kinds never overlap."""

    def __init__(self) -> None:
        self.waiting: deque[Operation] = deque()
        self.running = 0
        self.writing = False

    def ready(self) -> list[Operation]:
        """Takes out what may start now."""
        started = []
        while self.waiting and (not self.running or self.waiting[0].writes == self.writing):
            operation = self.waiting.popleft()
            self.writing = operation.writes
            self.running += 1
            started.append(operation)
        return started

    def overdue(self, now: float) -> list[Operation]:
        """Takes out reads that wait for too long; what else waits keeps its order."""
        late = [operation for operation in self.waiting if not operation.writes and operation.deadline <= now]
        if late:
            self.waiting = deque(operation for operation in self.waiting if operation not in late)
        return late


class Lanes:
    """Hands operations to ``dispatch`` (which must not block) as soon as their session's order allows.

    At most ``max_pending`` bytes wait at a time: a write beyond that fails at once with StoreDownError.
    """

    def __init__(self, dispatch: Callable[[Operation], None], max_pending: int) -> None:
        self._dispatch = dispatch
        self._max_pending = max_pending
        self._lanes: dict[str, _Lane] = {}
        self._idle = threading.Condition()
        self._open = 0
        self._pending = 0
        self._closed = False

    @property
    def pending_bytes(self) -> int:
        """Bytes held by operations that are not done."""
        return self._pending

    def submit(self, operation: Operation) -> Future[Any]:
        """Queues the operation; its future can't be cancelled."""
        operation.future.set_running_or_notify_cancel()
        with self._idle:
            refusal = self._refusal(operation)
            if refusal is None:
                self._open += 1
                self._pending += operation.size
                # Dispatched under the lock: two threads must not swap the operations of one lane.
                if operation.lane is None:
                    self._dispatch(operation)
                else:
                    lane = self._lanes.setdefault(operation.lane, _Lane())
                    lane.waiting.append(operation)
                    self._start(lane)
        if refusal is not None:
            settle(operation, None, refusal)
        return operation.future

    def done(self, operation: Operation) -> None:
        """The operation has run; whatever waited for it starts."""
        with self._idle:
            if operation.lane is not None:
                lane = self._lanes[operation.lane]
                lane.running -= 1
                self._start(lane)
                if not lane.running:
                    del self._lanes[operation.lane]
            self._open -= 1
            self._pending -= operation.size
            if not self._open:
                self._idle.notify_all()

    def overdue(self, now: float) -> list[Operation]:
        """Reads past their deadline that still wait behind writes; they will not run, and the caller settles them."""
        late = []
        with self._idle:
            for lane in list(self._lanes.values()):
                if found := lane.overdue(now):
                    late += found
                    self._start(lane)
            self._open -= len(late)
            if not self._open:
                self._idle.notify_all()
        return late

    def drain(self) -> None:
        """Refuses new operations and waits until those that were accepted have run."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: not self._open)

    def _start(self, lane: _Lane) -> None:
        for operation in lane.ready():
            self._dispatch(operation)

    def _refusal(self, operation: Operation) -> StoreError | None:
        if self._closed:
            return StoreError("the store is closed")
        if operation.size and self._pending + operation.size > self._max_pending and self._pending:
            return StoreDownError(
                f"the store is behind: {self._pending} bytes wait to be written (limit {self._max_pending})"
            )
        return None
