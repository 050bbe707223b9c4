"""Tools in plain text, for chat templates that know none: as Hermes models, and Qwen's after them, were taught."""

from __future__ import annotations

import json

from server.tools.syntax import HERMES, CallSyntax
from server.tools.tool import ToolCall, ToolUse


def instructions(use: ToolUse, syntax: CallSyntax = HERMES) -> str:
    """What a system message says of the tools and of how to call them."""
    call = f"{syntax.head}<function-name>{syntax.mid}<args-json-object>{'<id>'.join(syntax.tail)}"
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in use.told())
    return (
        "# Tools\n\nYou may call functions to help with what is asked. These are their signatures, within "
        f"<tools></tools> tags:\n<tools>\n{listed}\n</tools>\n\nTo call a function, write its name and its arguments "
        f"as JSON, in this way:\n{syntax.begin}{call}{syntax.end}\n"
        "What it answers comes within <tool_response></tool_response> tags."
    )


def written_calls(calls: tuple[ToolCall, ...]) -> str:
    return HERMES.write([(call.id, call.name, arguments_of(call)) for call in calls])


def response(text: str) -> str:
    """A tool's answer."""
    return f"<tool_response>\n{text}\n</tool_response>"


def arguments_of(call: ToolCall) -> object:
    """What templates write as JSON: the parsed arguments, or their text if they are none."""
    try:
        return json.loads(call.arguments)
    except (ValueError, RecursionError):
        return call.arguments
