"""What proxies, browsers and probes rely on: methods, headers, names, connections, and counts that stay bounded."""

import logging
import socket
import threading
import urllib.error
import urllib.request
from inspect import iscoroutinefunction

import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from server.app import ROUTES
from server.front.hosts import Hosts, is_loopback
from server.front.known_query import known_query
from server.serve import tell_open, uvicorn_config
from server.settings import Settings
from server.state import tenant_of
from support import free_port, running, settings_for, wait_until

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def guarded(model_dir, tmp_path_factory):
    """A server with a key, whose API the pages of one origin may call."""
    settings = settings_for(
        model_dir,
        tmp_path_factory.mktemp("guarded") / "s.sqlite",
        api_key="K",
        cors_origin=[ORIGIN],
        model_name="org/tiny",
    )
    with running(settings) as address, httpx.Client(base_url=address, headers={"authorization": "Bearer K"}) as http:
        yield http


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/v1/models", "/v1/models/tiny", "/v1/sessions", "/openapi.json"]
)
def test_head_is_get_without_a_body(http, path):
    """HEAD answers what GET does, without its body (RFC 9110, 9.3.2)."""
    got, head = http.get(path), http.head(path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    assert http.head("/v1/nothing").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", {"POST"}),
        ("HEAD", "/v1/chat/completions", {"POST"}),
        ("OPTIONS", "/v1/completions", {"POST"}),
        ("PUT", "/v1/sessions", {"GET", "HEAD", "POST"}),
        ("POST", "/v1/sessions/sess_x", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("DELETE", "/v1/sessions/sess_x/ingest", {"GET", "HEAD", "POST"}),
        ("POST", "/health", {"GET", "HEAD"}),
        ("PROPFIND", "/v1/models/a/b", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(http, method, path, allowed):
    """405 lists in Allow all methods of the address, not those of one route alone (RFC 9110, 15.5.6)."""
    answer = http.request(method, path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed
    assert method == "HEAD" or answer.json()["error"]["code"] == "method_not_allowed"


def test_a_missing_key_is_asked_for(guarded):
    """401 says how to come in, by WWW-Authenticate (RFC 9110, 15.5.2)."""
    for headers in ({"authorization": ""}, {"authorization": "Bearer wrong"}, {"authorization": "Basic K"}):
        answer = guarded.get("/v1/models", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"


def test_x_api_key_is_a_key(guarded):
    """A key in X-API-Key is the same key, with the same sessions; a bearer key goes before it."""
    made = guarded.post("/v1/sessions", json={}).json()["id"]
    own = {"authorization": "", "x-api-key": "K"}
    assert guarded.get(f"/v1/sessions/{made}", headers=own).status_code == 200
    assert guarded.get("/v1/models", headers={**own, "authorization": "Basic abc"}).status_code == 200
    assert guarded.get("/v1/models", headers={**own, "x-api-key": "k"}).status_code == 401
    assert guarded.get("/v1/models", headers={**own, "authorization": "Bearer wrong"}).status_code == 401


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity, gzip"])
def test_coded_bodies_are_refused_by_name(http, session, coding):
    """A Content-Encoding is answered 415 with the one that is read, wherever it comes (RFC 9110, 12.5.3)."""
    headers = {"content-encoding": coding, "content-type": "application/json"}
    for path in ("/v1/chat/completions", f"/v1/sessions/{session}/ingest"):
        answer = http.post(path, content=b"\x1f\x8b...", headers=headers)
        assert answer.status_code == 415
        assert answer.headers["accept-encoding"] == "identity"
        assert coding in answer.json()["error"]["message"]
    assert http.post("/v1/chat/completions", json=ASK, headers={"content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_an_open_server_has_no_foreign_name(http, host):
    """Without a key no page reaches the API by a name of its own (DNS rebinding); probes answer any name."""
    answer = http.get("/v1/models", headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_not_allowed"
    assert "--allowed-host" in answer.json()["error"]["message"]
    assert http.get("/openapi.json", headers={"host": host}).status_code == 403
    assert {http.get(path, headers={"host": host}).status_code for path in ("/health", "/ready", "/metrics")} == {200}


def test_names_that_are_ours(http, guarded):
    """Addresses as numbers and localhost are answered without a setting, and any name with a key."""
    for host in ("localhost", "LOCALHOST:80", "app.localhost:1", "127.0.0.1:9", "[::1]:8000", "10.1.2.3", "localhost."):
        assert http.get("/v1/models", headers={"host": host}).status_code == 200
    assert guarded.get("/v1/models", headers={"host": "chat.example"}).status_code == 200


def test_names_that_are_allowed():
    """--allowed-host adds names, all names below one, or any; the one that is listened on is among them."""
    for listening, more, good, bad in [
        ("box.lan", [], ["box.lan", "BOX.LAN:1", ""], ["x.box.lan", "lan"]),
        ("::", ["chat.example"], ["chat.example:443", "[fe80::1]"], ["x.chat.example", "example"]),
        ("0.0.0.0", ["*.example"], ["a.example", "a.b.example"], ["example", "aexample"]),
        ("0.0.0.0", ["*"], ["anything"], []),
    ]:
        hosts = Hosts(listening, more)
        for name in good:
            hosts.check(name)
        for name in bad:
            with pytest.raises(Exception, match="does not answer as"):
                hosts.check(name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"allowed_host": "http://a.example"},
        {"allowed_host": ["a.example:80"]},
        {"cors_origin": "https://a.example/"},
        {"cors_origin": ["a.example"]},
    ],
)
def test_names_that_could_never_match_are_refused(wrong):
    """A host with a port, or an origin with a path, is an error at start, not a setting without effect."""
    with pytest.raises(ValidationError, match=r"without|like"):
        Settings(**wrong)


def test_lists_come_from_the_environment_with_commas(monkeypatch):
    """MEGACONTEXT_CORS_ORIGIN and MEGACONTEXT_ALLOWED_HOST hold several values, as the keys do."""
    monkeypatch.setenv("MEGACONTEXT_CORS_ORIGIN", "https://a.example, http://localhost:3000")
    monkeypatch.setenv("MEGACONTEXT_ALLOWED_HOST", "a.example,b.example")
    assert Settings().cors_origin == ["https://a.example", "http://localhost:3000"]
    assert Settings().allowed_host == ["a.example", "b.example"]


def test_an_open_server_for_everybody_is_told(caplog):
    """A server without a key that others can reach says so at its start; one with a key, or for itself, doesn't."""
    with caplog.at_level(logging.WARNING):
        tell_open(Settings(host="127.0.0.1"))
        tell_open(Settings(host="0.0.0.0", api_key="K"))
        assert not caplog.records
        tell_open(Settings(host="0.0.0.0"))
    assert "no API key" in caplog.text
    assert [is_loopback(host) for host in ("localhost", "::1", "127.9.9.9", "::", "box.lan")] == [True] * 3 + [
        False
    ] * 2


def test_pages_of_an_allowed_origin_may_call(guarded):
    """A preflight passes without a key, and answers, errors too, can be read with the headers that clients need."""
    ask = {"origin": ORIGIN, "access-control-request-method": "POST", "authorization": ""}
    wanted = {"access-control-request-headers": "authorization,content-type,x-stainless-os,x-session-id"}
    preflight = guarded.options("/v1/chat/completions", headers={**ask, **wanted})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    for answer in (
        guarded.get("/v1/models", headers={"origin": ORIGIN}),
        guarded.get("/v1/models", headers={"origin": ORIGIN, "authorization": ""}),
        guarded.post("/v1/sessions", headers={"origin": ORIGIN, "content-encoding": "gzip"}),
    ):
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert {"X-Request-ID", "X-Session-ID", "Retry-After"} <= set(
            answer.headers["access-control-expose-headers"].split(", ")
        )
        assert answer.headers["x-request-id"]


def test_pages_of_other_origins_may_not(http, guarded):
    """Without --cors-origin, and for origins that it does not name, no page is allowed anything."""
    ask = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for server in (http, guarded):
        assert server.options("/v1/chat/completions", headers=ask).status_code in (400, 405)
        for answer in (server.options("/v1/models", headers=ask), server.get("/v1/models", headers=ask)):
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("name", ["org%2Ftiny", "org/tiny", "org/tiny/"])
def test_model_ids_with_a_slash(guarded, name):
    """A model named like a repository is found by its id, escaped or not."""
    assert guarded.get(f"/v1/models/{name}").json()["id"] == "org/tiny"
    assert guarded.get("/v1/models/org").status_code == 404


def test_slashes_too_many_do_not_matter(http):
    """A trailing or doubled slash is answered at once: a redirect would lose a body, a key, or a proxy's scheme."""
    for path in ("/v1/models/", "/v1//models", "/health/"):
        assert http.get(path).status_code == 200
    assert http.post("/v1//chat/completions/", json=ASK).status_code == 200


def series(http):
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in families
        for sample in family.samples
        if family.name.startswith("megacontext_")
    }


def hostile(http, number):
    """Every value of a request that a client may think up, in many places."""
    word = f"x{number}"
    http.request(f"BREW{number}", "/v1/models", headers={"host": "localhost", "x-request-id": word})
    http.request("OPTIONS", f"/{word}", headers={"origin": f"https://{word}.example"})
    http.get(f"/v1/models/{word}/{word}")
    http.get(f"/v1/sessions/{word}", params={word: word})
    http.get("/v1/models", headers={"host": f"{word}.example"})
    http.post("/v1/chat/completions", json={**ASK, "model": word})
    http.post("/v1/chat/completions", json={**ASK, word: 1})
    http.post("/v1/chat/completions", json={**ASK, "session_id": word}, headers={"content-type": f"{word}/json"})
    http.post("/v1/completions", json={"model": "tiny", "prompt": word, "max_tokens": 1, "stop": [word]})
    http.post(f"/v1/sessions/{word}/ingest", content=b"x", headers={"content-encoding": word, "traceparent": word})


def test_what_clients_think_up_makes_no_series(http):
    """However many methods, routes, names and values come, the series of /metrics are those of the first ones."""
    hostile(http, 0)
    before = series(http)
    for number in range(1, 12):
        hostile(http, number)
    assert series(http) - before == set()
    labels = {dict(pairs)["route"] for name, pairs in before if name == "megacontext_http_requests_total"}
    assert "other" in labels
    assert not any("x0" in label for label in labels)


async def nothing(scope, receive, send):
    """An application that answers everything with nothing."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_idle_connections_outlive_the_pools_of_proxies():
    """An idle connection is kept as long as the setting says, which is longer than proxies reuse it."""
    assert uvicorn_config(nothing, Settings()).timeout_keep_alive > 120
    config = uvicorn_config(nothing, Settings(idle_connection_seconds=1, port=free_port()))
    config.lifespan = "off"
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        with socket.create_connection(("127.0.0.1", config.port)) as connection:
            connection.settimeout(20)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            # The server is the first to close, and it does so by the setting.
            while part := connection.recv(4096):
                received += part
        assert b" 204 " in received
    finally:
        server.should_exit = True
        thread.join()


def test_a_refusal_reaches_a_client_that_still_sends(guarded):
    """An answer that comes before the body was read is not lost in a reset connection."""
    address = str(guarded.base_url)
    for key, status in (("wrong", 401), ("K", 413)):
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        body = urllib.request.Request(f"{address}/v1/chat/completions", b"x" * 70_000_000, headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(body)
        assert refused.value.code == status


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/sessions", "/v1/sessions/x/rewind"])
@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'""', b'{"model": null}', b'{"messages": [null]}'])
def test_no_error_speaks_of_none(http, path, body):
    """What Python calls None is called by what it is: a body or a field that is missing."""
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert "None" not in answer.text


def test_no_dependency_takes_a_thread():
    """Law: what routes need of a request is had in the event's loop: FastAPI sends each plain function to a thread, and
    a request waits for one after the other."""
    contexts = [context for included in ROUTES.routes for context in included.effective_route_contexts()]
    assert len(contexts) > 40
    calls = {one.call for context in contexts for one in needs(context.dependant)}
    assert {tenant_of, known_query} < calls
    assert [call.__qualname__ for call in calls if not iscoroutinefunction(call)] == []


def needs(dependant):
    yield dependant
    for inner in dependant.dependencies:
        yield from needs(inner)
