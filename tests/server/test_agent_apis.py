"""One agent through every API: the same calls, the same history, and no turn reads anything of it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anthropic
import httpx
import openai
import pytest
from pydantic import SecretStr

from agent_tools import CHOICES, SCHEMAS, result_of
from support import running, settings_for, write_model
from tool_shapes import TOOL_SHAPES

TURNS = 10
SYSTEM, ASK = "You act.", "Explore."


@dataclass(frozen=True)
class Call:
    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """calls: of the reply. cached, tokens: what was held before it, and what the history has behind it."""

    calls: Sequence[Call]
    cached: int
    tokens: int
    session: str


class Agent(Protocol):
    """Speaks one API. A turn brings what the calls of the turn before have answered; choice: a tool, required, none."""

    def turn(self, results: Sequence[tuple[Call, str]], choice: str, **drawn: Any) -> Turn: ...


class ChatAgent:
    def __init__(self, address: str, key: str) -> None:
        self._client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
        self._messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ASK}]
        self._tools: list[Any] = [
            {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}
            for name, schema in SCHEMAS.items()
        ]

    def turn(self, results: Sequence[tuple[Call, str]], choice: str, **drawn: Any) -> Turn:
        self._messages += [{"role": "tool", "tool_call_id": call.id, "content": text} for call, text in results]
        named: Any = {"type": "function", "function": {"name": choice}} if choice in SCHEMAS else choice
        reply = self._client.chat.completions.create(
            model="tiny",
            messages=self._messages,
            tools=self._tools,
            tool_choice=named,
            parallel_tool_calls=False,
            **drawn,
        )
        message = reply.choices[0].message
        self._messages.append(message)
        calls = [
            Call(one.id, one.function.name, json.loads(one.function.arguments)) for one in message.tool_calls or []
        ]
        context: Any = reply.model_extra["x_megacontext"]
        return Turn(calls, reply.usage.prompt_tokens_details.cached_tokens, context["tokens"], context["session_id"])


class ResponsesAgent:
    """Sends what is new behind the response before, or with ``whole`` all of it each time."""

    def __init__(self, address: str, key: str, *, whole: bool) -> None:
        self._client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
        self._whole, self._previous = whole, None
        self._items: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ASK}]
        self._tools: list[Any] = [
            {"type": "function", "name": name, "parameters": schema, "strict": True} for name, schema in SCHEMAS.items()
        ]

    def turn(self, results: Sequence[tuple[Call, str]], choice: str, **drawn: Any) -> Turn:
        new = [{"type": "function_call_output", "call_id": call.id, "output": text} for call, text in results]
        self._items = [*self._items, *new] if self._whole or not results else new
        named: Any = {"type": "function", "name": choice} if choice in SCHEMAS else choice
        seed = {"seed": drawn.pop("seed")}
        reply = self._client.responses.create(
            model="tiny",
            input=self._items,
            previous_response_id=None if self._whole else self._previous,
            tools=self._tools,
            tool_choice=named,
            parallel_tool_calls=False,
            max_output_tokens=drawn.pop("max_tokens"),
            extra_body=seed,
            **drawn,
        )
        self._previous = reply.id
        if self._whole:
            self._items += [item.to_dict() for item in reply.output]
        calls = [
            Call(item.call_id, item.name, json.loads(item.arguments))
            for item in reply.output
            if item.type == "function_call"
        ]
        context: Any = reply.to_dict()["x_megacontext"]
        return Turn(calls, reply.usage.input_tokens_details.cached_tokens, context["tokens"], context["session_id"])


class MessagesAgent:
    def __init__(self, address: str, key: str) -> None:
        self._client = anthropic.Anthropic(base_url=address, api_key=key, max_retries=0)
        self._messages: list[Any] = [{"role": "user", "content": ASK}]
        self._tools: list[Any] = [
            {"name": name, "input_schema": schema, "strict": True} for name, schema in SCHEMAS.items()
        ]

    def turn(self, results: Sequence[tuple[Call, str]], choice: str, **drawn: Any) -> Turn:
        if results:
            blocks = [{"type": "tool_result", "tool_use_id": call.id, "content": text} for call, text in results]
            self._messages.append({"role": "user", "content": blocks})
        named = {"type": "tool", "name": choice} if choice in SCHEMAS else {"type": _ANTHROPIC[choice]}
        reply = self._client.messages.create(
            model="tiny",
            system=SYSTEM,
            messages=self._messages,
            tools=self._tools,
            tool_choice=named if choice == "none" else {**named, "disable_parallel_tool_use": True},  # type: ignore[arg-type]
            max_tokens=drawn.pop("max_tokens"),
            extra_body=drawn,
        )
        self._messages.append({"role": "assistant", "content": reply.content})
        calls = [Call(block.id, block.name, block.input) for block in reply.content if block.type == "tool_use"]
        context: Any = reply.model_extra["x_megacontext"]
        return Turn(calls, reply.usage.cache_read_input_tokens or 0, context["tokens"], context["session_id"])


_ANTHROPIC = {"required": "any", "none": "none"}
AGENTS: dict[str, Any] = {
    "chat": ChatAgent,
    "responses, one behind the other": lambda address, key: ResponsesAgent(address, key, whole=False),
    "responses, all of the input": lambda address, key: ResponsesAgent(address, key, whole=True),
    "messages": MessagesAgent,
}
KEYS = {name: f"key-{number}" for number, name in enumerate(AGENTS)}
"""A key each: histories of one key are found by what they hold, and each agent shall write its own."""


@pytest.fixture(scope="module", params=[pytest.param("none", marks=pytest.mark.slow), "qwen25"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model whose template knows no tools, and one that does; with room, for its tokenizer knows few words."""
    folder = tmp_path_factory.mktemp(request.param)
    model = write_model(folder / "tiny", template=TOOL_SHAPES[request.param])
    widen(model, 4096)
    keys = [SecretStr(key) for key in KEYS.values()]
    with running(settings_for(model, folder / "sessions.sqlite", budget=3072, api_key=keys)) as address:
        yield address


def widen(model: Path, window: int) -> None:
    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": window}))


def explore(agent: Agent) -> tuple[list[Call], list[Turn]]:
    """Ten turns that call a tool each, and one that ends in words -> (all calls, all turns)."""
    called: list[Call] = []
    turns: list[Turn] = []
    results: list[tuple[Call, str]] = []
    for turn in range(TURNS):
        done = agent.turn(results, CHOICES[turn % 3], temperature=1, seed=turn, max_tokens=200)
        assert len(done.calls) == 1
        results = [(call, result_of(call.name, call.arguments)) for call in done.calls]
        called += done.calls
        turns.append(done)
    turns.append(agent.turn(results, "none", temperature=1, seed=TURNS, max_tokens=4))
    assert not turns[-1].calls
    return called, turns


def state(address: str, name: str, session: str) -> list[Any]:
    """The session as the server has it: who said what, which calls were made, and where each message stands."""
    listed = httpx.get(f"{address}/v1/sessions/{session}/messages", headers={"X-API-Key": KEYS[name]}).json()["data"]
    return [
        (
            one["role"],
            one["content"],
            [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in one["tool_calls"] or []],
            one["start"],
            one["end"],
        )
        for one in listed
    ]


def test_one_agent_through_every_api(address: str) -> None:
    """Law: whatever the API, the same agent makes the same calls and leaves the same history in one session, to the
    token; and each turn finds all that was there before: nothing of it is read twice."""
    states, calls = {}, {}
    for name, agent in AGENTS.items():
        called, turns = explore(agent(address, KEYS[name]))
        assert [turn.cached for turn in turns] == [0, *(turn.tokens for turn in turns[:-1])], name
        (session,) = {turn.session for turn in turns}
        states[name] = state(address, name, session)
        calls[name] = [(call.name, call.arguments) for call in called]
    first = next(iter(AGENTS))
    assert len(states[first]) == 2 + 2 * TURNS + 1
    for name in AGENTS:
        assert calls[name] == calls[first], name
        assert states[name] == states[first], name
