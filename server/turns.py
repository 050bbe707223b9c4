"""Turns as the HTTP layer sees them: a background task that holds the session and feeds events to one reader.

The task is not the request's: when the client goes away, the task still cancels the turn, waits until the engine has
let go of the session, and only then lets the next request have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mc_core.engine.engine import Engine, queue_full
from mc_core.engine.requests import Failed, Turn
from mc_core.errors import CancelledTurnError
from mc_core.models.sampler import SamplingParams
from mc_core.session.session import Session
from mc_core.store import FencedError, StoreDownError
from server.chat_template import ChatTemplate, Message
from server.errors import draining
from server.prefixes import MAX_PREFIXES, MatchedLease, chain_hash, hash_chain
from server.sessions import Lease, SessionHost
from server.telemetry.spans import Spans, end_turn
from server.turn_stream import TurnStream, error_of


@dataclass(frozen=True)
class Prompt:
    """What a turn reads, and what is written behind its reply."""

    ids: NDArray[np.int32]
    suffix: NDArray[np.int32]
    commit: Callable[[str], None] | None = None


Prepare = Callable[[Lease], Awaitable[Prompt]]
Operation = Literal["chat", "text_completion"]
"""As OpenTelemetry's conventions name them."""


class TurnService:
    """Starts turns on sessions, named or found by their messages."""

    def __init__(self, host: SessionHost, engine: Engine, template: ChatTemplate | None, spans: Spans) -> None:
        self.host, self.engine, self.template, self.spans = host, engine, template, spans
        self._running: dict[asyncio.Task[None], TurnStream] = {}

    @property
    def active(self) -> int:
        """Turns that hold a session or wait for one."""
        return len(self._running)

    @property
    def most(self) -> int:
        """Turns that may be active at once."""
        return self.engine.config.max_sessions + self.engine.config.max_queue

    def check_room(self, turns: int) -> None:
        """QueueFullError if there is no room for so many more turns now."""
        if self.active + turns > self.most:
            raise queue_full(self.engine.config)

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
        self.check_room(1)
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
                stream.session_id = held.session.id if held.session.durable else None
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
                if isinstance(failure := error_of(await stream.over()), FencedError | StoreDownError):
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

        return MatchedLease(self.host, self.engine, tenant, chain, known), prepare

    async def _prompt(self, session: Session, messages: Sequence[Message], digest: str | None) -> Prompt:
        assert self.template is not None
        ids = await asyncio.to_thread(self.template.ids, messages, first=session.tokens == 0, reply=True)

        def commit(text: str) -> None:
            if digest is not None:
                after = chain_hash(digest, Message("assistant", text))
                session.prefixes = [*session.prefixes, (after, session.tokens)][-MAX_PREFIXES:]

        return Prompt(ids, self.template.suffix_ids, commit)
