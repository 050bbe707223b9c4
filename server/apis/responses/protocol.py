"""Bodies of /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mc_core.models.sampler import SamplingParams
from server.apis.responses.items_protocol import MAX_ID, MAX_ITEMS, Id, InputItem, Status, check_storable
from server.apis.responses.tools_protocol import Choice, TextSettings, Tools
from server.protocol.answers import Answer, Context, Count
from server.protocol.common import DrawingFields
from server.protocol.parameters import Harmless
from server.protocol.strict import WHOLE, Only, Positive, StrictModel, wrong

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
Include = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]
Percent = Annotated[int, Field(ge=0, le=20), WHOLE]


class ConversationName(StrictModel):
    id: Id


class ResponseStreamOptions(StrictModel):
    include_obfuscation: Annotated[Any, Only(False)] = None


class Reasoning(StrictModel):
    """No model here thinks apart from its reply."""

    effort: Annotated[Any, Only("none")] = None
    summary: Annotated[Any, Only()] = None
    generate_summary: Annotated[Any, Only()] = None
    context: Annotated[Any, Only()] = None
    mode: Annotated[Any, Only()] = None


class ResponseParameters(StrictModel):
    """OpenAI's parameters that this server has no use for."""

    max_tool_calls: Harmless = None
    prompt_cache_key: Harmless = None
    prompt_cache_options: Harmless = None
    prompt_cache_retention: Harmless = None
    safety_identifier: Harmless = None
    service_tier: Harmless = None
    user: Harmless = None

    access_programs: Annotated[Any, Only()] = None
    background_options: Annotated[Any, Only()] = None
    context_management: Annotated[Any, Only([])] = None
    image: Annotated[Any, Only()] = None
    moderation: Annotated[Any, Only()] = None
    prompt: Annotated[Any, Only()] = None
    reasoning: Reasoning | None = None


class ResponseRequest(DrawingFields, ResponseParameters):
    """A turn, and what is kept of it."""

    input: Annotated[str, Field(min_length=1)] | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_ITEMS)]
    instructions: str | None = None
    previous_response_id: Id | None = None
    conversation: Annotated[str, Field(min_length=1, max_length=MAX_ID)] | ConversationName | None = None
    background: bool = False
    max_output_tokens: Positive | None = None
    metadata: Metadata | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    text: TextSettings | None = None
    tools: Tools | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Percent | None = None
    include: list[Include] | None = None
    stream_options: ResponseStreamOptions | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ResponseRequest:
        if self.previous_response_id and (self.conversation or self.session_id):
            raise wrong("previous_response_id", "give previous_response_id or conversation, not both")
        if self.conversation and self.session_id and self.conversation_id != self.session_id:
            raise wrong("conversation", "conversation and session_id name different sessions")
        if self.store is False and (self.conversation or self.session_id):
            raise wrong("store", "store false keeps nothing, but a conversation is kept: give one of them")
        if self.store is False and self.background:
            raise wrong("background", "background needs store to be true, for the response is asked for later")
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "stream_options is only allowed when stream is true")
        check_storable(self)
        return self

    @property
    def conversation_id(self) -> str | None:
        return self.conversation.id if isinstance(self.conversation, ConversationName) else self.conversation

    @property
    def reply_limit(self) -> int | None:
        return self.max_output_tokens

    def params(self, default: SamplingParams) -> SamplingParams:
        asked = self.top_logprobs is not None or "message.output_text.logprobs" in (self.include or ())
        return self.sampling(default, (self.top_logprobs or 0) if asked else None)


# -- answers -------------------------------------------------------------------------------------------------------


class OutputLogprob(Answer):
    token: str
    bytes: list[Annotated[int, Field(ge=0, le=255)]]
    logprob: float
    top_logprobs: list[OutputLogprob] | None = None


class OutputText(Answer):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[OutputLogprob]


class OutputMessage(Answer):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]


class OutputCall(Answer):
    """A call of a function. arguments: JSON text."""

    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    status: Status


OutputItem = OutputMessage | OutputCall


class CachedInput(Answer):
    cached_tokens: Count
    cache_write_tokens: Count


class ReasoningTokens(Answer):
    reasoning_tokens: Count


class ResponseUsage(Answer):
    """The input is all the history that stood before the reply; of it, ``cached_tokens`` were not read again."""

    input_tokens: Count
    input_tokens_details: CachedInput
    output_tokens: Count
    output_tokens_details: ReasoningTokens
    total_tokens: Count


class ResponseFault(Answer):
    code: str
    message: str


class Incomplete(Answer):
    reason: Literal["max_output_tokens"]


class ConversationId(Answer):
    id: str


class ResponseObject(Answer):
    """A response, finished or under way."""

    id: str
    object: Literal["response"]
    created_at: Count
    completed_at: Count | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: ResponseFault | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    conversation: ConversationId | None
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[Any]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    x_megacontext: Context | None


class ResponseEvent(Answer):
    """One event of a stream; its name is its ``type``. Which of the fields it has depends on that."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    sequence_number: Count
    response: ResponseObject | None = None
    output_index: Count | None = None
    content_index: Count | None = None
    item_id: str | None = None
    item: OutputItem | None = None
    part: OutputText | None = None
    delta: str | None = None
    text: str | None = None
    name: str | None = None
    arguments: str | None = None
    logprobs: list[OutputLogprob] | None = None


class DeletedResponse(Answer):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
