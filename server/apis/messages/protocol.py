"""Bodies of /v1/messages."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field

from mc_core.models.sampling_params import SamplingParams
from server.apis.messages.blocks_protocol import MAX_ID, MessageParam, Texts
from server.protocol.answers import Answer, Context, Count
from server.protocol.common import MAX_STOPS, DrawingFields, Stop
from server.protocol.kinds import ByType
from server.protocol.parameters import Harmless
from server.protocol.strict import Only, Positive, StrictModel
from server.tools.tool import MAX_TOOLS, NAME, Tool, ToolUse

MAX_MESSAGES = 10_000
MAX_DESCRIPTION = 1 << 16


class ToolParam(StrictModel):
    """A function that the model may call. Tools that Anthropic's servers run are refused by their type."""

    type: Literal["custom"] = "custom"
    name: Annotated[str, Field(pattern=NAME)]
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION)] | None = None
    input_schema: dict[str, Any]
    strict: bool = False
    cache_control: Harmless = None
    eager_input_streaming: Harmless = None
    input_examples: Harmless = None
    allowed_callers: Annotated[Any, Only(["direct"])] = None
    defer_loading: Annotated[Any, Only(False)] = None


class ToolChoice(StrictModel):
    """name: of the tool that must be called, with the type ``tool`` alone."""

    type: Literal["auto", "any", "tool", "none"]
    name: Annotated[str, Field(min_length=1, max_length=MAX_ID)] | None = None
    disable_parallel_tool_use: bool = False


class JsonSchemaOutput(StrictModel):
    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(StrictModel):
    effort: Harmless = None
    format: JsonSchemaOutput | None = None


class MessagesInput(StrictModel):
    """What a reply is asked for, and what tokens are counted of."""

    model: str
    messages: Annotated[list[MessageParam], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: Texts | None = None
    tools: Annotated[list[Annotated[ToolParam, ByType()]], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None

    cache_control: Harmless = None
    context_management: Harmless = None
    mcp_servers: Annotated[Any, Only([])] = None
    speed: Harmless = None
    thinking: Harmless = None
    user_profile_id: Harmless = None

    def tool_use(self) -> ToolUse | None:
        """None where there are no tools. ApiError 400 for tools that can't be told apart, or a choice that is none."""
        choice = self.tool_choice or ToolChoice(type="auto")
        if not self.tools and choice.type in ("auto", "none"):
            return None
        names = {"auto": "auto", "none": "none", "any": "required", "tool": choice.name or ""}
        tools = (
            Tool(one.name, one.description, one.input_schema, one.strict, f"tools.{place}")
            for place, one in enumerate(self.tools or [])
        )
        return ToolUse(tuple(tools), names[choice.type], not choice.disable_parallel_tool_use)


class MessagesRequest(DrawingFields, MessagesInput):
    """A reply is asked for. What this server takes beside Anthropic's parameters is as in chats."""

    max_tokens: Positive
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None

    container: Annotated[Any, Only()] = None
    diagnostics: Annotated[Any, Only()] = None
    inference_geo: Harmless = None
    metadata: Harmless = None
    service_tier: Harmless = None
    stop: Annotated[Any, Only()] = None

    @property
    def reply_limit(self) -> int:
        return self.max_tokens

    def params(self, default: SamplingParams) -> SamplingParams:
        return dataclasses.replace(self.sampling(default, None), stop=tuple(self.stop_sequences or ()))


class CountRequest(MessagesInput):
    """Tokens are to be counted."""


class InputTokens(Answer):
    input_tokens: Count


class MessageUsage(Answer):
    """All that was read is the sum of those of the input; of it, the session held ``cache_read_input_tokens``."""

    input_tokens: Count
    cache_creation_input_tokens: Count
    cache_read_input_tokens: Count
    output_tokens: Count


class ReplyBlock(Answer):
    """A text, or a call of a tool."""

    type: Literal["text", "tool_use"]
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageObject(Answer):
    """The reply. ``x_megacontext`` is not yet there where a stream begins."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ReplyBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    x_megacontext: Context | None = None


class BlockDelta(Answer):
    """What is new in a block, or at the end in the message."""

    type: Literal["text_delta", "input_json_delta"] | None = None
    text: str | None = None
    partial_json: str | None = None
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None


class MessagesErrorDetail(Answer):
    """``param`` and ``code`` are this server's own."""

    type: str
    message: str
    param: str | None
    code: str | None


class MessagesError(Answer):
    """Anthropic's error object."""

    type: Literal["error"]
    error: MessagesErrorDetail


class MessageEvent(Answer):
    """An event of a stream, named by its type."""

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
        "error",
    ]
    message: MessageObject | None = None
    index: Count | None = None
    content_block: ReplyBlock | None = None
    delta: BlockDelta | None = None
    usage: MessageUsage | None = None
    x_megacontext: Context | None = None
    error: MessagesErrorDetail | None = None
