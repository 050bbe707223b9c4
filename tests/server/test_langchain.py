"""langchain-openai against the real server: what an application of it calls, through chat completions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

langchain_openai = pytest.importorskip("langchain_openai", reason="an extra of its own: pip install '.[clients]'")
pytestmark = pytest.mark.slow


@pytest.fixture
def make(roomy: str) -> Callable[..., Any]:
    """Makes a chat model with options."""

    def model(**options: Any) -> Any:
        given = {"model": "tiny", "max_tokens": 200, "temperature": 0, **options}
        return langchain_openai.ChatOpenAI(base_url=f"{roomy}/v1", api_key="none", max_retries=0, **given)

    return model


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What the sky will do over a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
PERSON = {
    "title": "person",
    "description": "Somebody.",
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}},
    "required": ["name"],
    "additionalProperties": False,
}
TALK = [("system", "Be brief."), ("human", "Hi"), ("ai", "Hello."), ("human", "Who am I?")]
CALLS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "invoke": lambda make: make().invoke("Hi").content,
    "invoke, a conversation": lambda make: make().invoke(TALK).content,
    "stream": lambda make: "".join(chunk.content for chunk in make().stream("Hi")),
    "stream with usage": lambda make: [c for c in make(stream_usage=True).stream("Hi") if c.usage_metadata],
    "batch": lambda make: len(make().batch(["Hi", "Ho"])) == 2,
    "stop": lambda make: make().invoke("Hi", stop=["never"]).response_metadata["finish_reason"],
    "logprobs": lambda make: make(logprobs=True, top_logprobs=2).invoke("Hi").response_metadata["logprobs"],
    "a tool that must be called": lambda make: (
        make().bind_tools([WEATHER], tool_choice="weather").invoke("Averby?").tool_calls[0]["name"] == "weather"
    ),
    "any tool, streamed": lambda make: [
        chunk for chunk in make().bind_tools([WEATHER], tool_choice="any").stream("Averby?") if chunk.tool_call_chunks
    ],
    "structured output, json_schema": lambda make: (
        set(make().with_structured_output(PERSON, method="json_schema").invoke("Who?")) == {"name"}
    ),
    "structured output, functions": lambda make: (
        set(make().with_structured_output(PERSON, method="function_calling").invoke("Who?")) == {"name"}
    ),
    "structured output, json_mode": lambda make: isinstance(
        make().with_structured_output(None, method="json_mode").invoke("JSON of you?"), dict
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_of_langchain(make: Callable[..., Any], call: Callable[[Callable[..., Any]], Any]) -> None:
    """Each way to call is answered, and with something."""
    assert call(make)


def test_results_of_tools_go_on(make: Callable[..., Any]) -> None:
    """A call and its result, sent back as langchain writes them, are answered."""
    from langchain_core.messages import HumanMessage, ToolMessage

    asked = make().bind_tools([WEATHER], tool_choice="weather").invoke([HumanMessage("Averby?")])
    result = ToolMessage("fog", tool_call_id=asked.tool_calls[0]["id"])
    again = (
        make(max_tokens=8).bind_tools([WEATHER], tool_choice="none").invoke([HumanMessage("Averby?"), asked, result])
    )
    assert again.usage_metadata["input_token_details"]["cache_read"] > 0
