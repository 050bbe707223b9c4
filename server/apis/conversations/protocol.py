"""Bodies of /v1/conversations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from server.apis.responses.items_protocol import InputItem, check_storable
from server.apis.responses.protocol import Metadata
from server.protocol.answers import Answer, Count
from server.protocol.strict import StrictModel

MAX_NEW_ITEMS = 20


class StoredBody(StrictModel):
    @model_validator(mode="after")
    def _storable(self) -> StoredBody:
        check_storable(self)
        return self


class CreateConversation(StoredBody):
    items: Annotated[list[InputItem], Field(max_length=MAX_NEW_ITEMS)] | None = None
    metadata: Metadata | None = None


class UpdateConversation(StoredBody):
    metadata: Metadata


class CreateItems(StoredBody):
    items: Annotated[list[InputItem], Field(min_length=1, max_length=MAX_NEW_ITEMS)]


class ConversationObject(Answer):
    """A session, as a conversation. ``metadata`` holds texts alone where it was made as one."""

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: Count
    metadata: dict[str, Any]


class DeletedConversation(Answer):
    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: Literal[True] = True
