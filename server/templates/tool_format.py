"""How a chat template treats tools: it writes them itself, or they are told in plain text."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from server.templates.messages import Message
from server.tools.plain import arguments_of, instructions, response, written_calls
from server.tools.syntax import HERMES, CallSyntax, learn
from server.tools.tool import Tool, ToolCall, ToolUse

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]], bool], str]
"""(messages, tools, whether the reply is opened) -> what a template writes."""
_SHORT = re.compile(r"[a-zA-Z0-9]{9}")


@dataclass(frozen=True)
class ToolFormat:
    """syntax: how the model writes calls. native: the template writes tools, calls and answers, else plain text tells.

    empty: the content of a message that holds nothing but calls. as_text: arguments are given as JSON text.
    short_ids: ids of calls must have nine letters and digits. takes_system: there may be a system message.
    """

    syntax: CallSyntax = HERMES
    native: bool = False
    empty: str | None = ""
    as_text: bool = False
    short_ids: bool = False
    takes_system: bool = True

    def call(self, call: ToolCall) -> dict[str, Any]:
        """As templates want to see a call."""
        arguments = call.arguments if self.as_text else arguments_of(call)
        return {
            "id": self.id(call.id),
            "type": "function",
            "function": {"name": call.name, "arguments": arguments},
        }

    def id(self, call_id: str) -> str:
        if not self.short_ids or _SHORT.fullmatch(call_id):
            return call_id
        return hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:9]

    def plain(self, messages: Sequence[Message], use: ToolUse | None) -> list[Message]:
        """Messages without calls and answers of tools, for templates that know none; the tools are told in front."""
        told: list[Message] = []
        for message in messages:
            if message.role == "tool":
                answer = response(message.content)
                if told and told[-1].tool_call_id is not None:
                    told[-1] = replace(told[-1], content=f"{told[-1].content}\n{answer}")
                else:
                    told.append(Message("user", answer, tool_call_id=message.tool_call_id or ""))
            elif message.tool_calls:
                parts = [message.content, written_calls(message.tool_calls)]
                told.append(Message(message.role, "\n".join(filter(None, parts)), message.name))
            else:
                told.append(message)
        told = [replace(one, tool_call_id=None) for one in told]
        return told if use is None or not use.tools else self._with_tools(told, instructions(use))

    def _with_tools(self, messages: list[Message], text: str) -> list[Message]:
        role = "system" if self.takes_system else "user"
        if messages and messages[0].role == role:
            parts = (messages[0].content, text) if self.takes_system else (text, messages[0].content)
            return [replace(messages[0], content="\n\n".join(filter(None, parts))), *messages[1:]]
        return [Message(role, text), *messages] if self.takes_system else messages


PLAIN = ToolFormat()
"""Of a template that knows no tools."""


def learn_tools(render: Render) -> ToolFormat:
    """By what a template writes of made-up conversations, whatever its name."""
    shapes = product(("", None), (False, True), (False, True))
    for empty, as_text, short_ids in shapes:
        try:
            syntax = _syntax(render, ToolFormat(HERMES, True, empty, as_text, short_ids))
        except Exception:  # a template is somebody else's program and may be wrong in any way
            continue
        return ToolFormat(syntax, True, empty, as_text, short_ids, _takes_system(render))
    return ToolFormat(takes_system=_takes_system(render))


def _syntax(render: Render, form: ToolFormat) -> CallSyntax:
    """ValueError, or whatever the template raises, if calls can't be learnt so."""
    names, values, ids = ((secrets.token_hex(8), secrets.token_hex(8)) for _ in range(3))
    if form.short_ids:
        ids = (ids[0][:9], ids[1][:9])
    calls = [
        ToolCall(call_id, name, json.dumps({value: [1, place]}))
        for place, (call_id, name, value) in enumerate(zip(ids, names, values, strict=True))
    ]
    one = _reply(render, form, calls[:1], values[0])
    try:
        two = _reply(render, form, calls, values[1])
    except Exception:
        two = None
    return learn(one, two, names, ids, values)


def _reply(render: Render, form: ToolFormat, calls: Sequence[ToolCall], last: str) -> str:
    """What a template writes as a reply that consists of calls. last: what stands in none but the last of them."""
    ask, more, words, tool = (secrets.token_hex(8) for _ in range(4))
    tools = [Tool(tool, "described").told()]
    question = {"role": "user", "content": ask}
    calling = {"role": "assistant", "content": form.empty, "tool_calls": [form.call(call) for call in calls]}
    answers = [
        {"role": "tool", "content": f"answer{call.id}", "tool_call_id": form.id(call.id), "name": call.name}
        for call in calls
    ]
    plain, further = [question, {"role": "assistant", "content": words}], {"role": "user", "content": more}
    text = render([question, calling, *answers, plain[1], further], tools, False)
    if tool not in text or any(str(answer["content"]) not in text for answer in answers):
        raise ValueError("the template leaves out tools or their answers")
    opened = _after(render([question], tools, True), ask)
    alone, going_on = render(plain, tools, False), render([*plain, further], tools, False)
    closing = _common(_after(alone, words), _after(going_on, words))
    if not closing.strip():
        raise ValueError("nothing closes a reply")
    reply = _after(text, ask)
    if not reply.startswith(opened):
        opened = _common(reply, _after(going_on, ask))
    return reply[len(opened) : reply.index(closing, reply.index(last))]


def _takes_system(render: Render) -> bool:
    words = secrets.token_hex(8)
    try:
        return words in render([{"role": "system", "content": words}, {"role": "user", "content": "x"}], [], True)
    except Exception:
        return False


def _after(text: str, mark: str) -> str:
    return text[text.index(mark) + len(mark) :]


def _common(one: str, other: str) -> str:
    size = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:size]
