"""Items as lists show them."""

from __future__ import annotations

from typing import Literal

from server.apis.responses.items_protocol import Status
from server.apis.responses.protocol import OutputCall, OutputText
from server.protocol.answers import Answer


class InputTextPart(Answer):
    type: Literal["input_text"]
    text: str


class ListedMessage(Answer):
    """A message; what the assistant said has parts of the type ``output_text``."""

    id: str
    type: Literal["message"]
    role: str
    status: Status
    content: list[InputTextPart | OutputText]


class ListedOutput(Answer):
    """What a call gave."""

    id: str
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputTextPart]
    status: Status


ListedItem = ListedMessage | OutputCall | ListedOutput


class ItemList(Answer):
    """``first_id`` and ``last_id``: of this page; ``last_id`` is ``after`` of the next one."""

    object: Literal["list"] = "list"
    data: list[ListedItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
