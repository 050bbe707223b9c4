"""/openapi.json against the running server: whatever it says of requests, answers and errors is so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from server.apis.chat.protocol import ChatCompletion, ChatCompletionChunk
from server.apis.completions.protocol import TextCompletion
from server.apis.sessions.protocol import SessionList
from server.version import version
from support import running, settings_for

HOOKS = Path(__file__).with_name("openapi_hooks.py")
KEY = "key-of-the-tests"


def settings(model_dir: Path, folder: Path, **others: Any) -> Any:
    return settings_for(model_dir, folder / "s.sqlite", max_queue=100, max_tokens=4, **others)


def schemathesis(address: str, folder: Path, *options: str) -> None:
    """All checks of schemathesis on all routes; AssertionError with what it found."""
    config = folder / "schemathesis.toml"
    config.write_text(f'hooks = "{HOOKS}"\n')
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{address}/openapi.json"]
    common = ["--checks", "all", "--no-color", "--seed", "1", "--generation-database", "none"]
    done = subprocess.run(
        [*command, *common, "--request-timeout", "60", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HOOKS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_schemathesis_finds_nothing(model_dir: Path, tmp_path: Path) -> None:
    """No request makes a server error, an undocumented status, or an answer that its schema does not allow."""
    with running(settings(model_dir, tmp_path)) as address:
        schemathesis(address, tmp_path, "--max-examples", "5", "--phases", "coverage,fuzzing,stateful")


@pytest.mark.slow
def test_schemathesis_finds_nothing_for_long(model_dir: Path, tmp_path: Path) -> None:
    """The same with many more requests, on a server that asks for keys."""
    with running(settings(model_dir, tmp_path, api_key=[SecretStr(KEY)])) as address:
        schemathesis(address, tmp_path, "--max-examples", "300", "-H", f"Authorization: Bearer {KEY}")


def test_what_the_document_says_of_itself(http: httpx.Client) -> None:
    """Every route has a name, a tag, a text, typed answers and errors; 422 is nowhere, and no key is asked for."""
    about = http.get("/openapi.json").json()
    assert about["info"]["version"] == version()
    operations = [(path, way) for path, ways in about["paths"].items() for way in ways.values()]
    assert len({way["operationId"] for _, way in operations}) == len(operations) >= 14
    for path, way in operations:
        assert way["description"], path
        assert way["tags"], path
        assert not {"422", "401"} & set(way["responses"]), path
        for status, answer in way["responses"].items():
            for kind, content in answer["content"].items():
                assert content["schema"], (path, status, kind)
            if status[0] in "45" and path.startswith("/v1/"):
                shape = "MessagesError" if path.startswith("/v1/messages") else "Error"
                assert answer["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{shape}"}
    assert "securitySchemes" not in about["components"]
    for path in ("/docs", "/redoc"):
        assert http.get(path).status_code == 404


def test_a_key_is_told_where_it_is_asked_for(model_dir: Path, tmp_path: Path) -> None:
    """With keys, each route under /v1 names the scheme and 401, and those that answer without a key do not."""
    with running(settings(model_dir, tmp_path, api_key=[SecretStr(KEY)])) as address:
        about = httpx.get(f"{address}/openapi.json").json()
        assert about["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
        for path, ways in about["paths"].items():
            for method, way in ways.items():
                asked = httpx.request(method, address + path.replace("{", "").replace("}", "")).status_code == 401
                assert asked == path.startswith("/v1/") == ("security" in way) == ("401" in way["responses"]), path


@pytest.mark.parametrize("options", [{}, {"logprobs": True, "top_logprobs": 2}])
def test_chat_answers_are_as_described(http: httpx.Client, options: dict[str, Any]) -> None:
    """The whole body, and every chunk of a stream, is what the schema says and nothing else."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, **options}
    ChatCompletion.model_validate(http.post("/v1/chat/completions", json=body).json(), strict=True)
    for chunk in events(http, "/v1/chat/completions", body):
        ChatCompletionChunk.model_validate_json(chunk, strict=True)


@pytest.mark.parametrize("options", [{}, {"logprobs": 2}, {"prompt": ["Hi", "Ho"]}])
def test_text_answers_are_as_described(http: httpx.Client, options: dict[str, Any]) -> None:
    """The same for text completions, of one prompt and of several."""
    body = {"model": "tiny", "prompt": "Hi", "max_tokens": 4, **options}
    TextCompletion.model_validate(http.post("/v1/completions", json=body).json(), strict=True)
    for chunk in events(http, "/v1/completions", body):
        TextCompletion.model_validate_json(chunk, strict=True)


@pytest.mark.parametrize(
    ("path", "name", "asked"),
    [
        ("/v1/responses", "ResponseEvent", {"input": "Hi", "max_output_tokens": 4}),
        ("/v1/messages", "MessageEvent", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}),
    ],
)
def test_events_have_the_names_that_are_told(http: httpx.Client, path: str, name: str, asked: dict[str, Any]) -> None:
    """A stream whose events have names has those of the document alone, the types of its data; asked for again, too."""
    ways = http.get("/openapi.json").json()["paths"]
    told = [line for line in _stream(http, path, asked) if line.startswith(("event: ", "data: "))]
    names = [line.removeprefix("event: ") for line in told[::2]]
    data = [json.loads(line.removeprefix("data: ")) for line in told[1::2]]
    assert len(names) > 4
    assert names == [each["type"] for each in data]
    described = [ways[path]["post"]]
    if path == "/v1/responses":
        described.append(ways[f"{path}/{{response_id}}"]["get"])
        again = http.get(f"{path}/{data[0]['response']['id']}", params={"stream": True}).text.splitlines()
        assert [line.removeprefix("event: ") for line in again if line.startswith("event: ")] == names
    for way in described:
        event = way["responses"]["200"]["content"]["text/event-stream"]["schema"]["properties"]
        assert set(names) <= set(event["event"]["enum"])
        assert event["data"]["contentSchema"]["$ref"].endswith(f"/{name}")


def _stream(http: httpx.Client, path: str, asked: dict[str, Any]) -> list[str]:
    return http.post(path, json={"model": "tiny", "stream": True, **asked}).text.splitlines()


def test_answers_about_sessions_are_as_described(http: httpx.Client) -> None:
    """Sessions and lists of them hold what every client looks for, and no field without a value."""
    made = http.post("/v1/sessions", json={"metadata": {"empty": None}}).json()
    listed = http.get("/v1/sessions", params={"limit": 1}).json()
    assert SessionList.model_validate(listed).object == "list"
    assert [made["object"], listed["data"][0]["object"]] == ["session", "session"]
    assert made["metadata"] == listed["data"][0]["metadata"] == {"empty": None}
    assert {name for name, value in made.items() if value is None} == set()
    assert set(made) - set(listed["data"][0]) == {"budget", "cost", "utilization", "turns"}
    assert http.delete(f"/v1/sessions/{made['id']}").json() == {
        "id": made["id"],
        "object": "session.deleted",
        "deleted": True,
    }


def events(http: httpx.Client, path: str, body: dict[str, Any]) -> list[str]:
    streamed = http.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}})
    data = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    assert len(data) > 2
    return data
