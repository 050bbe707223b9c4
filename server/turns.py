"""Turns as the HTTP layer sees them: a background task that holds the session and feeds events to one reader.

The task is not the request's: when the client goes away, the task still cancels the turn, waits until the engine has
let go of the session, and only then lets the next request have it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mc_core.engine.engine import Engine
from mc_core.engine.requests import Delta, Event, Failed, Finished, Turn
from mc_core.errors import CancelledTurnError, QueueFullError
from mc_core.models.sampler import SamplingParams
from mc_core.session import Session
from mc_core.store import FencedError, LeaseHeldError, StoreDownError
from server.chat_template import ChatTemplate, Message
from server.errors import draining
from server.futures import settled
from server.sessions import Lease, SessionHost
from server.telemetry.spans import Spans, end_turn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """What a turn reads, and what is written behind its reply."""

    ids: NDArray[np.int32]
    suffix: NDArray[np.int32]
    commit: Callable[[str], None] | None = None


Prepare = Callable[[Lease], Awaitable[Prompt]]
Operation = Literal["chat", "text_completion"]
"""As OpenTelemetry's conventions name them."""


MAX_BEHIND = 16_384
"""Events that a reader may be behind; one that reads more slowly loses its turn, since memory is bounded."""


class TurnStream:
    """The events of one turn, for one reader. The last one is Finished or Failed.

    first_delta: seconds until the first one came.
    """

    def __init__(self) -> None:
        self.session_id: str | None = None
        self.started = asyncio.Event()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._stop: Callable[[], object] | None = None
        self._cancelled = False
        self._over: asyncio.Future[Finished | Failed] = self._loop.create_future()
        self._began = time.monotonic()
        self.first_delta: float | None = None

    async def next(self) -> Event:
        return await self._events.get()

    def failure(self) -> Exception | None:
        """What the turn failed with, if it has failed already."""
        return _error(self._over.result()) if self._over.done() else None

    def cancel(self) -> None:
        """Stop the turn, wherever it is; as often as one likes."""
        if not self._over.done():
            self._cancelled = True
            if self._stop is not None:
                self._stop()

    def stops_with(self, stop: Callable[[], object]) -> None:
        """What stops the turn from now on."""
        self._stop = stop
        if self._cancelled:
            stop()

    def sink(self, event: Event) -> None:
        """Called on threads of the engine and the store."""
        self._loop.call_soon_threadsafe(self.put, event)

    def put(self, event: Event) -> None:
        """Hand an event to the reader; nothing follows the last one."""
        if self._over.done():
            return
        self._events.put_nowait(event)
        if self.first_delta is None and isinstance(event, Delta):
            self.first_delta = time.monotonic() - self._began
        if isinstance(event, Finished | Failed):
            self._over.set_result(event)
            self.started.set()
        elif self._events.qsize() > MAX_BEHIND:
            self.cancel()

    async def over(self) -> Finished | Failed:
        """Until the engine has let go of the session -> the last event."""
        return await self._over


def _error(event: Finished | Failed) -> Exception | None:
    return event.error if isinstance(event, Failed) else None


class TurnService:
    """Starts turns on sessions, named or found by their messages."""

    def __init__(self, host: SessionHost, engine: Engine, template: ChatTemplate | None, spans: Spans) -> None:
        self.host, self.engine, self.template, self.spans = host, engine, template, spans
        self._running: dict[asyncio.Task[None], TurnStream] = {}

    @property
    def active(self) -> int:
        """Turns that hold a session or wait for one."""
        return len(self._running)

    def start(
        self,
        lease: AbstractAsyncContextManager[Lease],
        prepare: Prepare,
        sampling: SamplingParams,
        request_id: str,
        operation: Operation,
    ) -> TurnStream:
        """Begin a turn on the session that ``lease`` will give; QueueFullError or 503 at once if there is no room."""
        if self.engine.draining:
            raise draining()
        limit = self.engine.config.max_sessions + self.engine.config.max_queue
        if self.active >= limit:
            raise QueueFullError(f"the queue is full: {self.active} turns under way, max_queue allows {limit}")
        stream = TurnStream()
        task = asyncio.create_task(self._traced(stream, lease, prepare, sampling, request_id, operation))
        self._running[task] = stream
        task.add_done_callback(self._done)
        # Until the engine has it, nothing but the task itself needs to be stopped.
        stream.stops_with(task.cancel)
        return stream

    def _done(self, task: asyncio.Task[None]) -> None:
        stream = self._running.pop(task)
        stream.put(Failed(CancelledTurnError("the turn was cancelled before it began")))

    async def _traced(
        self,
        stream: TurnStream,
        lease: AbstractAsyncContextManager[Lease],
        prepare: Prepare,
        sampling: SamplingParams,
        request_id: str,
        operation: Operation,
    ) -> None:
        with self.spans.turn(operation, self.host.model, request_id, sampling) as span:
            await self._run(stream, lease, prepare, sampling, request_id)
            end_turn(span, await stream.over(), stream.session_id, stream.first_delta)

    async def _run(
        self,
        stream: TurnStream,
        lease: AbstractAsyncContextManager[Lease],
        prepare: Prepare,
        sampling: SamplingParams,
        request_id: str,
    ) -> None:
        try:
            async with lease as held:
                held.on_delete(stream.cancel)
                stream.session_id = held.session.id
                prompt = await prepare(held)
                turn = Turn(
                    session=held.session,
                    prompt_ids=prompt.ids,
                    sampling=sampling,
                    sink=stream.sink,
                    suffix_ids=prompt.suffix,
                    request_id=request_id,
                    source=held.source,
                    commit_state=prompt.commit,
                )
                stream.stops_with(self.engine.submit(turn).cancel)
                stream.started.set()
                if isinstance(failure := _error(await stream.over()), FencedError | StoreDownError):
                    raise failure
        except Exception as error:
            stream.put(Failed(error))

    def cancel_all(self) -> None:
        """Stop every turn; its reader is told."""
        for stream in list(self._running.values()):
            stream.cancel()

    async def join(self) -> None:
        """Until every turn has let go of its session."""
        while self._running:
            await asyncio.wait(set(self._running))

    # -- chat ----------------------------------------------------------------------------------------------------

    def in_session(self, messages: Sequence[Message]) -> Prepare:
        """New messages of a named session."""

        async def prepare(lease: Lease) -> Prompt:
            return await self._prompt(lease.session, messages, None)

        return prepare

    def by_messages(
        self, tenant: str, messages: Sequence[Message]
    ) -> tuple[AbstractAsyncContextManager[Lease], Prepare]:
        """All messages of a chat: the session that holds the longest prefix of them, or a new one."""
        chain = hash_chain(messages)
        known: list[int] = [0]

        async def prepare(lease: Lease) -> Prompt:
            count = known[0]
            return await self._prompt(lease.session, messages[count:], chain[-1])

        return _MatchedLease(self.host, self.engine, tenant, chain, known), prepare

    async def _prompt(self, session: Session, messages: Sequence[Message], digest: str | None) -> Prompt:
        assert self.template is not None
        ids = await asyncio.to_thread(self.template.ids, messages, first=session.tokens == 0, reply=True)

        def commit(text: str) -> None:
            if digest is not None:
                after = chain_hash(digest, Message("assistant", text))
                session.prefixes = [*session.prefixes, (after, session.tokens)][-MAX_PREFIXES:]

        return Prompt(ids, self.template.suffix_ids, commit)


MAX_PREFIXES = 256
"""Message boundaries that an implicit session remembers, newest last."""


class _MatchedLease:
    """Finds the session when entered, so that two requests can't both take it."""

    def __init__(self, host: SessionHost, engine: Engine, tenant: str, chain: Sequence[str], known: list[int]) -> None:
        self._host, self._engine, self._tenant, self._chain, self._known = host, engine, tenant, chain, known
        self._held: AbstractAsyncContextManager[Lease] | None = None

    async def __aenter__(self) -> Lease:
        # The last message is always new: it asks for a reply.
        match = await self._host.match(self._tenant, list(reversed(self._chain[:-1])))
        if match is not None:
            lease = await self._enter(*match)
            if lease is not None:
                return lease
        session = await self._host.create(self._tenant, metadata={}, implicit=True)
        self._held = self._host.use(session.id, self._tenant)
        return await self._held.__aenter__()

    async def _enter(self, session_id: str, digest: str) -> Lease | None:
        """The matched session at the matched boundary; None if it isn't there any more, or is at another server."""
        self._held = self._host.use(session_id, self._tenant)
        try:
            lease = await self._held.__aenter__()
        except LeaseHeldError:
            return None
        try:
            if await self._go_back(lease.session, digest):
                return lease
        except BaseException as error:
            await self._held.__aexit__(type(error), error, error.__traceback__)
            raise
        await self._held.__aexit__(None, None, None)
        return None

    async def _go_back(self, session: Session, digest: str) -> bool:
        """Take the session back to the matched boundary; False if it is not there any more."""
        position = dict(session.prefixes).get(digest)
        if position is None:
            return False
        if position < session.tokens:
            # The client went back; what it dropped is not its history any more.
            await settled(self._engine.rewind(session, position))
        self._known[0] = self._chain.index(digest) + 1
        return True

    async def __aexit__(self, *error: object) -> bool | None:
        assert self._held is not None
        return await self._held.__aexit__(*error)  # type: ignore[arg-type]


def chain_hash(before: str, message: Message) -> str:
    """Hash of all messages up to and with this one."""
    parts = (before, message.role, message.content)
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def hash_chain(messages: Sequence[Message]) -> list[str]:
    """One hash for each prefix of the messages."""
    chain, digest = [], ""
    for message in messages:
        digest = chain_hash(digest, message)
        chain.append(digest)
    return chain
