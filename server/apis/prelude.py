"""What every request for a turn goes through before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from server.condition import NONE, Condition
from server.errors import bad_request, not_found
from server.protocol.common import DrawingFields
from server.sessions.slots import Lease
from server.state import ServerState
from server.templates.messages import Message
from server.tools.shape import PLAIN, Shape
from server.turns.service import Prepare

Start = tuple[AbstractAsyncContextManager[Lease], Prepare]
"""The session that a turn takes, and how it reads its prompt there."""


def check_model(state: ServerState, model: str) -> None:
    """ApiError 404 for a model that is not served here."""
    if model not in state.model_names:
        raise not_found(
            f"the model {model!r} does not exist; this server has {state.model_name!r}", "model_not_found", "model"
        )


def check_request(state: ServerState, body: DrawingFields) -> None:
    """ApiError for what only the model can tell to be wrong."""
    check_model(state, body.model)
    size = state.bundle.decoder.config.vocab_size
    strange = [token for token in body.biases if not 0 <= token < size]
    if strange:
        raise bad_request(f"logit_bias names token {strange[0]}, but the vocabulary has {size}", "logit_bias")
    strange = [token for token in body.stop_token_ids or [] if token >= size]
    if strange:
        raise bad_request(f"stop_token_ids names token {strange[0]}, but the vocabulary has {size}", "stop_token_ids")


async def named_session(state: ServerState, body: DrawingFields, header: str | None, tenant: str) -> str | None:
    """The session that a request names, in its body or by X-Session-ID; None if it names none.

    ApiError if the two differ, if there is no such session, or if nothing is to be kept of what goes into it.
    """
    if body.session_id and header and body.session_id != header:
        raise bad_request("session_id and X-Session-ID name different sessions", "session_id")
    session_id = body.session_id or header
    if session_id is not None:
        if body.store is False:
            raise bad_request(
                "store false keeps nothing, but session_id names a session that is kept: give one of them", "store"
            )
        await state.host.known(session_id, tenant)
    return session_id


def check_chat(state: ServerState, otherwise: str = "use /v1/completions") -> None:
    """ApiError 400 for a model that knows no chat."""
    if state.template is None:
        raise bad_request(f"this model has no chat template; {otherwise}", "model")
    state.template.check()


def by_messages(
    state: ServerState,
    tenant: str,
    messages: Sequence[Message],
    session_id: str | None,
    *,
    store: bool,
    shape: Shape = PLAIN,
    expected: Condition = NONE,
) -> Start:
    """In the session that is named, else in the one whose history the messages continue; in none that stays without
    ``store``. shape: the reply's; ``TurnService.start`` wants it too."""
    if session_id is not None:
        return state.host.use(session_id, tenant, expected), state.turns.in_session(messages, shape=shape)
    expected.needs_session()
    if not store:
        return state.host.passing(tenant), state.turns.in_session(messages, shape=shape)
    return state.turns.by_messages(tenant, messages, shape=shape)
