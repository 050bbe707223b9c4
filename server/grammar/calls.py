"""The grammar of a reply that may, or must, call tools: the template's way to write calls, with the schemas in it.

It is written in llguidance's variant of Lark; ``<[5]>`` is the token 5.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mc_core.models.tokenizer import Tokenizer
from server.grammar.schema import Schema, spaced, with_options, written
from server.tools.syntax import CallSyntax
from server.tools.tool import Tool, ToolUse

MAX_CALLS = 16
"""Calls of one reply that must call tools; more than one would end, a small model might begin."""
TEXT = r"TEXT: /(.|\n)*/"


class CallGrammar:
    """Writes grammars for one way to write calls."""

    def __init__(self, syntax: CallSyntax, tokenizer: Tokenizer, tags: tuple[str, ...] = ()) -> None:
        """tags: what else may open a call."""
        self._syntax, self._tokenizer, self._tags = syntax, tokenizer, tags

    def demanded(self, use: ToolUse) -> str:
        """Nothing but calls."""
        return "\n".join([f"start: {self._calls(use)}", *self._tools(use, enforced=True)])

    def allowed(self, use: ToolUse, body: Schema | None) -> str:
        """Calls, or JSON of ``body``; without one, text with calls in it."""
        tools = list(self._tools(use, enforced=False))
        if body is not None:
            return "\n".join([f"start: body | {self._calls(use)}", f"body: %json {written(body)}", *tools])
        if not self._syntax.tag:
            opened = "".join(f" | {self._text(tag)} {self._calls(use)}" for tag in self._tags)
            return "\n".join([f"start: WORDS | {self._calls(use)}{opened}", r"WORDS: /([^{ \n\t\r](.|\n)*)?/", *tools])
        times = "*" if use.parallel and not self._syntax.listed else "?"
        rest = self._syntax.begin[self._syntax.begin.index(self._syntax.tag) + len(self._syntax.tag) :]
        inner = self._listed(use) if self._syntax.listed else "call"
        end = self._text(self._syntax.end)
        opening = self._text(self._syntax.tag)
        # A tag of text ends the text in front of it as soon as it is there; a tag of its own token does so by itself.
        lazy = "[lazy]" if opening.startswith('"') else ""
        return "\n".join(
            [
                f"start: section{times} TEXT",
                f"section: opening {self._text(rest)} {inner} {end}",
                f"opening{lazy}: TEXT {opening}",
                TEXT,
                *tools,
            ]
        )

    def _calls(self, use: ToolUse) -> str:
        return f"{self._text(self._syntax.begin)} {self._listed(use)} {self._text(self._syntax.end)}"

    def _listed(self, use: ToolUse) -> str:
        if self._syntax.between is None or not use.parallel or use.named:
            return "call"
        return f"call ({self._text(self._syntax.between)} call){{0,{MAX_CALLS - 1}}}"

    def _tools(self, use: ToolUse, *, enforced: bool) -> Iterator[str]:
        """Rules of the calls. enforced: a tool that is not strict is kept to its schema too, as far as that goes."""
        names = [f"tool{place}" for place in range(len(use.callable))]
        yield f"call: {' | '.join(names)}"
        syntax = self._syntax
        for name, tool in zip(names, use.callable, strict=True):
            head = self._text(f"{syntax.head}{tool.name}{syntax.mid}")
            tail = " /[a-zA-Z0-9]{9}/ ".join(self._text(part) for part in syntax.tail)
            schema = arguments_schema(tool, syntax, enforced=enforced)
            yield f"{name}: {head} %json {written(schema)} {tail}"

    def _text(self, text: str) -> str:
        """A text as terminals: control tokens by their ids."""
        parts, at = [], 0
        for start, end, token in self._tokenizer.find_control(text):
            parts += [_quoted(text[at:start]), f"<[{token}]>"]
            at = end
        return " ".join([*filter(None, parts), *filter(None, [_quoted(text[at:])])]) or '""'


def arguments_schema(tool: Tool, syntax: CallSyntax, *, enforced: bool) -> dict[str, Any]:
    """What the arguments of a call must be, and how they are written: as the template does it, so that what was
    generated is what the next turn renders."""
    options = spaced(syntax.comma, syntax.colon, lenient=not tool.strict)
    if not (enforced or tool.strict):
        return with_options({"type": "object"}, options)
    return with_options(closed(tool.parameters), options)


def closed(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The schema of an object; one that lists its properties has no others, since no function would take them."""
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = {"type": "object", **parameters}
    if "properties" in schema and not {"anyOf", "allOf", "oneOf", "$ref", "patternProperties"} & set(schema):
        schema.setdefault("additionalProperties", False)
    return schema


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
