"""What goes into a response: items as clients send them, and as they are listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from server.protocol.parameters import Harmless
from server.protocol.strict import StrictModel
from server.templates.messages import Message

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


Content = str | Annotated[list[InputText], Field(min_length=1)]


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
        kind, more = "input_text", {}
        if self.role == "assistant":
            kind, more = "output_text", {"annotations": [], "logprobs": []}
        texts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        content = [{"type": kind, "text": text, **more} for text in texts]
        return {"id": id, "type": "message", "role": self.role, "status": "completed", "content": content}


def text_of(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


KINDS = {"message": "InputMessage"}
"""Types of items, and the classes that read them."""


def _kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return KINDS.get("message" if kind is None else kind)


InputItem = Annotated[
    Annotated[InputMessage, Tag("InputMessage")],
    Discriminator(
        _kind,
        custom_error_type="unsupported",
        custom_error_message="unless its type is one of " + ", ".join(KINDS),
    ),
]


def messages_of(items: str | Sequence[InputMessage]) -> list[Message]:
    """What a chat template is given."""
    if isinstance(items, str):
        return [Message("user", items)]
    return [Message("system" if item.role == "developer" else item.role, text_of(item.content)) for item in items]


def listed(items: str | Sequence[InputMessage], stem: str) -> list[dict[str, Any]]:
    """Items as a list shows them, with ids of their own."""
    if isinstance(items, str):
        items = [InputMessage(role="user", content=items)]
    return [item.listed(f"msg_{stem}i{number}") for number, item in enumerate(items)]
