"""What /v1/chat/completions says of tools and of JSON that a reply must be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from server.grammar.grammars import JsonForm
from server.protocol.answers import Answer, Count
from server.protocol.kinds import ByType
from server.protocol.parameters import Harmless
from server.protocol.strict import StrictModel
from server.tools.tool import MAX_TOOLS, NAME, Tool, ToolCall, ToolUse

MAX_DESCRIPTION = 1 << 16
MAX_ID = 256
Name = Annotated[str, Field(pattern=NAME)]
CallId = Annotated[str, Field(min_length=1, max_length=MAX_ID)]


class FunctionSpec(StrictModel):
    """A function that the model may call."""

    name: Name
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


class ToolSpec(StrictModel):
    type: Literal["function"]
    function: FunctionSpec


class FunctionName(StrictModel):
    name: Name


class NamedTool(StrictModel):
    """A tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(StrictModel):
    """arguments: JSON text."""

    name: Name
    arguments: str


class CallInMessage(StrictModel):
    """A call that the assistant made, as it was answered."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Harmless = None

    def plain(self) -> ToolCall:
        return ToolCall(self.id, self.function.name, self.function.arguments)


class JsonSchemaSpec(StrictModel):
    """``name``, ``description`` and ``strict`` change nothing: a schema is always enforced."""

    name: Name
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION)] | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool = False


class TextFormat(StrictModel):
    type: Literal["text"]


class JsonObjectFormat(StrictModel):
    type: Literal["json_object"]


class JsonSchemaFormat(StrictModel):
    type: Literal["json_schema"]
    json_schema: JsonSchemaSpec


Choice = Literal["none", "auto", "required"] | Annotated[NamedTool, ByType()]
ReplyFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, ByType()]
Tools = Annotated[list[Annotated[ToolSpec, ByType()]], Field(max_length=MAX_TOOLS)]


def tool_use(tools: list[ToolSpec] | None, choice: Choice | None, parallel: bool | None) -> ToolUse | None:
    """None where there are no tools. ApiError 400 for tools that can't be told apart, or a choice that is none."""
    if not tools and choice in (None, "none", "auto"):
        return None
    named = choice.function.name if isinstance(choice, NamedTool) else choice
    specs = (
        Tool(
            one.function.name,
            one.function.description,
            one.function.parameters,
            one.function.strict,
            f"tools.{place}.function",
        )
        for place, one in enumerate(tools or [])
    )
    return ToolUse(tuple(specs), named or "auto", parallel is not False)


def json_form(format: ReplyFormat | None) -> JsonForm | None:
    match format:
        case JsonObjectFormat():
            return JsonForm()
        case JsonSchemaFormat(json_schema=spec):
            return JsonForm(spec.json_schema, "response_format.json_schema.schema")
    return None


class AnsweredFunction(Answer):
    name: str
    arguments: str


class AnsweredCall(Answer):
    id: str
    type: Literal["function"]
    function: AnsweredFunction


class FunctionDelta(Answer):
    name: str | None = None
    arguments: str


class CallDelta(Answer):
    """The first of a call names it; further ones are fragments of its arguments."""

    index: Count
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta
