"""Makes constraints of schemas and tools. All of it computes, so routes call it on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from mc_core.errors import ConfigError
from mc_core.models.tokenizer import Tokenizer
from server.errors import ApiError, bad_request
from server.grammar.calls import CallGrammar, arguments_schema
from server.grammar.constraint import GrammarConstraint
from server.grammar.schema import READABLE, Schema, in_words, place_of, with_options, written
from server.grammar.vocabulary import vocabulary_of
from server.tools.syntax import CallSyntax
from server.tools.tool import ToolUse

MAX_SCHEMA = 1 << 18
"""Characters of a schema."""
MAX_DEPTH = 128
"""Objects in one another that a schema may have."""


@dataclass(frozen=True)
class JsonForm:
    """A reply that is JSON. schema: None for any object. param: where the request says so, for errors."""

    schema: Mapping[str, Any] | None = None
    param: str = "response_format"

    def written(self) -> dict[str, Any]:
        return with_options({"type": "object"} if self.schema is None else self.schema, READABLE)


class Grammars:
    """Of one model. What it must know of the vocabulary is made when the first grammar is asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None

    def of_json(self, form: JsonForm) -> GrammarConstraint:
        """ApiError 400 if the schema can't be enforced, or if nothing fulfils it."""
        schema = form.written()
        self._check(schema, form.param)
        return self._made(_of_schema(schema), form.param)

    def of_calls(
        self, use: ToolUse, syntax: CallSyntax, tags: tuple[str, ...], form: JsonForm | None
    ) -> GrammarConstraint | None:
        """None where the reply is free to say anything. ApiError 400 names the tool whose schema can't be enforced, or
        is too large to be told to a model."""
        for tool in use.tools:
            _check_size(tool.parameters or {}, tool.param)
        if not use.callable:
            return None if form is None else self.of_json(form)
        enforced = use.demanded
        if not enforced and form is None and not any(tool.strict for tool in use.callable):
            return None
        for tool in use.callable:
            self._check(arguments_schema(tool, syntax, enforced=enforced), tool.param)
        grammar = CallGrammar(syntax, self._tokenizer, tags)
        if enforced:
            return self._made(LLMatcher.grammar_from_lark(grammar.demanded(use)), "tools")
        if form is not None:
            self._check(form.written(), form.param)
        body = None if form is None else form.written()
        return self._made(LLMatcher.grammar_from_lark(grammar.allowed(use, body)), "tools")

    def _made(self, grammar: str, param: str) -> GrammarConstraint:
        vocabulary = self._known_vocabulary()
        matcher = LLMatcher(vocabulary, grammar, log_level=0)
        constraint = GrammarConstraint(matcher, vocabulary.vocab_size, self._tokenizer.eos_ids)
        try:
            constraint.warm()
        except ConfigError as error:
            raise _refused(f"nothing can be written that fulfils it ({error})", param) from error
        return constraint

    def _check(self, schema: Schema, param: str) -> None:
        _check_size(schema, param)
        try:
            if self._error_of(schema):
                place, problem = place_of(schema, self._error_of)
                raise _refused(f"at {place}: {problem}", param)
        except (ValueError, RecursionError) as error:
            raise _refused(in_words(str(error)), param) from error

    def _error_of(self, schema: Schema) -> str:
        wrong, messages = LLMatcher.validate_grammar_with_warnings(_of_schema(schema), self._known_vocabulary())
        return str(messages[0]) if wrong else ""

    def _known_vocabulary(self) -> LLTokenizer:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = vocabulary_of(self._tokenizer)
            return self._vocabulary


def _of_schema(schema: Schema) -> str:
    return LLMatcher.grammar_from_json_schema(written(schema))


def _check_size(schema: Schema, param: str) -> None:
    try:
        size = len(written(schema))
    except RecursionError:
        size = MAX_SCHEMA + 1
    if size > MAX_SCHEMA:
        raise _too_large(f"have {MAX_SCHEMA:,} characters", param)
    if _depth(schema) > MAX_DEPTH:
        raise _too_large(f"be {MAX_DEPTH} levels deep", param)


def _depth(value: Any) -> int:
    """Level by level, so that no depth is too much for the stack."""
    depth, level = 0, [value]
    while level:
        inside = [one for one in level if isinstance(one, dict | list)]
        level = [part for one in inside for part in (one.values() if isinstance(one, dict) else one)]
        depth += bool(inside)
        if depth > MAX_DEPTH:
            break
    return depth


def _too_large(bound: str, param: str) -> ApiError:
    return bad_request(f"the schema is too large: it may {bound} at most", param, "unsupported_schema")


def _refused(problem: str, param: str) -> ApiError:
    return bad_request(f"the schema cannot be enforced: {problem}", param, "unsupported_schema")
