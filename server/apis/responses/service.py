"""Begins responses, and finds them again: under way here, ended, or left behind by a server that went away."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import orjson
from fastapi import Request, Response

from mc_core.engine.requests import Event
from mc_core.errors import CancelledTurnError, MegaContextError
from server.affinity import route_told
from server.apis.answer import answer
from server.apis.prelude import check_chat, check_request, named_session
from server.apis.responses.ending import failure, head
from server.apis.responses.items_protocol import listed, messages_of
from server.apis.responses.protocol import ResponseRequest
from server.apis.responses.recording import Recording
from server.apis.responses.start import AfterResponse, Behind, Matched, Start, Unfinished
from server.apis.responses.stored import GONE, Stored, Unread, find
from server.apis.responses.tools_protocol import tool_use
from server.condition import Condition
from server.errors import bad_request, not_found, to_api_error
from server.futures import settled
from server.once.call import Call
from server.sessions.slots import Lease
from server.state import ServerState
from server.streaming.frames import Frame
from server.streaming.response import FramesResponse, TurnResponse
from server.streaming.runs import Run
from server.streaming.turn_stream import TurnStream
from server.templates.messages import Message
from server.tools.shape import PLAIN, Shape
from server.turns.conversation import ChatState
from server.turns.service import Prompt


class Responses:
    """The responses of one tenant."""

    def __init__(self, state: ServerState, tenant: str) -> None:
        self.state, self.tenant = state, tenant

    # -- begin -----------------------------------------------------------------------------------------------

    async def create(
        self, request: Request, body: ResponseRequest, header: str | None, expected: Condition, call: Call
    ) -> Response:
        """Answer a new response: whole, streamed, or in the background."""
        state = self.state
        call.needs_kept(body.store is not False)
        check_request(state, body)
        check_chat(state, "it cannot answer here")
        messages = messages_of(body.input)
        if messages[-1].role == "assistant":
            raise bad_request("the last item must not be the assistant's", "input")
        id = new_id(route_told(request.headers))
        shape = await self._shape(body, id)
        start = await self._start(body, messages, header, shape, expected)
        told = head(body, id, body.params(state.sampling), body.conversation_id)
        recording = Recording(told, listed(body.input, id.removeprefix("resp_")), state.bundle.tokenizer, shape)
        if body.background:
            # So that a server that begins it anew writes the same.
            body.seed = secrets.randbits(62) if body.seed is None else body.seed
            return await self._detached(body, start, recording, call)
        stream = self._turn(body, start, recording, call)
        return await answer(state, request, call, [recording.tell(stream)], stream=body.stream)

    async def _shape(self, body: ResponseRequest, id: str) -> Shape:
        """Of the reply; its calls are called after it, so that one that is begun anew names them alike."""
        use = tool_use(body.tools, body.tool_choice, body.parallel_tool_calls)
        shape = await self.state.shaper.shape(use, None if body.text is None else body.text.form())
        return dataclasses.replace(shape, key=id.removeprefix("resp_")[:16])

    async def _start(
        self,
        body: ResponseRequest,
        messages: Sequence[Message],
        header: str | None,
        shape: Shape,
        expected: Condition,
    ) -> Start:
        state, host = self.state, self.state.host
        keep = body.store is not False
        if body.previous_response_id is not None:
            expected.needs_session()
            if header is not None:
                raise bad_request("give previous_response_id or X-Session-ID, not both", "previous_response_id")
            return await AfterResponse.of(state, self.tenant, body.previous_response_id, messages, keep=keep)
        if body.conversation_id is not None:
            await host.known(body.conversation_id, self.tenant)
            return Behind(host.use(body.conversation_id, self.tenant, expected), messages)
        session_id = await named_session(state, body, header, self.tenant)
        if session_id is not None:
            return Behind(host.use(session_id, self.tenant, expected), messages, repeated=True)
        expected.needs_session()
        return Matched.of(state, self.tenant, messages, shape) if keep else Behind(host.passing(self.tenant), messages)

    def _turn(self, body: ResponseRequest, start: Start, recording: Recording, call: Call) -> TurnStream:
        state = self.state

        async def prepare(held: Lease) -> Prompt:
            reads, keep = await start.reads(held), body.store is not False
            if body.background:
                unread = Unread(
                    body.model_dump(mode="json", exclude_unset=True, by_alias=True),
                    ChatState(messages=tuple(reads.new)).json()["messages"],
                    reads.wanted is not None,
                    body.seed,
                )
                await recording.begun(state.engine, held.session, unread, await call.begun(held.session, recording.id))
            prompt = await state.turns.read(
                held.session,
                reads.new,
                recording.shape,
                reads.known,
                reads.wanted,
                body.instructions,
                recording.named(reads.parts) if keep else None,
            )
            return recording.with_turn(prompt, held.session) if keep else prompt

        def watch(event: Event) -> None:
            recording.watch(event)
            call.watch(event)

        told = prepare if body.background else call.prepares(prepare, recording.tell)
        sampling = body.params(state.sampling)
        return state.turns.start(
            start.lease, told, sampling, recording.id, "chat", watch, body.sources, recording.shape
        )

    # -- in the background -----------------------------------------------------------------------------------

    async def _detached(self, body: ResponseRequest, start: Start, recording: Recording, call: Call) -> Response:
        """Begin a turn that goes on without its client; answer once the store has that it is under way."""
        run = self._run(body, start, recording, call)
        await run.stream.started.wait()
        call.count()
        if not recording.is_begun and (error := run.stream.failure()) is not None:
            raise error
        return self._streamed(run, 0) if body.stream else json(recording.head | {"status": "queued"})

    def _run(self, body: ResponseRequest, start: Start, recording: Recording, call: Call | None = None) -> Run:
        stream = self._turn(body, start, recording, call or Call(self.state.book, self.tenant, None))
        stream.keep(self.state.settings.background_seconds)
        run = Run(stream, recording.tell, lambda error: self._settle(run, recording, error))
        self.state.runs.begin(self.tenant, recording.id, run)
        return run

    async def _settle(self, run: Run, recording: Recording, error: Exception) -> bool:
        """Store what a turn in the background failed with. Not of one that this server's end stopped: another goes on
        with it."""
        session_id = run.stream.session_id
        if isinstance(error, CancelledTurnError) and not run.cancelled:
            return False
        if session_id is not None and recording.is_begun:
            ended = failure(to_api_error(error), recording.clock)
            with suppress(MegaContextError):
                async with self.state.host.use(session_id, self.tenant) as held:
                    note = recording.stored(ended).note(held.session.tokens)
                    await settled(self.state.engine.commit(held.session, [note]))
        return True

    async def items(self, id: str) -> list[dict[str, Any]]:
        """What a response was given to read."""
        return (await self.find(id))[1].input

    def _streamed(self, run: Run, first: int) -> Response:
        run.stream.check_kept()
        keep_alive = self.state.settings.keep_alive_seconds
        return TurnResponse([run.tell(run.stream)], keep_alive=keep_alive, first=first, settled=run.ended)

    # -- find again ------------------------------------------------------------------------------------------

    async def show(self, id: str, *, stream: bool, after: int | None) -> Response:
        """A response as it is now, or its events behind number ``after``, as long as it goes on."""
        run, first = self.state.runs.get(self.tenant, id), 0 if after is None else after + 1
        if run is None:
            session_id, stored = await self.find(id)
            if stored.ended is not None:
                frames, whole = self._written(stored)
                if first > len(frames):
                    raise bad_request(
                        f"starting_after {after} lies beyond the last event of this response, {len(frames) - 1}",
                        "starting_after",
                    )
                return FramesResponse(once(frames[first:]), b"") if stream else json(whole)
            run = await self._revive(session_id, stored)
        return self._streamed(run, first) if stream else json(await self._now(run, id))

    async def cancel(self, id: str) -> Response:
        """Stop a response in the background; one that has ended stays as it is."""
        run = self.state.runs.get(self.tenant, id)
        if run is None:
            session_id, stored = await self.find(id)
            if not stored.head["background"]:
                raise bad_request("only a response in the background can be cancelled", "response_id")
            if stored.ended is not None:
                return json(self._written(stored)[1])
            run = await self._revive(session_id, stored)
        run.cancel()
        await run.ended()
        return json(await self._now(run, id))

    async def delete(self, id: str) -> None:
        """Forget a response; what it said stays a part of its session's history."""
        if (run := self.state.runs.get(self.tenant, id)) is not None:
            run.cancel()
            await run.ended()
        session_id, _ = await self.find(id)
        await settled(self.state.store.delete_note(session_id, self.tenant, id))

    async def find(self, id: str) -> tuple[str, Stored]:
        """(session, response); ApiError 404 if there is none."""
        found = await find(self.state.store, self.tenant, id)
        if found is None:
            raise not_found(f"response {id[:200]!r} does not exist: {GONE}", "response_not_found")
        return found

    async def _revive(self, session_id: str, stored: Stored) -> Run:
        """Begin a response anew whose server went away. With the same seed it is written as it was before.
        SessionMismatchError if this server can't read its session: else it would be told as queued for ever."""
        assert stored.unread is not None
        self.state.host.factory.check(await self.state.host.info(session_id, self.tenant))
        body = ResponseRequest.model_validate(stored.unread.request)
        shape = await self._shape(body, stored.head["id"])
        recording = Recording(stored.head, stored.input, self.state.bundle.tokenizer, shape)
        lease = self.state.host.use(session_id, self.tenant)
        start = Unfinished(self.state, lease, stored.unread, shape)
        # Nobody else may have begun it meanwhile.
        return self.state.runs.get(self.tenant, stored.head["id"]) or self._run(body, start, recording)

    def _written(self, stored: Stored) -> tuple[list[Frame], dict[str, Any]]:
        form = Recording(stored.head, stored.input, self.state.bundle.tokenizer, PLAIN).form()
        return stored.frames(form), form.response

    async def _now(self, run: Run, id: str) -> dict[str, Any]:
        """The object of one that is under way, or has ended just now."""
        stored = (await self.find(id))[1]
        if stored.ended is not None:
            return self._written(stored)[1]
        return stored.head | {"status": "in_progress" if run.stream.started.is_set() else "queued"}


def new_id(route: str) -> str:
    """Of a response, never given out before; it begins with the route that the request came on, if there is one."""
    return f"resp_{route}{secrets.token_hex((32 - len(route)) // 2)}"


async def once(frames: Sequence[Frame]) -> AsyncIterator[Sequence[Frame]]:
    if frames:
        yield frames


def json(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
