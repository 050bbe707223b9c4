"""What a request expects of its session: ``ETag`` and ``If-Match``, and ``X-If-Busy``."""

import json
import threading
from collections.abc import Callable

import httpx
import pytest

from support import wait_until

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me of the lighthouse"}], "max_tokens": 4}
RESPONSE = {"model": "tiny", "input": "Tell me of the lighthouse", "max_output_tokens": 4}
PLAIN = {"Content-Type": "text/plain"}
Send = Callable[[httpx.Client, str, dict[str, str]], httpx.Response]
CHANGES: dict[str, Send] = {
    "chat": lambda http, id, more: http.post("/v1/chat/completions", json={**ASK, "session_id": id}, headers=more),
    "completion": lambda http, id, more: http.post(
        "/v1/completions", json={"model": "tiny", "prompt": "It", "max_tokens": 4, "session_id": id}, headers=more
    ),
    "message": lambda http, id, more: http.post("/v1/messages", json=ASK, headers={**more, "X-Session-ID": id}),
    "response": lambda http, id, more: http.post("/v1/responses", json=RESPONSE, headers={**more, "X-Session-ID": id}),
    "ingest": lambda http, id, more: http.post(
        f"/v1/sessions/{id}/ingest", content="It was", headers={**more, **PLAIN}
    ),
    "patch": lambda http, id, more: http.patch(f"/v1/sessions/{id}", json={"metadata": {"a": 1}}, headers=more),
    "rewind": lambda http, id, more: http.post(f"/v1/sessions/{id}/rewind", json={"position": 3}, headers=more),
    "items": lambda http, id, more: http.post(
        f"/v1/conversations/{id}/items", json={"items": [{"role": "user", "content": "So"}]}, headers=more
    ),
    "update": lambda http, id, more: http.post(f"/v1/conversations/{id}", json={"metadata": {"a": "1"}}, headers=more),
    "take back": lambda http, id, more: http.delete(
        f"/v1/conversations/{id}/items/{http.get(f'/v1/conversations/{id}/items').json()['first_id']}", headers=more
    ),
    "pin": lambda http, id, more: http.post(f"/v1/sessions/{id}/focus", json={"pin": [[0, 3]]}, headers=more),
    "undo": lambda http, id, more: http.post(f"/v1/sessions/{id}/undo", headers=more),
}


def new_session(http: httpx.Client) -> str:
    id = http.post("/v1/sessions", json={}).json()["id"]
    assert http.post("/v1/chat/completions", json={**ASK, "session_id": id}).status_code == 200
    return str(id)


def tag_of(http: httpx.Client, id: str) -> str:
    read = http.get(f"/v1/sessions/{id}")
    assert read.headers["ETag"] == f'"{read.json()["sequence"]}"'
    return read.headers["ETag"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_made_only_to_what_was_seen(http, change):
    """Law: with If-Match a session that moved on is left alone, 412; one that did not is changed, and the answer tells
    the ETag that the next request may name."""
    id, send = new_session(http), CHANGES[change]
    seen = tag_of(http, id)
    first = send(http, id, {"If-Match": f'"99", {seen}'})
    assert first.status_code == 200, first.text
    assert first.headers["ETag"] == tag_of(http, id) != seen
    tokens = http.get(f"/v1/sessions/{id}").json()["tokens"]
    for stale in (seen, f"W/{first.headers['ETag']}"):
        late = send(http, id, {"If-Match": stale})
        assert late.status_code == 412
        assert late.json()["error"]["code"] == "session_changed"
        assert first.headers["ETag"] in late.json()["error"]["message"]
    assert (tag_of(http, id), http.get(f"/v1/sessions/{id}").json()["tokens"]) == (first.headers["ETag"], tokens)
    if change != "undo":
        assert send(http, id, {"If-Match": "*"}).status_code == 200


def test_lines_of_a_condition_are_one_list(http):
    """Law: If-Match in more than one line means what the lines mean when they are joined, in any order."""
    id = new_session(http)
    for first in (True, False):
        lines = [("If-Match", '"99"'), ("If-Match", tag_of(http, id))]
        assert CHANGES["chat"](http, id, httpx.Headers(lines if first else lines[::-1])).status_code == 200
    assert CHANGES["chat"](http, id, httpx.Headers([("If-Match", '"99"'), ("If-Match", "7")])).status_code == 400


def test_a_stream_tells_the_number_in_its_last_chunk(http):
    """Law: the number that a stream ends with is the session's, also where the turn cut the history first."""
    id = new_session(http)
    for _ in range(3):
        answer = http.post("/v1/chat/completions", json={**ASK, "session_id": id, "stream": True})
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert f'"{chunks[-1]["x_megacontext"]["sequence"]}"' == tag_of(http, id)
    unkept = http.post("/v1/chat/completions", json={**ASK, "store": False})
    assert unkept.json()["x_megacontext"]["sequence"] is None
    assert "ETag" not in unkept.headers


def test_bad_conditions_are_named(http):
    """Law: a header that is no tag, or a condition on no session, is a 400 that says so."""
    id = new_session(http)
    for bad in ("7", '"7', '"7",', "**"):
        refused = CHANGES["chat"](http, id, {"If-Match": bad})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "If-Match"), bad
    for path, body in (("chat/completions", ASK), ("messages", ASK), ("responses", RESPONSE)):
        for more in ({"If-Match": '"1"'}, {"X-If-Busy": "reject"}):
            refused = http.post(f"/v1/{path}", json=body, headers=more)
            assert refused.status_code == 400
            assert "need a session" in refused.json()["error"]["message"]


def test_requests_of_one_session_wait_unless_they_say_otherwise(http):
    """Law: while a turn runs another one waits for it, and with X-If-Busy: reject it is told 409 at once."""
    id = new_session(http)
    body = {**ASK, "session_id": id, "stream": True, "max_tokens": 2000, "ignore_eos": True}
    seen, answers = tag_of(http, id), []
    with http.stream("POST", "/v1/chat/completions", json=body) as running:
        lines = running.iter_lines()
        assert any(line.startswith("data: ") for line in lines)
        busy = CHANGES["chat"](http, id, {"X-If-Busy": "reject"})
        assert (busy.status_code, busy.json()["error"]["code"]) == (409, "session_in_use")
        waits = threading.Thread(target=lambda: answers.append(CHANGES["ingest"](http, id, {"If-Match": seen})))
        waits.start()
        assert not answers
    waits.join()
    assert answers[0].status_code == 200, "what it waited for was cancelled, and left no trace"
    wait_until(lambda: CHANGES["chat"](http, id, {"X-If-Busy": "reject"}).status_code == 200)
