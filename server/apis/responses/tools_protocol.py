"""What /v1/responses says of tools and of JSON that a reply must be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from server.grammar.grammars import JsonForm
from server.protocol.kinds import ByType
from server.protocol.parameters import Harmless
from server.protocol.strict import Only, StrictModel
from server.tools.tool import MAX_TOOLS, NAME, Tool, ToolUse

MAX_DESCRIPTION = 1 << 16
Name = Annotated[str, Field(pattern=NAME)]
Description = Annotated[str, Field(max_length=MAX_DESCRIPTION)]


class FunctionTool(StrictModel):
    """A function that the model may call."""

    type: Literal["function"]
    name: Name
    description: Description | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


class FunctionChoice(StrictModel):
    """A function that must be called."""

    type: Literal["function"]
    name: Name


class PlainTextFormat(StrictModel):
    type: Literal["text"]


class AnyJsonFormat(StrictModel):
    type: Literal["json_object"]


class SchemaFormat(StrictModel):
    """``name``, ``description`` and ``strict`` change nothing: a schema is always enforced."""

    type: Literal["json_schema"]
    name: Harmless = None
    description: Harmless = None
    strict: Harmless = None
    json_schema: dict[str, Any] = Field(alias="schema")


class TextSettings(StrictModel):
    """How the reply's text is to look."""

    format: Annotated[PlainTextFormat | AnyJsonFormat | SchemaFormat, ByType()] | None = None
    verbosity: Annotated[Any, Only("medium")] = None

    def form(self) -> JsonForm | None:
        match self.format:
            case AnyJsonFormat():
                return JsonForm(param="text.format")
            case SchemaFormat(json_schema=schema):
                return JsonForm(schema, "text.format.schema")
        return None


Tools = Annotated[list[Annotated[FunctionTool, ByType()]], Field(max_length=MAX_TOOLS)]
Choice = Literal["none", "auto", "required"] | Annotated[FunctionChoice, ByType()]


def tool_use(tools: list[FunctionTool] | None, choice: Choice | None, parallel: bool | None) -> ToolUse | None:
    """None where there are no tools. ApiError 400 for tools that can't be told apart, or a choice that is none."""
    if not tools and choice in (None, "none", "auto"):
        return None
    named = choice.name if isinstance(choice, FunctionChoice) else choice
    specs = (
        Tool(one.name, one.description, one.parameters, one.strict, f"tools.{place}")
        for place, one in enumerate(tools or [])
    )
    return ToolUse(tuple(specs), named or "auto", parallel is not False)
