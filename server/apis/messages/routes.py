"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response

from server.apis.answer import answer
from server.apis.api import Api
from server.apis.condition import Expected
from server.apis.messages.blocks_protocol import conversation
from server.apis.messages.format import MessageFormat, error_body
from server.apis.messages.named import in_named
from server.apis.messages.protocol import (
    CountRequest,
    InputTokens,
    MessageEvent,
    MessageObject,
    MessagesError,
    MessagesInput,
    MessagesRequest,
)
from server.apis.once import IdempotencyKey, LastEventID, once
from server.apis.prelude import by_messages, check_chat, check_model, check_request, named_session
from server.condition import NONE, Condition
from server.errors import bad_request
from server.grammar.grammars import JsonForm
from server.once.call import Call
from server.openapi import TURN_ERRORS, errors, typed_events
from server.protocol.common import new_id
from server.state import ServerState, accepting, state_of, tenant_of
from server.streaming.choice import Choice
from server.streaming.turn_stream import TurnStream
from server.templates.messages import Message
from server.tools.shape import Shape

router = APIRouter(tags=["messages"])
State = Annotated[ServerState, Depends(state_of)]


@router.post(
    "/v1/messages",
    dependencies=[Depends(accepting)],
    response_model=MessageObject,
    responses={**errors(*TURN_ERRORS, model=MessagesError), **typed_events(MessageEvent)},
)
async def create_message(
    body: MessagesRequest,
    request: Request,
    state: State,
    tenant: Annotated[str, Depends(tenant_of)],
    x_session_id: Annotated[str | None, Header(max_length=128)] = None,
    idempotency_key: IdempotencyKey = None,
    last_event_id: LastEventID = "",
    expected: Expected = NONE,
) -> Response:
    """A turn: in the session that is named, else in the one whose history the messages continue."""

    async def turn(call: Call) -> Response:
        return await _turn(body, request, state, tenant, x_session_id, expected, call)

    return await once(state, request, tenant, idempotency_key, turn, last_event=last_event_id)


async def _turn(
    body: MessagesRequest,
    request: Request,
    state: ServerState,
    tenant: str,
    header: str | None,
    expected: Condition,
    call: Call,
) -> Response:
    call.needs_kept(body.store is not False, body.background)
    check_request(state, body)
    check_chat(state)
    told, sampling = _conversation(body), body.params(state.sampling)
    session_id = await named_session(state, body, header, tenant)
    shape = await _shape(state, body)
    lease, prepare = by_messages(
        state, tenant, told, session_id, store=body.store is not False, shape=shape, expected=expected
    )
    if session_id is not None:
        prepare = in_named(state, told, shape)
    message_id = new_id("msg")

    def tell(stream: TurnStream) -> Choice:
        return Choice(stream, MessageFormat(message_id, state.model_name), shape.reader())

    prepare = call.prepares(prepare, tell)
    stream = state.turns.start(
        lease, prepare, sampling, message_id, "chat", call.watch, shape=shape, sources=body.sources
    )
    return await answer(state, request, call, [tell(stream)], stream=body.stream, background=body.background)


@router.post("/v1/messages/count_tokens", responses=errors(*TURN_ERRORS, model=MessagesError))
async def count_tokens(body: CountRequest, state: State, tenant: Annotated[str, Depends(tenant_of)]) -> InputTokens:
    """Tokens that the model would be asked with, as its template writes the messages and the tools."""
    check_model(state, body.model)
    check_chat(state)
    told, shape = _conversation(body), await _shape(state, body)
    return InputTokens(input_tokens=await asyncio.to_thread(state.turns.count, told, shape))


def _conversation(body: MessagesInput) -> list[Message]:
    told = conversation(body.system, body.messages)
    if not told:
        raise bad_request("'messages': nothing is said in them", "messages")
    if told[-1].role == "assistant":
        raise bad_request(
            "'messages': the last message must not be the assistant's, for no reply goes on where one was begun",
            "messages",
        )
    return told


async def _shape(state: ServerState, body: MessagesInput) -> Shape:
    format = body.output_config.format if body.output_config else None
    form = None if format is None else JsonForm(format.json_schema, "output_config.format.schema")
    return await state.shaper.shape(body.tool_use(), form)


API = Api(
    router,
    tags={"messages": "Turns as Anthropic's clients ask for them."},
    requests=(MessagesRequest, CountRequest),
    events=(MessageEvent,),
    error_prefix="/v1/messages",
    error_body=error_body,
)
