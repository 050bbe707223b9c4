"""Tools of /v1/messages with Anthropic's official client: calls, results, choices, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"name": "weather", "description": "What the sky will do.", "input_schema": CITY},
    {"name": "tide", "description": "How high the water is.", "input_schema": {"type": "object", "properties": {}}},
]
ASK: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 300,
    "tools": TOOLS,
    "tool_choice": {"type": "tool", "name": "weather"},
    "extra_body": {"temperature": 0},
}
QUESTION: list[Any] = [{"role": "user", "content": "What will the weather be in Averby?"}]


@pytest.fixture
def claude(roomy: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=roomy, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def calls(message: Any) -> list[Any]:
    return [block for block in message.content if block.type == "tool_use"]


def test_a_call_is_a_block(claude: anthropic.Anthropic) -> None:
    """A named tool is called with what its schema asks for; the stream's helper reads the same call from fragments."""
    whole = claude.messages.create(messages=QUESTION, **ASK)
    (call,) = calls(whole)
    assert whole.stop_reason == "tool_use"
    assert call.name == "weather"
    assert set(call.input) == {"city", "days"}
    assert 1 <= call.input["days"] <= 9
    with claude.messages.stream(messages=QUESTION, **ASK) as stream:
        fragments = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert fragments
    assert final.stop_reason == "tool_use"
    assert [(one.name, one.input) for one in calls(final)] == [(call.name, call.input)]


@pytest.mark.parametrize("failed", [False, True])
def test_a_result_goes_on_in_the_session(claude: anthropic.Anthropic, failed: bool) -> None:
    """Call and result, sent back as the client has them, find the session, and only they are read."""
    question: list[Any] = [{"role": "user", "content": f"The weather of Averby, please, {failed}"}]
    raw = claude.messages.with_raw_response.create(messages=question, **ASK)
    first = raw.parse()
    (call,) = calls(first)
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "Fog", "is_error": failed}
    told: list[Any] = [
        *question,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result, {"type": "text", "text": "And so?"}]},
    ]
    again = claude.messages.with_raw_response.create(
        messages=told, **{**ASK, "max_tokens": 4, "tool_choice": {"type": "none"}}
    )
    assert again.headers["x-session-id"] == raw.headers["x-session-id"]
    usage = again.parse().usage
    assert (usage.cache_read_input_tokens or 0) >= first.usage.input_tokens
    assert usage.input_tokens < first.usage.input_tokens
    assert not calls(again.parse())


def test_any_tool_and_one_at_most(claude: anthropic.Anthropic) -> None:
    """``any`` makes a call of one of the tools; with disable_parallel_tool_use there is exactly one."""
    choice = {"type": "any", "disable_parallel_tool_use": True}
    message = claude.messages.create(messages=QUESTION, **{**ASK, "tool_choice": choice})
    (call,) = calls(message)
    assert call.name in ("weather", "tide")


def test_a_call_that_is_cut_is_no_call(claude: anthropic.Anthropic) -> None:
    """Where max_tokens ends a reply within a call, the reason says so and nobody is handed half of a call."""
    message = claude.messages.create(messages=QUESTION, **{**ASK, "max_tokens": 12})
    assert message.stop_reason == "max_tokens"
    assert not calls(message)


def test_tools_count(claude: anthropic.Anthropic) -> None:
    """count_tokens counts what the model is told of tools."""
    told = claude.messages.count_tokens(model="tiny", messages=QUESTION, tools=TOOLS).input_tokens
    assert told > claude.messages.count_tokens(model="tiny", messages=QUESTION).input_tokens + 20


def test_a_reply_of_a_schema(claude: anthropic.Anthropic) -> None:
    """output_config.format makes the reply JSON that fits the schema."""
    config: Any = {"format": {"type": "json_schema", "schema": CITY}}
    message = claude.messages.create(
        model="tiny", max_tokens=300, messages=QUESTION, output_config=config, extra_body={"temperature": 0}
    )
    assert message.stop_reason == "end_turn"
    assert set(httpx.Response(200, text=message.content[0].text).json()) == {"city", "days"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
        ({"tool_choice": {"type": "tool", "name": "nobody"}}, "tool_choice"),
        ({"tools": [], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "weather"),
        ({"tools": [{"name": "x y", "input_schema": {}}]}, "tools.0.name"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
    ],
)
def test_what_is_refused_is_named(claude: anthropic.Anthropic, wrong: dict[str, Any], named: str) -> None:
    """Tools of Anthropic's servers, choices that are none and names that no model could say are named in a 400."""
    body = {"model": "tiny", "max_tokens": 4, "messages": QUESTION, "tools": TOOLS, **wrong}
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.post("/v1/messages", body=body, cast_to=object)
    told: Any = refused.value.body
    assert named in f"{told['error']['param']} {told['error']['message']}"
