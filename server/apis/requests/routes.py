"""POST /v1/requests/cancel: for clients who leave a turn that would wait for them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from server.apis.api import Api
from server.apis.requests.protocol import CancelledRequest, CancelRequest
from server.errors import turn_cancelled
from server.once.kept import Asked
from server.openapi import errors
from server.state import ServerState, state_of, tenant_of

router = APIRouter(prefix="/v1/requests", tags=["requests"], responses=errors(400, 401, 403, 413, 415))


@router.post("/cancel")
async def cancel_request(
    body: CancelRequest, state: Annotated[ServerState, Depends(state_of)], tenant: Annotated[str, Depends(tenant_of)]
) -> CancelledRequest:
    """Stop the turn of a request by its Idempotency-Key, if it runs here; nothing of it stays."""
    return CancelledRequest(cancelled=state.book.cancel(tenant, Asked.of(body.idempotency_key), turn_cancelled()))


API = Api(router, tags={"requests": "Requests that were sent with an Idempotency-Key."})
