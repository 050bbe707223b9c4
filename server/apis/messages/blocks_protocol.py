"""What messages of Anthropic's clients consist of, and how they read as messages of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from server.protocol.kinds import ByType
from server.protocol.parameters import Harmless
from server.protocol.strict import Only, StrictModel
from server.templates.messages import Message
from server.tools.tool import ToolCall

BILLING = "x-anthropic-billing-header:"
"""Begins a system block that tells who pays. It changes with every request, and is no word to the model."""
MAX_ID = 256
CallId = Annotated[str, Field(min_length=1, max_length=MAX_ID)]


class TextBlock(StrictModel):
    type: Literal["text"]
    text: str
    cache_control: Harmless = None
    citations: Annotated[Any, Only([])] = None


Texts = str | list[Annotated[TextBlock, ByType()]]


class ToolUseBlock(StrictModel):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: CallId
    name: Annotated[str, Field(min_length=1, max_length=MAX_ID)]
    input: dict[str, Any]
    cache_control: Harmless = None
    caller: Harmless = None
    toolset_name: Annotated[Any, Only()] = None

    def plain(self) -> ToolCall:
        return ToolCall(self.id, self.name, json.dumps(self.input, ensure_ascii=False))


class ToolResultBlock(StrictModel):
    """What came of a call."""

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: Texts | None = None
    is_error: bool = False
    cache_control: Harmless = None
    toolset_name: Annotated[Any, Only()] = None

    def plain(self) -> Message:
        text = joined(self.content or "")
        return Message("tool", f"Error: {text}" if self.is_error else text, tool_call_id=self.tool_use_id)


class ThinkingBlock(StrictModel):
    """What a model thought before it answered. It is left out: a template shows no thoughts of earlier replies."""

    type: Literal["thinking", "redacted_thinking"]
    thinking: Harmless = None
    signature: Harmless = None
    data: Harmless = None


ContentBlock = Annotated[TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock, ByType()]
SPEAKERS = {"tool_use": "assistant", "thinking": "assistant", "redacted_thinking": "assistant", "tool_result": "user"}
"""Whose messages hold blocks of a type; text is everybody's."""


class MessageParam(StrictModel):
    """One message; the system's may stand among the others."""

    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]

    @model_validator(mode="after")
    def _belongs_to_its_role(self) -> MessageParam:
        for block in () if isinstance(self.content, str) else self.content:
            speaker = SPEAKERS.get(block.type, self.role)
            if speaker != self.role:
                raise ValueError(f"only messages of the role {speaker} hold blocks of the type {block.type}")
        return self

    def plain(self) -> Iterator[Message]:
        """One message, or several where results of calls stand beside words."""
        blocks = [] if isinstance(self.content, str) else self.content
        texts = [block for block in blocks if isinstance(block, TextBlock)]
        yield from (block.plain() for block in blocks if isinstance(block, ToolResultBlock))
        calls = tuple(block.plain() for block in blocks if isinstance(block, ToolUseBlock))
        if self.role == "assistant":
            # As the reply was written, so that the session that holds it is found.
            text = self.content if isinstance(self.content, str) else "".join(block.text for block in texts)
            yield Message("assistant", text, tool_calls=calls)
        elif texts or isinstance(self.content, str):
            yield Message(self.role, joined(self.content if isinstance(self.content, str) else texts))


def conversation(system: Texts | None, messages: Sequence[MessageParam]) -> list[Message]:
    """The messages of a request; neighbours of one speaker are one message, as Anthropic has it."""
    if isinstance(system, list):
        system = joined([block for block in system if not block.text.startswith(BILLING)])
    told = [Message("system", system)] if system else []
    for message in (plain for one in messages for plain in one.plain()):
        if told and message.role in ("user", "assistant") and message.role == told[-1].role:
            told[-1] = _together(told[-1], message)
        else:
            told.append(message)
    return told


def joined(content: Texts) -> str:
    """Blocks are paragraphs of their own."""
    return content if isinstance(content, str) else "\n\n".join(block.text for block in content)


def _together(one: Message, other: Message) -> Message:
    between = "" if one.role == "assistant" else "\n\n"
    calls = (*one.tool_calls, *other.tool_calls)
    return Message(one.role, one.content + between + other.content, tool_calls=calls)
