"""/v1/messages with Anthropic's official client: replies, streams, counts, sessions and errors in its own shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from server.apis.messages.blocks_protocol import MessageParam, conversation
from server.apis.messages.protocol import MessageEvent, MessageObject
from support import running, settings_for

GREEDY = {"temperature": 0}
"""The client has no parameter of this name any more; servers still take the field."""
HI: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def claude(address: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=address, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_a_message(claude: anthropic.Anthropic, http: httpx.Client) -> None:
    """A reply is a message with its text, its reason and what was read; its request's id stands in a header."""
    raw = claude.messages.with_raw_response.create(model="tiny", max_tokens=6, messages=HI, extra_body=GREEDY)
    message = raw.parse()
    assert raw.headers["request-id"] == raw.headers["x-request-id"] == message._request_id
    assert raw.headers["x-session-id"].startswith("sess_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "tiny")
    assert message.stop_reason == "max_tokens"
    assert message.stop_sequence is None
    assert message.usage.output_tokens == 6
    assert message.usage.input_tokens > 0
    assert [block.type for block in message.content] == ["text"]
    body = {"model": "tiny", "max_tokens": 6, "messages": HI}
    MessageObject.model_validate(http.post("/v1/messages", json=body).json(), strict=True)


def test_a_stream_is_the_same_message(claude: anthropic.Anthropic) -> None:
    """The helper's final message of a stream equals the whole one, its text the sum of its deltas."""
    ask: Any = {"model": "tiny", "max_tokens": 12, "messages": HI, "extra_body": GREEDY}
    whole = claude.messages.create(**ask)
    with claude.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text  # type: ignore[union-attr]
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    total = final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0)
    assert total == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)


def test_the_events_of_a_stream(http: httpx.Client) -> None:
    """Events come in Anthropic's order, each named by its type and as described; blocks are begun and ended once."""
    body = {"model": "tiny", "max_tokens": 8, "messages": HI, "stream": True}
    lines = http.post("/v1/messages", json=body).text.split("\n\n")
    events = [dict(line.split(": ", 1) for line in one.splitlines()) for one in lines if one]
    kinds = [event["event"] for event in events]
    for event in events:
        told = json.loads(event["data"])
        assert told["type"] == event["event"]
        MessageEvent.model_validate(told, strict=True)
    kinds = [kind for kind in kinds if kind != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_sequence_is_told(claude: anthropic.Anthropic, stream: bool) -> None:
    """A reply that one of several stop sequences ends says which, and does not hold it."""
    ask: Any = {"model": "tiny", "max_tokens": 40, "messages": HI, "extra_body": GREEDY}
    text = claude.messages.create(**ask).content[0].text  # type: ignore[union-attr]
    stop = text[5:8]
    ask["stop_sequences"] = ["never said in here", stop]
    if stream:
        with claude.messages.stream(**ask) as events:
            message = events.get_final_message()
    else:
        message = claude.messages.create(**ask)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text[: text.index(stop)]  # type: ignore[union-attr]


def test_a_chat_goes_on_in_its_session(claude: anthropic.Anthropic) -> None:
    """A client that sends all of its messages, reply and system prompt included, finds its history again."""
    ask: Any = {"model": "tiny", "max_tokens": 6, "extra_body": GREEDY, "system": "Be brief about the lighthouse."}
    first = claude.messages.with_raw_response.create(messages=HI, **ask)
    told = [*HI, {"role": "assistant", "content": first.parse().content}, {"role": "user", "content": "And then?"}]
    second = claude.messages.with_raw_response.create(messages=told, **ask)
    assert second.headers["x-session-id"] == first.headers["x-session-id"]
    usage = second.parse().usage
    assert (usage.cache_read_input_tokens or 0) > usage.input_tokens


def test_a_named_session(claude: anthropic.Anthropic, http: httpx.Client) -> None:
    """With X-Session-ID new messages alone go on, though clients say the system prompt each time; a list that repeats
    all goes on behind it; and another system prompt holds for its own turn."""
    ask: Any = {"model": "tiny", "max_tokens": 4, "system": "Be brief about the lighthouse."}
    session = http.post("/v1/sessions", json={}).json()["id"]
    ask["extra_headers"] = {"x-session-id": session}
    first = claude.messages.create(messages=HI, **ask)
    read = [first.usage]
    for text, system in (("And then?", ask["system"]), ("Why?", "Be loud."), ("Who?", ask["system"])):
        told: list[Any] = [{"role": "user", "content": text}]
        read.append(claude.messages.create(messages=told, **{**ask, "system": system}).usage)
    cached = [usage.cache_read_input_tokens or 0 for usage in read]
    assert cached[0] == 0
    assert cached == sorted(cached)
    assert all(usage.input_tokens < 60 for usage in read[1:])
    other = http.post("/v1/sessions", json={}).json()["id"]
    ask["extra_headers"] = {"x-session-id": other}
    first = claude.messages.create(messages=HI, **ask)
    whole: list[Any] = [*HI, {"role": "assistant", "content": first.content}, {"role": "user", "content": "More"}]
    again = claude.messages.create(messages=whole, **ask)
    assert (again.usage.cache_read_input_tokens or 0) >= first.usage.input_tokens


def test_what_a_session_holds_is_the_same_for_all_apis(claude: anthropic.Anthropic, http: httpx.Client) -> None:
    """A chat that was begun as a chat completion goes on as messages, in the same session."""
    ask = {"model": "tiny", "max_tokens": 6, "messages": [{"role": "system", "content": "Short."}, *HI]}
    first = http.post("/v1/chat/completions", json=ask)
    reply = first.json()["choices"][0]["message"]["content"]
    more: list[Any] = [*HI, {"role": "assistant", "content": reply}, {"role": "user", "content": "More"}]
    raw = claude.messages.with_raw_response.create(model="tiny", max_tokens=4, system="Short.", messages=more)
    assert raw.headers["x-session-id"] == first.headers["x-session-id"]


RESULT = {"type": "tool_result", "tool_use_id": "call_1", "content": "7"}


def test_blocks_read_as_messages() -> None:
    """Text blocks are paragraphs, thoughts and billing are left out, neighbours of one speaker are one message."""
    system: Any = [{"type": "text", "text": "x-anthropic-billing-header: cc=1"}, {"type": "text", "text": "Be brief."}]
    listed: Any = [
        {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
        {"role": "user", "content": "C"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}]},
        {"role": "assistant", "content": "D"},
        {"role": "system", "content": "E"},
        {"role": "user", "content": "F"},
    ]
    read = conversation(
        [MessageParam(role="user", content=system).content[0], MessageParam(role="user", content=system).content[1]],  # type: ignore[list-item]
        [MessageParam(**one) for one in listed],
    )
    told = [(one.role, one.content) for one in read]
    assert told == [
        ("system", "Be brief."),
        ("user", "A\n\nB\n\nC"),
        ("assistant", "D"),
        ("system", "E"),
        ("user", "F"),
    ]


def test_counting_tokens(claude: anthropic.Anthropic) -> None:
    """The count is what a turn of the same messages reads, and makes no session."""
    ask: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Count the lighthouses"}], "system": "Odd."}
    counted = claude.messages.count_tokens(**ask)
    usage = claude.messages.create(max_tokens=1, extra_body={"store": False}, **ask).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"messages": [*HI, {"role": "assistant", "content": "The answer is ("}]}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"container": "c"}, "container"),
        ({"temperature": 3}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"extra": 1}, "extra"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "hm"}]}]}, "role assistant"),
        ({"messages": [*HI, {"role": "assistant", "content": [RESULT]}, *HI]}, "role user"),
        ({"messages": [{"role": "user", "content": []}]}, "messages"),
    ],
)
def test_what_is_not_taken_is_named(claude: anthropic.Anthropic, wrong: dict[str, Any], param: str) -> None:
    """A request that can't be served is a 400 in Anthropic's shape that names what is at fault."""
    ask: dict[str, Any] = {"model": "tiny", "max_tokens": 4, "messages": HI, **wrong}
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.post("/v1/messages", body=ask, cast_to=object)
    body: Any = refused.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert param in body["error"]["message"]


def test_what_claude_style_clients_send_is_taken(claude: anthropic.Anthropic) -> None:
    """Who asks, how it is cached, thinking and effort: none of it stops a request."""
    cached: Any = {"type": "ephemeral"}
    message = claude.messages.create(
        model="tiny",
        max_tokens=4,
        system=[{"type": "text", "text": "Short.", "cache_control": cached}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": cached}]}],
        metadata={"user_id": "user_1_session_2"},
        service_tier="auto",
        thinking={"type": "adaptive"},
        extra_query={"beta": "true"},
        extra_headers={"anthropic-beta": "x", "x-claude-code-session-id": "abc"},
        extra_body={"context_management": {"edits": []}, "output_config": {"effort": "low"}, "top_k": 5},
    )
    assert message.usage.output_tokens > 0


def test_errors_are_of_the_clients_own_kinds(model_dir: Path, tmp_path: Path) -> None:
    """A wrong key, an unknown model or address, a full minute: each is the client's exception, in Anthropic's shape."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", api_key="K", requests_per_minute=2)
    with running(settings) as address:
        ask: Any = {"model": "tiny", "max_tokens": 1, "messages": HI}

        def client(key: str) -> anthropic.Anthropic:
            return anthropic.Anthropic(base_url=address, api_key=key, max_retries=0, timeout=60)

        with pytest.raises(anthropic.AuthenticationError) as refused:
            client("wrong").messages.create(**ask)
        assert refused.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
        client("K").messages.create(**ask)
        with pytest.raises(anthropic.NotFoundError) as missing:
            client("K").messages.create(**{**ask, "model": "claude"})
        assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
        with pytest.raises(anthropic.RateLimitError) as full:
            client("K").messages.create(**ask)
        assert full.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]
        assert int(full.value.response.headers["retry-after"]) > 0
