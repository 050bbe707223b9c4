"""A table of what programs call with Anthropic's client: what is right comes, the rest is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import pytest
from pydantic import BaseModel

from client_rows import AAAA, SAY_A, Refused, Row, cases, check, schema

HI: list[Any] = [{"role": "user", "content": "Hi"}]
SMALL: dict[str, Any] = {"model": "tiny", "max_tokens": 4, "messages": HI}
A: dict[str, Any] = {"extra_body": SAY_A}
LOOK: dict[str, Any] = {"name": "look", "description": "Look.", "input_schema": schema("x"), "strict": True}
ONE_CALL: dict[str, Any] = {
    "tools": [LOOK],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "max_tokens": 80,
}
CACHED = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
TOOL_TALK = [
    *HI,
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "look", "input": {"it": "x"}}]},
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "fog"}]}],
    },
]
THOUGHT = [
    *HI,
    {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "text", "text": "Ho."}],
    },
    *HI,
]


class It(BaseModel):
    it: str


@pytest.fixture
def claude(roomy: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=roomy, api_key="none", max_retries=5, timeout=60) as client:
        yield client


def part(**given: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "See:"}, given]}]}


def helper(client: anthropic.Anthropic, **given: Any) -> Any:
    with client.messages.stream(**{**SMALL, **given}) as stream:
        for _ in stream:
            pass
        return stream.get_final_message()


CALLS: dict[str, Callable[..., Any]] = {
    "create": lambda client, **given: client.messages.create(**{**SMALL, **given}),
    "stream": lambda client, **given: list(client.messages.create(**{**SMALL, "stream": True, **given})),
    "helper": helper,
    "parse": lambda client, **given: client.messages.parse(**{**SMALL, **given}),
    "count": lambda client, **given: client.messages.count_tokens(**{"model": "tiny", "messages": HI, **given}),
    "beta": lambda client, **given: client.beta.messages.create(**{**SMALL, **given}),
    "models": lambda client, **given: client.models.list(**given),
}


def said(text: str, reason: str = "max_tokens") -> Callable[[Any], None]:
    """One block of this text, and a usage that fits."""

    def of(message: Any) -> None:
        assert (message.type, message.role, message.model) == ("message", "assistant", "tiny")
        assert [(block.type, block.text) for block in message.content] == ([("text", text)] if text else [])
        assert message.stop_reason == reason
        assert message.usage.input_tokens + message.usage.cache_read_input_tokens > 0

    return of


def calls_look(message: Any) -> None:
    (block,) = message.content
    assert (block.type, block.name, block.input, message.stop_reason) == ("tool_use", "look", {"it": "x"}, "tool_use")


def events(text: str) -> Callable[[Any], None]:
    def of(told: Any) -> None:
        kinds = [event.type for event in told if event.type != "content_block_delta"]
        assert kinds == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
        deltas = [event.delta for event in told if event.type == "content_block_delta"]
        assert "".join(delta.text for delta in deltas) == text
        assert {delta.type for delta in deltas} == {"text_delta"}

    return of


WHAT_PROGRAMS_SEND: dict[str, Any] = {
    "metadata": {"user_id": "ann"},
    "service_tier": "auto",
    "thinking": {"type": "disabled"},
    "cache_control": {"type": "ephemeral"},
    "system": "Be brief.",
    "tools": [],
    "tool_choice": {"type": "auto"},
    "stop_sequences": ["zz"],
    "output_config": {"effort": "low"},
}
ROWS: list[Row] = [
    ("create", A, said(AAAA)),
    *(("create", {**A, name: value}, said(AAAA)) for name, value in WHAT_PROGRAMS_SEND.items()),
    ("create", {**A, **WHAT_PROGRAMS_SEND}, said(AAAA)),
    ("create", {**A, "thinking": {"type": "enabled", "budget_tokens": 1024}}, said(AAAA)),
    ("create", {**A, "system": [CACHED]}, said(AAAA)),
    ("create", {**A, "messages": [{"role": "user", "content": [CACHED, CACHED]}]}, said(AAAA)),
    ("create", {**A, "messages": TOOL_TALK, "tools": [LOOK], "tool_choice": {"type": "none"}}, said(AAAA)),
    ("create", {**A, "messages": THOUGHT}, said(AAAA)),
    ("create", {"extra_body": {**SAY_A, "temperature": 0, "top_p": 0.9, "top_k": 5}}, said(AAAA)),
    ("create", {**A, "stop_sequences": ["aa"]}, said("", "stop_sequence")),
    ("create", ONE_CALL, calls_look),
    ("create", {**ONE_CALL, "tool_choice": {"type": "tool", "name": "look"}}, calls_look),
    ("create", {**ONE_CALL, "tools": [{**LOOK, "type": "custom", "cache_control": {"type": "ephemeral"}}]}, calls_look),
    ("stream", A, events(AAAA)),
    ("helper", A, said(AAAA)),
    ("helper", ONE_CALL, calls_look),
    (
        "parse",
        {"output_format": It, "max_tokens": 80, "extra_body": {"logit_bias": {"4": 100}}},
        lambda message: isinstance(message.parsed_output, It),
    ),
    ("beta", {**A, "betas": ["prompt-caching-2024-07-31"]}, said(AAAA)),
    ("count", {}, lambda count: count.input_tokens > 5),
    ("count", {"system": "Be brief.", "tools": [LOOK]}, lambda count: count.input_tokens > 100),
    ("models", {}, lambda page: [one.id for one in page] == ["tiny"]),
    # What is refused names itself.
    ("create", {"container": "c1"}, Refused("container", "not supported")),
    ("create", {"extra_body": {"n": 2}}, Refused("n", "not supported")),
    ("create", {"extra_body": {"temperature": 3}}, Refused("temperature", "less than or equal to 2")),
    ("create", {"messages": [*HI, {"role": "assistant", "content": "So"}]}, Refused("messages", "the last message")),
    ("create", {"tools": [{"type": "web_search_20250305", "name": "w"}]}, Refused("tools.0.type", "runs no tools")),
    ("create", {"tools": [LOOK, {"type": "bash_20250124", "name": "bash"}]}, Refused("tools.1.type", "runs no tools")),
    (
        "create",
        part(type="image", source={"type": "base64", "media_type": "image/png", "data": "AA"}),
        Refused("messages.0.content.1.type", "images are not supported"),
    ),
    (
        "create",
        part(type="document", source={"type": "text", "media_type": "text/plain", "data": "x"}),
        Refused("messages.0.content.1.type", "files are not supported"),
    ),
    (
        "create",
        part(type="tool_result", tool_use_id="c1", content=[{"type": "image", "source": {}}]),
        Refused("messages.0.content.1.content.0.type", "images are not supported"),
    ),
    ("beta", {"mcp_servers": [{"type": "url", "url": "http://x", "name": "x"}]}, Refused("mcp_servers")),
    ("create", {"extra_query": {"verbose": "1"}}, Refused("verbose", "query parameter")),
    ("count", {"extra_body": {"max_tokens": 5}}, Refused("max_tokens", "not supported")),
    ("models", {"limit": 5}, Refused("limit", "query parameter")),
]


@pytest.mark.parametrize(("call", "given", "expected"), cases(ROWS))
def test_calls(claude: anthropic.Anthropic, call: str, given: dict[str, Any], expected: Any) -> None:
    """Each call is answered with what it asks for, or refused with the name of what cannot be had."""
    check(lambda **all_of_it: CALLS[call](claude, **all_of_it), given, expected)
