"""An agent with tools, by the official client: calls fulfil their schemas, and nothing of a history is read twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from agent_tools import CHOICES, SCHEMAS, result_of
from support import EOS, running, settings_for, write_model
from tool_shapes import TOOL_SHAPES

MODEL = "tiny"


@pytest.fixture(scope="module", params=["none", "qwen25"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model whose template knows no tools, and one that does; with room, for its tokenizer knows few words."""
    folder = tmp_path_factory.mktemp(request.param)
    model = write_model(folder / "tiny", template=TOOL_SHAPES[request.param])
    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 4096}))
    with running(settings_for(model, folder / "sessions.sqlite", budget=3072)) as address:
        yield address


TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": schema, "strict": True}}
    for name, schema in SCHEMAS.items()
]
NAMED: list[Any] = [
    choice if choice == "required" else {"type": "function", "function": {"name": choice}} for choice in CHOICES
]


def answered(call: Any) -> dict[str, Any]:
    """The tool's message for a call whose arguments fulfil their schema."""
    content = result_of(call.function.name, call.function.arguments)
    return {"role": "tool", "tool_call_id": call.id, "content": content}


def test_ten_turns_with_tools(client: openai.OpenAI, http: httpx.Client) -> None:
    """Law: each turn calls a tool, and reads nothing of the history again: cached tokens are all that was there before.

    The client writes the arguments anew, as clients in other languages do.
    """
    messages: list[Any] = [{"role": "system", "content": "You act."}, {"role": "user", "content": "Explore."}]
    held, sessions = 0, set()
    for turn in range(10):
        reply = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            tools=TOOLS,
            tool_choice=NAMED[turn % 3],
            parallel_tool_calls=False,
            temperature=1,
            seed=turn,
            max_tokens=200,
        )
        choice, usage = reply.choices[0], reply.usage
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert usage.prompt_tokens_details.cached_tokens == held
        context = reply.model_extra["x_megacontext"]
        held = context["tokens"]
        sessions.add(context["session_id"])
        dumped = choice.message.model_dump(exclude_none=True)
        for call in dumped["tool_calls"]:
            given = json.loads(call["function"]["arguments"])
            call["function"]["arguments"] = json.dumps(dict(reversed(given.items())), separators=(",", ":"))
        messages += [dumped, *map(answered, choice.message.tool_calls)]
    assert len(sessions) == 1
    final = client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=4
    )
    assert final.choices[0].message.tool_calls is None
    assert final.usage.prompt_tokens_details.cached_tokens == held
    http.delete(f"/v1/sessions/{sessions.pop()}")


def test_streamed_calls_are_the_whole_ones(client: openai.OpenAI) -> None:
    """The pieces of a stream add up to the same calls; each is named once, with its id, before its arguments."""
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Go on."}],
        "tools": TOOLS,
        "tool_choice": "required",
        "seed": 11,
        "temperature": 1,
        "max_tokens": 300,
        "store": False,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    calls: dict[int, list[str]] = {}
    reasons = []
    with client.chat.completions.create(**asked, stream=True) as stream:
        for chunk in stream:
            choice = chunk.choices[0]
            reasons.append(choice.finish_reason)
            for delta in choice.delta.tool_calls or []:
                if delta.id is not None:
                    assert delta.index == len(calls)
                    assert delta.type == "function"
                    calls[delta.index] = [delta.function.name, ""]
                else:
                    assert delta.function.name is None
                calls[delta.index][1] += delta.function.arguments
    assert reasons[-1] == whole.finish_reason
    told = [[call.function.name, call.function.arguments] for call in whole.message.tool_calls]
    assert list(calls.values()) == told
    assert len(told) >= 1


def test_the_helper_of_the_client_accumulates_calls(client: openai.OpenAI) -> None:
    """``chat.completions.stream`` of the official client ends with a message that holds the call, parsed."""
    with client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": "Look."}],
        tools=TOOLS,
        tool_choice=NAMED[0],
        seed=3,
        max_tokens=300,
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert call.function.name == "look"
    assert call.function.parsed_arguments == json.loads(done[0].arguments)
    assert final.choices[0].message.content is None


@pytest.mark.parametrize("limit", [8, 50, 58, 66, 120])
def test_no_half_of_a_call_is_told(client: openai.OpenAI, limit: int) -> None:
    """Law: wherever the limit cuts a reply of calls, its content has nothing of their markup, whole and streamed alike;
    and the conversation goes on from it."""
    none = {"type": "function", "function": {"name": "f", "strict": True}}
    messages: list[Any] = [{"role": "user", "content": f"Go on, up to {limit}."}]
    asked: dict[str, Any] = {"model": MODEL, "tools": [none], "temperature": 0}
    # No end token: another call follows each.
    cut: dict[str, Any] = {**asked, "tool_choice": "required", "max_tokens": limit, "logit_bias": {str(EOS): -100}}
    whole = client.chat.completions.create(**cut, messages=messages)
    (choice,) = whole.choices
    assert (choice.finish_reason, choice.message.content or "") == ("length", "")
    with client.chat.completions.create(**cut, messages=messages, stream=True, store=False) as stream:
        deltas = [chunk.choices[0].delta for chunk in stream]
    assert "".join(delta.content or "" for delta in deltas) == ""
    begun = [call.function.name for delta in deltas for call in delta.tool_calls or [] if call.function.name]
    assert begun == [call.function.name for call in choice.message.tool_calls or []]
    whole_calls = [call for call in choice.message.tool_calls or [] if call.function.arguments == "{}"]
    results = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in whole_calls]
    if len(results) == len(begun):
        messages += [choice.message, *results, {"role": "user", "content": "And?"}]
        after = client.chat.completions.create(**asked, messages=messages, tool_choice="none", max_tokens=2)
        assert after.model_extra["x_megacontext"]["session_id"] == whole.model_extra["x_megacontext"]["session_id"]


def test_a_session_is_told_of_tools_later(client: openai.OpenAI, session: str) -> None:
    """Tools that come after other turns, or change, are told once; the turn after that reads nothing of them again."""
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 200, "extra_body": {"session_id": session}, "temperature": 1}
    ask: list[Any] = [{"role": "user", "content": "Hello."}]
    client.chat.completions.create(**{**asked, "max_tokens": 4}, messages=ask)
    client.chat.completions.create(**{**asked, "max_tokens": 4}, messages=ask)
    new = []
    for tools in (TOOLS[:1], TOOLS[:1], TOOLS[2:]):
        name = {"type": "function", "function": {"name": tools[0]["function"]["name"]}}
        reply = client.chat.completions.create(**asked, messages=ask, tools=tools, tool_choice=name)
        assert reply.choices[0].message.tool_calls[0].function.name == name["function"]["name"]
        usage = reply.usage
        new.append(usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens)
        ask = [answered(reply.choices[0].message.tool_calls[0]), {"role": "user", "content": "More."}]
    assert new[1] < new[0] / 2
    assert new[2] > new[1]


def test_tools_that_cannot_be_enforced(client: openai.OpenAI) -> None:
    """A strict tool's schema is refused with its place; one that is not strict is kept to as far as that goes."""
    odd = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 3, "not": {"const": 2}}}}
    odd |= {"required": ["n"], "additionalProperties": False}
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 80}

    def offered(strict: bool) -> list[Any]:
        return [{"type": "function", "function": {"name": "odd", "parameters": odd, "strict": strict}}]

    with pytest.raises(openai.BadRequestError, match='#/properties/n: the keyword "not"') as bad:
        client.chat.completions.create(**asked, tools=offered(True))
    assert bad.value.param == "tools.0.function"
    reply = client.chat.completions.create(**asked, tools=offered(False), tool_choice="required")
    assert json.loads(reply.choices[0].message.tool_calls[0].function.arguments)["n"] in (1, 2, 3)
