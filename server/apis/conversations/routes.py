"""/v1/conversations: create, inspect, change, delete; and their items."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from server.apis.api import Api
from server.apis.condition import Expected
from server.apis.conversations.format import describe, summarize
from server.apis.conversations.protocol import (
    ConversationObject,
    CreateConversation,
    CreateItems,
    DeletedConversation,
    UpdateConversation,
)
from server.apis.conversations.service import Conversations
from server.apis.once import IdempotencyKey, once
from server.apis.responses.lists import Order
from server.apis.responses.lists_protocol import ItemList, ListedItem
from server.apis.responses.protocol import Include
from server.apis.sessions.change import change
from server.condition import NONE, etag
from server.once.call import Call
from server.openapi import errors
from server.state import ServerState, accepting, state_of, tenant_of

router = APIRouter(prefix="/v1/conversations", tags=["conversations"], responses=errors(400, 401, 403, 500, 503))
State = Annotated[ServerState, Depends(state_of)]
Tenant = Annotated[str, Depends(tenant_of)]
Includes = Annotated[list[Include] | None, Query(alias="include[]")]


async def conversations_of(state: State, tenant: Tenant) -> Conversations:
    return Conversations(state, tenant)


Service = Annotated[Conversations, Depends(conversations_of)]


@router.post("", dependencies=[Depends(accepting)], responses=errors(413, 415))
async def create_conversation(body: CreateConversation, service: Service, response: Response) -> ConversationObject:
    """A new conversation, which is a session; its items are read at once."""
    session = await service.create(body.items or [], body.metadata or {})
    response.headers["ETag"] = etag(session.sequence)
    return describe(session)


@router.get("/{conversation_id}", responses=errors(404))
async def retrieve_conversation(
    conversation_id: str, state: State, tenant: Tenant, response: Response
) -> ConversationObject:
    """The conversation: a session, whoever made it."""
    info = await state.host.info(conversation_id, tenant)
    response.headers["ETag"] = etag(info.sequence)
    return summarize(info)


@router.post("/{conversation_id}", dependencies=[Depends(accepting)], responses=errors(404, 409, 410, 412, 413, 415))
async def update_conversation(
    conversation_id: str,
    body: UpdateConversation,
    state: State,
    tenant: Tenant,
    response: Response,
    expected: Expected = NONE,
) -> ConversationObject:
    """Replace the metadata."""
    session = await change(state, tenant, conversation_id, {"metadata": dict(body.metadata)}, expected)
    response.headers["ETag"] = etag(session.sequence)
    return describe(session)


@router.delete("/{conversation_id}", responses=errors(404))
async def delete_conversation(conversation_id: str, state: State, tenant: Tenant) -> DeletedConversation:
    """Delete a conversation: its session, with all of its history."""
    await state.host.delete(conversation_id, tenant)
    return DeletedConversation(id=conversation_id)


@router.post(
    "/{conversation_id}/items",
    dependencies=[Depends(accepting)],
    response_model=ItemList,
    responses=errors(404, 409, 410, 412, 413, 415),
)
async def create_items(
    conversation_id: str,
    body: CreateItems,
    request: Request,
    service: Service,
    include: Includes = None,
    idempotency_key: IdempotencyKey = None,
    expected: Expected = NONE,
) -> Response:
    """Items behind all others. They are read, and nothing is generated."""

    async def add(call: Call) -> Response:
        return await service.append(conversation_id, body.items, expected, call)

    return await once(service.state, request, service.tenant, idempotency_key, add)


@router.get("/{conversation_id}/items", responses=errors(404, 409, 410))
async def list_items(
    conversation_id: str,
    service: Service,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
    after: Annotated[str | None, Query(max_length=200)] = None,
    include: Includes = None,
) -> ItemList:
    """The items of all messages, newest first, whoever brought them."""
    return await service.page(conversation_id, limit, order, after)


@router.get("/{conversation_id}/items/{item_id}", response_model=ListedItem, responses=errors(404, 409, 410))
async def retrieve_item(conversation_id: str, item_id: str, service: Service, include: Includes = None) -> Any:
    """One item."""
    return await service.item(conversation_id, item_id)


@router.delete(
    "/{conversation_id}/items/{item_id}", dependencies=[Depends(accepting)], responses=errors(404, 409, 410, 412)
)
async def delete_item(
    conversation_id: str, item_id: str, service: Service, response: Response, expected: Expected = NONE
) -> ConversationObject:
    """Take the last item back; one that others follow stays (400)."""
    session = await service.delete(conversation_id, item_id, expected)
    response.headers["ETag"] = etag(session.sequence)
    return describe(session)


API = Api(router, tags={"conversations": "Sessions as OpenAI's clients see them: lists of items."})
