"""Turns as the HTTP layer sees them: a background task that holds the session and feeds events to who reads them.

The task is not the request's: when the client goes away, the task still cancels the turn, waits until the engine has
let go of the session, and only then lets the next request have it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mc_core.engine.engine import Engine, queue_full
from mc_core.engine.requests import Event, Failed, Finished, Turn
from mc_core.errors import CancelledTurnError, SpanMissingError
from mc_core.models.sampler import SamplingParams
from mc_core.session.session import Session
from mc_core.store import FencedError, StoreDownError
from server.errors import ApiError, draining
from server.futures import settled
from server.sessions.host import SessionHost
from server.sessions.slots import Lease
from server.streaming.turn_stream import Observe, TurnStream, error_of
from server.telemetry.spans import Spans, end_turn
from server.templates.chat_template import ChatTemplate, Message
from server.tools.shape import PLAIN, Shape
from server.turns.aside import Aside
from server.turns.conversation import (
    ChatState,
    Ids,
    Reading,
    Window,
    begin_with,
    check_system,
    pins_of,
    reading,
    remember,
    render,
    system_of,
    system_span,
    unseen,
    with_news,
)
from server.turns.listing import Listing
from server.turns.matching import MatchedLease
from server.turns.message_notes import list_system
from server.turns.parts import Named

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """What a turn reads, and what is written behind its reply; where it cuts the history first, what it pins, and what
    the history holds already of its question."""

    ids: NDArray[np.int32]
    suffix: NDArray[np.int32]
    commit: Callable[[str, Finished], None] | None = None
    cut: int | None = None
    pins: tuple[tuple[int, int], ...] = ()
    held: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))


Prepare = Callable[[Lease], Awaitable[Prompt]]
Operation = Literal["chat", "text_completion"]
"""As OpenTelemetry's conventions name them."""


class TurnService:
    """Starts turns on sessions, named or found by their messages."""

    def __init__(
        self,
        host: SessionHost,
        engine: Engine,
        template: ChatTemplate | None,
        spans: Spans,
        spent: Callable[[str, int], None] = lambda tenant, tokens: None,
        observed: Callable[[], Observe] = lambda: lambda event, when: None,
    ) -> None:
        """spent: told how many tokens were read or generated for a tenant. observed: makes what each turn's events are
        told to."""
        self.host, self.engine, self.template, self.spans, self.spent = host, engine, template, spans, spent
        self._observed = observed
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
        # One whose end was told has its session to give back yet, and its client may be here with the next.
        if sum(not stream.ended for stream in self._running.values()) + turns > self.most:
            raise queue_full(self.engine.config)

    def start(
        self,
        lease: AbstractAsyncContextManager[Lease],
        prepare: Prepare,
        sampling: SamplingParams,
        request_id: str,
        operation: Operation,
        watch: Callable[[Event], None] | None = None,
        sources: bool = False,
        shape: Shape = PLAIN,
    ) -> TurnStream:
        """Begin a turn on the session that ``lease`` will give; QueueFullError or 503 at once if there is no room.

        watch: told of each event where it happens, on threads of the engine and the store, before the reader is.
        sources: tell in the end what the reply stood on.
        shape: the reply's, the same that the prompt was prepared with.
        """
        if self.engine.draining:
            raise draining()
        self.check_room(1)
        stream = TurnStream(watch, self._observed())
        running = self._traced(stream, lease, prepare, sampling, request_id, operation, sources, shape)
        task = asyncio.create_task(running)
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
        sources: bool,
        shape: Shape,
    ) -> None:
        with self.spans.turn(operation, self.host.model, request_id, sampling) as span:
            await self._run(stream, lease, prepare, sampling, request_id, sources, shape)
            end_turn(span, await stream.over(), stream.session_id, stream.first_delta)

    async def _run(
        self,
        stream: TurnStream,
        lease: AbstractAsyncContextManager[Lease],
        prepare: Prepare,
        sampling: SamplingParams,
        request_id: str,
        sources: bool,
        shape: Shape,
    ) -> None:
        try:
            async with lease as held:
                held.on_stop(stream.cancel)
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
                    cut=prompt.cut,
                    pins=prompt.pins,
                    held_ids=prompt.held,
                    sources=sources,
                    constraint=shape.constraint,
                    spoken_ids=shape.spoken_ids,
                )
                stream.stops_with(self.engine.submit(turn).cancel)
                stream.started.set()
                end = await stream.over()
                self.spent(
                    held.session.tenant,
                    stream.generated + (end.usage.prompt_tokens if isinstance(end, Finished) else 0),
                )
                if isinstance(failure := error_of(end), FencedError | StoreDownError):
                    raise failure
        except Exception as error:
            stream.put(Failed(error))

    def cancel_all(self) -> None:
        """Stop every turn; its readers are told."""
        for stream in list(self._running.values()):
            stream.cancel()

    async def join(self) -> None:
        """Until every turn has let go of its session."""
        while self._running:
            await asyncio.wait(set(self._running))

    # -- chat ----------------------------------------------------------------------------------------------------

    def in_session(self, messages: Sequence[Message], instructions: str | None = None, shape: Shape = PLAIN) -> Prepare:
        """Messages of a named session: new ones, or all of its own and new ones behind them.

        instructions: a system message for this turn alone.
        """

        async def prepare(lease: Lease) -> Prompt:
            return await self.read(lease.session, unseen(lease.session, messages), shape, instructions=instructions)

        return prepare

    def by_messages(
        self, tenant: str, messages: Sequence[Message], instructions: str | None = None, shape: Shape = PLAIN
    ) -> tuple[AbstractAsyncContextManager[Lease], Prepare]:
        """All messages of a chat: the session that holds them so far, a branch of one that holds some, or a new one."""
        assert self.template is not None
        matched = MatchedLease(self.host, self.template.with_tools(shape.use), tenant, messages)

        async def prepare(lease: Lease) -> Prompt:
            known = matched.known
            held = messages[:known]
            return await self.read(lease.session, messages[known:], shape, held, matched.wanted, instructions)

        return matched, prepare

    def count(self, messages: Sequence[Message], shape: Shape) -> int:
        """Tokens of a whole conversation with its reply opened. It renders, so call it on a thread of its own."""
        assert self.template is not None
        return len(render(self.template.with_tools(shape.use), Window((), 0, True), messages, None))

    async def open_with(self, session: Session, system: Message) -> None:
        """Give an empty session its system message. Templates that fold it into a question write it with the first."""
        template, ask = self.template, Message("user", "x")
        assert template is not None
        nothing = Window((), 0, True)
        wanted = await asyncio.to_thread(render, template, nothing, [system, ask], system)
        span = await asyncio.to_thread(system_span, template, nothing, [system, ask], system, wanted)
        check_system(span, session.pin_room, session.wc.budget, "system")
        try:
            ids = await asyncio.to_thread(template.ids, [system], first=True, reply=False)
        except ApiError:
            ids = np.empty(0, np.int32)

        def begin() -> None:
            begin_with(session, system, len(ids))
            list_system(session, system, len(ids))

        await settled(self.engine.call(begin))
        await settled(self.engine.ingest(session, ids))
        await settled(self.engine.commit(session))

    async def read(
        self,
        session: Session,
        new: Sequence[Message],
        shape: Shape,
        known: Sequence[Message] = (),
        wanted: Ids | None = None,
        instructions: str | None = None,
        named: Named | None = None,
    ) -> Prompt:
        """known: the session's messages, from a client that sends them all. wanted: the ids of all messages, if the
        history is nothing but a beginning of them. named: what is new, as items."""
        assert self.template is not None
        template, whole = self.template.with_tools(shape.use), wanted is not None
        before, system, told = session.prefixes, system_of(session, new), new
        if wanted is None:
            window, held = await self.window(session, known)
            told = await asyncio.to_thread(with_news, template, session, window, new)
        else:
            window, held = Window((), 0, True), wanted[: session.tokens]
        went = await asyncio.to_thread(
            self._reading, template, session, window, told, system, wanted, held, instructions
        )
        listing = await self.listing(session, window, new, held, went, whole)

        def commit(reply: str, finished: Finished) -> None:
            answer = _answer(shape, reply, cut=finished.reason == "length")
            remember(session, before, new, answer, went, shape.use)
            if listing is not None:
                listing.note(went, answer, before[-1][0] if before else "", named)

        return Prompt(
            went.ids,
            template.suffix_ids,
            commit,
            went.keep if went.keep < session.tokens else None,
            went.pins,
            went.held,
        )

    def _reading(
        self,
        template: ChatTemplate,
        session: Session,
        window: Window,
        new: Sequence[Message],
        system: Message | None,
        wanted: Ids | None,
        held: Ids,
        instructions: str | None,
    ) -> Reading:
        """How the turn goes on; ``wanted`` as far as it is known, without instructions."""
        tokenizer = self.engine.core.bundle.tokenizer
        aside = Aside.of(instructions, ChatState.of(session), window, new)
        if aside is None:
            wanted = render(template, window, new, system) if wanted is None else wanted
            return reading(template, tokenizer, session, window, new, system, wanted, held)
        window, new = aside.within(window, new)
        wanted = render(template, window, new, system)
        went = reading(template, tokenizer, session, window, new, system, wanted, held, aside.place)
        span, taken = aside.span(template, window, new, system, wanted), len(wanted) - len(went.ids)
        if span is not None and span[1] > taken:
            check_system(span, session.pin_room, session.wc.budget, "instructions")
        pins = pins_of(session, span, went.keep, taken)
        return aside.left_out(replace(went, pins=(*went.pins, *pins)), len(window.messages) + len(new))

    async def listing(
        self, session: Session, window: Window, new: Sequence[Message], held: Ids, went: Reading, whole: bool
    ) -> Listing | None:
        """What the turn adds to the list of messages; nothing where nobody could ask for it."""
        if not session.durable:
            return None
        assert self.template is not None
        listing = await Listing.of(self.host.store, session, window, new, whole)
        await asyncio.to_thread(listing.find, self.template, window, held, went)
        return listing

    async def window(self, session: Session, known: Sequence[Message]) -> tuple[Window, Ids]:
        """The messages that are still open, and the ids that the history holds of them."""
        window = ChatState.of(session).window(session, known)
        try:
            return window, await settled(self.engine.read(session, window.start, session.tokens))
        except SpanMissingError:
            logger.warning("the last messages of session %s stay as they are", session.id, exc_info=True)
            return Window((), session.tokens, False), np.empty(0, np.int32)


def _answer(shape: Shape, reply: str, *, cut: bool) -> Message:
    """A reply as its client will send it back."""
    text, calls = shape.parts(reply, cut=cut)
    return Message("assistant", text, tool_calls=calls)
