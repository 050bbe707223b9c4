"""From what a request says of its reply's form to the shape of its turn."""

from __future__ import annotations

import asyncio

from mc_core.models.tokenizer import Tokenizer
from server.grammar.grammars import Grammars, JsonForm
from server.templates.chat_template import ChatTemplate
from server.tools.shape import PLAIN, Shape
from server.tools.syntax import HERMES
from server.tools.tool import ToolUse

PYTHON_TAG = "<|python_tag|>"
"""May open bare JSON calls: Llama 3 writes it though its template does not."""


class Shaper:
    """Of one model: ``shape`` is what an API calls."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer, self._grammars = tokenizer, Grammars(tokenizer)
        self._syntax = HERMES if template is None else template.tool_format.syntax
        self._tags = (PYTHON_TAG,) if not self._syntax.tag and PYTHON_TAG in tokenizer.control_texts else ()
        written = " ".join([self._syntax.begin, self._syntax.between or "", self._syntax.end, *self._tags])
        found = frozenset(span.id for span in tokenizer.find_control(written))
        self._spoken = found & tokenizer.special_ids

    async def shape(self, use: ToolUse | None = None, form: JsonForm | None = None) -> Shape:
        """use: the tools that are offered. form: JSON that is asked for. ApiError 400 for what can't be enforced."""
        if use is None or not use.tools:
            if form is None:
                return PLAIN
            return Shape(constraint=await asyncio.to_thread(self._grammars.of_json, form))
        constraint = await asyncio.to_thread(self._grammars.of_calls, use, self._syntax, self._tags, form)
        if not use.callable:
            return Shape(use, self._syntax, constraint)
        return Shape(use, self._syntax, constraint, self._spoken, self._tags)
