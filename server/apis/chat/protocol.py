"""Bodies of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from mc_core.models.sampler import SamplingParams
from server.protocol.answers import Answer, Context, Count, UsageTokens
from server.protocol.common import SamplingFields
from server.protocol.parameters import ChatParameters, MessageParameters, PartParameters
from server.protocol.strict import WHOLE, Positive
from server.templates.chat_template import Message

MAX_MESSAGES = 10_000
MAX_NAME = 256


class TextPart(PartParameters):
    type: Literal["text"]
    text: str


class ChatMessage(MessageParameters):
    """A text message; ``developer`` reads as ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = Field(None, min_length=1, max_length=MAX_NAME)

    @model_validator(mode="before")
    @classmethod
    def _says_something(cls, data: Any) -> Any:
        # What a reply holds instead, a tool call for one, is refused by its name.
        empty = isinstance(data, dict) and not any(
            data.get(name) for name in (*MessageParameters.model_fields, "content")
        )
        if empty and data.get("role") == "assistant" and data.get("content") is None:
            raise PydanticCustomError("no_content", "a message of the assistant needs content; it cannot call tools")
        return data

    def plain(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text, self.name)


class ChatRequest(SamplingFields, ChatParameters):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("give max_tokens or max_completion_tokens, not both")
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
    content: str
    refusal: None


class ChatChoice(Answer):
    index: Count
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


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


class ChunkChoice(Answer):
    index: Count
    delta: DeltaMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatCompletionChunk(Answer):
    """One event of a stream. The last with a choice has ``x_megacontext``; ``usage`` comes alone, if asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: Count
    model: str
    choices: list[ChunkChoice]
    usage: UsageTokens | None = None
    x_megacontext: Context | None = None
