"""/v1/responses: create, retrieve, stream again, cancel, delete, list the input."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from server.apis.api import Api
from server.apis.condition import Expected
from server.apis.once import IdempotencyKey, LastEventID, once
from server.apis.responses.lists import Order, page
from server.apis.responses.lists_protocol import ItemList
from server.apis.responses.protocol import (
    DeletedResponse,
    Include,
    ResponseEvent,
    ResponseObject,
    ResponseRequest,
)
from server.apis.responses.service import Responses
from server.condition import NONE
from server.errors import bad_request
from server.once.call import Call
from server.openapi import TURN_ERRORS, errors, typed_events
from server.state import ServerState, accepting, state_of, tenant_of

router = APIRouter(prefix="/v1/responses", tags=["responses"])


async def responses_of(
    state: Annotated[ServerState, Depends(state_of)], tenant: Annotated[str, Depends(tenant_of)]
) -> Responses:
    return Responses(state, tenant)


Service = Annotated[Responses, Depends(responses_of)]
Number = Annotated[int, Query(ge=0)]


@router.post(
    "",
    dependencies=[Depends(accepting)],
    response_model=ResponseObject,
    responses={**errors(*TURN_ERRORS), **typed_events(ResponseEvent)},
)
async def create_response(
    body: ResponseRequest,
    request: Request,
    service: Service,
    x_session_id: Annotated[str | None, Header(max_length=128)] = None,
    idempotency_key: IdempotencyKey = None,
    last_event_id: LastEventID = "",
    expected: Expected = NONE,
) -> Response:
    """A turn: behind an earlier response, in a conversation, or in the session whose history the input continues."""

    async def turn(call: Call) -> Response:
        return await service.create(request, body, x_session_id, expected, call)

    async def again(id: str) -> Response:
        return await service.show(id, stream=body.stream, after=None)

    return await once(service.state, request, service.tenant, idempotency_key, turn, again, last_event_id)


@router.get(
    "/{response_id}",
    response_model=ResponseObject,
    responses={**errors(*TURN_ERRORS), **typed_events(ResponseEvent)},
)
async def retrieve_response(
    response_id: str,
    service: Service,
    stream: bool = False,
    starting_after: Number | None = None,
    include: Annotated[list[Include] | None, Query(alias="include[]")] = None,
    include_obfuscation: bool = False,
) -> Response:
    """The response as it is now; with ``stream`` its events, those behind ``starting_after`` alone."""
    if include_obfuscation:
        raise bad_request("streams are not padded by this server", "include_obfuscation", "unsupported_parameter")
    if starting_after is not None and not stream:
        raise bad_request("starting_after is only allowed when stream is true", "starting_after")
    return await service.show(response_id, stream=stream, after=starting_after)


@router.delete("/{response_id}", responses=errors(401, 403, 404, 409, 500, 503))
async def delete_response(response_id: str, service: Service) -> DeletedResponse:
    """Forget the response; what was said stays a part of its session's history."""
    await service.delete(response_id)
    return DeletedResponse(id=response_id)


@router.post("/{response_id}/cancel", response_model=ResponseObject, responses=errors(*TURN_ERRORS))
async def cancel_response(response_id: str, service: Service) -> Response:
    """Stop a response in the background."""
    return await service.cancel(response_id)


@router.get("/{response_id}/input_items", responses=errors(400, 401, 403, 404, 500, 503))
async def list_input_items(
    response_id: str,
    service: Service,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
    after: Annotated[str | None, Query(max_length=200)] = None,
    include: Annotated[list[Include] | None, Query(alias="include[]")] = None,
) -> ItemList:
    """What the request gave to read, newest first."""
    return page(await service.items(response_id), limit, order, after)


API = Api(
    router,
    tags={"responses": "Replies that are kept, gone on from, and streamed again."},
    requests=(ResponseRequest,),
    events=(ResponseEvent,),
)
