"""A table of what programs call through Responses: what is right comes, the rest is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from client_rows import AAAA, SAY_A, Refused, Row, cases, check, schema

SMALL: dict[str, Any] = {"model": "tiny", "input": "Hi", "max_output_tokens": 4, "temperature": 0}
A: dict[str, Any] = {"extra_body": SAY_A}
LOOK: dict[str, Any] = {"type": "function", "name": "look", "parameters": schema("x"), "strict": True}
ONE_CALL: dict[str, Any] = {
    "tools": [LOOK],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_output_tokens": 80,
}
FORM = {"format": {"type": "json_schema", "name": "it", "schema": schema("ü"), "strict": True}}
SAID = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Hello.", "annotations": []}],
}
HI = {"role": "user", "content": "Hi"}
CALLED = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"it": "x"}'}
GAVE = {"type": "function_call_output", "call_id": "c1", "output": "fog"}


class It(BaseModel):
    it: str


def part(**given: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [{"type": "input_text", "text": "See:"}, given]}]}


def create(client: openai.OpenAI, **given: Any) -> Any:
    return client.responses.create(**{**SMALL, **given})


def helper(client: openai.OpenAI, **given: Any) -> Any:
    with client.responses.stream(**{**SMALL, **given}) as stream:
        for _ in stream:
            pass
        return stream.get_final_response()


def again(client: openai.OpenAI, **given: Any) -> Any:
    return client.responses.retrieve(create(client, **A).id, **given)


def deleted(client: openai.OpenAI, **given: Any) -> bool:
    made = create(client, **given).id
    assert client.responses.delete(made) is None
    with pytest.raises(openai.NotFoundError, match=made):
        client.responses.retrieve(made)
    return True


def behind(client: openai.OpenAI, **given: Any) -> Any:
    return create(client, previous_response_id=create(client, **A).id, **given)


CALLS: dict[str, Callable[..., Any]] = {
    "create": create,
    "stream": lambda client, **given: list(create(client, stream=True, **given)),
    "helper": helper,
    "parse": lambda client, **given: client.responses.parse(**{**SMALL, **given}),
    "retrieve": again,
    "retrieve stream": lambda client, **given: list(again(client, stream=True, **given)),
    "input_items": lambda client, **given: client.responses.input_items.list(create(client).id, **given),
    "delete": deleted,
    "cancel": lambda client, **given: client.responses.cancel(create(client, **given).id),
    "behind": behind,
}


def said(text: str, status: str = "incomplete") -> Callable[[Any], None]:
    """One message of this text, and a usage that fits."""

    def of(answer: Any) -> None:
        assert (answer.object, answer.model, answer.status, answer.output_text) == ("response", "tiny", status, text)
        assert [(item.type, item.role, len(item.content)) for item in answer.output] == [("message", "assistant", 1)]
        assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
        assert (answer.incomplete_details is not None) == (status == "incomplete")
        assert answer.error is None

    return of


def echoed(**given: Any) -> Callable[[Any], None]:
    def of(answer: Any) -> None:
        told = answer.to_dict()
        assert {name: told[name] for name in given} == given
        said(AAAA)(answer)

    return of


def calls_look(answer: Any) -> None:
    (call,) = answer.output
    assert (call.type, call.name, call.status, answer.status) == ("function_call", "look", "completed", "completed")
    assert json.loads(call.arguments) == {"it": "x"}


def streamed(text: str) -> Callable[[Any], None]:
    def of(events: Any) -> None:
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[0].type == "response.created"
        assert (events[-1].type, events[-1].response.output_text) == ("response.incomplete", text)

    return of


def is_json(answer: Any) -> bool:
    return json.loads(answer.output_text) == {"it": "ü"} and answer.status == "completed"


def unkept(answer: Any) -> bool:
    return answer.to_dict()["x_megacontext"]["session_id"] is None and answer.to_dict()["store"] is False


TOLD_BACK: dict[str, Any] = {
    "metadata": {"trace": "7"},
    "parallel_tool_calls": True,
    "truncation": "auto",
    "instructions": "Be brief.",
    "top_p": 0.5,
    "store": True,
    "background": False,
}
WITHOUT_EFFECT: dict[str, Any] = {
    "user": "ann",
    "service_tier": "auto",
    "prompt_cache_key": "ann",
    "safety_identifier": "ann",
    "max_tool_calls": 3,
    "include": ["reasoning.encrypted_content"],
    "reasoning": {"effort": "none"},
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tools": [],
    "tool_choice": "auto",
    "context_management": [],
}
ROWS: list[Row] = [
    ("create", A, said(AAAA)),
    *(("create", {**A, name: value}, said(AAAA)) for name, value in WITHOUT_EFFECT.items()),
    *(("create", {**A, name: value}, echoed(**{name: value})) for name, value in TOLD_BACK.items()),
    ("create", {**A, **WITHOUT_EFFECT, **TOLD_BACK}, echoed(**TOLD_BACK)),
    ("create", {**A, "store": False}, unkept),
    ("create", {**A, "input": [HI, SAID, HI]}, said(AAAA)),
    ("create", {**A, "input": [{"role": "developer", "content": "Be brief."}, HI]}, said(AAAA)),
    ("create", {**A, "input": [HI, CALLED, GAVE], "tools": [LOOK], "tool_choice": "none"}, said(AAAA)),
    (
        "create",
        {**A, "top_logprobs": 2, "include": ["message.output_text.logprobs"]},
        lambda answer: [one.token for one in answer.output[0].content[0].logprobs] == ["a"] * 4,
    ),
    ("create", {"extra_body": {**SAY_A, "stop": ["aaa"], "top_k": 5}}, said("", "completed")),
    ("create", ONE_CALL, calls_look),
    ("create", {**ONE_CALL, "tool_choice": {"type": "function", "name": "look"}}, calls_look),
    ("create", {"text": FORM, "max_output_tokens": 40}, is_json),
    ("stream", A, streamed(AAAA)),
    ("stream", {**A, "stream_options": {"include_obfuscation": False}}, streamed(AAAA)),
    ("helper", {"extra_body": {**SAY_A, "stop": ["aaa"]}}, said("", "completed")),
    ("helper", ONE_CALL, calls_look),
    (
        "parse",
        {"text_format": It, "max_output_tokens": 80, "extra_body": {"logit_bias": {"4": 100}}},
        lambda answer: isinstance(answer.output_parsed, It),
    ),
    ("retrieve", {}, said(AAAA)),
    ("retrieve", {"include": ["message.output_text.logprobs"]}, said(AAAA)),
    ("retrieve stream", {}, streamed(AAAA)),
    ("retrieve stream", {"starting_after": 2}, lambda events: events[0].sequence_number == 3),
    ("input_items", {}, lambda page: [(one.role, one.content[0].text) for one in page] == [("user", "Hi")]),
    ("input_items", {"limit": 1, "order": "asc"}, lambda page: len(page.data) == 1 and not page.has_more),
    ("delete", A, lambda done: done),
    (
        "cancel",
        {**A, "background": True, "max_output_tokens": 400},
        lambda answer: answer.status in ("cancelled", "incomplete"),
    ),
    ("behind", A, lambda answer: answer.usage.input_tokens_details.cached_tokens > 0 and answer.output_text == AAAA),
    ("cancel", {}, Refused("response_id", "only a response in the background")),
    # What is refused names itself.
    ("create", {"reasoning": {"effort": "low"}}, Refused("reasoning.effort", "not supported")),
    ("create", {"reasoning": {"summary": "auto"}}, Refused("reasoning.summary", "not supported")),
    ("create", {"text": {"verbosity": "low"}}, Refused("text.verbosity", "not supported")),
    ("create", {"prompt": {"id": "p1"}}, Refused("prompt", "not supported")),
    ("create", {"include": ["web_search_call.results"]}, Refused("include.0", "Input should be")),
    ("create", {"extra_body": {"n": 2}}, Refused("n", "not supported")),
    ("create", {"extra_body": {"max_tokens": 2}}, Refused("max_tokens", "not supported")),
    ("create", {"background": True, "store": False}, Refused("background", "store to be true")),
    (
        "create",
        {"conversation": "sess_x", "previous_response_id": "resp_x"},
        Refused("previous_response_id", "not both"),
    ),
    ("create", {"tools": [{"type": "web_search"}]}, Refused("tools.0.type", "'web_search': this server runs no tools")),
    ("create", {"tools": [LOOK, {"type": "mcp", "server_label": "x"}]}, Refused("tools.1.type", "mcp")),
    ("create", {"tool_choice": {"type": "web_search"}}, Refused("tool_choice.type", "web_search.* may be: function")),
    ("create", part(type="input_image", image_url="data:x"), Refused("input.0.content.1.type", "images are not")),
    ("create", part(type="input_file", file_id="f1"), Refused("input.0.content.1.type", "files are not")),
    ("create", {"input": [HI, {"type": "item_reference", "id": "x"}]}, Refused("input.1.type", "item_reference")),
    ("stream", {"stream_options": {"include_obfuscation": True}}, Refused("stream_options.include_obfuscation")),
    ("retrieve", {"extra_query": {"starting_behind": 2}}, Refused("starting_behind", "query parameter")),
    ("input_items", {"limit": 0}, Refused("limit", "greater than or equal to 1")),
]


@pytest.mark.parametrize(("call", "given", "expected"), cases(ROWS))
def test_calls(client: openai.OpenAI, roomy: str, call: str, given: dict[str, Any], expected: Any) -> None:
    """Each call is answered with what it asks for, or refused with the name of what cannot be had."""
    patient = client.with_options(base_url=f"{roomy}/v1", max_retries=5)
    check(lambda **all_of_it: CALLS[call](patient, **all_of_it), given, expected)
