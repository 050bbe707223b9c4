"""Whatever is wrong with a request, the answer is OpenAI's error object with a fitting status, and names the field."""

import json

import httpx
import openai
import pytest

from support import running, settings_for

MODEL = "tiny"
ASK = [{"role": "user", "content": "Hi"}]
KEYS = {"message", "type", "param", "code"}


JSON = {"content-type": "application/json"}


def as_json(body):
    # ASCII, so that half a surrogate pair can be sent as a client may send it.
    return json.dumps(body).encode("ascii")


def refused(response, status):
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == KEYS
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"n": 2}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 1001}, "stop"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.s"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [None]}, "messages"),
        ({"temperature": "0.5"}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"logit_bias": {"05": 1}}, "logit_bias"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"session_id": ""}, "session_id"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_values_out_of_range_are_refused(http, field, param):
    """A value that the server can't honour is answered 400 with the field's name."""
    error = refused(http.post("/v1/chat/completions", json={"model": MODEL, "messages": ASK, **field}), 400)
    assert error["param"] is None if param is None else error["param"].startswith(param)


@pytest.mark.parametrize("body", [b"", b"{", b"[1, 2]", b"null", b'{"model": "tiny"}', b"\xff\xfe", b'{"a": NaN}'])
def test_bodies_that_are_no_request(http, body):
    """A body that is not JSON, or not an object with the needed fields, is answered 400."""
    headers = {"content-type": "application/json"}
    refused(http.post("/v1/chat/completions", content=body, headers=headers), 400)


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/sessions/ID/messages", "/v1/conversations/ID/items"])
def test_a_place_in_a_list_that_is_none_is_refused_by_name(http, session, path):
    """Law: whatever list it is, an ``after`` that it does not know is named."""
    refused = http.get(path.replace("ID", session), params={"after": "nowhere"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "after")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/sessions"])
@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"{}", "text/plain"), (b'{"model": "\xff"}', "application/json"), (b"[" * 50_000, "application/json")],
)
def test_a_body_that_is_no_json_object_is_called_so(http, path, body, kind):
    """400 ``invalid_json``: where only the content type is missing, the message says which one."""
    answer = http.post(path, content=body, headers={"content-type": kind})
    error = answer.json()["error"]
    assert answer.status_code == 400
    if path != "/v1/messages":  # in Anthropic's shape there is no code
        assert error["code"] == "invalid_json"
    assert "application/json" in error["message"] or kind == "application/json"


def test_the_official_client_raises_its_own_errors(client):
    """Error objects are such that the official client raises the exception that fits."""
    with pytest.raises(openai.BadRequestError, match="functions") as bad:
        client.chat.completions.create(model=MODEL, messages=ASK, functions=[{"name": "f", "parameters": {}}])
    assert bad.value.param == "functions"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=ASK)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as lost:
        client.chat.completions.create(model=MODEL, messages=ASK, extra_body={"session_id": "sess_lost"})
    assert lost.value.code == "session_not_found"


def test_a_bad_stream_request_is_an_http_error(http):
    """What is wrong before the stream begins has an HTTP status, not an event."""
    body = {"model": MODEL, "messages": ASK, "stream": True, "session_id": "sess_lost"}
    refused(http.post("/v1/chat/completions", json=body), 404)
    refused(http.post("/v1/chat/completions", json={**body, "logit_bias": {"99999": 1}, "session_id": None}), 400)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/sessions/sess_lost", 404),
        ("DELETE", "/v1/sessions/sess_lost", 404),
        ("GET", "/v1/sessions/sess_lost/focus", 404),
        ("GET", "/v1/sessions/..%2f..%2fetc", 404),
        ("GET", f"/v1/sessions/{'x' * 500}", 404),
        ("GET", "/v1/sessions?limit=0", 400),
        ("GET", "/v1/sessions?limit=1001", 400),
        ("GET", "/v1/sessions?after=nonsense", 400),
    ],
)
def test_wrong_paths_and_queries(http, method, path, status):
    """Unknown routes, sessions and bad queries are answered in the same shape."""
    refused(http.request(method, path), status)


def test_every_answer_has_a_request_id(http):
    """x-request-id comes back as it was sent, is made where it was not, and is on errors too."""
    assert http.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = {http.get(path).headers["x-request-id"] for path in ("/health", "/v1/models", "/v1/nothing")}
    assert len(made) == 3
    body = {"model": MODEL, "messages": ASK, "max_tokens": 2, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body, headers={"x-request-id": "abc-2"}) as stream:
        assert stream.headers["x-request-id"] == "abc-2"
        stream.read()


def test_large_bodies_are_refused(model_dir, tmp_path):
    """A body over the limit is answered 413, announced or streamed, for JSON and for ingests alike."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", max_body_bytes=2048, max_ingest_bytes=4096)
    with running(settings) as address, httpx.Client(base_url=address) as http:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 4096}]}
        assert refused(http.post("/v1/chat/completions", json=body), 413)["code"] == "request_too_large"
        pieces = (b'{"model": "tiny", "x": "' if i == 0 else b"x" * 1000 for i in range(5))
        headers = {"content-type": "application/json"}
        refused(http.post("/v1/chat/completions", content=pieces, headers=headers), 413)
        session = http.post("/v1/sessions", json={}).json()["id"]
        for content in (b"x " * 4096, (b"x " * 500 for _ in range(6))):
            ingest = http.post(
                f"/v1/sessions/{session}/ingest", content=content, headers={"content-type": "text/plain"}
            )
            refused(ingest, 413)
        assert http.get(f"/v1/sessions/{session}").json()["tokens"] == 0
        small = http.post(f"/v1/sessions/{session}/ingest", content=b"x " * 2000)
        assert small.status_code == 200


@pytest.mark.parametrize(
    ("field", "param", "words"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0",
            "text",
        ),
        ({"stop": ["a", ""]}, "stop.1", "1 character"),
        ({"logit_bias": {"5": 1000}}, "logit_bias.5", "100"),
        ({"temperature": "hot"}, "temperature", "number"),
    ],
)
def test_errors_are_about_what_was_meant(http, field, param, words):
    """A field that may be several things is judged as the thing that the caller sent."""
    error = refused(http.post("/v1/chat/completions", json={"model": MODEL, "messages": ASK, **field}), 400)
    assert error["param"].startswith(param)
    assert words in error["message"]


@pytest.mark.parametrize("text", ["\ud800", "\x00", "\u2028", "a\ud83d"])
def test_odd_characters_are_text(http, text):
    """Half a surrogate pair, a NUL or a line separator breaks neither a request nor an error about it."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 2}
    for stream in (False, True):
        answer = http.post("/v1/chat/completions", content=as_json({**body, "stream": stream}), headers=JSON)
        assert answer.status_code == 200
    refused(http.post("/v1/chat/completions", content=as_json({**body, text: 1}), headers=JSON), 400)
    refused(http.post("/v1/chat/completions", content=as_json({**body, "model": text}), headers=JSON), 404)
    made = http.post("/v1/sessions", content=as_json({"metadata": {"title": text}}), headers=JSON)
    assert made.status_code == (400 if "\ud83d" in text or "\ud800" in text else 201)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none(http, value):
    """NaN and infinities are refused wherever a number may stand."""
    for body in ('{"metadata": {"x": %s}}', '{"budget": %s}'):
        refused(http.post("/v1/sessions", content=body % value, headers=JSON), 400)
    body = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "Hi"}}], "temperature": {value}}}'
    refused(http.post("/v1/chat/completions", content=body, headers=JSON), 400)
