"""POST /v1/chat/completions."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response

from server.errors import bad_request
from server.openapi import TURN_ERRORS, errors, streamed
from server.protocol.answers import ChatCompletion, ChatCompletionChunk
from server.protocol.chat import ChatFormat, ChatRequest
from server.protocol.common import new_id, now
from server.routes.answer import answer, check_request, named_session
from server.sessions import Lease
from server.state import ServerState, accepting, state_of, tenant_of

router = APIRouter(dependencies=[Depends(accepting)], tags=["completions"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={**errors(409, *TURN_ERRORS), **streamed(ChatCompletionChunk)},
)
async def chat_completions(
    body: ChatRequest,
    request: Request,
    state: Annotated[ServerState, Depends(state_of)],
    tenant: Annotated[str, Depends(tenant_of)],
    x_session_id: Annotated[str | None, Header(max_length=128)] = None,
) -> Response:
    """A turn: in the session that is named, else in the one whose history the messages continue."""
    check_request(state, body)
    if state.template is None:
        raise bad_request("this model has no chat template; use /v1/completions", "model")
    state.template.check()
    messages = [message.plain() for message in body.messages]
    if messages[-1].role == "assistant":
        raise bad_request("the last message must not be the assistant's", "messages")
    sampling = body.params(state.sampling)
    session_id = await named_session(state, body, x_session_id, tenant)
    lease: AbstractAsyncContextManager[Lease]
    if session_id is not None:
        lease, prepare = state.host.use(session_id, tenant), state.turns.in_session(messages)
    elif body.store is False:
        lease, prepare = state.host.passing(tenant), state.turns.in_session(messages)
    else:
        lease, prepare = state.turns.by_messages(tenant, messages)
    completion_id = new_id("chatcmpl")
    stream = state.turns.start(lease, prepare, sampling, completion_id, "chat")
    form = ChatFormat(completion_id, now(), state.model_name, state.bundle.tokenizer)
    return await answer(state, request, [(stream, form)], body)
