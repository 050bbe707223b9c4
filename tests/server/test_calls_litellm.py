"""A table of what programs call with litellm, by each of the APIs that it speaks to a server like this one.

``make test-clients`` installs litellm and runs it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from client_rows import AAAA, SAY_A, Refused, Row, cases, check, schema

HI: list[Any] = [{"role": "user", "content": "Hi"}]
FUNCTION = {"name": "look", "description": "Look.", "parameters": schema("x"), "strict": True}
ONE_CALL: dict[str, Any] = {
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "look"}},
    "max_tokens": 80,
}
FORM = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema("b"), "strict": True}}
CACHED = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.fixture(scope="module")
def litellm() -> Any:
    """Imported when its tests run, for that takes seconds, and without asking the network for prices of models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        library = pytest.importorskip("litellm", reason="an extra of its own: pip install '.[clients]'")
    library.telemetry, library.suppress_debug_info = False, True
    return library


pytestmark = pytest.mark.slow


async def collected(making: Coroutine[Any, Any, Any]) -> list[Any]:
    return [chunk async for chunk in await making]


def chat(provider: str, **given: Any) -> dict[str, Any]:
    """Arguments of a chat. Of Anthropic's API the address is what its client gets, without /v1."""
    return {"model": f"{provider}/tiny", "messages": HI, "max_tokens": 4, "temperature": 0, "num_retries": 0, **given}


CALLS: dict[str, Callable[..., Any]] = {
    "openai": lambda lib, at, **given: lib.completion(api_base=f"{at}/v1", **chat("openai", **given)),
    "hosted_vllm": lambda lib, at, **given: lib.completion(api_base=f"{at}/v1", **chat("hosted_vllm", **given)),
    "stream": lambda lib, at, **given: list(
        lib.completion(api_base=f"{at}/v1", stream=True, **chat("openai", **given))
    ),
    "acompletion stream": lambda lib, at, **given: asyncio.run(
        collected(lib.acompletion(api_base=f"{at}/v1", stream=True, **chat("openai", **given)))
    ),
    "text": lambda lib, at, **given: lib.text_completion(
        model="text-completion-openai/tiny", prompt="Hi", max_tokens=4, api_base=f"{at}/v1", **given
    ),
    "responses": lambda lib, at, **given: lib.responses(
        model="openai/tiny", input="Hi", max_output_tokens=4, api_base=f"{at}/v1", **given
    ),
    "responses stream": lambda lib, at, **given: list(
        lib.responses(model="openai/tiny", input="Hi", max_output_tokens=4, stream=True, api_base=f"{at}/v1", **given)
    ),
    "anthropic": lambda lib, at, **given: lib.completion(api_base=at, **chat("anthropic", **given)),
    "anthropic stream": lambda lib, at, **given: list(
        lib.completion(api_base=at, stream=True, **chat("anthropic", **given))
    ),
    "messages": lambda lib, at, **given: asyncio.run(
        lib.anthropic.messages.acreate(model="anthropic/tiny", messages=HI, max_tokens=4, api_base=at, **given)
    ),
}


def said(text: str, reason: str = "length") -> Callable[[Any], None]:
    def of(answer: Any) -> None:
        (choice,) = answer.choices
        assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", text, reason)
        assert answer.usage.completion_tokens == len(text)
        assert answer.model == "tiny"

    return of


def streamed(chunks: Any) -> None:
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == AAAA
    assert chunks[-1].choices[0].finish_reason == "length"


def calls_look(answer: Any) -> None:
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"it": "x"})
    assert answer.choices[0].finish_reason in ("tool_calls", "stop")


def is_json(answer: Any) -> bool:
    return json.loads(answer.choices[0].message.content) == {"it": "b"}


def responded(answer: Any) -> None:
    assert [part.text for item in answer.output for part in item.content] == [AAAA]
    assert (answer.status, answer.usage.output_tokens) == ("incomplete", 4)


def responded_in_pieces(events: Any) -> None:
    assert "".join(getattr(event, "delta", "") for event in events) == AAAA
    responded(events[-1].response)


def a_message(answer: Any) -> None:
    assert [block["type"] for block in answer["content"]] == ["text"]
    assert (answer["role"], answer["stop_reason"]) == ("assistant", "max_tokens")
    assert answer["usage"]["output_tokens"] == 4


def four_tokens(answer: Any) -> bool:
    return answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 4


WHAT_PROGRAMS_SEND: dict[str, Any] = {
    "n": 1,
    "seed": 7,
    "user": "ann",
    "stop": ["zz"],
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "parallel_tool_calls": True,
    "service_tier": "auto",
    "metadata": {"trace": "7"},
}
A = {"extra_body": SAY_A}
ROWS: list[Row] = [
    ("openai", A, said(AAAA)),
    ("openai", {**A, **WHAT_PROGRAMS_SEND}, said(AAAA)),
    ("openai", ONE_CALL, calls_look),
    ("openai", {"response_format": FORM, "max_tokens": 60}, is_json),
    ("openai", {"logprobs": True, "top_logprobs": 2, **A}, lambda answer: len(answer.choices[0].logprobs.content) == 4),
    ("hosted_vllm", A, said(AAAA)),
    ("stream", A, streamed),
    (
        "stream",
        {**A, "stream_options": {"include_usage": True}},
        lambda chunks: chunks[-1].usage.completion_tokens == 4,
    ),
    ("acompletion stream", A, streamed),
    ("text", A, lambda answer: answer.choices[0].text == AAAA),
    ("responses", A, responded),
    ("responses stream", A, responded_in_pieces),
    ("anthropic", {**SAY_A, "allowed_openai_params": ["logit_bias"]}, said(AAAA)),
    ("anthropic", ONE_CALL, calls_look),
    ("anthropic", {"messages": [{"role": "system", "content": [CACHED]}, *HI]}, four_tokens),
    ("anthropic stream", {**SAY_A, "allowed_openai_params": ["logit_bias"]}, streamed),
    ("messages", {}, a_message),
    ("openai", {"n": 2}, Refused("n", "'n' is not supported")),
    (
        "openai",
        {"messages": [{"role": "user", "content": [PICTURE]}]},
        Refused("messages.0.content.0", "images are not supported"),
    ),
    ("stream", {"n": 2}, Refused("n", "'n' is not supported")),
    (
        "anthropic",
        {"messages": [{"role": "user", "content": [PICTURE]}]},
        Refused("messages.0.content.0", "images are not supported"),
    ),
]


@pytest.mark.parametrize(("call", "given", "expected"), cases(ROWS))
def test_calls(litellm: Any, roomy: str, call: str, given: dict[str, Any], expected: Any) -> None:
    """Each call is answered with what it asks for, or refused with the name of what cannot be had."""
    check(lambda **all_of_it: CALLS[call](litellm, roomy, api_key="none", **all_of_it), given, expected)
