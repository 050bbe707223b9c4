"""langchain-openai against the real server: what an application of it calls, by chat completions and by Responses.

``make test-clients`` installs it and runs this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest

from client_rows import A

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
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
SENT: dict[str, Any] = {"n": 1, "seed": 7, "stop": ["zz"], "service_tier": "auto", "metadata": {"a": "b"}, "top_p": 1}


def behind(model: Any) -> bool:
    """A second turn that names the first one's response, as langchain does it by itself."""
    first = model.invoke([("human", "Hi")])
    second = model.invoke([("human", "Hi"), first, ("human", "Ho")])
    return bool(second.usage_metadata["input_token_details"]["cache_read"] > 0)


TALK = [("system", "Be brief."), ("human", "Hi"), ("ai", "Hello."), ("human", "Who am I?")]
CALLS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "invoke": lambda make: make().invoke("Hi").content,
    "invoke, a conversation": lambda make: make().invoke(TALK).content,
    "stream": lambda make: "".join(chunk.content for chunk in make().stream("Hi")),
    "stream with usage": lambda make: [c for c in make(stream_usage=True).stream("Hi") if c.usage_metadata],
    "batch": lambda make: len(make().batch(["Hi", "Ho"])) == 2,
    "stop": lambda make: make().invoke("Hi", stop=["never"]).response_metadata["finish_reason"],
    "logprobs": lambda make: make(logprobs=True, top_logprobs=2).invoke("Hi").response_metadata["logprobs"],
    "as programs send it": lambda make: (
        make(max_tokens=4, logit_bias={str(A): 100}, **SENT).invoke("Hi").content == "aaaa"
    ),
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
    "responses": lambda make: (
        make(use_responses_api=True, max_tokens=4).invoke("Hi").usage_metadata["output_tokens"] == 4
    ),
    "responses, streamed": lambda make: [c for c in make(use_responses_api=True).stream("Hi") if c.content],
    "responses, a tool that must be called": lambda make: (
        make(use_responses_api=True)
        .bind_tools([WEATHER], tool_choice="weather")
        .invoke("Averby?")
        .tool_calls[0]["name"]
        == "weather"
    ),
    "responses, structured output": lambda make: (
        set(make(use_responses_api=True).with_structured_output(PERSON, method="json_schema").invoke("Who?"))
        == {"name"}
    ),
    "responses, behind the one before": lambda make: behind(
        make(use_responses_api=True, use_previous_response_id=True, max_tokens=4)
    ),
}
REFUSED: dict[str, tuple[Callable[[Callable[..., Any]], Any], str]] = {
    "several choices": (lambda make: make(n=2).invoke("Hi"), "'n' is not supported"),
    "reasoning": (lambda make: make(reasoning_effort="low").invoke("Hi"), "'reasoning.*' is not supported"),
    "a picture": (lambda make: make().invoke([("human", [PICTURE])]), "images are not supported"),
    "a tool of OpenAI's": (
        lambda make: make(use_responses_api=True).bind_tools([{"type": "web_search"}]).invoke("Hi"),
        "runs no tools",
    ),
}


@pytest.mark.parametrize(("call", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_had_is_refused(make: Callable[..., Any], call: Callable[..., Any], words: str) -> None:
    """What no reply here could honour is a 400 that says what it is."""
    with pytest.raises(openai.BadRequestError, match=words):
        call(make)


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
