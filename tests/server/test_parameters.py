"""Every parameter of the official client: honoured, harmless, or refused by name; and a null is no parameter at all."""

from __future__ import annotations

from typing import Any, get_type_hints

import httpx
import openai
import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import ChatCompletionContentPartTextParam, ChatCompletionStreamOptionsParam
from openai.types.chat import chat_completion_assistant_message_param as assistant_params
from openai.types.chat import completion_create_params as chat_params

from server.apis.chat.protocol import ChatMessage, ChatRequest, TextPart
from server.apis.completions.protocol import CompletionRequest
from server.protocol.common import StreamOptions
from server.protocol.parameters import Harmless
from server.protocol.strict import Only, StrictModel

MODEL = "tiny"
ASK = [{"role": "user", "content": "Hi"}]
CHAT = ("/v1/chat/completions", {"model": MODEL, "messages": ASK, "max_tokens": 1})
TEXT = ("/v1/completions", {"model": MODEL, "prompt": "Hi", "max_tokens": 1})
ROUTES = [(ChatRequest, *CHAT), (CompletionRequest, *TEXT)]
ANYTHING = (True, 3, "anything", ["x"], {"a": {"b": None}})

OFFICIAL = [
    (ChatRequest, chat_params.CompletionCreateParamsStreaming),
    (CompletionRequest, text_params.CompletionCreateParamsStreaming),
    (StreamOptions, ChatCompletionStreamOptionsParam),
    (ChatMessage, assistant_params.ChatCompletionAssistantMessageParam),
    (TextPart, ChatCompletionContentPartTextParam),
]


@pytest.mark.parametrize(("model", "official"), OFFICIAL, ids=lambda one: one.__name__)
def test_every_official_parameter_has_been_decided_on(model: type[StrictModel], official: type) -> None:
    """What the client's newest version can send is honoured, harmless or refused on purpose, never by accident."""
    assert set(get_type_hints(official)) - set(model.model_fields) == set()


def only(model: type[StrictModel]) -> list[tuple[str, tuple[Any, ...]]]:
    found = [(name, one) for name, field in model.model_fields.items() for one in field.metadata]
    return [(name, tuple(one.values)) for name, one in found if isinstance(one, Only)]


def harmless(model: type[StrictModel]) -> list[str]:
    (about,) = Harmless.__metadata__
    return [name for name, field in model.model_fields.items() if field.description == about.description]


@pytest.mark.parametrize(("model", "path", "body"), ROUTES, ids=["chat", "text"])
def test_what_does_not_change_the_answer_passes(
    http: httpx.Client, model: type[StrictModel], path: str, body: dict[str, Any]
) -> None:
    """Harmless parameters pass with any value, and others with each value that asks for nothing."""
    names = harmless(model)
    assert "user" in names
    for value in ANYTHING:
        answer = http.post(path, json={**body, **dict.fromkeys(names, value)})
        assert answer.status_code == 200, answer.text
    for name, values in only(model):
        for value in values:
            answer = http.post(path, json={**body, name: value})
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("model", "path", "body"), ROUTES, ids=["chat", "text"])
def test_what_would_change_the_answer_is_refused_by_name(
    http: httpx.Client, model: type[StrictModel], path: str, body: dict[str, Any]
) -> None:
    """Any other value is answered 400 with the parameter's name and the values that pass."""
    for name, values in only(model):
        for value in (*ANYTHING, 0, 1, False, "other", [], {}):
            if any(type(value) is type(one) and value == one for one in values):
                continue
            answer = http.post(path, json={**body, name: value})
            assert answer.status_code == 400, (name, value)
            error = answer.json()["error"]
            assert (error["param"], error["code"]) == (name, "unsupported_parameter")
            assert error["message"].endswith("or null" if values else "except as null")
    answer = http.post(path, json={**body, "nonsense": 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "nonsense")


@pytest.mark.parametrize(("model", "path", "body"), ROUTES, ids=["chat", "text"])
def test_a_null_is_no_parameter(http: httpx.Client, model: type[StrictModel], path: str, body: dict[str, Any]) -> None:
    """Null means absent for every parameter, known or not, that does not have to be there."""
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    nulls = dict.fromkeys([*(set(model.model_fields) - required - {"max_tokens"}), "of_tomorrow"])
    answer = http.post(path, json={**body, **nulls})
    assert answer.status_code == 200, answer.text
    for name in required:
        answer = http.post(path, json={**body, name: None})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "missing_parameter")


def test_nulls_within_a_request_are_absent_too(http: httpx.Client) -> None:
    """The same holds inside of messages, their parts and the options of a stream."""
    path, body = CHAT
    part = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}, "image_url": None}
    message = {"role": "user", "content": [part], "name": None, "tool_calls": None, "tool_call_id": None}
    options = {"include_usage": None, "include_obfuscation": False, "other": None}
    answer = http.post(path, json={**body, "messages": [message], "stream": True, "stream_options": options})
    assert answer.status_code == 200, answer.text
    made = http.post("/v1/sessions", json={"system": None, "metadata": None, "budget": None})
    assert made.status_code == 201
    assert http.delete(f"/v1/sessions/{made.json()['id']}").status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"content": None}, "messages.0", "content"),
        ({}, "messages.0", "content"),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "messages.0.tool_calls.0.function", "missing"),
        ({"content": "x", "tool_call_id": "1"}, "messages.0", "tool_call_id"),
        (
            {"content": "x", "function_call": {"name": "f", "arguments": ""}},
            "messages.0.function_call",
            "not supported",
        ),
        ({"content": "x", "audio": {"id": "1"}}, "messages.0.audio", "not supported"),
        ({"content": None, "refusal": "No."}, "messages.0.refusal", "not supported"),
    ],
)
def test_replies_of_other_kinds_are_told(http: httpx.Client, fields: dict[str, Any], param: str, word: str) -> None:
    """A reply that spoke or refused, or whose calls are none, is none of ours: the error names what it holds."""
    path, body = CHAT
    answer = http.post(path, json={**body, "messages": [{"role": "assistant", **fields}, *ASK]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert word in answer.json()["error"]["message"]


def test_a_reply_is_taken_back_as_it_was_sent(client: openai.OpenAI, http: httpx.Client) -> None:
    """The reply object of the official client is a message of the next turn, and so is its JSON with every null."""
    messages: list[Any] = [{"role": "user", "content": "Hi, I am Ann."}]
    for turn in range(3):
        reply = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
        assert (reply.usage.prompt_tokens_details.cached_tokens > 0) == (turn > 0)
        messages += [reply.choices[0].message, {"role": "user", "content": "Who am I?"}]
    for dumped in (reply.choices[0].message.model_dump(), reply.choices[0].message.to_dict()):
        answer = http.post("/v1/chat/completions", json={**CHAT[1], "messages": [*ASK, dumped, *ASK]})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/v1/sessions?limit=1&limit=2", "limit"),
        ("/v1/sessions?implicit=true&limit=1&implicit=true", "implicit"),
        ("/v1/sessions/sess_x/text?start=0&end=1&end=1", "end"),
        ("/v1/responses/resp_x?stream=true&stream=false", "stream"),
        ("/v1/sessions/sess_x/messages?order=asc&order=desc", "order"),
    ],
)
def test_a_query_parameter_that_is_given_twice_is_refused(http, path, named):
    """Law: where one value alone would count, none is taken in silence: 400 names the parameter."""
    refused = http.get(path)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, named)
    assert "2 times" in refused.json()["error"]["message"]


def test_no_address_takes_a_query_parameter_that_it_does_not_know(http):
    """Law: whatever API and method, a parameter that means nothing there is refused by its name."""
    for path, ways in http.get("/openapi.json").json()["paths"].items():
        for method in (method for method in ways if path.startswith("/v1/")):
            refused = http.request(method, f"{path.replace('{', '').replace('}', '')}?nothing=1")
            assert (refused.status_code, refused.json()["error"].get("param", "nothing")) == (400, "nothing"), path
            assert "'nothing'" in refused.json()["error"]["message"], path


@pytest.mark.parametrize("name", ["Idempotency-Key", "Last-Event-ID"])
def test_a_header_that_names_one_thing_comes_once(http, name):
    """Law: of two lines of such a header neither is taken in silence: 400 names it."""
    refused = http.post(CHAT[0], json=CHAT[1], headers=[(name, "0123abcd-1"), (name, "0123abcd-2")])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)
    assert "2 times" in refused.json()["error"]["message"]


def test_lists_in_a_query_are_known_by_their_names(http):
    """Law: a parameter may be given more than once exactly if its name ends in []."""
    for ways in http.get("/openapi.json").json()["paths"].values():
        for way in ways.values():
            for one in way.get("parameters", ()):
                kinds = [one["schema"], *one["schema"].get("anyOf", ())]
                listed = any(kind.get("type") == "array" for kind in kinds)
                assert one["in"] != "query" or listed == one["name"].endswith("[]"), one
    twice = http.get("/v1/responses/resp_x?include[]=reasoning.encrypted_content&include[]=reasoning.encrypted_content")
    assert twice.status_code == 404
