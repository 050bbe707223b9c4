"""Function calls and JSON in responses, through the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from support import running, settings_for

MODEL = "tiny"
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a town",
    "parameters": {
        "type": "object",
        "properties": {"town": {"enum": ["Oslo", "Rome"]}},
        "required": ["town"],
        "additionalProperties": False,
    },
    "strict": True,
}
CLOCK: Any = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}}
CALLING: dict[str, Any] = {
    "model": MODEL,
    "tools": [WEATHER],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_output_tokens": 200,
}


class Town(BaseModel):
    name: bool
    size: None


@pytest.fixture(scope="module")
def roomy(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose budget has room for what is told of tools."""
    store = tmp_path_factory.mktemp("tools") / "s.sqlite"
    with running(settings_for(model_dir, store, budget=992, max_queue=8)) as address:
        yield address


@pytest.fixture(scope="module")
def patient(roomy: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{roomy}/v1", api_key="none", max_retries=5, timeout=120) as client:
        yield client


def test_a_call_is_streamed_in_the_order_of_the_official_api(patient: openai.OpenAI) -> None:
    """Item, fragments of the arguments, their end, the item's end; kept, it is streamed again with the same ids."""
    told: Any = [event.to_dict() for event in patient.responses.create(input="Hi", stream=True, **CALLING)]
    kinds = [event["type"].removeprefix("response.") for event in told]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    assert set(kinds[3:-3]) == {"function_call_arguments.delta"}
    (item,) = told[-1]["response"]["output"]
    assert item["arguments"] == "".join(e["delta"] for e in told if e["type"].endswith("arguments.delta"))
    assert json.loads(item["arguments"])["town"] in ("Oslo", "Rome")
    assert told[2]["item"] | {"arguments": item["arguments"], "status": "completed"} == item
    again = patient.responses.retrieve(told[0]["response"]["id"], stream=True)
    assert [event.to_dict() for event in again] == told


def test_an_agent_goes_on_by_response_id(patient: openai.OpenAI) -> None:
    """Calls and their results, turn after turn in one session: each reads what is new to it alone."""
    response = patient.responses.create(input="Where is it warm?", **CALLING)
    for _ in range(3):
        (call,) = response.output
        assert call.type == "function_call"
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": '{"degrees": 12}'}
        follow = patient.responses.create(input=[result], previous_response_id=response.id, **CALLING)
        before: Any = response.to_dict()["x_megacontext"]
        after: Any = follow.to_dict()["x_megacontext"]
        assert after["session_id"] == before["session_id"]
        assert follow.usage is not None
        assert follow.usage.input_tokens_details.cached_tokens > 0.8 * before["tokens"]
        response = follow
    listed: Any = list(patient.responses.input_items.list(response.id))
    assert [item.type for item in listed] == ["function_call_output"]


def test_calls_that_are_sent_again_find_their_history(patient: openai.OpenAI) -> None:
    """A client that sends all items each time goes on in the session that holds them."""
    items: list[Any] = [{"role": "user", "content": "Where is it warm, and when?"}]
    one = patient.responses.create(input=items, **CALLING)
    items += [item.to_dict() for item in one.output]
    items.append({"type": "function_call_output", "call_id": one.output[0].call_id, "output": "cold"})
    two = patient.responses.create(input=items, **CALLING)
    told: list[Any] = [response.to_dict()["x_megacontext"]["session_id"] for response in (one, two)]
    assert told[0] == told[1]


def test_a_named_function_is_called(patient: openai.OpenAI) -> None:
    """``tool_choice`` by name leaves no other call, and none of it stays for the next response."""
    named: Any = {"type": "function", "name": "clock"}
    options = {**CALLING, "tools": [WEATHER, CLOCK], "tool_choice": named, "max_output_tokens": 400}
    response = patient.responses.create(input="Hi", **options)
    assert {item.name for item in response.output if item.type == "function_call"} == {"clock"}
    assert (response.tool_choice.to_dict(), len(response.tools)) == (named, 2)


def test_json_is_parsed_by_the_official_client(patient: openai.OpenAI) -> None:
    """``responses.parse`` gets an object of its type, whatever the model would rather say."""
    parsed = patient.responses.parse(input="Tell of a town", text_format=Town, model=MODEL, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Town)
    assert parsed.status == "completed"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [WEATHER, WEATHER]}, "tools.1"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nothing"}}}}, "text.format"),
    ],
)
def test_what_cannot_be_called_is_refused_by_name(roomy: str, options: Any, param: str) -> None:
    """400, and the field at fault."""
    body = {"model": MODEL, "input": "Hi", "max_output_tokens": 4, **options}
    answer = httpx.post(f"{roomy}/v1/responses", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)
