"""The writer thread of the SQLite store: one connection, group commit."""

from __future__ import annotations

import sqlite3
import threading
import traceback
from collections import deque
from collections.abc import Callable

from mc_core.errors import StoreError
from mc_core.store import StoreFullError
from server.stores.lanes import Operation, settle
from server.stores.sqlite.reserve import Reserve
from server.stores.sqlite.schema import FileIdentity

BATCH_OPERATIONS = 512
BATCH_BYTES = 16 << 20
FULL = "the store failed: its disk is full"

Outcome = tuple[Operation, object, Exception | None]


class Writer:
    """Runs queued writes in transactions, many at a time; futures resolve only after the transaction's own commit.

    While one transaction waits for the disk the next batch gathers, so one fsync acknowledges many sessions. Each
    operation has a savepoint: a refused one (fenced, invalid) leaves the others of its batch alone. If the transaction
    itself fails, all of its operations fail. Batches without a durable operation skip the fsync; the next durable
    commit makes them durable too, since the log is one file.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        identity: FileIdentity,
        reserve: Reserve,
        done: Callable[[Operation], None],
    ) -> None:
        self._connection = connection
        self._identity, self._reserve = identity, reserve
        self._done = done
        self._queue: deque[Operation] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._durable = True
        self._thread = threading.Thread(target=self._serve, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, operation: Operation) -> None:
        """Queues a write; never blocks."""
        with self._wake:
            self._queue.append(operation)
            self._wake.notify()

    def stop(self) -> None:
        """Runs what is queued, ends the thread, closes the connection."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()
        self._connection.close()
        self._reserve.give()

    def _serve(self) -> None:
        while batch := self._next_batch():
            for operation, result, error in self._run(batch):
                self._done(operation)
                settle(operation, result, error)

    def _next_batch(self) -> list[Operation]:
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._stopping)
            batch: list[Operation] = []
            size = 0
            while self._queue and len(batch) < BATCH_OPERATIONS and size < BATCH_BYTES:
                batch.append(self._queue.popleft())
                size += batch[-1].size
            return batch

    def _run(self, batch: list[Operation]) -> list[Outcome]:
        """All of them; while the disk is full those that need no room, in what is kept for them."""
        refused: list[Outcome] = []
        if not self._reserve.kept and not self._reserve.keep():
            refused = [(operation, None, StoreFullError(FULL)) for operation in batch if not operation.frees]
            batch = [operation for operation in batch if operation.frees]
        outcomes = self._transact(batch) if batch else []
        if self._reserve.kept and any(isinstance(error, StoreFullError) for _, _, error in outcomes):
            self._reserve.give()
            again = [one for one, _, error in outcomes if one.frees and isinstance(error, StoreFullError)]
            outcomes = [outcome for outcome in outcomes if outcome[0] not in again]
            outcomes += self._transact(again) if again else []
        return refused + outcomes

    def _transact(self, batch: list[Operation]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            self._set_durable(any(operation.durable for operation in batch))
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes.extend(self._attempt(operation) for operation in batch)
            if self._durable:
                self._identity.check()
            self._connection.execute("COMMIT")
        except Exception as error:
            return self._abort(batch, outcomes, error)
        return outcomes

    def _attempt(self, operation: Operation) -> Outcome:
        self._connection.execute("SAVEPOINT operation")
        try:
            result = operation.run(self._connection)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # with the cursors that they hold
            if not self._connection.in_transaction:
                raise  # SQLite gave the whole transaction up (disk full, I/O error)
            self._connection.execute("ROLLBACK TO operation")
            self._connection.execute("RELEASE operation")
            return operation, None, _failure(error) if isinstance(error, sqlite3.Error) else error
        self._connection.execute("RELEASE operation")
        return operation, result, None

    def _abort(self, batch: list[Operation], outcomes: list[Outcome], error: Exception) -> list[Outcome]:
        """Every operation of a failed transaction fails: with its own refusal if it had one, else with ``error``."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # the original error is the one to tell
        refused = {id(operation): own for operation, _, own in outcomes if own is not None}
        failure = _failure(error)
        return [(operation, None, refused.get(id(operation), failure)) for operation in batch]

    def _set_durable(self, durable: bool) -> None:
        if durable != self._durable:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._durable = durable


def _failure(error: Exception) -> StoreError:
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    failure = (StoreFullError if full else StoreError)(f"the store failed: {error}")
    failure.__cause__ = error
    return failure
