"""Replies that are JSON: of any schema that is taken, cut by their limit alone, and beside all other parameters."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator

from random_schemas import document_of

MODEL = "tiny"
ASK: list[Any] = [{"role": "user", "content": "Tell me."}]


def asked(schema: dict[str, Any] | None, **fields: Any) -> dict[str, Any]:
    kind: dict[str, Any] = {"type": "json_object"}
    if schema is not None:
        kind = {"type": "json_schema", "json_schema": {"name": "made", "schema": schema}}
    return {"model": MODEL, "messages": ASK, "response_format": kind, "store": False, "temperature": 1, **fields}


def choice_of(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, (answer.text, json.dumps(body))
    told: dict[str, Any] = answer.json()
    return {**told["choices"][0], "tokens": told["usage"]["completion_tokens"]}


def keeps_to_its_schema(address: str, seeds: range) -> None:
    """Every whole reply is valid by ``jsonschema``, and what is not whole has all the tokens that it may have."""
    limit = 120

    def ended(seed: int) -> bool:
        schema = document_of(random.Random(seed))
        with httpx.Client(base_url=address, timeout=120) as http:
            choice = choice_of(http, asked(schema, seed=seed, max_tokens=limit))
        if choice["finish_reason"] == "length":
            assert choice["tokens"] == limit
            return False
        value = json.loads(choice["message"]["content"])
        checker = Draft202012Validator.FORMAT_CHECKER
        Draft202012Validator(schema, format_checker=checker).validate(value)
        return True

    with ThreadPoolExecutor(4) as threads:
        whole = list(threads.map(ended, seeds))
    assert sum(whole) > 0.6 * len(whole)


def test_replies_keep_to_random_schemas(address: str) -> None:
    """Law: whatever the schema, a reply of random weights at temperature 1 is valid JSON of it."""
    keeps_to_its_schema(address, range(60))


@pytest.mark.slow
def test_replies_keep_to_many_random_schemas(address: str) -> None:
    """The same for 500 schemas."""
    keeps_to_its_schema(address, range(500))


def test_any_object(http: httpx.Client) -> None:
    """json_object makes an object, of which the stream tells the same text as the whole answer."""
    bias = {str(token): 5.0 for token in range(3, 100)}
    body = asked(None, seed=3, max_tokens=100, logit_bias=bias)
    choice = choice_of(http, body)
    assert choice["message"]["content"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as stream:
        data = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: {")]
    deltas = [json.loads(one)["choices"][0] for one in data]
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == choice["message"]["content"]
    assert deltas[-1]["finish_reason"] == choice["finish_reason"]


POINT = {
    "type": "object",
    "properties": {"at": {"enum": ["north", "south"]}, "far": {"type": "boolean"}},
    "required": ["at", "far"],
    "additionalProperties": False,
}


def test_it_ends_where_nothing_more_can_follow(http: httpx.Client) -> None:
    """With ignore_eos and a limit far away, the reply still stops at its last bracket, the same for the same seed."""
    body = asked(POINT, seed=5, ignore_eos=True, max_tokens=500, presence_penalty=1.5, repetition_penalty=1.2)
    first = choice_of(http, body)
    assert first["finish_reason"] == "stop"
    assert set(json.loads(first["message"]["content"])) == {"at", "far"}
    assert choice_of(http, body)["message"] == first["message"]


def test_limits_stops_biases_and_logprobs(http: httpx.Client) -> None:
    """A limit cuts, a stop string cuts in front of itself, and log probabilities are told of every token."""
    cut = choice_of(http, asked(POINT, seed=5, max_tokens=3))
    assert (cut["finish_reason"], cut["tokens"]) == ("length", 3)
    stopped = choice_of(http, asked(POINT, seed=5, stop="th"))
    assert stopped["finish_reason"] == "stop"
    assert stopped["message"]["content"].rstrip().endswith(("nor", "sou"))
    told = choice_of(http, asked(POINT, seed=5, logprobs=True, top_logprobs=2))
    assert len(told["logprobs"]["content"]) == told["tokens"]
    # What must come is not likely to a model of random weights: the numbers are its own.
    assert min(one["logprob"] for one in told["logprobs"]["content"]) < -3


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": {"a": {"type": "array", "items": {"not": {}}}}}, ['"not"', "#/properties/a/items"]),
        ({"anyOf": [{"type": "string"}, {"uniqueItems": True}]}, ['"uniqueItems"', "#/anyOf/1"]),
        ({"$defs": {"x/y": {"contains": {}}}, "$ref": "#/$defs/x~1y"}, ['"contains"']),
        ({"type": "string", "format": "made-up"}, ["made-up"]),
        ({"type": "strng"}, ["strng"]),
        ({"$ref": "#/nowhere"}, ["nowhere"]),
        ({"$ref": "#"}, ["nothing can be written"]),
        ({"type": "integer", "minimum": 3, "maximum": 1}, ["minimum"]),
        ({"type": "object", "x-guidance": {"lenient": True}, "not": {}}, ['"not"']),
        ({"enum": ["x" * 300_000]}, ["262,144"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_enforced_is_refused(client: openai.OpenAI, schema: dict[str, Any], words: list[str]) -> None:
    """A 400 names the keyword and the place; what a schema says of the library's own options is not heard."""
    body = asked(schema)
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=ASK, response_format=body["response_format"], max_tokens=5)
    assert (bad.value.param, bad.value.code) == ("response_format.json_schema.schema", "unsupported_schema")
    assert all(word in bad.value.message for word in words), bad.value.message


def test_a_deep_schema_is_refused(http: httpx.Client) -> None:
    """However deep a schema is, nothing overflows."""
    schema: dict[str, Any] = {}
    for _ in range(150):
        schema = {"type": "array", "items": schema}
    answer = http.post("/v1/chat/completions", json=asked(schema))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_schema")
