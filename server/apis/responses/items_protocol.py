"""What goes into a response: items as clients send them, and as they are listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, Field

from server.protocol.kinds import ByType
from server.protocol.parameters import Harmless
from server.protocol.strict import StrictModel
from server.templates.messages import Message
from server.tools.tool import NAME, ToolCall

MAX_ITEMS = 10_000
MAX_ID = 200
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
Status = Literal["in_progress", "completed", "incomplete"]


class InputText(StrictModel):
    """A part of an item's content: words, whoever said them."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Harmless = None
    logprobs: Harmless = None


Content = str | Annotated[list[Annotated[InputText, ByType()]], Field(min_length=1)]


class InputMessage(StrictModel):
    """A message; ``developer`` reads as ``system``."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: Id | None = None
    status: Status | None = None
    phase: Harmless = None

    def listed(self, id: str) -> dict[str, Any]:
        """As a list of items shows it."""
        texts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        return message_item(id, self.role, texts)


class FunctionCallItem(StrictModel):
    """A call that the assistant made, as it was answered. arguments: JSON text."""

    type: Literal["function_call"]
    call_id: Id
    name: Annotated[str, Field(pattern=NAME)]
    arguments: str
    id: Id | None = None
    status: Status | None = None

    def listed(self, id: str) -> dict[str, Any]:
        return call_item(id, self.call_id, self.name, self.arguments)


class FunctionOutputItem(StrictModel):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Id
    output: Content
    id: Id | None = None
    status: Status | None = None

    def listed(self, id: str) -> dict[str, Any]:
        return output_item(id, self.call_id, text_of(self.output))


def message_item(id: str, role: str, texts: Sequence[str], status: Status = "completed") -> dict[str, Any]:
    """A message as lists show it."""
    kind, more = "input_text", dict[str, Any]()
    if role == "assistant":
        kind, more = "output_text", {"annotations": [], "logprobs": []}
    content = [{"type": kind, "text": text, **more} for text in texts]
    return {"id": id, "type": "message", "role": role, "status": status, "content": content}


def call_item(id: str, call_id: str, name: str, arguments: str, status: Status = "completed") -> dict[str, Any]:
    told = {"call_id": call_id, "name": name, "arguments": arguments}
    return {"id": id, "type": "function_call", **told, "status": status}


def output_item(id: str, call_id: str, output: str | list[Any]) -> dict[str, Any]:
    told = {"call_id": call_id, "output": output}
    return {"id": id, "type": "function_call_output", **told, "status": "completed"}


Item = InputMessage | FunctionCallItem | FunctionOutputItem


def text_of(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}
"""Of their ids."""


InputItem = Annotated[Item, ByType()]


def check_storable(body: BaseModel) -> None:
    """ValueError for a body that holds what cannot be written as JSON again."""
    try:
        orjson.dumps(body.model_dump(exclude_unset=True))
    except TypeError:
        raise ValueError("a text cannot be stored: it holds half of a surrogate pair, or a number too large") from None


def messages_of(items: str | Sequence[Item]) -> list[Message]:
    """What a chat template is given. Calls belong to the assistant's message right before them."""
    if isinstance(items, str):
        return [Message("user", items)]
    messages: list[Message] = []
    for item in items:
        match item:
            case InputMessage(role=role, content=content):
                messages.append(Message("system" if role == "developer" else role, text_of(content)))
            case FunctionOutputItem(call_id=call_id, output=output):
                messages.append(Message("tool", text_of(output), tool_call_id=call_id))
            case FunctionCallItem():
                if not messages or messages[-1].role != "assistant":
                    messages.append(Message("assistant", ""))
                call = ToolCall(item.call_id, item.name, item.arguments)
                messages[-1] = replace(messages[-1], tool_calls=(*messages[-1].tool_calls, call))
    return messages


def listed(items: str | Sequence[Item], stem: str) -> list[dict[str, Any]]:
    """Items as a list shows them, with ids of their own."""
    if isinstance(items, str):
        items = [InputMessage(role="user", content=items)]
    return [item.listed(f"{PREFIXES[item.type]}_{stem}i{number}") for number, item in enumerate(items)]
