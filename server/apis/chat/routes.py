"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response

from server.apis.answer import answer
from server.apis.api import Api
from server.apis.chat.format import ChatFormat
from server.apis.chat.protocol import ChatCompletion, ChatCompletionChunk, ChatRequest
from server.apis.chat.tools_protocol import json_form, tool_use
from server.apis.condition import Expected
from server.apis.once import IdempotencyKey, LastEventID, once
from server.apis.prelude import by_messages, check_chat, check_request, named_session
from server.condition import NONE, Condition
from server.errors import bad_request
from server.once.call import Call
from server.openapi import TURN_ERRORS, errors, streamed
from server.protocol.common import new_id, now
from server.state import ServerState, accepting, state_of, tenant_of
from server.streaming.choice import Choice
from server.streaming.turn_stream import TurnStream

router = APIRouter(dependencies=[Depends(accepting)], tags=["completions"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={**errors(*TURN_ERRORS), **streamed(ChatCompletionChunk)},
)
async def chat_completions(
    body: ChatRequest,
    request: Request,
    state: Annotated[ServerState, Depends(state_of)],
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
    body: ChatRequest,
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
    messages = [message.plain() for message in body.messages]
    if messages[-1].role == "assistant":
        raise bad_request("the last message must not be the assistant's", "messages")
    sampling = body.params(state.sampling)
    session_id = await named_session(state, body, header, tenant)
    use = tool_use(body.tools, body.tool_choice, body.parallel_tool_calls)
    shape = await state.shaper.shape(use, json_form(body.response_format))
    lease, prepare = by_messages(
        state, tenant, messages, session_id, store=body.store is not False, shape=shape, expected=expected
    )
    completion_id, created = new_id("chatcmpl"), now()

    def tell(stream: TurnStream) -> Choice:
        form = ChatFormat(
            completion_id,
            created,
            state.model_name,
            state.bundle.tokenizer,
            include_usage=body.include_usage,
            may_call=bool(use and use.callable),
        )
        return Choice(stream, form, shape.reader())

    prepare = call.prepares(prepare, tell)
    stream = state.turns.start(
        lease, prepare, sampling, completion_id, "chat", call.watch, sources=body.sources, shape=shape
    )
    return await answer(state, request, call, [tell(stream)], stream=body.stream, background=body.background)


API = Api(
    router,
    tags={"completions": "Chat and text completions, whole or streamed."},
    requests=(ChatRequest,),
    events=(ChatCompletionChunk,),
)
