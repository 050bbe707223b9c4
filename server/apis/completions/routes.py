"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Header, Request, Response

from mc_core.models.tokenizer import Tokenizer
from server.apis.answer import answer
from server.apis.api import Api
from server.apis.completions.format import CompletionFormat
from server.apis.completions.protocol import CompletionRequest, TextCompletion
from server.apis.condition import Expected
from server.apis.once import IdempotencyKey, LastEventID, once
from server.apis.prelude import check_request, named_session
from server.condition import NONE, Condition
from server.errors import bad_request
from server.once.call import Call
from server.openapi import TURN_ERRORS, errors, streamed
from server.protocol.common import new_id, now
from server.sessions.slots import Lease
from server.state import ServerState, accepting, state_of, tenant_of
from server.streaming.choice import Choice
from server.streaming.format import Format
from server.streaming.pieces import PlainReader
from server.streaming.turn_stream import TurnStream
from server.turns.service import Prepare, Prompt

router = APIRouter(dependencies=[Depends(accepting)], tags=["completions"])


@router.post(
    "/v1/completions",
    response_model=TextCompletion,
    responses={**errors(*TURN_ERRORS), **streamed(TextCompletion)},
)
async def completions(
    body: CompletionRequest,
    request: Request,
    state: Annotated[ServerState, Depends(state_of)],
    tenant: Annotated[str, Depends(tenant_of)],
    x_session_id: Annotated[str | None, Header(max_length=128)] = None,
    idempotency_key: IdempotencyKey = None,
    last_event_id: LastEventID = "",
    expected: Expected = NONE,
) -> Response:
    """Continue a text: at the end of a session's history, or by itself; or several texts, each by itself."""

    async def turns(call: Call) -> Response:
        return await _turns(body, request, state, tenant, x_session_id, expected, call)

    return await once(state, request, tenant, idempotency_key, turns, last_event=last_event_id)


async def _turns(
    body: CompletionRequest,
    request: Request,
    state: ServerState,
    tenant: str,
    header: str | None,
    expected: Condition,
    call: Call,
) -> Response:
    check_request(state, body)
    session_id = await named_session(state, body, header, tenant)
    call.needs_kept(session_id is not None, body.background)
    if session_id is None:
        expected.needs_session()
    _check_number(state, len(body.prompts), session_id)
    for prompt in body.prompts:
        _check_prompt(state, prompt)
    completion_id, created = new_id("cmpl"), now()
    sampling = body.params(state.sampling)
    state.turns.check_room(len(body.prompts))
    choices: list[Choice] = []
    for index, prompt in enumerate(body.prompts):
        lease = state.host.use(session_id, tenant, expected) if session_id is not None else state.host.passing(tenant)
        # Traces tell turns apart by their ids.
        turn_id = completion_id if len(body.prompts) == 1 else f"{completion_id}-{index}"
        form = partial(
            CompletionFormat,
            completion_id,
            created,
            state.model_name,
            state.bundle.tokenizer,
            index,
            include_usage=body.include_usage,
        )

        def tell(stream: TurnStream, form: Callable[[], Format] = form) -> Choice:
            return Choice(stream, form(), PlainReader())

        reads = call.prepares(_reads(state.bundle.tokenizer, prompt), tell)
        stream = state.turns.start(lease, reads, sampling, turn_id, "text_completion", call.watch, sources=body.sources)
        choices.append(tell(stream))
    return await answer(state, request, call, choices, stream=body.stream, background=body.background)


def _check_number(state: ServerState, prompts: int, session_id: str | None) -> None:
    """ApiError for more prompts than a session, or this server, can ever take at once."""
    if prompts > 1 and session_id is not None:
        raise bad_request("a session is continued by one prompt, not by a list of them", "prompt")
    if prompts > state.turns.most:
        raise bad_request(f"prompt holds {prompts} prompts, but this server takes {state.turns.most} at once", "prompt")


def _reads(tokenizer: Tokenizer, prompt: str | Sequence[int]) -> Prepare:
    """Ids as they are; a text as it begins a history, or goes on where one ends."""

    async def prepare(held: Lease) -> Prompt:
        if isinstance(prompt, str):
            encode = tokenizer.encode_more if held.session.tokens else tokenizer.encode_first
            ids = await asyncio.to_thread(encode, prompt)
        else:
            ids = np.array(prompt, np.int32)
        return Prompt(ids, np.empty(0, np.int32))

    return prepare


def _check_prompt(state: ServerState, prompt: str | Sequence[int]) -> None:
    if not prompt:
        raise bad_request("prompt must not be empty", "prompt")
    size = state.bundle.decoder.config.vocab_size
    if not isinstance(prompt, str) and max(prompt) >= size:
        raise bad_request(f"prompt holds token {max(prompt)}, but the vocabulary has {size}", "prompt")


API = Api(router, requests=(CompletionRequest,), events=(TextCompletion,))
