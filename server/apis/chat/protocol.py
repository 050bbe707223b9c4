"""Bodies of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from mc_core.models.sampler import SamplingParams
from server.apis.chat.tools_protocol import (
    AnsweredCall,
    CallDelta,
    CallId,
    CallInMessage,
    Choice,
    ReplyFormat,
    Tools,
)
from server.protocol.answers import Answer, Context, Count, UsageTokens
from server.protocol.common import SamplingFields
from server.protocol.kinds import ByType
from server.protocol.parameters import ChatParameters, MessageParameters, PartParameters
from server.protocol.strict import WHOLE, Positive, wrong
from server.templates.chat_template import Message
from server.tools.tool import MAX_TOOLS

MAX_MESSAGES = 10_000
MAX_NAME = 256


class TextPart(PartParameters):
    type: Literal["text"]
    text: str


class ChatMessage(MessageParameters):
    """A message; ``developer`` reads as ``system``. One of the assistant may hold calls of tools, which messages of the
    role ``tool`` answer."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Annotated[TextPart, ByType()]] | None = None
    name: str | None = Field(None, min_length=1, max_length=MAX_NAME)
    tool_calls: Annotated[list[CallInMessage], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: CallId | None = None

    @model_validator(mode="before")
    @classmethod
    def _says_something(cls, data: Any) -> Any:
        # What a reply holds instead, a refusal for one, is refused by its name.
        others = (*MessageParameters.model_fields, "content", "tool_calls")
        if not isinstance(data, dict) or any(data.get(name) for name in others):
            return data
        if data.get("content") is None:
            raise PydanticCustomError(
                "no_content", "a message needs content, or calls of tools if it is the assistant's"
            )
        return data

    @model_validator(mode="after")
    def _belongs_to_its_role(self) -> ChatMessage:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only messages of the assistant hold tool_calls")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise ValueError("messages of the role tool have a tool_call_id, and no others")
        return self

    def plain(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        calls = tuple(call.plain() for call in self.tool_calls or ())
        role = "system" if self.role == "developer" else self.role
        return Message(role, text, self.name, calls, self.tool_call_id)


class ChatRequest(SamplingFields, ChatParameters):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    tools: Tools | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ReplyFormat | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs", "top_logprobs needs logprobs to be true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise wrong("max_tokens", "give max_tokens or max_completion_tokens, not both")
        return self

    @property
    def reply_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def params(self, default: SamplingParams) -> SamplingParams:
        return self.sampling(default, (self.top_logprobs or 0) if self.logprobs else None)


class TopLogprob(Answer):
    token: str
    bytes: list[Annotated[int, Field(ge=0, le=255)]]
    logprob: float


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    content: list[ChatLogprob]
    refusal: None


class ReplyMessage(Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[AnsweredCall] | None = None


class ChatChoice(Answer):
    index: Count
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    choices: list[ChatChoice]
    usage: UsageTokens
    x_megacontext: Context


class DeltaMessage(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChunkChoice(Answer):
    index: Count
    delta: DeltaMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatCompletionChunk(Answer):
    """One event of a stream. The last with a choice has ``x_megacontext``; ``usage`` comes alone, if asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: Count
    model: str
    choices: list[ChunkChoice]
    usage: UsageTokens | None = None
    x_megacontext: Context | None = None
