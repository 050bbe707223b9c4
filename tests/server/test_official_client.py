"""A fixed list of what clients call, each as they call it: the official client's ways, and bodies of other ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from support import EOS

MODEL = "tiny"
ASK: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi, I am Ann."}]
SMALL: dict[str, Any] = {"model": MODEL, "max_tokens": 4}
ENDING: dict[str, Any] = {**SMALL, "logit_bias": {str(EOS): 100}}
PASSING: dict[str, Any] = {
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "metadata": {"trace": "7"},
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "Hello"},
    "presence_penalty": 0,
    "prompt_cache_key": "ann",
    "prompt_cache_retention": "24h",
    "reasoning_effort": None,
    "response_format": {"type": "text"},
    "safety_identifier": "ann",
    "seed": None,
    "service_tier": "auto",
    "stop": [],
    "store": None,
    "temperature": 1,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": None,
    "top_p": 1,
    "user": "ann",
    "verbosity": "medium",
}


def whole(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(messages=ASK, **SMALL, **options)


def streamed(client: openai.OpenAI, **options: Any) -> str:
    chunks = list(client.chat.completions.create(messages=ASK, stream=True, **SMALL, **options))
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def helper(client: openai.OpenAI) -> bool:
    """The client's own reader of streams, which puts the chunks together by their types."""
    with client.chat.completions.stream(messages=ASK, stream_options={"include_usage": True}, **ENDING) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.usage is not None
    return final.choices[0].finish_reason == "stop"


def parsed(client: openai.OpenAI) -> bool:
    return client.chat.completions.parse(messages=ASK, **ENDING).choices[0].finish_reason == "stop"


def text(client: openai.OpenAI, **options: Any) -> int:
    options = {"prompt": ["Hi", "Ho"], **SMALL, **options}
    return len(client.completions.create(**options, best_of=1, echo=False, n=1, suffix=None, user="ann").choices)


def text_streamed(client: openai.OpenAI) -> set[int]:
    return {chunk.choices[0].index for chunk in client.completions.create(prompt=["Hi", "Ho"], stream=True, **SMALL)}


CALLS: dict[str, Callable[[openai.OpenAI], Any]] = {
    "chat": lambda client: whole(client).choices[0].message.content,
    "chat, all that passes": lambda client: whole(client, **PASSING).choices[0].message.content,
    "chat, streamed": streamed,
    "chat, streamed, all that passes": lambda client: streamed(client, **PASSING),
    "chat, streamed by the helper": helper,
    "chat, parsed": parsed,
    "chat, raw": lambda client: client.chat.completions.with_raw_response.create(messages=ASK, **SMALL).parse().id,
    "chat, another key": lambda client: whole(client, extra_headers={"Authorization": "Bearer x"}).id,
    "text": lambda client: client.completions.create(prompt="Hi", **SMALL).choices[0].text,
    "text, of a list": lambda client: text(client) == 2,
    "text, of a list of ids": lambda client: text(client, prompt=[[40, 41], [42]]) == 2,
    "text, of a list, streamed": lambda client: text_streamed(client) == {0, 1},
    "models": lambda client: [model.id for model in client.models.list()] == [MODEL],
    "model": lambda client: client.models.retrieve(MODEL).id,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_of_the_official_client(client: openai.OpenAI, call: Callable[[openai.OpenAI], Any]) -> None:
    """Each way to call is answered, and with something."""
    assert call(client.with_options(max_retries=5))


def test_what_passes_does_not_change_the_answer(client: openai.OpenAI) -> None:
    """The same greedy reply with everything that is harmless or a default, and without it."""
    options = {**PASSING, "temperature": 0}
    assert whole(client, **options).choices[0].message == whole(client, temperature=0).choices[0].message


BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "LangChain OpenAI": (
        "/v1/completions",
        {
            "prompt": ["Hi"],
            "frequency_penalty": 0,
            "logit_bias": None,
            "logprobs": None,
            "n": 1,
            "presence_penalty": 0,
            "seed": None,
            "temperature": 0.7,
            "top_p": 1,
        },
    ),
    "LangChain ChatOpenAI": (
        "/v1/chat/completions",
        {"messages": [{"content": "Hi", "role": "user", "name": None}], "n": None, "temperature": None, "stop": None},
    ),
    "cached prompts": (
        "/v1/chat/completions",
        {
            "messages": [
                {
                    "role": "system",
                    "content": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
                },
                {"role": "user", "content": "Hi", "cache_control": {"type": "ephemeral"}},
            ],
            "stream": False,
        },
    ),
    "replies of ours and of others": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": "Hi", "name": "Ann"},
                {
                    "role": "assistant",
                    "content": "Hello.",
                    "refusal": None,
                    "annotations": [],
                    "audio": None,
                    "function_call": None,
                    "tool_calls": None,
                    "reasoning_content": None,
                },
                {"role": "user", "content": "Who am I?"},
                {"role": "assistant", "content": "Ann.", "tool_calls": []},
                {"role": "user", "content": "Thanks."},
            ],
            "stream": None,
            "stream_options": None,
        },
    ),
}


@pytest.mark.parametrize(("path", "body"), BODIES.values(), ids=BODIES)
def test_bodies_as_clients_send_them(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """What frameworks add of their own, empty or harmless, is no reason to refuse a request."""
    answer = http.post(path, json={**SMALL, **body})
    assert answer.status_code == 200, answer.text
