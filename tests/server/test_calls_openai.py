"""A table of chats that programs ask for with the official OpenAI client: right, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from client_rows import AAAA, SAY_A, Refused, Row, cases, check, schema
from support import EOS

ASK: list[Any] = [{"role": "user", "content": "Hi"}]
AGAIN: list[Any] = [*ASK, {"role": "assistant", "content": "Hello."}, *ASK]
SMALL: dict[str, Any] = {"model": "tiny", "max_tokens": 4, "temperature": 0}
LOOK: dict[str, Any] = {"type": "function", "function": {"name": "look", "parameters": schema("x"), "strict": True}}
LARGE = {"type": "function", "function": {"name": "large", "parameters": {"description": "x" * 262_144}}}
ONE_CALL: dict[str, Any] = {"tools": [LOOK], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 80}
DONE = {"logit_bias": {str(EOS): 100}}
FORM = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema("ü"), "strict": True}}
SENT_CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"it": "x"}'}}
TOOL_TALK = [
    *ASK,
    {"role": "assistant", "content": None, "tool_calls": [SENT_CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "fog"},
]


class It(BaseModel):
    it: str


def part(**given: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "See:"}, given]}]}


def helper(client: openai.OpenAI, **given: Any) -> Any:
    with client.chat.completions.stream(**{"messages": ASK, **SMALL, **given}) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


CALLS: dict[str, Callable[..., Any]] = {
    "create": lambda client, **given: client.chat.completions.create(**{"messages": ASK, **SMALL, **given}),
    "stream": lambda client, **given: list(
        client.chat.completions.create(**{"messages": ASK, "stream": True, **SMALL, **given})
    ),
    "helper": helper,
    "parse": lambda client, **given: client.chat.completions.parse(**{"messages": ASK, **SMALL, **given}),
}


def said(text: str, reason: str = "length") -> Callable[[Any], None]:
    """One choice of this text, and a usage that fits."""

    def of(answer: Any) -> None:
        (choice,) = answer.choices
        assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", text, reason)
        assert (answer.object, answer.model) == ("chat.completion", "tiny")
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer.usage.prompt_tokens > 0

    return of


def streamed(text: str, reason: str = "length", *, usage: int | None = None) -> Callable[[Any], None]:
    def of(chunks: Any) -> None:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
        assert next(one for chunk in chunks for one in chunk.choices if one.finish_reason).finish_reason == reason
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk.id for chunk in chunks}) == 1
        told = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
        assert told == ([] if usage is None else [usage])
        assert bool(chunks[-1].choices) == (usage is None)

    return of


def calls_look(answer: Any) -> None:
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "look", {"it": "x"})


def calls_look_streamed(chunks: Any) -> None:
    deltas = [delta for chunk in chunks for one in chunk.choices for delta in one.delta.tool_calls or []]
    assert [(delta.id is not None, delta.function.name) for delta in deltas[:1]] == [(True, "look")]
    assert json.loads("".join(delta.function.arguments for delta in deltas)) == {"it": "x"}
    assert [one.finish_reason for chunk in chunks for one in chunk.choices][-1] == "tool_calls"


def is_json(value: Any) -> Callable[[Any], bool]:
    return lambda answer: (
        json.loads(answer.choices[0].message.content) == value and answer.choices[0].finish_reason == "stop"
    )


def parsed(answer: Any) -> bool:
    return isinstance(answer.choices[0].message.parsed, It)


def logprobs(answer: Any) -> None:
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 4
    assert all(len(one.top_logprobs) == 2 and bytes(one.bytes).decode() == "a" == one.token for one in tokens)
    assert all(one.logprob <= one.top_logprobs[0].logprob <= 0 for one in tokens)


def not_kept(answer: Any) -> bool:
    return bool(answer.model_extra["x_megacontext"]["session_id"] is None)


WHAT_PROGRAMS_SEND: dict[str, Any] = {
    "user": "ann",
    "metadata": {"trace": "7"},
    "service_tier": "auto",
    "prompt_cache_key": "ann",
    "prompt_cache_retention": "24h",
    "safety_identifier": "ann",
    "store": True,
    "n": 1,
    "parallel_tool_calls": True,
    "reasoning_effort": "none",
    "verbosity": "medium",
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "top_p": 1,
    "seed": 7,
}
ROWS: list[Row] = [
    ("create", SAY_A, said(AAAA)),
    *(("create", {**SAY_A, name: value}, said(AAAA)) for name, value in WHAT_PROGRAMS_SEND.items()),
    ("create", {**SAY_A, **WHAT_PROGRAMS_SEND}, said(AAAA)),
    ("create", {**SAY_A, "max_tokens": None, "max_completion_tokens": 2}, said("aa")),
    ("create", {**SAY_A, "stop": "aaa"}, said("", "stop")),
    ("create", {**SAY_A, "stop": ["b", "aa"]}, said("", "stop")),
    ("create", {**SAY_A, "extra_body": {"top_k": 1, "min_p": 0.5, "repetition_penalty": 1.0}}, said(AAAA)),
    ("create", {**SAY_A, "logprobs": True, "top_logprobs": 2}, logprobs),
    ("create", {**SAY_A, "store": False}, not_kept),
    ("create", {**SAY_A, "messages": AGAIN}, said(AAAA)),
    ("create", {**SAY_A, "messages": [{"role": "developer", "content": "Be brief."}, *ASK]}, said(AAAA)),
    ("create", {**SAY_A, **part(type="text", text="a", cache_control={"type": "ephemeral"})}, said(AAAA)),
    ("create", {**SAY_A, "messages": TOOL_TALK, "tools": [LOOK], "tool_choice": "none"}, said(AAAA)),
    ("create", DONE, said("", "stop")),
    ("create", ONE_CALL, calls_look),
    (
        "create",
        {**ONE_CALL, "parallel_tool_calls": True, "tool_choice": {"type": "function", "function": {"name": "look"}}},
        calls_look,
    ),
    ("create", {"response_format": FORM, "max_tokens": 40}, is_json({"it": "ü"})),
    ("create", {"response_format": {"type": "json_object"}, "logit_bias": {"95": 100}}, said("{}", "stop")),
    ("stream", SAY_A, streamed(AAAA)),
    ("stream", {**SAY_A, "stream_options": {"include_usage": True}}, streamed(AAAA, usage=4)),
    ("stream", {**SAY_A, "stop": ["aaa"]}, streamed("", "stop")),
    ("stream", ONE_CALL, calls_look_streamed),
    ("helper", {**DONE, "stop": "zz", "stream_options": {"include_usage": True}}, said("", "stop")),
    ("helper", {"response_format": It, "max_tokens": 80, "logit_bias": {"4": 100}}, parsed),
    ("parse", {"response_format": It, "max_tokens": 80, "logit_bias": {"4": 100}}, parsed),
    # What is refused names itself.
    ("create", {"n": 2}, Refused("n", "except as 1")),
    ("create", {"reasoning_effort": "low"}, Refused("reasoning_effort", "not supported")),
    ("create", {"verbosity": "low"}, Refused("verbosity", "not supported")),
    ("create", {"audio": {"voice": "alloy", "format": "wav"}}, Refused("audio", "not supported")),
    ("create", {"modalities": ["text", "audio"]}, Refused("modalities", "not supported")),
    ("create", {"web_search_options": {}}, Refused("web_search_options", "not supported")),
    ("create", {"functions": [{"name": "f"}]}, Refused("functions", "not supported")),
    ("create", {"top_logprobs": 2}, Refused("top_logprobs", "logprobs to be true")),
    ("create", {"max_completion_tokens": 2}, Refused("max_tokens", "not both")),
    ("create", {"stream_options": {"include_usage": True}}, Refused("stream_options", "stream is true")),
    ("create", {"extra_body": {"guided_json": {}}}, Refused("guided_json", "not supported")),
    ("create", {"extra_query": {"verbose": 1}}, Refused("verbose", "query parameter")),
    (
        "create",
        {"tools": [LOOK, LARGE]},
        Refused("tools.1.function", "too large: it may have 262,144 characters at most"),
    ),
    ("create", {"tools": [LARGE], "tool_choice": "none"}, Refused("tools.0.function", "262,144 characters")),
    ("create", {"tools": [{"type": "web_search"}]}, Refused("tools.0.type", "web_search.* runs no tools")),
    ("create", {"tools": [LOOK, {"type": "custom", "custom": {"name": "x"}}]}, Refused("tools.1.type", "custom")),
    (
        "create",
        {"tools": [LOOK], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
        Refused("tool_choice.type", "allowed_tools.* may be: function"),
    ),
    (
        "create",
        part(type="image_url", image_url={"url": "data:image/png;base64,AA"}),
        Refused("messages.0.content.1.type", "images are not supported"),
    ),
    (
        "create",
        part(type="input_audio", input_audio={"data": "AA", "format": "wav"}),
        Refused("messages.0.content.1.type", "sounds are not supported"),
    ),
    (
        "create",
        part(type="file", file={"file_id": "f1"}),
        Refused("messages.0.content.1.type", "files are not supported"),
    ),
    ("create", {"response_format": {"type": "grammar"}}, Refused("response_format.type", "grammar.* json_schema")),
    ("stream", {"n": 2}, Refused("n")),
]


@pytest.mark.parametrize(("call", "given", "expected"), cases(ROWS))
def test_calls(client: openai.OpenAI, roomy: str, call: str, given: dict[str, Any], expected: Any) -> None:
    """Each call is answered with what it asks for, or refused with the name of what cannot be had."""
    patient = client.with_options(base_url=f"{roomy}/v1", max_retries=5)
    check(lambda **all_of_it: CALLS[call](patient, **all_of_it), given, expected)


def test_a_seed_draws_the_same_again(client: openai.OpenAI) -> None:
    """Two calls of one seed are equal, and another seed says something else."""
    drawn = [
        client.chat.completions.create(model="tiny", messages=ASK, max_tokens=16, seed=seed, temperature=1, store=False)
        for seed in (5, 5, 6)
    ]
    first, again, other = (one.choices[0].message.content for one in drawn)
    assert first == again != other
