"""POST /v1/completions."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Header, Request, Response

from server.errors import bad_request
from server.protocol.common import new_id, now
from server.protocol.completions import CompletionFormat, CompletionRequest
from server.routes.answer import answer, check_request, check_store
from server.sessions import Lease
from server.state import ServerState, accepting, state_of, tenant_of
from server.turns import Prompt

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
    ids = _prompt_ids(state, body)
    if session_id is not None:
        await state.host.known(session_id, tenant)
        lease = state.host.use(session_id, tenant)
    else:
        lease = state.host.passing(tenant)

    async def prepare(held: Lease) -> Prompt:
        return Prompt(ids, np.empty(0, np.int32))

    completion_id = new_id("cmpl")
    sampling = body.params(state.settings.max_tokens)
    stream = state.turns.start(lease, prepare, sampling, completion_id, "text_completion")
    form = CompletionFormat(completion_id, now(), state.model_name, state.bundle.tokenizer)
    return await answer(state, request, stream, form, body)


def _prompt_ids(state: ServerState, body: CompletionRequest) -> np.ndarray:
    tokenizer = state.bundle.tokenizer
    if isinstance(body.prompt, str):
        ids = tokenizer.encode(body.prompt)
    else:
        size = state.bundle.decoder.config.vocab_size
        if max(body.prompt) >= size:
            raise bad_request(f"prompt holds token {max(body.prompt)}, but the vocabulary has {size}", "prompt")
        ids = np.array(body.prompt, np.int32)
    if not len(ids):
        raise bad_request("prompt must not be empty", "prompt")
    return ids
