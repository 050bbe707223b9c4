"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Header, Request, Response

from mc_core.models.tokenizer import Tokenizer
from server.errors import bad_request
from server.protocol.common import new_id, now
from server.protocol.completions import CompletionFormat, CompletionRequest
from server.routes.answer import answer, check_request, check_store
from server.sessions import Lease
from server.state import ServerState, accepting, state_of, tenant_of
from server.turns import Prepare, Prompt

router = APIRouter(dependencies=[Depends(accepting)])


@router.post("/v1/completions", response_model=None)
async def completions(
    body: CompletionRequest,
    request: Request,
    state: Annotated[ServerState, Depends(state_of)],
    tenant: Annotated[str, Depends(tenant_of)],
    x_session_id: Annotated[str | None, Header(max_length=128)] = None,
) -> Response:
    """Continue a text: at the end of a session's history, or by itself."""
    check_request(state, body)
    session_id = body.session_id or x_session_id
    check_store(body, session_id)
    _check_prompt(state, body.prompt)
    if session_id is not None:
        await state.host.known(session_id, tenant)
        lease = state.host.use(session_id, tenant)
    else:
        lease = state.host.passing(tenant)
    completion_id = new_id("cmpl")
    sampling = body.params(state.settings.max_tokens)
    prepare = _reads(state.bundle.tokenizer, body.prompt)
    stream = state.turns.start(lease, prepare, sampling, completion_id, "text_completion")
    form = CompletionFormat(completion_id, now(), state.model_name, state.bundle.tokenizer)
    return await answer(state, request, stream, form, body)


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
