"""/v1/conversations: create, inspect, change, delete; and their items."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from server.apis.api import Api
from server.apis.conversations.format import describe, summarize
from server.apis.conversations.protocol import (
    ConversationObject,
    CreateConversation,
    CreateItems,
    DeletedConversation,
    UpdateConversation,
)
from server.apis.conversations.service import Conversations
from server.apis.responses.lists import Order
from server.apis.responses.lists_protocol import ItemList, ListedItem
from server.apis.responses.protocol import Include
from server.apis.sessions.metadata import replace_metadata
from server.openapi import errors
from server.state import ServerState, accepting, state_of, tenant_of

router = APIRouter(prefix="/v1/conversations", tags=["conversations"], responses=errors(400, 401, 403, 500, 503))
State = Annotated[ServerState, Depends(state_of)]
Tenant = Annotated[str, Depends(tenant_of)]
Includes = Annotated[list[Include] | None, Query(alias="include[]")]


def conversations_of(state: State, tenant: Tenant) -> Conversations:
    return Conversations(state, tenant)


Service = Annotated[Conversations, Depends(conversations_of)]


@router.post("", dependencies=[Depends(accepting)], responses=errors(413, 415))
async def create_conversation(body: CreateConversation, service: Service) -> ConversationObject:
    """A new conversation, which is a session; its items are read at once."""
    return await service.create(body.items or [], body.metadata or {})


@router.get("/{conversation_id}", responses=errors(404))
async def retrieve_conversation(conversation_id: str, state: State, tenant: Tenant) -> ConversationObject:
    """The conversation: a session, whoever made it."""
    return summarize(await state.host.info(conversation_id, tenant))


@router.post("/{conversation_id}", dependencies=[Depends(accepting)], responses=errors(404, 410, 413, 415))
async def update_conversation(
    conversation_id: str, body: UpdateConversation, state: State, tenant: Tenant
) -> ConversationObject:
    """Replace the metadata."""
    return describe(await replace_metadata(state, tenant, conversation_id, dict(body.metadata)))


@router.delete("/{conversation_id}", responses=errors(404))
async def delete_conversation(conversation_id: str, state: State, tenant: Tenant) -> DeletedConversation:
    """Delete a conversation: its session, with all of its history."""
    await state.host.delete(conversation_id, tenant)
    return DeletedConversation(id=conversation_id)


@router.post("/{conversation_id}/items", dependencies=[Depends(accepting)], responses=errors(404, 410, 413, 415))
async def create_items(conversation_id: str, body: CreateItems, service: Service, include: Includes = None) -> ItemList:
    """Items behind all others. They are read, and nothing is generated."""
    return await service.append(conversation_id, body.items)


@router.get("/{conversation_id}/items", responses=errors(404, 410))
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


@router.get("/{conversation_id}/items/{item_id}", response_model=ListedItem, responses=errors(404, 410))
async def retrieve_item(conversation_id: str, item_id: str, service: Service, include: Includes = None) -> Any:
    """One item."""
    return await service.item(conversation_id, item_id)


@router.delete("/{conversation_id}/items/{item_id}", dependencies=[Depends(accepting)], responses=errors(404, 410))
async def delete_item(conversation_id: str, item_id: str, service: Service) -> ConversationObject:
    """Take the last item back; one that others follow stays (400)."""
    return await service.delete(conversation_id, item_id)


API = Api(router, tags={"conversations": "Sessions as OpenAI's clients see them: lists of items."})
