"""Bodies of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from mc_core.engine.requests import Delta, Finished, TokenLogprob
from mc_core.models.sampler import SamplingParams
from mc_core.models.tokenizer import Tokenizer
from server.chat_template import Message
from server.protocol.common import SamplingFields, context, usage
from server.protocol.parameters import ChatParameters, MessageParameters, PartParameters
from server.protocol.strict import WHOLE, Positive

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


class ChatFormat:
    """Writes one chat completion: as chunks, or whole."""

    def __init__(self, completion_id: str, created: int, model: str, tokenizer: Tokenizer) -> None:
        self.head = {"id": completion_id, "created": created, "model": model}
        self._tokenizer = tokenizer

    def opening(self) -> dict[str, Any]:
        """The first chunk: the role."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def delta(self, delta: Delta) -> dict[str, Any]:
        logprobs = self._logprobs(delta.logprobs) if delta.logprobs else None
        return self._chunk({"content": delta.text}, None, logprobs)

    def closing(self, finished: Finished, session_id: str | None) -> dict[str, Any]:
        """The chunk with the finish reason and the truth about the context."""
        chunk = self._chunk({}, finished.reason)
        chunk["x_megacontext"] = context(finished.context, session_id)
        return chunk

    def usage_chunk(self, finished: Sequence[Finished]) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": usage(finished)}

    def whole(
        self, text: str, logprobs: list[TokenLogprob], finished: Finished, session_id: str | None
    ) -> dict[str, Any]:
        """The body without its usage."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(tuple(logprobs)) if logprobs else None,
            "finish_reason": finished.reason,
        }
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [choice],
            "x_megacontext": context(finished.context, session_id),
        }

    def _chunk(
        self, delta: dict[str, Any], reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        return {
            "content": [
                {
                    **self._token(token.token_id, token.logprob),
                    "top_logprobs": [self._token(i, value) for i, value in token.top],
                }
                for token in tokens
            ],
            "refusal": None,
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._tokenizer.token_bytes(token_id)
        return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": max(logprob, -9999.0)}
